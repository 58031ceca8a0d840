"""The estimate of a run's cost, against the tokens that the run really gives to the model."""

from dictlab.numerics.flops import state_bytes
from dictlab.training import TrainConfig
from dictlab.training.sources.model import ModelSource
from dictlab.training.sources.training_cost import RUNTIME_BYTES
from tests.planted import SITE, tiny_model

SETTINGS = TrainConfig("tiny", SITE, width=(24, 48), k=(4,), tokens=4096, batch=128, context=16)


def test_the_estimate_counts_what_goes_through_the_model(text, monkeypatch):
    model = tiny_model()
    source = ModelSource(SETTINGS, model, text)
    cost = source.cost()
    sampled, evaluated = source.sample_tokens, source.evaluation_contexts * 16
    assert (sampled, evaluated) == (4096 // 8, 4096 // (4 * 16 * 6) * 16)
    # At the end: the mean, a clean forward, and one for each of two dictionaries, zeros and the mean.
    assert cost.tokens == sampled + 4096 + evaluated * 6
    assert cost.seconds > 0
    seen = []
    capture = model.capture
    monkeypatch.setattr(model, "capture", lambda tokens, sites: seen.append(tokens.numel()) or capture(tokens, sites))
    source.samples()
    assert sum(seen) == sampled


def test_memory_is_that_of_the_model_the_buffer_and_the_dictionaries(text):
    model = tiny_model()
    cost = ModelSource(SETTINGS, model, text).cost()
    weights = sum(4 * p.numel() for p in model.model.parameters())
    buffer = 3 * 4096 * 4 * model.capture(model.probe, SITE)[SITE].shape[-1]
    state = sum(state_bytes(width, 16) for width in (24, 48))
    assert abs(cost.gigabytes * 1e9 - weights - buffer - state - RUNTIME_BYTES) < 1
