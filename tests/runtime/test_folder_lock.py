"""One writer a folder or file: a second one is told who holds it, and a lock dies with its process."""

import os
import signal
import time
from pathlib import Path

import pytest

from dictlab import DictlabError
from dictlab.runtime.atomic_files import new_file, refuse_links, replace_text
from dictlab.runtime.folder_lock import LOCK, InUseError, file_lock, folder_lock


def forked(work) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except InUseError:
        os._exit(3)
    except BaseException:
        os._exit(1)


def code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_second_writer_is_told_who_holds_it_and_a_folder_that_stays_empty_is_gone(tmp_path):
    folder = tmp_path / "a" / "run"
    with folder_lock(folder, "report"):
        told = rf"{folder}: process {os.getpid()} on .+ since 20.+ \(report\)"
        with pytest.raises(InUseError, match=told), folder_lock(folder, "train"):
            pass
        with folder_lock(tmp_path / "other", "train"), file_lock(folder / "x.safetensors", "convert"):
            pass
    assert not folder.exists()


def test_a_lock_dies_with_its_process(tmp_path):
    def holding() -> None:
        with folder_lock(tmp_path, "train"):
            (tmp_path / "there").touch()
            time.sleep(60)

    child = forked(holding)
    while not (tmp_path / "there").exists():
        time.sleep(0.01)
    with pytest.raises(InUseError, match=f"process {child} "), folder_lock(tmp_path, "train"):
        pass
    os.kill(child, signal.SIGKILL)
    assert code(child) == -signal.SIGKILL and (tmp_path / LOCK).exists()
    with folder_lock(tmp_path, "train"):
        pass
    assert not (tmp_path / LOCK).exists()


def test_of_many_processes_at_once_never_two_write(tmp_path):
    """Each makes a file that must not be there, waits, and removes it; who is refused tries again."""

    def writing() -> None:
        done = 0
        while done < 5:
            try:
                with folder_lock(tmp_path, "train"):
                    os.close(os.open(tmp_path / "writer", os.O_CREAT | os.O_EXCL))
                    time.sleep(0.001)
                    (tmp_path / "writer").unlink()
                    done += 1
            except InUseError:
                time.sleep(0.001)

    assert [code(child) for child in [forked(writing) for _ in range(4)]] == [0] * 4


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff" * 5000])
def test_a_lock_file_of_any_content_is_no_obstacle(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    with folder_lock(tmp_path, "train"):
        pass


def test_a_lock_is_not_taken_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("somebody's")
    (tmp_path / LOCK).symlink_to(victim)
    with pytest.raises(DictlabError, match="symbolic link"), folder_lock(tmp_path, "train"):
        pass
    assert victim.read_text() == "somebody's"


def test_a_file_is_replaced_whole_or_not_at_all_and_never_through_a_link(tmp_path):
    path, victim = tmp_path / "a.txt", tmp_path / "victim"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), new_file(path, alone=True) as partial:
        partial.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    victim.write_text("somebody's")
    path.with_name(".a.txt.partial").symlink_to(victim)
    path.unlink()
    path.symlink_to(victim)
    with pytest.raises(DictlabError, match="symbolic link"):
        refuse_links([Path(path)], "a test")
    replace_text(path, "new")
    assert path.read_text() == "new" and not path.is_symlink() and victim.read_text() == "somebody's"
