"""A data file that is cut short while it is mapped ends in a sentence, and not in a signal."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dictlab import DictlabError, Text
from dictlab.data.arrays import open_array

ROOT = Path(__file__).parents[2]
ROWS = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))  # a megabyte: many pages
READ = """
import os, sys
from pathlib import Path
from dictlab import DictlabError, Text
from dictlab.data.arrays import open_array
path = Path(sys.argv[1])
if path.stem == "tokens":
    documents = Text.token_file(path).documents()
    next(documents)
    read = lambda: list(documents)
else:
    data = open_array(path)
    data.sample(128)
    read = lambda: list(data.sample(4000))
os.truncate(path, 5000)
try:
    read()
except DictlabError as error:
    print(error)
"""


def written(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith(".safetensors"):
        save_file({"x": ROWS}, path)
    elif name == "tokens.npy":
        np.save(path, np.arange(256_000).reshape(500, 512) % 97)
    else:
        np.save(path, ROWS.numpy())
    return path


def test_a_file_that_is_cut_short_is_a_sentence_and_no_signal(tmp_path):
    """In one process after the other: a signal would end the test as well."""
    for name in ("rows.npy", "rows.safetensors", "tokens.npy"):
        path = written(tmp_path, name)
        read = subprocess.run(
            [sys.executable, "-c", READ, str(path)],
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        )
        assert read.returncode == 0, (name, read.stderr[-500:])
        assert str(path) in read.stdout and "the file changed while it was being read" in read.stdout
        assert "to 5,000 bytes" in read.stdout


@pytest.mark.parametrize("name", ["rows.npy", "rows.safetensors"])
def test_a_file_that_is_written_again_is_refused_and_another_under_its_name_is_not(tmp_path, name):
    data, path = open_array(written(tmp_path, name)), tmp_path / name
    expected = torch.cat(list(data.sample(500)))
    other = written(tmp_path / "..", f"other-{tmp_path.name}-{name}")
    other.replace(path)  # the mapped file is still there, without a name
    assert torch.equal(torch.cat(list(data.sample(500))), expected)
    again = open_array(path)
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(bytes(4))
    os.utime(path, ns=(1, 1))
    with pytest.raises(DictlabError, match="written again"):
        list(again.sample(500))


def test_a_text_of_tokens_that_is_written_again_is_refused(tmp_path):
    path = written(tmp_path, "tokens.npy")
    documents = Text.token_file(path).documents()
    next(documents)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DictlabError, match=r"text .*tokens\.npy: the file changed"):
        list(documents)
