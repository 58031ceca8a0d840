"""The short form of the attack on training runs: kills, pairs of processes, damaged states, links; none of them fails."""

import os

import pytest
import torch

from benchmarks.reliability import attack_runs


@pytest.fixture(autouse=True)
def settings_put_back(monkeypatch):
    """The attack leaves out waiting for the disk, and takes one thread."""
    monkeypatch.setattr(os, "fsync", os.fsync)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_no_attack_breaks_a_run(capsys):
    counts = ["--kills", "2", "--pairs", "1", "--states", "4", "--links", "4", "--seed", "1"]
    assert attack_runs.main(counts) == 0
    said = capsys.readouterr().out
    assert "| kills | same bits | 2 |" in said and "| links | refused, victim unchanged | 4 |" in said
    assert "FAILED" not in said
