"""How a dictionary's files are damaged: first in their meaning (tensors, fields), then in their bytes."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
DTYPES = ("float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool", "complex64", *FLOAT8[:2])
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "k", "encoder.weight", "bias", "x", "", "a\nb", "_orig_mod.b")
EDGE = 256  # bytes at a file's ends, where headers and directories lie


def damage(folder: Path, random: Random, others: list[Path]) -> list[str]:
    """Damage the files of a folder once or a few times; returns what was done.

    Args:
        folder: Of one dictionary.
        random: Decides.
        others: Folders of dictionaries to take files from.
    """
    done = []
    if random.random() < 0.6:
        done.append(_structured(folder, random, others))
    for _ in range(random.choice((0, 0, 0, 1, 3)) if done else random.choice((1, 1, 1, 3))):
        file = random.choice(files(folder) or [folder / "cfg.json"])
        done.append(f"{file.name}: {_bytes(file, random)}")
    return done


def files(folder: Path) -> list[Path]:
    """In the same order everywhere."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def _structured(folder: Path, random: Random, others: list[Path]) -> str:
    configs = [path for path in files(folder) if path.suffix in (".json", ".yaml")]
    weights = [path for path in files(folder) if path not in configs]
    kinds: list[Callable[[], str]] = [lambda: _tensors(random.choice(weights), random)] * 3
    if configs:
        kinds += [lambda: _config(random.choice(configs), random)] * 3
    kinds += [lambda: _swapped(folder, random, others)]
    if any(path.suffix == ".safetensors" for path in weights):
        kinds += [lambda: _header(random.choice([p for p in weights if p.suffix == ".safetensors"]), random)]
    return random.choice(kinds)()


# Trees of values, as in configurations


def junk(random: Random) -> Any:
    """A value that somebody did not expect."""
    deep: Any = 1
    for _ in range(random.choice((5, 39, 40, 60, 300))):
        deep = {"a": deep} if random.random() < 0.5 else [deep]
    return random.choice(
        (
            *(None, True, False, 0, 1, -1, 2, 3, 7, 18, 10**6, 10**12, 2**31, 2**63, 2**64, 10**30, -(10**20)),
            *(0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), -float("inf")),
            *(
                "",
                "x",
                "3",
                "none",
                "relu",
                "topk",
                "standard",
                "jumprelu",
                "true",
                "torch.float16",
                "a\nb\x1b[2J",
                "x" * 5000,
            ),
            *([], {}, [1, 2], {"a": 1}, [[]], {"": None}, ["x"] * 1000, deep),
        )
    )


def _places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in inner:
        yield (*at, name)
        yield from _places(value, (*at, name))


def change(tree: Any, random: Random) -> Any:
    """One value of a tree replaced, taken out, renamed, or added; or another tree altogether."""
    places = list(_places(tree))
    if not places or random.random() < 0.05:
        return junk(random)
    *path, last = random.choice(places)
    parent = tree
    for name in path:
        parent = parent[name]
    kind = random.choice(("replace", "replace", "replace", "drop", "rename", "add", "wrap"))
    if kind == "drop":
        del parent[last]
    elif kind == "rename" and isinstance(parent, dict):
        parent[random.choice((*NAMES, f"{last}_", str(last).upper()))] = parent.pop(last)
    elif kind == "add" and isinstance(parent, dict):
        parent[random.choice(("new", "k", "scaling_factor", "signed", "transcode"))] = junk(random)
    elif kind == "wrap":
        parent[last] = random.choice(([parent[last]], {"value": parent[last]}, str(parent[last])))
    else:
        parent[last] = junk(random)
    return tree


def _config(path: Path, random: Random) -> str:
    text = path.read_text()
    if random.random() < 0.15:
        path.write_text(random.choice(BOMBS))
        return f"{path.name}: a bomb"
    tree = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    for _ in range(random.choice((1, 1, 2, 5))):
        tree = change(tree, random)
    path.write_text(json.dumps(tree) if path.suffix == ".json" else yaml.safe_dump(tree))
    return f"{path.name}: fields changed"


BOMBS = (
    "[" * 100_000,
    '{"a":' * 3000 + "1" + "}" * 3000,
    '{"k": ' + "9" * 5000 + "}",
    '{"k": "\\ud800", "trainer": {"dict_class": "\\ud800"}}',
    "a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nd: [*c,*c,*c,*c]",
    "saes: &s {x: *s}\nloss: *s",
    "k: !!python/object/apply:os.system ['true']",
    "seed: 1" + ":1" * 50_000,
    "- " * 5000 + "x",
    "[]",
    "null",
    "",
    "\x00",
)


# Tensors


def _tensors(path: Path, random: Random) -> str:
    tensors, entries, header = _read(path)
    if entries and random.random() < 0.4:
        changed = change(entries, random)
        entries = changed if isinstance(changed, dict) else {"entry": changed}
        kind = "entries changed"
    elif header and random.random() < 0.7:
        name = random.choice(sorted(header))
        header[name] = json.dumps(change(json.loads(header[name]), random))
        kind = "header changed"
    else:
        for _ in range(random.choice((1, 1, 2))):
            kind = _one_tensor(tensors, random)
    _write(path, tensors, entries, header, random)
    return f"{path.name}: {kind}"


def _one_tensor(tensors: dict[str, Tensor], random: Random) -> str:
    if not tensors:
        return "no tensor left"
    name = random.choice(sorted(tensors))
    kind = random.choice(("drop", "rename", "add", *CHANGES, *CHANGES))
    if kind == "drop":
        del tensors[name]
    elif kind == "rename":
        tensors[random.choice((*NAMES, f"_orig_mod.{name}", name.lower()))] = tensors.pop(name)
    elif kind == "add":
        tensors[random.choice(NAMES)] = tensors[name]
    elif kind == "dtype":
        tensors[name] = tensors[name].to(getattr(torch, random.choice(DTYPES)))
    else:  # torch computes with no float8: changed as float32, and back
        tensor = tensors[name].clone()
        small = str(tensor.dtype).removeprefix("torch.") in FLOAT8
        changed = CHANGES[kind](tensor.float() if small else tensor, random)
        tensors[name] = changed.to(tensor.dtype) if small else changed
    return f"{kind} {name!r}"


def _poked(value: float) -> Callable[[Tensor, Random], Tensor]:
    def poke(tensor: Tensor, random: Random) -> Tensor:
        if tensor.numel() and tensor.is_floating_point():
            tensor.view(-1)[random.randrange(tensor.numel())] = value
        return tensor

    return poke


CHANGES: dict[str, Callable[[Tensor, Random], Tensor]] = {
    "transpose": lambda t, random: t.mT.contiguous() if t.ndim > 1 else t,
    "flatten": lambda t, random: t.flatten(),
    "scalar": lambda t, random: t.flatten()[0] if t.numel() else t,
    "wrap": lambda t, random: t[None],
    "column": lambda t, random: t[..., None],
    "shorten": lambda t, random: t[:-1] if t.ndim else t,
    "empty": lambda t, random: t[:0] if t.ndim else t,
    "repeat": lambda t, random: torch.cat([t, t]) if t.ndim else t,
    "zero": lambda t, random: torch.zeros_like(t),
    "negative": lambda t, random: -t if t.is_floating_point() else t,
    "large": lambda t, random: t * 1e30 if t.is_floating_point() else t,
    "nan": _poked(float("nan")),
    "infinite": _poked(float("inf")),
    "dtype": lambda t, random: t,
}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}, {}, file.metadata() or {}  # noqa: SIM118
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: torch.from_numpy(arrays[name].copy()) for name in arrays}, {}, {}
    content = torch.load(path, weights_only=True)
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in content.items() if name not in tensors}, {}


def _write(path: Path, tensors: dict[str, Tensor], entries: Any, header: dict[str, str], random: Random) -> None:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata=header)
    elif path.suffix == ".npz":
        known = {
            name: t for name, t in tensors.items() if str(t.dtype).removeprefix("torch.") not in ("bfloat16", *FLOAT8)
        }
        random.choice((np.savez, np.savez_compressed))(path, **{n or "empty": t.numpy() for n, t in known.items()})
    else:
        torch.save({**entries, **tensors}, path, _use_new_zipfile_serialization=random.random() < 0.8)


def _header(path: Path, random: Random) -> str:
    """The header of a safetensors file, with the same numbers behind it."""
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    text = json.dumps(change(json.loads(content[8:end]), random)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[end:])
    return f"{path.name}: header of the file changed"


# Files


def _swapped(folder: Path, random: Random, others: list[Path]) -> str:
    file, other = random.choice(files(folder)), random.choice(files(random.choice(others)))
    kind = random.choice(("replace", "add", "remove", "rename"))
    if kind == "replace":
        shutil.copyfile(other, file)
    elif kind == "add":
        shutil.copyfile(other, folder / other.name)
    elif kind == "remove":
        file.unlink()
    else:
        file.rename(file.with_suffix(random.choice((".pt", ".safetensors", ".npz", ".json", ".yaml", ".bin"))))
    return f"{kind} {file.name} ({other.name})"


# Bytes


def _bytes(path: Path, random: Random) -> str:
    content = bytearray(path.read_bytes() if path.exists() else b"")
    size = len(content)
    kind = random.choice(("flip", "flip", "set", "number", "insert", "delete", "repeat", "truncate", "extend"))
    at = _position(size, random)
    length = min(random.choice((1, 2, 8, 64, 1000)), size)
    if kind == "truncate":
        del content[at:]
    elif kind == "extend":
        content += bytes(random.getrandbits(8) for _ in range(length))
    elif kind == "insert":
        content[at:at] = bytes(random.getrandbits(8) for _ in range(length))
    elif kind == "delete":
        del content[at : at + length]
    elif kind == "repeat":
        content[at:at] = content[at : at + length] * random.choice((1, 2, 50))
    elif kind == "number":
        width = random.choice((1, 2, 4, 8))
        content[at : at + width] = random.choice((b"\xff", b"\x00", b"\x7f", b"\x80")) * width
    elif content:
        for _ in range(random.choice((1, 1, 3, 20))):
            at = _position(size, random)
            content[at] = content[at] ^ (1 << random.randrange(8)) if kind == "flip" else random.getrandbits(8)
    path.write_bytes(content)
    return f"{kind} at {at} of {size}"


def _position(size: int, random: Random) -> int:
    if not size:
        return 0
    start, end = random.choice(((0, size), (0, min(EDGE, size)), (max(0, size - EDGE), size)))
    return random.randrange(start, end)
