"""A transcoder is measured at the site that it writes: against plain full forwards with hooks of torch's own."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from analyses.quality.pareto.pareto import pareto
from analyses.quality.verification.verification import verification
from dictlab import DictlabError, Metadata
from dictlab.evaluation.evaluate import evaluate
from dictlab.evaluation.metrics import METRICS
from tests.planted import READ, WRITTEN, random_dictionary, random_transcoder, tiny_model

CONTEXT, CONTEXTS = 16, 12


@pytest.fixture(scope="module")
def model():
    """With a norm before the MLP whose gain matters."""
    made = tiny_model()
    with torch.no_grad():
        made.blocks[1].ln_2.weight.copy_(1 + torch.randn(16, generator=torch.Generator().manual_seed(1)).abs())
        made.blocks[1].ln_2.bias.copy_(torch.randn(16, generator=torch.Generator().manual_seed(2)))
    return made


def transcoder(name="transcoder", seed=0):
    return random_transcoder(48, 16, 16, name=name, seed=seed)


def by_hand(dictionary, model, tokens):
    caught = {}
    handles = [
        model.blocks[1].ln_2.register_forward_hook(lambda _, __, out: caught.update(x=out)),
        model.blocks[1].mlp.register_forward_hook(lambda _, __, out: caught.update(y=out)),
    ]
    clean = model.model(input_ids=tokens).logits
    for handle in handles:
        handle.remove()
    x, y = caught["x"], caught["y"]
    y_hat = dictionary.reconstruct(x)
    mean = y.mean(dim=(0, 1))

    def logits(replacement):
        handle = model.blocks[1].mlp.register_forward_hook(lambda *_: replacement)
        out = model.model(input_ids=tokens).logits
        handle.remove()
        return out

    def ce(out):
        return float(cross_entropy(out[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))

    spliced = logits(y_hat)
    p, q = clean.log_softmax(-1), spliced.log_softmax(-1)
    zero, average = ce(logits(torch.zeros_like(y))), ce(logits(mean.expand_as(y).contiguous()))
    return {
        "l0": float((dictionary.encode(x).dense() != 0).float().sum(dim=1).mean()),
        "mse": float((y - y_hat).square().mean()),
        "explained_variance": float(1 - (y - y_hat).square().sum() / (y - mean).square().sum()),
        "ce_clean": ce(clean),
        "ce_increase": ce(spliced) - ce(clean),
        "kl": float((p.exp() * (p - q)).sum(dim=-1).mean()),
        "ce_recovered_zero": (zero - ce(spliced)) / (zero - ce(clean)),
        "ce_recovered_mean": (average - ce(spliced)) / (average - ce(clean)),
    }


@torch.no_grad()
def test_every_metric_is_that_of_plain_forwards_beside_an_autoencoder(model, text):
    held = text.as_split("heldout")
    sae = random_dictionary(d=16, metadata=Metadata(site=WRITTEN))
    one, other = evaluate([transcoder(), sae], model, held, contexts=CONTEXTS, context=CONTEXT)
    (alone,) = evaluate([sae], model, held, contexts=CONTEXTS, context=CONTEXT)
    expected = by_hand(transcoder(), model, held.sample(model.tokenizer, CONTEXT, CONTEXTS))
    assert expected.keys() == METRICS.keys()
    for name, value in expected.items():
        assert one.value(name) == pytest.approx(value, rel=1e-4, abs=1e-5), name
        assert other.value(name) == pytest.approx(alone.value(name), rel=1e-5, abs=1e-6), name


def test_pareto_compares_transcoders_of_one_pair_of_sites(model, text):
    family = [transcoder("a"), transcoder("b", seed=1)]
    report = pareto(family, model=model, text=text, contexts=CONTEXTS)
    frame = report.tables["measures"].frame.set_index("dictionary")
    found = evaluate(family, model, text.as_split("heldout"), contexts=CONTEXTS)
    for evaluation in found:
        assert frame.loc[evaluation.name, "MSE"] == pytest.approx(evaluation.value("mse"), rel=1e-5)
    elsewhere = replace(family[1], metadata=Metadata(site=READ, writes="blocks.2.hook_mlp_out"))
    with pytest.raises(DictlabError, match=r"written site is blocks.1.hook_mlp_out and blocks.2.hook_mlp_out"):
        pareto([family[0], elsewhere], model=model, text=text)
    with pytest.raises(DictlabError, match="kind is a transcoder and an autoencoder"):
        pareto([family[0], random_dictionary(d=16)], model=model, text=text)


def exact(model, reads):
    """The best linear map from what the MLP reads to what it writes, as a skip; latents add nothing."""
    tokens = torch.randint(0, 97, (60, CONTEXT), generator=torch.Generator().manual_seed(3))
    clean = model.capture(tokens, ["blocks.1.ln2.hook_out", WRITTEN])
    x, y = (clean[site].flatten(0, 1) for site in ("blocks.1.ln2.hook_out", WRITTEN))
    with_one = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    solution = torch.linalg.lstsq(with_one, y).solution
    made = random_transcoder(48, 16, 16, reads=reads)
    return replace(made, W_dec=1e-3 * made.W_dec, W_skip=solution[:-1], b_out=solution[-1])


def test_verification_finds_the_site_that_a_transcoder_was_fitted_to(model, text):
    right = verification(exact(model, "blocks.1.ln2.hook_out"), model=model, text=text, contexts=CONTEXTS)
    frame = right.tables["read_sites"].frame
    checks = right.tables["checks"].frame.set_index("check")
    assert checks.loc["site that is read", "result"] == "pass"
    assert set(frame["reads"]) >= {"blocks.1.hook_resid_mid", "blocks.1.ln2.hook_normalized", "blocks.1.ln2.hook_out"}
    for wrong in ("blocks.1.ln2.hook_normalized", "blocks.1.hook_resid_mid"):
        report = verification(exact(model, wrong), model=model, text=text, contexts=CONTEXTS)
        checks = report.tables["checks"].frame.set_index("check")
        assert checks.loc["site that is read", "result"] == "fail" and not report.passed
        assert "blocks.1.ln2.hook_out" in checks.loc["site that is read", "found"]


def test_verification_without_a_written_site_looks_at_weights_alone():
    report = verification(random_transcoder(48, 16, 16, writes=None))
    checks = report.tables["checks"].frame.set_index("check")
    assert "does not name the site" in checks.loc["behaviour on text", "found"] and "read_sites" not in report.tables
