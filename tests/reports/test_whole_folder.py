"""Reports appear whole or not at all, whatever ends the process, and one process at a time writes a folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from dictlab import DictlabError, Report
from dictlab.reports.report import Table
from dictlab.runtime.folder_lock import file_lock

SLOW = """
import sys, time
import pandas as pd
from pathlib import Path
from dictlab.reports import report as module
from dictlab.reports.report import Report, Table
pause = float(sys.argv[2])
class Slow(Report):
    def html(self, command=None, links=None):
        print("writing", flush=True)
        time.sleep(pause)
        return super().html(command, links)
from dictlab.runtime.interruption import interrupts
with interrupts():
    Slow("title", "new", {"new": Table(pd.DataFrame({"a": [1]}), "")}).save(sys.argv[1], force=True)
"""


def old() -> Report:
    return Report("title", "old", {"old": Table(pd.DataFrame({"a": [1]}), "")})


def start(folder, pause=60.0) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, folder, str(pause)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"writing\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_report_leaves_the_old_one_or_nothing(tmp_path, number):
    old().save(tmp_path / "there")
    before = sorted(path.name for path in (tmp_path / "there").iterdir())
    for name in ("there", "fresh"):
        process = start(tmp_path / name)
        process.send_signal(number)
        process.wait()
        process.stdout.close(), process.stderr.close()
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == before
    assert not (tmp_path / "fresh").exists()
    if number != signal.SIGKILL:
        assert [path.name for path in tmp_path.iterdir()] == ["there"]
    for name in ("there", "fresh"):  # the next one removes what is left, and is refused nothing
        old().save(tmp_path / name, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "there"]


def test_the_folder_has_at_every_moment_one_of_the_two(tmp_path):
    folder = tmp_path / "out"
    old().save(folder)
    process = start(folder, pause=0.3)
    seen = set()
    while process.poll() is None:
        try:
            names = {path.name for path in folder.iterdir()}
        except FileNotFoundError:
            names = {"gone"}
        seen |= {("old.csv" in names, "new.csv" in names, "report.json" in names, "report.html" in names)}
        time.sleep(0.001)
    process.stdout.close(), process.stderr.close()
    assert seen <= {(True, False, True, True), (False, True, True, True)}
    assert (folder / "new.csv").exists() and not (folder / "old.csv").exists()


def test_files_of_others_are_kept(tmp_path):
    folder = tmp_path / "out"
    old().save(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "sub").mkdir()
    (folder / "sub" / "deep.txt").write_text("mine too")
    Report("title", "new", {"new": Table(pd.DataFrame({"a": [1]}), "")}).save(folder, force=True)
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "sub" / "deep.txt").read_text() == "mine too"
    assert not (folder / "old.csv").exists()


def test_one_writer_a_folder(tmp_path):
    with file_lock(tmp_path / "out", "report"), pytest.raises(DictlabError, match=f"process {os.getpid()}"):
        old().save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_that_one_stands_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old().save(".")
    Report("title", "new", {"new": Table(pd.DataFrame({"a": [1]}), "")}).save(".", force=True)
    assert Path.cwd() == tmp_path and (tmp_path / "new.csv").exists() and not (tmp_path / "old.csv").exists()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_users_umask(tmp_path, umask):
    from tests.planted import random_dictionary

    before = os.umask(umask)
    try:
        Report("t", "s", old().tables, dictionaries={"made": random_dictionary()}).save(tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o666 & ~umask}
