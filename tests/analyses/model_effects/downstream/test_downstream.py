"""The run behind a dictionary, beside the original's: brute force, closed forms, and a planted lost direction."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity, layer_norm

from analyses import downstream
from analyses.model_effects.downstream.measurement import measure, places_of
from analyses.model_effects.downstream.principal_directions import (  # fmt: skip
    REPAIRED,
    WRONG,
    Group,
    doubling_groups,
    principal,
    repaired_and_wrong,
    resampled,
    sums_along,
)
from analyses.model_effects.downstream.stream_comparison import METRICS, OUTPUT
from dictlab import Dictionary, DictlabError, Metadata, ReLU
from dictlab.data.activations import moments
from tests.planted import SITE, identity_dictionary, random_dictionary, tiny_model

TOKENS = torch.randint(0, 97, (6, 20), generator=torch.Generator().manual_seed(0))
D = 16


def perfect(name="perfect") -> Dictionary:
    return identity_dictionary(D, metadata=Metadata(site=SITE), name=name)


def without(direction: torch.Tensor, value: float) -> Dictionary:
    """Reconstructs everything but one direction, along which it always gives the same value."""
    rest = torch.eye(D) - torch.outer(direction, direction)
    both = torch.cat([torch.eye(D), -torch.eye(D)])
    b_out = value * direction
    parts = (both.T.clone(), torch.zeros(2 * D), both @ rest, torch.zeros(D), b_out)
    return Dictionary(*parts, ReLU(), metadata=Metadata(site=SITE), name="without")


def test_a_perfect_dictionary_leaves_the_run_as_it_is():
    model = tiny_model()
    found = measure([perfect()], model, TOKENS)
    for place in places_of(model, SITE):
        sums = found.depth["perfect", place]
        exact = {"MSE": 0, "relative error": 0, "explained variance": 1, "cosine": 1, "norm ratio": 1}
        for label, value in exact.items():
            np.testing.assert_allclose(sums.value(METRICS[label].of), value, atol=1e-6, err_msg=f"{place} {label}")
    assert abs(float(found.output["perfect"].value(OUTPUT["KL"].of))) < 1e-6
    assert abs(float(found.output["perfect"].value(OUTPUT["CE increase"].of))) < 1e-6


def test_every_place_agrees_with_a_hooked_forward_of_the_whole_model():
    """Brute force: the plain model with the reconstruction put in by a hook, all states read from its own output."""
    model, dictionary = tiny_model(), random_dictionary(40, D, name="random")
    found = measure([dictionary], model, TOKENS, directions=False)
    plain = model.model(TOKENS, output_hidden_states=True)

    def put(module, args, kwargs):
        x = args[0] if args else kwargs["hidden_states"]
        new = dictionary.reconstruct(x)
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

    handle = model.blocks[1].register_forward_pre_hook(put, with_kwargs=True)
    caught = []
    end = model.blocks[-1].register_forward_hook(lambda *a: caught.append(a[2][0] if isinstance(a[2], tuple) else a[2]))
    altered = model.model(TOKENS, output_hidden_states=True)
    model_end = caught[-1]
    handle.remove()
    plain_end = model.capture(TOKENS, model.last_site)[model.last_site]
    end.remove()
    pairs = {
        "blocks.2.hook_resid_pre": (plain.hidden_states[2], altered.hidden_states[2]),
        model.last_site: (plain_end, model_end),
        SITE: (plain.hidden_states[1], dictionary.reconstruct(plain.hidden_states[1])),
    }
    for place, (a, b) in pairs.items():
        a, b = a.double(), b.double()
        mean, normed = a.mean(dim=(0, 1)), (layer_norm(a, (D,)), layer_norm(b, (D,)))
        expected = {
            "MSE": (a - b).square().mean(),
            "explained variance": 1 - (a - b).square().sum() / (a - mean).square().sum(),
            "explained variance (layer norm)": 1
            - (normed[0] - normed[1]).square().sum() / (normed[0] - normed[0].mean(dim=(0, 1))).square().sum(),
            "cosine": cosine_similarity(a, b, dim=-1).mean(),
            "norm ratio": (b.norm(dim=-1) / a.norm(dim=-1)).mean(),
        }
        for label, value in expected.items():
            measured = float(found.depth["random", place].value(METRICS[label].of))
            np.testing.assert_allclose(measured, float(value), rtol=2e-4, err_msg=f"{place} {label}")
    log_p, log_q = plain.logits.log_softmax(-1), altered.logits.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    np.testing.assert_allclose(float(found.output["random"].value(OUTPUT["KL"].of)), float(kl), rtol=1e-3)


def test_exactly_the_direction_that_was_left_out_is_lost(text):
    model = tiny_model()
    x = model.capture(text.as_split("train").sample(model.tokenizer, 32, 60, seed=0), SITE)[SITE]
    found = principal(moments([x], covariance=True))
    left_out = found.directions[:, 2]
    report = downstream([without(left_out, float(found.mean @ left_out))], model=model, text=text, contexts=12)
    share = report.tables["directions"].frame["not reconstructed"].to_numpy()
    basis = principal(moments([model.capture(_sampled(model, text), SITE)[SITE]], covariance=True)).directions
    weight = (basis.T @ left_out).square().numpy()  # the held-out sample has its own directions, close to these
    assert share.argmax() == weight.argmax() and share.max() > 0.5
    assert (share[weight < 1e-3] < 0.05).all()
    groups = report.tables["groups"].frame
    worst = groups["KL, only this group wrong"].idxmax()
    assert groups.loc[worst, "directions"] == next(
        g.name for g in doubling_groups(D) if g.start <= weight.argmax() < g.stop
    )


def _sampled(model, text):
    return text.as_split("heldout").sample(model.tokenizer, 32, 12, seed=0)


@given(st.integers(1, 300))
def test_the_groups_hold_each_direction_once(n):
    groups = doubling_groups(n)
    assert [i for g in groups for i in range(g.start, g.stop)] == list(range(n))


@given(st.integers(0, 1000))
def test_repaired_and_wrong_part_the_error_between_them(seed):
    generator = torch.Generator().manual_seed(seed)
    x, x_hat = (torch.randn(2, 7, D, generator=generator) for _ in range(2))
    basis = principal(moments([x], covariance=True))
    made = [repaired_and_wrong(x, x_hat, basis, group) for group in doubling_groups(D)]
    for one in made:  # what the one takes from the error the other leaves
        torch.testing.assert_close(one[WRONG] + one[REPAIRED], x + x_hat, atol=1e-5, rtol=1e-5)
    errors = sum(x - one[WRONG] for one in made)
    torch.testing.assert_close(errors, x - x_hat, atol=1e-5, rtol=1e-5)
    whole = repaired_and_wrong(x, x_hat, basis, Group(0, D))
    torch.testing.assert_close(whole[WRONG], x_hat, atol=1e-5, rtol=1e-5)


def test_resampling_moves_a_groups_component_among_tokens_and_nothing_else():
    x = torch.randn(3, 9, D, generator=torch.Generator().manual_seed(0))
    basis, group = principal(moments([x], covariance=True)), Group(2, 5)
    new = resampled(x, basis, group, torch.Generator().manual_seed(1))
    before, after = x @ basis.directions, new @ basis.directions
    assert torch.equal(new[:, 0], x[:, 0])
    others = [i for i in range(D) if not group.start <= i < group.stop]
    torch.testing.assert_close(before[..., others], after[..., others], atol=1e-5, rtol=1e-5)
    own = [values[:, 1:, group.start : group.stop].flatten(0, 1) for values in (before, after)]
    torch.testing.assert_close(own[0].sort(dim=0).values, own[1].sort(dim=0).values, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(own[0], own[1])


def test_the_sums_along_directions_are_those_of_the_projections():
    generator = torch.Generator().manual_seed(0)
    x, x_hat = (torch.randn(4, 6, D, generator=generator) for _ in range(2))
    basis = principal(moments([x], covariance=True))
    sums = {name: values.sum(dim=0) for name, values in sums_along(x, x_hat, basis).items()}
    p = ((x - x.mean(dim=(0, 1))) @ basis.directions).flatten(0, 1)
    torch.testing.assert_close(sums["variance"].float(), p.square().sum(dim=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sums["error"].sum().float(), (x - x_hat).square().sum(), rtol=1e-4, atol=1e-4)


def test_dictionaries_are_measured_together_as_they_are_alone(text):
    a, b = random_dictionary(20, D, seed=1, name="a"), random_dictionary(30, D, seed=2, name="b")
    options = {"model": tiny_model(), "text": text, "contexts": 6}
    together = downstream([a, b], **options).tables["metrics"].frame
    alone = downstream([b], **options).tables["metrics"].frame
    ours = together[together["dictionary"] == "b"].reset_index(drop=True)
    np.testing.assert_allclose(ours["value"], alone["value"], rtol=1e-5, atol=1e-6)


def test_the_last_site_has_nothing_behind_it_but_the_output(text):
    last = "blocks.2.hook_resid_post"
    dictionary = random_dictionary(20, D, metadata=Metadata(site=last))
    report = downstream([dictionary], model=tiny_model(), text=text, contexts=4)
    assert set(report.tables["depth"].frame["place"]) == {last}
    assert report.tables["overview"].frame["KL"][0] > 0


def test_without_directions_none_are_asked_for(text):
    report = downstream([perfect()], model=tiny_model(), text=text, contexts=4, principal_directions=False)
    assert set(report.tables) == {"overview", "depth", "metrics"} and set(report.plots) == {"depth"}


def test_a_reconstruction_of_no_numbers_is_refused(text):
    broken = random_dictionary(20, D, name="broken")
    broken.b_out[3] = torch.nan
    with pytest.raises(DictlabError, match=r"broken: its reconstruction of .* tokens is not finite"):
        downstream([broken], model=tiny_model(), text=text, contexts=4)


def test_an_interruption_leaves_what_was_measured_marked_as_partial(text, monkeypatch):
    module = importlib.import_module(
        "analyses.model_effects.downstream.measurement"
    )  # the package offers the function under this name
    dictionary, whole = random_dictionary(20, D), module._batch
    seen = []

    def interrupted(*args):
        seen.append(None)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(module, "BATCH_TOKENS", 64)  # two sequences of 32 tokens
    monkeypatch.setattr(module, "_batch", interrupted)
    report = downstream([dictionary], model=tiny_model(), text=text, contexts=6)
    assert report.warnings == ("PARTIAL: interrupted after 2 of 6 sequences.",)
    assert report.settings["contexts"] == 2
    monkeypatch.setattr(module, "_batch", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        downstream([dictionary], model=tiny_model(), text=text, contexts=6)
