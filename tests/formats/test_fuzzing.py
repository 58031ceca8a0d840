"""Whatever is wrong with a file: it is read, or refused in one line that names it. `benchmarks/reliability/fuzz_formats.py` asks more."""

import shutil
import signal
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dictlab.formats.loading import formats
from tests.fuzzing.mutations import damage
from tests.fuzzing.opener import Opener, judged
from tests.fuzzing.seeds import SEEDS

FILES = 300


@pytest.fixture(scope="module")
def opener():
    with Opener(batch=FILES + len(SEEDS)) as opener:
        yield opener


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Undamaged dictionaries, one of each kind."""
    made = []
    for seed in SEEDS:
        made.append(tmp_path_factory.mktemp("seed"))
        seed.write(made[-1])
    return made


def test_undamaged_files_of_every_format_are_read(opener, folders):
    assert {seed.format for seed in SEEDS} == set(formats())
    for seed, folder in zip(SEEDS, folders, strict=True):
        verdict = opener.open(folder / seed.weights, seed.part)
        assert verdict.outcome == "loaded", verdict.said


def test_a_dead_child_and_a_silent_one_are_noticed(folders, monkeypatch):
    path = folders[0] / SEEDS[0].weights
    with Opener() as own:
        assert own.open(path).fine
        own.child.kill()
        own.child.wait()
        assert own.open(path).outcome == "crash (-9)"
        assert own.open(path).fine
        monkeypatch.setattr("tests.fuzzing.opener.HANGS", 1.0)
        own.child.send_signal(signal.SIGSTOP)
        assert own.open(path).outcome == "hangs"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ({"outcome": "failed", "said": "KeyError"}, "failed"),
        ({"said": "a.pt: two\nlines"}, "message is not one line"),
        ({"said": "a.pt: " + "x" * 5000}, "message is not one line"),
        ({"said": "it is damaged."}, "message does not name the file"),
        ({"said": "a.pt: damaged.", "cause": "MemoryError"}, "out of memory"),
        ({"said": "a.pt: damaged.", "seconds": 60}, "slow (60 s)"),
        ({"outcome": "loaded", "megabytes": 3000}, "memory (3000 MB)"),
        ({"said": "a.pt: damaged."}, "refused"),
    ],
)
def test_what_is_no_proper_refusal_is_noticed(answer, outcome):
    usual = {"outcome": "refused", "said": "", "cause": "", "seconds": 0, "megabytes": 0}
    assert judged(usual | answer, Path("a.pt")).outcome == outcome


@settings(max_examples=FILES, suppress_health_check=list(HealthCheck))
@given(which=st.integers(0, len(SEEDS) - 1), random=st.integers(0, 2**32).map(Random), whole=st.booleans())
def test_damaged_files_are_read_or_refused_in_one_line_that_names_them(
    opener, folders, tmp_path_factory, which, random, whole
):
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(folders[which], folder, dirs_exist_ok=True)
    done = damage(folder, random, folders)
    seed = SEEDS[which]
    path = folder if whole else folder / seed.weights
    verdict = opener.open(path, seed.part, random.choice((None, None, seed.format)))
    shutil.rmtree(folder)
    assert verdict.fine, f"{seed.format}: {done}: {verdict.outcome}: {verdict.said}"
