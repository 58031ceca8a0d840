"""The short form of the attack on commands that write: kills, pairs of processes, full disks; none of them fails."""

import signal

import pytest
import torch

from benchmarks.reliability import attack_commands


@pytest.fixture(autouse=True)
def settings_put_back(monkeypatch):
    """The attack forks processes of one thread, without a network, and ignores the signal of a file that is too large."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGXFSZ)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGXFSZ, handler)


def test_no_attack_breaks_what_a_command_writes(capsys):
    counts = ["--kills", "2", "--pairs", "1", "--disks", "2", "--seed", "1"]
    assert attack_commands.main(["--targets", "convert", *counts]) == 0
    said = capsys.readouterr().out
    assert "| kills, convert | typed again: the same bytes | 2 |" in said
    assert "| disks, convert | typed again: the same bytes | 2 |" in said
    assert "FAILED" not in said


def test_an_attack_that_breaks_something_is_counted(tmp_path, capsys, monkeypatch):
    """A command that leaves half of what it writes, were one to."""
    whole = attack_commands.Attacked.is_whole
    monkeypatch.setattr(attack_commands.Attacked, "is_whole", lambda *of: whole(*of) and not of[1].match("place"))
    assert attack_commands.main(["--targets", "convert", "--kills", "1", "--pairs", "0", "--disks", "0"]) == 1
    assert "FAILED: after kill 0: other bytes" in capsys.readouterr().out
