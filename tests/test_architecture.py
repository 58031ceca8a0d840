"""The floors of the design: imports go down only, wings and columns do not know each other. And the house is in order."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What each part may import from the project (itself apart).
BASE = {
    "dictlab.errors",
    "dictlab.__about__",
    "dictlab.seeds",
    "dictlab.names",
    "dictlab.product",
    "dictlab.flops",
}
COLUMN_D = {
    "dictlab.codes",
    "dictlab.selection",
    "dictlab.sparsity",
    "dictlab.normalisation",
    "dictlab.kernels",
    "dictlab.dictionary",
    "dictlab.formats",
}
COLUMN_M = {
    "dictlab.packing",
    "dictlab.stream",
    "dictlab.arrays",
    "dictlab.cache",
    "dictlab.text",
    "dictlab.hooks",
    "dictlab.past",
    "dictlab.layout",
    "dictlab.lm",
    "dictlab.activations",
    "dictlab.outputs",
}
SHARED = {
    "dictlab.cards",
    "dictlab.report",
    "dictlab.evaluate",
    "dictlab.reconstruction",
    "dictlab.runs",
    "dictlab.conventions",
    "dictlab.describe",
}
ALLOWED = {
    "dictlab.errors": set(),
    "dictlab.__about__": set(),
    "dictlab.seeds": set(),
    "dictlab.names": set(),
    "dictlab.product": set(),
    "dictlab.codes": BASE,
    "dictlab.selection": set(),
    "dictlab.sparsity": BASE | {"dictlab.codes", "dictlab.selection"},
    "dictlab.records": BASE | {"dictlab.sparsity"},
    "dictlab.normalisation": BASE,
    "dictlab.kernels": BASE | {"dictlab.codes", "dictlab.sparsity"},
    "dictlab.dictionary": BASE
    | {"dictlab.codes", "dictlab.sparsity", "dictlab.records", "dictlab.normalisation", "dictlab.kernels"},
    "dictlab.formats": BASE
    | {"dictlab.codes", "dictlab.sparsity", "dictlab.records", "dictlab.normalisation", "dictlab.dictionary"},
    "dictlab.flops": set(),
    "dictlab.packing": BASE,
    "dictlab.stream": BASE | {"dictlab.packing"},
    "dictlab.arrays": BASE,
    "dictlab.cache": BASE | {"dictlab.lm"},
    "dictlab.runs": BASE,
    "dictlab.reconstruction": BASE | COLUMN_D | COLUMN_M | {"dictlab.evaluate"},
    "dictlab.text": BASE | {"dictlab.packing"},
    "dictlab.hooks": BASE,
    "dictlab.past": BASE,
    "dictlab.layout": BASE | {"dictlab.hooks"},
    "dictlab.lm": BASE | {"dictlab.hooks", "dictlab.layout", "dictlab.past"},
    "dictlab.outputs": BASE | {"dictlab.lm"},
    "dictlab.activations": BASE | {"dictlab.text", "dictlab.lm", "dictlab.stream"},
    "dictlab.cards": set(),
    "dictlab.report": BASE | COLUMN_D | {"dictlab.cards"},
    "dictlab.describe": BASE | COLUMN_D,
    "dictlab.conventions": BASE | COLUMN_D | COLUMN_M,
    "dictlab.evaluate": BASE | COLUMN_D | COLUMN_M | {"dictlab.conventions"},
    "dictlab.train": BASE | COLUMN_D | COLUMN_M | SHARED,
    "analyses": BASE | COLUMN_D | COLUMN_M | SHARED,
    "dictlab.cli": BASE | COLUMN_D | COLUMN_M | SHARED | {"dictlab.train"},
    "dictlab.__main__": {"dictlab.cli"},
}


def part_of(module: str) -> str | None:
    """The part of the house a module lies in."""
    return next((part for part in sorted(ALLOWED, key=len, reverse=True) if f"{module}.".startswith(f"{part}.")), None)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


FILES = [p for folder in ("dictlab", "analyses") for p in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if module == "dictlab":
        return  # the public face shows every floor
    part = part_of(module)
    assert part is not None, f"{module} has no floor: give it one in this test and in docs/design.md"
    used = {part_of(name) for name in imports(path)} - {None, part}
    assert used <= ALLOWED[part], f"{module} imports from {used - ALLOWED[part]}"


def test_ruff_finds_nothing():
    for arguments in (["check"], ["format", "--check"]):
        found = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stdout + found.stderr


def test_the_type_checker_finds_nothing():
    found = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_nothing_is_unpickled():
    """torch.load only with weights_only, and no pickle anywhere."""
    for path in [*FILES, *(ROOT / "checkpoints").glob("*.py")]:
        text = path.read_text()
        assert not re.search(r"import pickle\b", text), path
        assert text.count("torch.load(") == text.count("weights_only=True"), path
