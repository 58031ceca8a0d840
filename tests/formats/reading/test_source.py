"""What may lie in a file, and what a file may do to who opens it: tensors, and nothing."""

import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dictlab import DictlabError, load, save
from dictlab.formats.reading import configs
from dictlab.formats.reading.configs import read_config
from dictlab.formats.reading.source import Source
from tests.planted import random_dictionary

WEIGHT = torch.arange(12.0).reshape(3, 4)


def refused(path: Path, *words: str) -> None:
    """The file is refused in one line that names it, by the source and by `load` alike."""
    for opened in (Source.open, load):
        with pytest.raises(DictlabError) as caught:
            opened(path)
        message = str(caught.value)
        assert str(path) in message and "\n" not in message and len(message) < 1000
        assert all(word in message for word in words), message


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "weights.pt"


def pack(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def as_archive(path: Path, content: bytes) -> Path:
    """What torch.save makes of a pickle."""
    return pack(path, {"a/data.pkl": content, "a/version": b"3\n", "a/byteorder": b"little"})


# Pickles


class Runs:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [(os.system, ("touch {}",)), (exec, ("open({!r}, 'w')",)), (os.mkdir, ("{}",)), (open, ("{}", "w"))],
    ids=["system", "exec", "mkdir", "open"],
)
def test_code_in_a_pickle_is_refused_and_does_not_run(file, tmp_path, function, arguments, legacy):
    left = tmp_path / "left"
    payload = Runs(function, *(argument.format(str(left)) for argument in arguments))
    torch.save({"W_dec": WEIGHT, "hidden": {"deeper": [payload]}}, file, _use_new_zipfile_serialization=not legacy)
    refused(file, "code", function.__name__)
    assert not left.exists()
    torch.load(file, weights_only=False)
    assert left.exists()  # it is a payload indeed


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_module_is_refused_with_what_it_names(file, legacy):
    torch.save(torch.nn.Linear(3, 4), file, _use_new_zipfile_serialization=not legacy)
    refused(file, "torch.nn.modules.linear.Linear", "state_dict()")


BOMBS = {
    "bytearray": b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x70\x85R.",
    "codec": b"\x80\x02c_codecs\nencode\nq\x00X\x04\x00\x00\x00bombX\x03\x00\x00\x00hex\x86R.",
    "tensor": b"\x80\x02ctorch\nTensor\nJ\x00\x00\x00\x70\x85R.",
    "protocol 4": pickle.dumps({"W_dec": np.ones(3)}, protocol=4),
    "truncated": b"\x80\x02}q\x00(X\x05\x00\x00\x00W_d",
    "pop": b"\x80\x020000.",
    "memo": b"\x80\x02h\x07.",
    "self": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "list in itself": b"\x80\x02}X\x01\x00\x00\x00a]q\x00h\x00as.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickles_that_take_memory_or_make_no_sense_are_refused(file, name):
    refused(as_archive(file, BOMBS[name]))


@pytest.mark.parametrize(("name", "called"), [("bytearray", "bytearray"), ("codec", "encode"), ("tensor", "Tensor")])
def test_what_takes_memory_is_refused_before_it_is_called(file, name, called):
    refused(as_archive(file, BOMBS[name]), "would call", called)


def test_containers_that_hold_one_another_many_times_are_refused_at_once(file):
    """30 lists, each holding the next one twice, print as 2^30 values."""
    inner: list = [1]
    for _ in range(30):
        inner = [inner, inner]
    torch.save({"W_dec": WEIGHT, "config": inner}, file)
    refused(file, "200000 values")
    wide: dict = {str(i): 0 for i in range(1000)}
    for _ in range(3):
        wide = {str(i): wide for i in range(1000)}
    torch.save(wide, file)
    refused(file, "values")


def test_a_pickle_that_copies_a_large_list_again_and_again_is_refused(file):
    pairs = b"(" + b"h\x00" * 50_000 + b"e"
    content = b"\x80\x02]q\x00" + pairs + b"ctorch\nSize\nq\x01" + b"0h\x01h\x00\x85R" * 20_000 + b"."
    refused(as_archive(file, content), "calls")


def test_deep_containers_are_refused(file):
    deep: list = []
    for _ in range(300):
        deep = [deep]
    torch.save({"W_dec": WEIGHT, "config": deep}, file)
    refused(file, "40 levels")


@pytest.mark.parametrize("legacy", [False, True])
def test_plain_state_dicts_are_read_whoever_wrote_them(file, legacy):
    layer = torch.nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.copy_(WEIGHT)
    content = {
        **layer.state_dict(),
        "parameter": layer.weight,
        "k": torch.tensor(3, dtype=torch.int32),
        "half": WEIGHT.bfloat16(),
        "view": WEIGHT.T,
        "activation": "TopK",
        "state": OrderedDict(k=3, shape=(1, 2), names={"x"}, of=torch.float32),
    }
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    source = Source.open(file)
    assert torch.equal(source.tensors["weight"], WEIGHT) and torch.equal(source.tensors["view"], WEIGHT.T)
    assert source.tensors["half"].dtype == torch.bfloat16 and source.tensors["k"].shape == ()
    assert not any(tensor.requires_grad for tensor in source.tensors.values())
    assert type(source.tensors["parameter"]) is torch.Tensor
    assert source.entries == {
        "activation": "TopK",
        "state": {"k": 3, "shape": [1, 2], "names": ["x"], "of": torch.float32},
    }


def test_the_prefix_of_torch_compile_is_taken_off_everywhere(file, tmp_path):
    torch.save({"_orig_mod.W": WEIGHT, "ae": {"encoder._orig_mod.bias": WEIGHT}}, file)
    source = Source.open(file)
    assert [*source.tensors, *source.entries["ae"]] == ["W", "encoder.bias"]
    save_file({"_orig_mod.encoder.weight": WEIGHT}, tmp_path / "a.safetensors")
    assert list(Source.open(tmp_path / "a.safetensors").tensors) == ["encoder.weight"]
    torch.save({"_orig_mod.W": WEIGHT, "W": WEIGHT + 1}, file)
    refused(file, "_orig_mod.")


UNUSUAL = {
    "expanded": lambda: WEIGHT[:1, :1].expand(1000, 1000),
    "strided": lambda: torch.as_strided(WEIGHT, (1000, 1000), (0, 0)),
    "sparse": WEIGHT.to_sparse,
    "quantised": lambda: torch.quantize_per_tensor(WEIGHT, 1.0, 0, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor([WEIGHT, WEIGHT]),
    "meta": lambda: torch.empty(10, device="meta"),
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_numbers_lying_in_the_file_are_refused(file, kind, inside):
    tensor = UNUSUAL[kind]()
    torch.save({"ae": {"W": tensor}} if inside else {"W": tensor}, file)
    refused(file)


@pytest.mark.parametrize("size", [(1 << 30,), (-4,), (1 << 62,), (-3, -4)])
@pytest.mark.parametrize("stride", [1, 0, -1, 1 << 40])
@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_shapes_and_strides_beyond_the_storage_are_refused(file, size, stride):
    class Tensor:
        def __reduce__(self):
            storage = torch.storage.TypedStorage(wrap_storage=WEIGHT.untyped_storage(), dtype=WEIGHT.dtype)
            strides = (stride,) * len(size)
            return torch._utils._rebuild_tensor_v2, (storage, 0, size, strides, False, OrderedDict())

    torch.save({"W": Tensor()}, file)
    refused(file)


def test_a_legacy_file_that_claims_a_storage_larger_than_itself_is_refused_before_memory_is_taken(file):
    torch.save({"W": WEIGHT}, file, _use_new_zipfile_serialization=False)
    content = file.read_bytes()
    claim = b"K\x0cNt"  # 12 numbers, no view, end of the tuple
    assert content.count(claim) == 1
    file.write_bytes(content.replace(claim, b"J\x00\x00\x00\x70Nt"))
    refused(file, "larger than the file")
    hidden = b"J\x00\x00\x00\x70q\x7f0h\x7fNt"  # the same number, out of the memo
    file.write_bytes(content.replace(claim, hidden))
    refused(file, "storage")


def test_a_text_that_claims_to_be_longer_than_the_file_takes_no_memory(file):
    """Measured, as a refusal alone would not tell."""
    file.write_bytes(b"\x80\x02X\x00\x00\x00\x70abc")
    tracemalloc.start()
    refused(file)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


# Archives


@pytest.mark.parametrize("name", ["../outside.npy", "/etc/outside.npy", "a/../../b.npy", "\\\\host\\x.npy"])
def test_members_that_point_outside_are_refused(file, name):
    array = io.BytesIO()
    np.save(array, np.ones(3, np.float32))
    refused(pack(file, {name: array.getvalue()}), "outside")


def test_an_archive_that_unpacks_to_very_much_is_refused(file):
    np.savez_compressed(file.with_suffix(".npz"), W_dec=np.zeros((1000, 1000), np.float32))
    refused(file.with_suffix(".npz"), "64 times")
    refused(pack(file, {"a/data.pkl": b"\x80\x02}." + bytes(1 << 20)}, zipfile.ZIP_DEFLATED), "64 times")


def test_a_compressed_archive_of_torch_is_refused(file):
    refused(pack(file, {"a/data.pkl": bytes(range(256)) * 4}, zipfile.ZIP_DEFLATED), "compressed")


def test_an_archive_with_two_directories_is_refused(file):
    """One at the distance from the end that the end gives, another where it points."""
    good, bad = file.with_name("good"), file.with_name("bad")
    torch.save({"W": WEIGHT}, good)
    as_archive(bad, BOMBS["bytearray"])
    end = bytearray(good.read_bytes())
    struct.pack_into("<L", end, len(end) - 6, int.from_bytes(bad.read_bytes()[-6:-2], "little"))
    file.write_bytes(bad.read_bytes() + end)
    refused(file, "different ways")


def test_members_of_the_same_name_and_a_comment_are_refused(file):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(file, "w") as archive:
        for content in (b"\x80\x02}.", b"\x80\x02]."):
            archive.writestr("a/data.pkl", content)
    refused(file, "different ways")
    refused(pack(file, {"a/data.pkl": b"\x80\x02}.", "a/DATA.pkl": b"\x80\x02]."}), "different ways")
    torch.save({"W": WEIGHT}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"PK\x05\x06"
    refused(file)


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_are_read_stored_and_compressed_in_either_order(file, compressed):
    path = file.with_suffix(".npz")
    arrays = {
        "rows": np.arange(12, dtype=np.float32).reshape(3, 4),
        "columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "big": np.arange(12, dtype=">f4").reshape(3, 4),
        "k": np.array(3),
    }
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    found = Source.open(path).tensors
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name].numpy(), arrays[name]) for name in arrays)


@pytest.mark.parametrize(
    "array", [np.array([{"a": 1}], object), np.array(["text"]), np.array([(1, 2)], "i4,i4"), np.zeros((0, 3))]
)
def test_arrays_of_anything_but_numbers_are_refused(file, array):
    np.savez(file.with_suffix(".npz"), W=array)
    refused(file.with_suffix(".npz"))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1" + "0" * 400 + ",)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 200 + ")" * 200 + "}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': " + "-" * 5000 + "1}",
        "{'descr': [('a', '<f4', (1000000, 1000000))], 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "__import__('os')",
        "{'descr': 'é",
        "\x00",
    ],
)
def test_headers_of_arrays_that_claim_too_much_are_refused(file, header):
    text = header.encode("latin1")
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)
    refused(pack(file.with_suffix(".npz"), {"W.npy": array}))


# Safetensors


def header_of(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        {"W": {"dtype": "F32", "shape": [1 << 30], "data_offsets": [0, 4 << 30]}},
        {"W": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]}},
        {"W": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"W": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
        {"W": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}},
        {"W": {"dtype": "F32", "shape": [2.5], "data_offsets": [0, 8]}},
        {"__metadata__": {"dictlab": 3}},
        b"{" + b'"a":[' * 10_000,
        b'{"\xff": 1}',
    ],
)
def test_damaged_headers_are_refused(tmp_path, header):
    path = header_of(tmp_path / "a.safetensors", header, bytes(8))
    refused(path)


def test_a_header_larger_than_any_dictionary_needs_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 17 << 20) + b"{")
    refused(path, "header")


def test_names_in_a_file_cannot_move_the_cursor(tmp_path):
    save_file({"W\n\x1b[2J\u202e": WEIGHT}, tmp_path / "a.safetensors")
    with pytest.raises(DictlabError) as caught:
        load(tmp_path / "a.safetensors")
    assert str(caught.value).isprintable()


# Configurations


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 5000 + "1" + "}" * 5000,
        '{"a":' * 50 + "1" + "}" * 50,
        '{"k": ' + "9" * 5000 + "}",
        '{"k": ' + "9" * 30 + "}",
        '{"k": "\\ud800"}',
        "[1, 2]",
        '"text"',
        "",
        "{",
        "\x00",
    ],
    ids=["open", "very deep", "deep", "endless", "long", "surrogate", "list", "text", "empty", "cut", "null"],
)
def test_configurations_that_hold_a_surprise_are_refused(tmp_path, text, suffix):
    path = tmp_path / f"cfg{suffix}"
    path.write_text(text)
    with pytest.raises(DictlabError, match="cfg"):
        read_config(path)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
        "a: &a {b: *a}",
        "a: !!python/object/apply:os.system [ls]",
        "k: 1" + ":1" * 100_000,
        "k: 0x" + "f" * 5000,
        "k: 2024-99-99",
        "1: x\n'1': y",
        "k: !!binary aGVsbG8=",
    ],
)
def test_yaml_with_references_code_or_endless_numbers_is_refused(tmp_path, text):
    path = tmp_path / "final_config.yaml"
    path.write_text(text)
    with pytest.raises(DictlabError, match="final_config"):
        read_config(path)


def test_a_configuration_too_large_to_be_one_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "read_text", None)
    for suffix, limit in configs.BYTES.items():
        path = tmp_path / f"cfg{suffix}"
        with path.open("wb") as file:
            file.truncate(limit + 1)
        with pytest.raises(DictlabError, match="larger"):
            read_config(path)


def test_plain_configurations_are_read_as_json_would_say_them(tmp_path):
    (tmp_path / "a.yaml").write_text("k: 3\nlr: 1e-3\nwhen: 2024-01-02\nnested: {1: [a, null, true], x: 0x10}\n")
    (tmp_path / "b.json").write_text('\ufeff{"k": 3, "best": Infinity}')
    assert read_config(tmp_path / "a.yaml") == {
        "k": 3,
        "lr": "1e-3",  # so YAML 1.1 has it
        "when": "2024-01-02",
        "nested": {"1": ["a", None, True], "x": 16},
    }
    assert read_config(tmp_path / "b.json") == {"k": 3, "best": float("inf")}


def test_configurations_come_from_beside_the_file_and_else_from_above(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"W": WEIGHT}, folder / "ae.pt")
    (tmp_path / "run" / "config.json").write_text('{"where": "above"}')
    assert Source.open(folder / "ae.pt").configs == {"config.json": {"where": "above"}}
    (folder / "cfg.json").write_text('{"where": "beside"}')
    (folder / "broken.json").write_text("{")
    source = Source.open(folder / "ae.pt")
    assert source.configs == {"cfg.json": {"where": "beside"}} and list(source.damaged) == ["broken.json"]
    assert source.config("where") == {"where": "beside"} and source.config("where", "other") is None
    with pytest.raises(DictlabError, match=r"broken\.json"):
        load(folder / "ae.pt")


# Files


def test_symbolic_links_are_followed_as_a_cache_of_downloads_needs(tmp_path):
    saved = save(random_dictionary(), tmp_path / "blob.safetensors")
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "sae.safetensors"
    link.symlink_to(saved)
    assert load(link).name == load(tmp_path / "folder").name == "folder"


def test_places_that_are_no_files_are_refused(tmp_path):
    loop = tmp_path / "loop.pt"
    loop.symlink_to(loop)
    pipe = tmp_path / "pipe.pt"
    os.mkfifo(pipe)
    empty = tmp_path / "empty.pt"
    empty.touch()
    for path in (loop, pipe, empty, tmp_path, tmp_path / "absent.pt", tmp_path / ("x" * 5000), Path("/dev/null")):
        with pytest.raises(DictlabError) as caught:
            load(path)
        assert str(path)[:100] in str(caught.value)


def test_a_file_that_nobody_may_read_is_refused(tmp_path):
    for part in (tmp_path, *tmp_path.parents[:2]):
        part.chmod(0o755)
    path = save(random_dictionary(), tmp_path / "a.safetensors")
    closed = tmp_path / "closed"
    closed.mkdir()
    save(random_dictionary(), closed / "b.safetensors")
    path.chmod(0)
    closed.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # who may do anything would notice nothing
    try:
        for place in (path, closed, closed / "b.safetensors"):
            with pytest.raises(DictlabError, match="cannot be read"):
                load(place)
    finally:
        if root:
            os.seteuid(0)
        closed.chmod(0o755)


def test_a_damaged_file_in_a_folder_is_named_unless_another_is_the_dictionary(tmp_path):
    damaged = tmp_path / "optimizer.pt"
    damaged.write_bytes(b"PK\x03\x04 and nothing")
    with pytest.raises(DictlabError, match=r"optimizer\.pt.*damaged"):
        load(tmp_path)
    save(random_dictionary(), tmp_path / "a.safetensors")
    assert load(tmp_path).path == tmp_path / "a.safetensors"


def test_a_hundred_thousand_tensors_or_members_are_refused_at_once(tmp_path):
    entries = {f"t{i}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(150_000)}
    header = json.dumps(entries, separators=(",", ":")).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(600_000))
    archive = tmp_path / "a.pt"
    with zipfile.ZipFile(archive, "w") as file:
        for i in range(60_000):
            file.writestr(f"m{i}", b"")
    start = time.process_time()
    for file, said in ((path, "holds 150000 tensors"), (archive, "archive of 60000 members")):
        with pytest.raises(DictlabError, match=said):
            Source.open(file)
    assert time.process_time() - start < 0.5
