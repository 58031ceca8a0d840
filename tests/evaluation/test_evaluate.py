"""Metrics against their formulas written out, and against dictionaries whose values are known."""

import importlib

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from dictlab import DictlabError, Metadata, Text
from dictlab.evaluation.evaluate import evaluate
from dictlab.evaluation.metrics import METRICS
from tests.planted import SITE, identity_dictionary, random_dictionary, tiny_model

CONTEXT, CONTEXTS = 16, 12


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Text:
    folder = tmp_path_factory.mktemp("text")
    generator = np.random.default_rng(0)
    for number in range(120):
        letters = generator.choice(list("abcdef ghij(klm)\n"), size=60)
        (folder / f"{number}.txt").write_text("".join(letters))
    return Text.files(folder, "heldout")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def by_hand(dictionary, model, text):
    """Every metric by plain full forwards, with a hook of torch's own."""
    tokens = text.sample(model.tokenizer, CONTEXT, CONTEXTS)
    x = model.capture(tokens, SITE)[SITE]
    x_hat = dictionary.reconstruct(x)
    mean = x.mean(dim=(0, 1))

    def logits(replacement=None):
        def put(module, args, kwargs):
            if replacement is None:
                return None
            return (replacement, *args[1:]), kwargs

        handle = model.blocks[1].register_forward_pre_hook(put, with_kwargs=True)
        out = model.model(input_ids=tokens).logits
        handle.remove()
        return out

    def ce(replacement=None):
        return float(cross_entropy(logits(replacement)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))

    p, q = logits().log_softmax(-1), logits(x_hat).log_softmax(-1)
    clean, spliced, zero, average = ce(), ce(x_hat), ce(torch.zeros_like(x)), ce(mean.expand_as(x).contiguous())
    return {
        "l0": float((dictionary.encode(x).dense() != 0).float().sum(dim=1).mean()),
        "mse": float((x - x_hat).square().mean()),
        "explained_variance": float(1 - (x - x_hat).square().sum() / (x - mean).square().sum()),
        "ce_clean": clean,
        "ce_increase": spliced - clean,
        "kl": float((p.exp() * (p - q)).sum(-1).mean()),
        "ce_recovered_zero": (zero - spliced) / (zero - clean),
        "ce_recovered_mean": (average - spliced) / (average - clean),
    }


def test_every_metric_agrees_with_its_formula(model, text):
    """1e-4 relative: float32 forwards in batches of another size."""
    dictionary = random_dictionary(40, 16)
    (found,) = evaluate([dictionary], model, text, contexts=CONTEXTS, context=CONTEXT)
    expected = by_hand(dictionary, model, text)
    assert set(expected) == set(METRICS)
    for name, value in expected.items():
        assert found.value(name) == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert (found.n_sequences, found.n_tokens) == (CONTEXTS, CONTEXT * CONTEXTS)


def test_a_perfect_dictionary_loses_nothing(model, text):
    (found,) = evaluate(
        [identity_dictionary(16, metadata=Metadata(site=SITE))], model, text, contexts=CONTEXTS, context=CONTEXT
    )
    expected = {
        "mse": 0,
        "explained_variance": 1,
        "ce_increase": 0,
        "kl": 0,
        "ce_recovered_zero": 1,
        "ce_recovered_mean": 1,
    }
    for name, value in expected.items():
        assert found.value(name) == pytest.approx(value, abs=1e-5)


def test_a_dictionary_that_says_nothing_recovers_nothing(model, text):
    silent = random_dictionary(5, 16)
    silent.W_enc.zero_(), silent.b_enc.fill_(-1), silent.b_out.zero_()
    (found,) = evaluate([silent], model, text, contexts=CONTEXTS, context=CONTEXT)
    assert found.value("ce_recovered_zero") == pytest.approx(0, abs=1e-6)
    assert (found.value("l0"), found.alive) == (0, 0)


@pytest.mark.parametrize(
    "site", ["blocks.1.hook_resid_mid", "blocks.1.hook_resid_post", "blocks.1.hook_mlp_out", "transformer.h.0.mlp:out"]
)
def test_any_site_in_a_block_can_be_evaluated(model, text, site):
    """The perfect dictionary shows that the right place is read and written."""
    perfect = identity_dictionary(16, metadata=Metadata(site=site), name="perfect")
    random = random_dictionary(5, 16, metadata=Metadata(site=site))
    one, other = evaluate([perfect, random], model, text, contexts=4, context=CONTEXT)
    assert abs(one.value("kl")) < 1e-6 < other.value("kl")


def test_dictionaries_measured_together_are_measured_as_alone(model, text):
    family = [random_dictionary(20, 16, seed=s, name=str(s)) for s in range(3)]
    together = evaluate(family, model, text, contexts=CONTEXTS, context=CONTEXT)
    for dictionary, found in zip(family, together, strict=True):
        (alone,) = evaluate([dictionary], model, text, contexts=CONTEXTS, context=CONTEXT)
        for name in METRICS:
            assert found.value(name) == alone.value(name)
            assert found.interval(name) == alone.interval(name)


def test_intervals_cover_the_truth_about_as_often_as_they_claim():
    """Means of 30 normal sums; 95 % intervals by percentile cover a little less: 90 to 97 % of 400 repeats."""
    from dictlab.evaluation.metrics import Evaluation

    generator, inside = np.random.default_rng(0), 0
    for _ in range(400):
        sums = {"squared_error": generator.normal(2, 1, 30), "coordinates": np.ones(30)}
        low, high = Evaluation("x", {**sums, "tokens": np.ones(30)}, torch.zeros(30, 1), seed=0).interval("mse")
        inside += low <= 2 <= high
    assert 0.90 <= inside / 400 <= 0.97


def test_the_alive_interval_begins_at_what_was_seen_and_ends_within_the_dictionary():
    from dictlab.evaluation.metrics import Evaluation

    fired = (torch.rand(20, 50, generator=torch.Generator().manual_seed(0)) < 0.05).float()
    found = Evaluation("x", {"tokens": np.ones(20)}, fired, seed=0)
    low, high = found.alive_interval()
    assert found.alive == int((fired.sum(dim=0) > 0).sum()) == low <= high <= 50
    everywhere = Evaluation("x", {"tokens": np.ones(20)}, torch.ones(20, 50), seed=0)
    assert everywhere.alive_interval() == (50, 50)


def test_a_dictionary_without_a_site_is_named(model, text):
    with pytest.raises(DictlabError, match=r"random.*site"):
        evaluate([random_dictionary(5, 16, metadata=Metadata(model="x"))], model, text)


def interrupting(monkeypatch, at: int) -> None:
    """Ctrl-C in the at-th batch of two sequences."""
    module = importlib.import_module("dictlab.evaluation.evaluate")
    whole, seen = module._measure, []

    def measure(*args):
        seen.append(None)
        if len(seen) == at:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(module, "BATCH_TOKENS", 64)
    monkeypatch.setattr(module, "_measure", measure)


def test_an_interruption_keeps_what_is_complete_where_that_is_wanted(text, monkeypatch):
    whole = evaluate([random_dictionary(20, 16)], tiny_model(), text, contexts=6)[0]
    assert whole.asked == whole.n_sequences == 6
    interrupting(monkeypatch, 3)
    (found,) = evaluate([random_dictionary(20, 16)], tiny_model(), text, contexts=6, partial=True)
    assert (found.n_sequences, found.asked) == (4, 6)
    np.testing.assert_allclose(found.sums["kl"], whole.sums["kl"][:4], rtol=1e-4, atol=1e-5)
    interrupting(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        evaluate([random_dictionary(20, 16)], tiny_model(), text, contexts=6)
    interrupting(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        evaluate([random_dictionary(20, 16)], tiny_model(), text, contexts=6, partial=True)


def test_a_reconstruction_of_no_numbers_is_refused(text):
    broken = random_dictionary(20, 16, name="broken")
    broken.b_out[3] = torch.nan
    with pytest.raises(DictlabError, match=r"broken: its reconstruction of .* tokens is not finite"):
        evaluate([broken], tiny_model(), text, contexts=4)
