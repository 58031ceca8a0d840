"""Kills, full disks, links, two writers: what was there stays, or the new one is there, whole."""

import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dictlab import DictlabError, TopK, load, save
from dictlab.formats import conversion
from dictlab.runtime import atomic_files
from dictlab.runtime.atomic_files import new_file, save_tensors
from tests.planted import random_dictionary

FORMATS = {"dictlab": "a.safetensors", "saelens": "folder", "sparsify": "folder", "dictionary_learning": "folder"}


def dictionary(seed):
    return random_dictionary(activation=TopK(4), seed=seed)


def in_child(work) -> int:
    """Run in a copy of this process, which can be killed; its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(call, write):
    """`write`, killed at so many calls of what changes the disk."""
    calls = 0

    def counted(function):
        def count(*arguments, **named):
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return count

    def work():
        for module, name in ((os, "fsync"), (os, "replace"), (atomic_files, "_exchanged"), (shutil, "rmtree")):
            setattr(module, name, counted(getattr(module, name)))
        write()

    return work


@pytest.mark.parametrize("format", ["dictlab", "sparsify"])
def test_a_killed_conversion_leaves_the_old_dictionary_or_the_new_one(tmp_path, format):
    target, old, new = tmp_path / FORMATS[format], dictionary(1), dictionary(2)
    replaced, status = [], -signal.SIGKILL
    for call in range(1, 40):
        conversion.write(old, target, format, force=True)
        status = in_child(killed_at(call, lambda: conversion.write(new, target, format, force=True)))
        found = load(target).W_enc
        replaced.append(torch.equal(found, new.W_enc))
        assert replaced[-1] or torch.equal(found, old.W_enc)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert status == 0 and replaced == sorted(replaced) and len(replaced) > 5 and replaced[-1] and not replaced[0]
    assert [path.name for path in tmp_path.iterdir()] == [target.name], "what a kill left is cleared by the next"


@pytest.mark.parametrize("format", FORMATS)
def test_a_conversion_that_has_no_room_says_so_in_one_line_and_leaves_what_was_there(tmp_path, format):
    target, said = tmp_path / FORMATS[format], tmp_path / "said"
    conversion.write(dictionary(1), target, format)

    def with_room_for(size):
        said.touch()
        message = ""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            conversion.write(dictionary(2), target, format, force=True)
        except DictlabError as error:
            message = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        said.write_text(message)

    for size in (0, 200, 1500):
        assert in_child(lambda size=size: with_room_for(size)) == 0
        assert said.read_text().startswith(f"{target}: not written: ") and "\n" not in said.read_text()
        assert torch.equal(load(target).W_enc, dictionary(1).W_enc)
        assert {path.name for path in tmp_path.iterdir()} == {said.name, target.name}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_modes_that_the_umask_gives_them(tmp_path, format, umask):
    before = os.umask(umask)
    try:
        written = conversion.write(dictionary(1), tmp_path / FORMATS[format], format)
        (tmp_path / "plain").write_text("")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written.exists() and {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


def test_nothing_is_written_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("somebody else's")
    path = tmp_path / "a.safetensors"
    path.symlink_to(victim)
    save(dictionary(1), path)
    assert victim.read_text() == "somebody else's" and not path.is_symlink()
    path.unlink()
    path.symlink_to(victim)
    conversion.write(dictionary(1), path, "dictlab", force=True)
    assert victim.read_text() == "somebody else's" and not path.is_symlink()
    (tmp_path / ".b.safetensors.partial").symlink_to(tmp_path)
    with pytest.raises(DictlabError, match="is in the way, a file or a link"):
        conversion.write(dictionary(1), tmp_path / "b.safetensors", "dictlab")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "keep").write_text("kept")
    link = tmp_path / "link"
    link.symlink_to(folder)
    conversion.write(dictionary(1), link, "sparsify", force=True)
    assert [p.name for p in folder.iterdir()] == ["keep"] and (link / "sae.safetensors").is_file()


def test_a_second_writer_is_told_of_the_first_and_a_dead_ones_lock_is_gone(tmp_path):
    beside = tmp_path / ".a.safetensors.partial"
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with atomic_files.locked_folder(beside) as folder:
            (folder / "half").write_text("a file")
            os.write(write, b"held")
            signal.pause()
    assert os.read(read, 4) == b"held"
    with pytest.raises(DictlabError, match="another process is writing it just now"):
        conversion.write(dictionary(1), tmp_path / "a.safetensors", "dictlab")
    assert (beside / "half").exists()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    conversion.write(dictionary(1), tmp_path / "a.safetensors", "dictlab")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("exchange", [True, False])
def test_names_are_exchanged_and_what_was_there_is_where_the_new_one_was(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(atomic_files, "_exchanged", lambda one, other: False)
    new, old = tmp_path / "new", tmp_path / "old"
    new.mkdir()
    (new / "inner").write_text("new")
    old.write_text("old")
    atomic_files.put(new, old)
    assert (old / "inner").read_text() == "new" and new.read_text() == "old"
    atomic_files.put(old, Path(tmp_path / "free"))
    assert not old.exists() and (tmp_path / "free" / "inner").read_text() == "new"


def test_bytes_are_on_the_disk_before_the_name_is_theirs(tmp_path, monkeypatch):
    """The order of the calls: file, then the new name, then the folder."""
    order, fsync, replace = [], os.fsync, os.replace

    def synchronised(handle):
        order.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink().suffix))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synchronised)
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(("replace", Path(b).suffix)), replace(a, b)))
    save(dictionary(1), tmp_path / "a.safetensors")
    assert order == [("fsync", ".partial"), ("replace", ".safetensors"), ("fsync", tmp_path.suffix)]


KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
import torch
from dictlab.runtime.atomic_files import new_file, save_tensors

path = Path(sys.argv[1])

def kill():
    while not any(path.parent.rglob(".tmp*")):
        pass
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill, daemon=True).start()
with new_file(path, alone=True) as partial:
    save_tensors({"zeros": torch.zeros(2**26)}, partial)
"""


def test_what_a_process_leaves_that_is_killed_while_it_writes_tensors_is_removed_by_the_next(tmp_path):
    path = tmp_path / "state.safetensors"
    ran = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, timeout=120)
    assert ran.returncode == -signal.SIGKILL and not path.exists() and len(list(tmp_path.iterdir())) == 2
    with new_file(path, alone=True) as partial:
        save_tensors({"one": torch.ones(1)}, partial)
    assert [inner.name for inner in tmp_path.iterdir()] == [path.name]
