"""The floors of the design: imports go down only, wings and columns do not know each other. And the house is in order."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What each part may import from the project, itself apart. `dictlab.x` alone is a module, with what lies in it a package.
BASE = {
    "dictlab.errors",
    "dictlab.__about__",
    "dictlab.numerics",
    "dictlab.runtime",
    "dictlab.site_names",
    "dictlab.token_selection",
    "dictlab.analysis_entries",
}
ALLOWED = {
    **dict.fromkeys(BASE, BASE),
    "dictlab.runs": BASE,
    "dictlab.demo": set(),
    "dictlab.dictionary": BASE,
    "dictlab.formats": BASE | {"dictlab.dictionary"},
    "dictlab.model": BASE,
    "dictlab.data": BASE | {"dictlab.model"},
    "dictlab.reports": BASE | {"dictlab.dictionary", "dictlab.formats"},
}
CORE = set(ALLOWED) | {"dictlab.evaluation"}
ALLOWED |= {
    "dictlab.evaluation": CORE - {"dictlab.reports", "dictlab.runs"},
    "dictlab.training": CORE,
    "analyses.common": CORE,
    "analyses.similarity": CORE | {"analyses.common"},
    "analyses.pool": CORE | {"analyses.common"},
    "analyses.model_effects": CORE | {"analyses.common"},
    "analyses.autointerp": CORE | {"analyses.common"},
    "analyses.features": CORE | {"analyses.common", "analyses.autointerp"},
    "analyses.quality": CORE | {"analyses.common", "analyses.similarity"},
    # Training: stitch --finetune is a training run, and is left to the trainer itself rather than to a copy of it.
    "analyses.composition": CORE
    | {"analyses.common", "analyses.similarity", "analyses.pool", "analyses.quality", "dictlab.training"},
    "analyses.explorer": CORE | {"analyses.common", "analyses.similarity", "analyses.composition"},
    "dictlab.cli": CORE | {"dictlab.training"},
    "dictlab.__main__": {"dictlab.cli"},
}
# Arrows that still run upwards, each to be taken out.
UPWARDS: set[tuple[str, str]] = set()
CIRCLES: list[set[str]] = []
FILES = [p for folder in ("dictlab", "analyses") for p in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


def part_of(module: str) -> str | None:
    """The part of the project that a module lies in."""
    return next((part for part in sorted(ALLOWED, key=len, reverse=True) if f"{module}.".startswith(f"{part}.")), None)


def imports(module: str) -> set[str]:
    """The project's modules that a module imports, those for type checking alone included."""
    used = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            used |= names & MODULES.keys() or {node.module}
    return used & MODULES.keys() - {module}


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("dictlab", "analyses")])
def test_imports_go_down_only(module):
    part = part_of(module)
    assert part is not None, f"{module} has no place: give it one in this test and in docs/design.md"
    used = {part_of(name) for name in imports(module)} - {None, part}
    upwards = used - ALLOWED[part] - {to for name, to in UPWARDS if name == module}
    assert not upwards, f"{module} imports from {upwards}"


def circles() -> list[set[str]]:
    """Sets of modules that import each other, directly or through others (Tarjan's strongly connected components)."""
    graph = {module: imports(module) - {"dictlab", "analyses"} for module in MODULES}
    number, low, stack, components = {}, {}, [], []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for other in graph[module]:
            if other not in number:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], number[other])
        if low[module] == number[module]:
            component = set()
            while module not in component:
                component.add(stack.pop())
            components.append(component)

    for module in graph:
        if module not in number:
            visit(module)
    return [component for component in components if len(component) > 1]


def test_no_import_circles():
    assert [circle for circle in circles() if circle not in CIRCLES] == []


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


SHELL = re.compile(r"dictlab train --resume|--nproc_per_node|--out of `train`")  # commands, and options of others


@pytest.mark.parametrize("path", [p for p in FILES if "cli" not in p.parts], ids=lambda p: str(p.relative_to(ROOT)))
def test_messages_name_arguments_and_no_options(path):
    """Who calls a function passes `model=...`; the command line turns that into --model (`as_options`)."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {ast.get_docstring(n, clean=False) for n in ast.walk(tree) if isinstance(n, documented)}
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)} - docstrings
    typed = [text for text in texts if re.search(r"(?<![\w-])--[a-z]{2,}", SHELL.sub("", text))]
    attributes = [t for t in typed if "\n" in t]  # docstrings below fields
    assert set(typed) <= set(attributes), typed
