"""Opening a dictionary larger than memory reads what is asked for.

The files are sparse: of billions of bytes only the headers lie on disk. A child process opens them and says by how much
its peak memory grew; what was read counts, for pages of a mapped file are memory while they are used.
"""

import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dictlab.dictionary import Metadata
from tests.planted import SITE

N, D = 400_000, 1024  # 1.6 GB a matrix
LIMIT = 200  # MB; a twentieth of the file
SHAPES = {"W_enc": (D, N), "b_enc": (N,), "W_dec": (N, D), "b_pre": (D,), "b_out": (D,)}
CHILD = """
import resource, sys
import torch
from pathlib import Path
import dictlab
from dictlab.formats.loading import mapped
from dictlab.formats.reading.source import Source

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = peak()
path = Path(sys.argv[1])
if sys.argv[2] == "mapped":
    opened = mapped(path)
    assert (opened.n_latents, opened.d_in) == ({N}, {D}), (opened.n_latents, opened.d_in)
    decoder, metadata = opened.W_dec, opened.metadata
    assert metadata.site == "{SITE}"
else:
    decoder = Source.open(path).tensors["W_dec"]
assert decoder.shape == ({N}, {D})
rows = decoder[123_456:124_456]
assert rows.dtype == torch.float32 and not rows.any()
assert float(decoder[:: {N} // 50].abs().sum()) == 0
assert list(decoder[-1, -3:].tolist()) == [1.0, 2.0, 3.0]  # the last numbers of the matrix are written
print(peak() - before)
"""


def growth(path: Path, how: str) -> float:
    code = CHILD.replace("{N}", str(N)).replace("{D}", str(D)).replace("{SITE}", SITE)
    done = subprocess.run([sys.executable, "-c", code, path, how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def mark(path: Path, end: int) -> None:
    """Write the last three numbers of a matrix whose bytes end there."""
    with path.open("r+b") as file:
        file.seek(end - 12)
        file.write(struct.pack("<3f", 1, 2, 3))
    assert path.stat().st_size > 3 << 30 and path.stat().st_blocks * 512 < 1 << 20  # holes indeed


@pytest.fixture(autouse=True)
def _removed(tmp_path):
    yield
    for path in tmp_path.iterdir():  # copying such files, as tools do, takes disk
        path.unlink()


def test_a_safetensors_file(tmp_path):
    header, offset = {}, 0
    for name, shape in SHAPES.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    own = {
        "schema": 1,
        "activation": {"kind": "relu"},
        "normalisation": {"kind": "none"},
        "metadata": {"site": Metadata(site=SITE).site},
    }
    header["__metadata__"] = {"dictlab": json.dumps(own)}
    text = json.dumps(header).encode()
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    mark(path, 8 + len(text) + header["W_dec"]["data_offsets"][1])
    assert growth(path, "mapped") < LIMIT


def test_a_file_of_torch_save(tmp_path):
    path = tmp_path / "large.pt"
    with FakeTensorMode():
        tensors = {name: torch.empty(*shape) for name, shape in SHAPES.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(tensors, path)
    with zipfile.ZipFile(path) as archive:
        member = next(m for m in archive.infolist() if m.filename.endswith("data/2"))
    assert member.file_size == 4 * N * D
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    mark(path, member.header_offset + 30 + name + extra + member.file_size)
    assert growth(path, "source") < LIMIT


def test_a_stored_archive_of_arrays(tmp_path):
    path = tmp_path / "large.npz"
    directory, ends = [], {}
    with path.open("wb") as file:
        for name, shape in SHAPES.items():
            start = file.tell()
            descr = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
            head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(descr)) + descr.encode()
            size, member = len(head) + 4 * int(np.prod(shape)), f"{name}.npy".encode()
            common = struct.pack("<5H3L2H", 20, 0, 0, 0, 33, 0, size, size, len(member), 0)
            file.write(b"PK\x03\x04" + common + member + head)
            directory.append(b"PK\x01\x02\x14\x00" + common + struct.pack("<3H2L", 0, 0, 0, 0, start) + member)
            ends[name] = file.seek(size - len(head), 1)
        start = file.tell()
        file.write(b"".join(directory))
        size = sum(map(len, directory))
        file.write(b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, len(SHAPES), len(SHAPES), size, start, 0))
    mark(path, ends["W_dec"])
    assert growth(path, "source") < LIMIT
