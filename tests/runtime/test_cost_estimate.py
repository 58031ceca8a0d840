"""What a command will cost: said in one line, where it is over a minute."""

import time

from dictlab.runtime.cost_estimate import CostEstimate, seconds_of

ESTIMATE = CostEstimate("train", 92_160, 45, 300.0, 2.13, "117 steps")


def test_what_takes_over_a_minute_is_said_with_tokens_forwards_memory_and_time(capsys):
    ESTIMATE.announce()
    ESTIMATE._replace(seconds=59.0).announce()
    assert capsys.readouterr().err == (
        "dictlab: train will take about 5:00 at the present speed of this machine: 92,160 tokens in 45 forwards of the "
        "model, 2.1 GB of memory, 117 steps.\n"
    )


def test_work_without_a_model_has_no_forwards():
    assert "forwards" not in CostEstimate("matching", 0, 0, 90.0).sentence


def test_the_first_call_is_not_timed(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    durations = iter([50.0, 2.0])
    assert seconds_of(lambda: clock.__setitem__(0, clock[0] + next(durations))) == 2.0
