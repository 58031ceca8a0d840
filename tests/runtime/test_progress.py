"""Lines of progress: true rates and times, a sign of life while nothing advances, no failure where nobody reads them."""

import io
import sys
import time

import pytest

from dictlab.cli.printing import as_options
from dictlab.runtime import progress
from dictlab.runtime.progress import Phase, clock, rate, track


def test_the_line_says_how_much_how_fast_and_how_long(monkeypatch):
    clock_time = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock_time[0])
    phase = Phase("steps", 4000, done=2000, unit="tokens", shown=False)
    with phase:
        clock_time[0] = 110.0
        phase.advance(500)
        phase.note = "loss 0.5"
        assert phase.line() == "steps: 2,500 of 4,000 tokens (62%), 50 tokens/s, 0:10, 0:30 left. loss 0.5"
        clock_time[0] = 114.0  # the next tokens are being computed: the rate is that of those that are done
        assert phase.line() == "steps: 2,500 of 4,000 tokens (62%), 50 tokens/s, 0:14, 0:26 left. loss 0.5"
        phase.time_left = lambda: 3700.0
        assert "1:01:40 left" in phase.line()
    assert [clock(59.6), clock(61), clock(7325)] == ["1:00", "1:01", "2:02:05"]
    assert [rate(5, 2), rate(12345, 1)] == ["2.5", "12,345"]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_phase_in_which_nothing_advances_is_not_silent(monkeypatch, terminal):
    written = io.StringIO()
    written.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(progress, "HEARTBEAT", 0.1)
    monkeypatch.setattr(progress, "BEAT", 0.1)
    with Phase("load"):
        time.sleep(0.55)
    assert written.getvalue().count("load: ") >= 4


def test_what_cannot_be_written_is_no_failure(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    with Phase("load", 3) as phase:
        phase.advance()
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        with Phase("load", 3) as phase:
            phase.advance()


def test_of_phases_inside_each_other_the_innermost_has_the_line(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(progress, "HEARTBEAT", 0.1)
    with Phase("outer"):
        for _ in track(range(2), "inner", unit="batches"):
            time.sleep(0.25)
        inner = written.getvalue()
        time.sleep(0.35)
    assert "outer" not in inner and "inner: 1 of 2 batches" in inner
    assert "outer: " in written.getvalue()[len(inner) :]


def test_what_was_quick_or_failed_leaves_no_line(monkeypatch, capsys):
    with Phase("quick"):
        pass
    monkeypatch.setattr(progress, "WORTH_A_LINE", 0.0)
    with pytest.raises(ValueError), Phase("failed"):
        raise ValueError
    assert list(track(iter("abc"), "items")) == ["a", "b", "c"]
    assert capsys.readouterr().err.startswith("items: 3, ")


def test_a_loop_that_is_left_early_ends_its_phase(monkeypatch):
    for _ in track(range(3), "items"):
        break
    assert Phase._open == []


def test_on_the_command_line_lines_name_options(capsys):
    with progress.worded(as_options):
        progress.write("counts them with `token_selection='all'`\n")
    progress.write("counts them with `token_selection='all'`\n")
    said = capsys.readouterr().err.splitlines()
    assert said == ["counts them with --token-selection all", "counts them with `token_selection='all'`"]
