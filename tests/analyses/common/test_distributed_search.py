"""Several processes share a search, and each has the answer that one process has."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.common.neighbours import neighbours
from dictlab.formats.native import native_file as native
from tests.planted import random_dictionary

SCRIPT = """
import sys, torch
from analyses.common.neighbours import neighbours
from analyses.common.distributed_search import count, ranks
a, b, of_a = torch.load(sys.argv[1], weights_only=True)
with ranks():
    assert count() == 2
    found = neighbours(a, b, top=5, of_a=of_a)
    few = neighbours(a[:3], b, top=5)
    rank = torch.distributed.get_rank()
torch.save([tuple(x) for x in (*found, *few)], f"{sys.argv[1]}.{rank}")
"""


@pytest.mark.parametrize("rows", [(301, 200), (50, 333)])
def test_two_processes_find_what_one_does(tmp_path, rows):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 12, generator=generator) for n in rows)
    of_a = torch.arange(1, rows[0], 2)
    torch.save([a, b, of_a], tmp_path / "in")
    (tmp_path / "script.py").write_text(SCRIPT)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*run, str(tmp_path / "script.py"), str(tmp_path / "in")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = [*neighbours(a, b, top=5, of_a=of_a), *neighbours(a[:3], b, top=5)]
    for rank in (0, 1):
        for one, other in zip(torch.load(tmp_path / f"in.{rank}", weights_only=True), expected, strict=True):
            torch.testing.assert_close(one[0], other.cosine, atol=1e-6, rtol=0)
            assert torch.equal(one[1], other.rows)


def test_the_command_in_two_processes_writes_and_prints_once_what_it_does_in_one(tmp_path):
    files = [str(native.save(random_dictionary(n, seed=n), tmp_path / f"of{n}.safetensors")) for n in (90, 150)]
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(40, 16, 8)).astype(np.float32))
    command = ["-m", "dictlab", "report", "matching", *files, "--data", str(tmp_path / "rows.npy")]
    command += ["--permutations", "3", "--min-active-tokens", "5", "--out"]
    launch = {"one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]}
    for name, launcher in launch.items():
        run = [sys.executable, *launcher, *command, str(tmp_path / name)]
        done = subprocess.run(run, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("Report:") == 1 and done.stdout.count("Which latents do of90 and of150 share?") == 1
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir()) and "pairs.csv" in names
    for table in [name for name in names if name.endswith(".csv")]:
        frames = (pd.read_csv(tmp_path / name / table) for name in launch)
        pd.testing.assert_frame_equal(*frames, rtol=1e-4, atol=1e-4)
