"""Reparametrisations that leave the function as it is leave what analyses say of it as it was."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from analyses import frankenstein, geometry, matching, novelty, path, stitching
from dictlab import Dictionary, load
from dictlab.dictionary.activation_functions import AbsTopK, Gated, JumpReLU, ReLU, TopK
from dictlab.dictionary.normalisation import LayerNorm, Scale
from dictlab.formats.conversion import write
from dictlab.formats.native.native_file import save
from dictlab.reports.report import Report

D, N, M = 12, 20, 30
ONCE = settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def data(seed: int = 0, sequences: int = 60, context: int = 12) -> torch.Tensor:
    """Tokens that are few directions at a time, of unequal size, without a mean over their coordinates."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(N, D, generator=generator)
    active = torch.rand(sequences, context, N, generator=generator) < 0.15
    x = (active * torch.randn(sequences, context, N, generator=generator)) @ directions
    x = x + 0.1 * torch.randn(sequences, context, D, generator=generator)
    return x - x.mean(dim=-1, keepdim=True)


def dictionary(kind: str, n: int, seed: int, name: str) -> Dictionary:
    """Encoder and decoder alike, and all biases different from zero where the activation function has a use for it."""
    generator = torch.Generator().manual_seed(seed)
    W = normalize(torch.randn(n, D, generator=generator), dim=1)
    b_enc, b_pre, b_out = (0.1 * torch.randn(size, generator=generator) for size in (n, D, D))
    activation = {
        "relu": ReLU(),
        "jumprelu": JumpReLU(torch.rand(n, generator=generator)),
        "gated": Gated(*(0.2 * torch.randn(n, generator=generator) for _ in range(3))),
        "topk": TopK(4),
        "abstopk": AbsTopK(4),
    }[kind]
    return Dictionary(W.T.contiguous(), b_enc, W, b_pre, b_out, activation, name=name)


def rescaled(d: Dictionary, s: torch.Tensor) -> Dictionary:
    """Encoders times s, decoders over s. Of latents that compete, all by one factor."""
    if isinstance(d.activation, ReLU):
        activation = d.activation
    elif isinstance(d.activation, JumpReLU):
        activation = JumpReLU(d.activation.threshold * s)
    elif isinstance(d.activation, Gated):
        own = d.activation
        activation = Gated(own.b_gate * s, own.r_mag, own.b_mag * s)
    else:
        s, activation = s[:1].expand_as(s), d.activation
    return replace(d, W_enc=d.W_enc * s, b_enc=d.b_enc * s, W_dec=d.W_dec / s[:, None], activation=activation)


def biases_folded(d: Dictionary, s: torch.Tensor) -> Dictionary:
    """The bias before the encoder in the encoder's."""
    return d.folded()


def scaled_input(d: Dictionary, s: torch.Tensor) -> Dictionary:
    """A constant factor before the encoder, in whose units biases and thresholds are."""
    c = float(s[0])
    moved = {name: getattr(d, name) * c for name in ("b_enc", "b_pre", "b_out")}
    return replace(d, normalisation=Scale(c), activation=d.activation.scaled(c), **moved)


def flipped(d: Dictionary, s: torch.Tensor) -> Dictionary:
    """Of signed latents, some in encoder, bias and decoder negated."""
    sign = torch.where(d.signed & (s > 1), -1.0, 1.0)
    return replace(d, W_enc=d.W_enc * sign, b_enc=d.b_enc * sign, W_dec=d.W_dec * sign[:, None])


def permuted(d: Dictionary, s: torch.Tensor) -> Dictionary:
    """Latents in another order."""
    order = s.argsort()
    activation = d.activation if isinstance(d.activation, TopK | AbsTopK | ReLU) else d.activation.at(order)
    return replace(d, W_enc=d.W_enc[:, order], b_enc=d.b_enc[order], W_dec=d.W_dec[order], activation=activation)


def with_dead(d: Dictionary, s: torch.Tensor) -> Dictionary:
    """Latents behind that never fire, with encoders and decoders of their own."""
    more = normalize(torch.randn(5, D, generator=torch.Generator().manual_seed(9)), dim=1)
    if isinstance(d.activation, JumpReLU):
        activation = JumpReLU(torch.cat([d.activation.threshold, torch.full((5,), 1e4)]))
    elif isinstance(d.activation, Gated):
        own = d.activation
        activation = Gated(*(torch.cat([t, torch.full((5,), -1e4)]) for t in (own.b_gate, own.r_mag, own.b_mag)))
    else:
        activation = d.activation
    bias = torch.full((5,), 0.0 if isinstance(d.activation, AbsTopK) else -1e4)
    W_enc = 0 * more if isinstance(d.activation, AbsTopK) else more
    return replace(
        d,
        W_enc=torch.cat([d.W_enc, W_enc.T], dim=1),
        b_enc=torch.cat([d.b_enc, bias]),
        W_dec=torch.cat([d.W_dec, more]),
        activation=activation,
    )


SAME_NUMBERS = (rescaled, biases_folded, scaled_input, flipped)
OTHER_NUMBERS = (permuted, with_dead)
X = data()
SMALL_SAMPLE: dict[str, Any] = {"data": X, "tokens": 360, "contexts": 10}


def reports(small: Dictionary, large: Dictionary) -> dict[str, Report]:
    """Every analysis of two dictionaries that needs no model."""
    return {
        "matching": matching([small, large], data=X, tokens=720, permutations=2, min_active_tokens=5),
        "geometry": geometry([small, large], data=X, tokens=720, permutations=20, umap_points=0),
        "novelty": novelty(small, large, data=X, tokens=720),
    }


def assert_equal_tables(one: Report, other: Report) -> None:
    """All tables are the same to rounding, and so are the words."""
    assert one.tables.keys() == other.tables.keys()
    for name, table in one.tables.items():
        left, right = (_sorted(t.frame) for t in (table, other.tables[name]))
        pd.testing.assert_frame_equal(left, right, rtol=2e-3, atol=2e-4, check_dtype=False, obj=name)


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by what they are about: those that are equal but for rounding may stand either way round."""
    keys = [c for c in frame.columns if frame[c].dtype == object or frame[c].dtype == np.int64]
    return frame.sort_values(keys, kind="stable", ignore_index=True) if keys else frame


@pytest.fixture(scope="module", params=["relu", "jumprelu", "gated", "topk", "abstopk"])
def pair(request):
    small, large = dictionary(request.param, N, 1, "small"), dictionary(request.param, M, 2, "large")
    return small, large, reports(small, large)


@ONCE
@given(st.lists(st.sampled_from(SAME_NUMBERS), min_size=1, max_size=4, unique=True), st.integers(0, 99))
def test_latents_keep_their_numbers_and_every_table_its_rows(pair, changes, seed):
    small, large, plain = pair
    drawn = torch.rand(N + M, generator=torch.Generator().manual_seed(seed)).mul(2).exp().div(2)
    other_small, other_large = small, large
    for change in changes:
        other_small, other_large = change(other_small, drawn[:N]), change(other_large, drawn[N:])
    flat = X.reshape(-1, D)
    assert torch.allclose(other_large.reconstruct(flat), large.reconstruct(flat), atol=1e-4)
    for name, report in reports(other_small, other_large).items():
        assert_equal_tables(plain[name], report)


@pytest.mark.parametrize("change", OTHER_NUMBERS)
def test_other_latents_and_another_order_leave_every_similarity_as_it_was(pair, change):
    small, large, plain = pair
    drawn = torch.rand(N + M, generator=torch.Generator().manual_seed(5))
    changed = reports(change(small, drawn[:N]), change(large, drawn[N:]))
    for name in ("similarities", "overview"):
        one, other = (r["matching"].tables[name].frame for r in (plain, changed))
        if name == "similarities":
            one, other = (f.set_index(["measure", "from", "to"])["value"].sort_index() for f in (one, other))
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)
        else:
            assert one["alive latents"].tolist() == other["alive latents"].tolist()
            assert one["mutual nearest"].tolist() == other["mutual nearest"].tolist()
    one, other = (r["geometry"].tables["pairs"].frame for r in (plain, changed))
    np.testing.assert_allclose(one[["mean", "median", "alive"]], other[["mean", "median", "alive"]], atol=2e-4)
    one, other = (r["novelty"].tables["shares"].frame.iloc[0] for r in (plain, changed))
    for column in ("active", "novel", "share novel", "share by cosine"):
        assert one[column] == pytest.approx(other[column])


def test_the_same_function_with_and_without_a_layer_norm():
    """Tokens have no mean, and neither biases nor thresholds: a norm for each token is all the same to TopK."""
    W = dictionary("topk", N, 1, "plain").W_dec
    W = W - W.mean(dim=1, keepdim=True)
    nothing = torch.zeros(D)
    plain = Dictionary(W.T.contiguous(), torch.zeros(N), W, nothing, nothing, TopK(4), name="plain")
    normed = replace(plain, normalisation=LayerNorm(eps=0.0), name="normed")
    report = matching([plain, normed], data=X, tokens=720, permutations=2, min_active_tokens=5)
    value = report.tables["similarities"].frame.set_index(["measure", "from"])["value"]
    for measure in ("MMCS", "MCC, encoder", "correlation, matched pairs", "CKA, codes"):
        assert float(value[measure].iloc[0]) == pytest.approx(1, abs=1e-4)
    assert float(value["cross-reconstruction R², median", "plain"]) > 0.999


def test_opposite_signs_are_one_function_to_what_is_made_of_it():
    """Path, stitched and joined dictionaries of signed latents, some of them negated."""
    small, large = dictionary("abstopk", N, 1, "small"), dictionary("abstopk", M, 2, "large")
    drawn = torch.rand(M, generator=torch.Generator().manual_seed(5)).mul(2)
    negated = flipped(large, drawn)
    assert not torch.equal(negated.W_dec, large.W_dec)
    for analysis, how in (
        (path, {"order": "cosine", "random_orders": 0}),
        (stitching, {"select": "cosine"}),
        (lambda a, b, **k: frankenstein([a, *b], written_refit="none", **k), {}),
    ):
        one, other = (analysis(small, [x], data=X, tokens=360, contexts=10, **how) for x in (large, negated))
        assert_equal_tables(one, other)


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
def test_the_path_between_equal_functions_is_equal(kind):
    """Encoders rescaled against decoders, and biases folded."""
    small, large = dictionary(kind, N, 1, "small"), dictionary(kind, M, 2, "large")
    drawn = torch.rand(N + M, generator=torch.Generator().manual_seed(5)).mul(2).exp().div(2)
    others = [biases_folded(rescaled(d, s), s) for d, s in ((small, drawn[:N]), (large, drawn[N:]))]
    one, other = (
        path(a, [b], order="effect", random_orders=0, data=X, tokens=360, contexts=10)
        for a, b in ((small, large), others)
    )
    assert_equal_tables(one, other)


COMPOSED = {
    "effect": lambda a, b: stitching(a, [b], select="effect", refit="decoder", cards=0, **SMALL_SAMPLE),
    "cosine": lambda a, b: stitching(a, [b], select="cosine", refit="bias", cards=0, **SMALL_SAMPLE),
    "optimal": lambda a, b: stitching(a, [b], select="optimal", refit="decoder", cards=0, **SMALL_SAMPLE),
    "path": lambda a, b: stitching(a, [b], select="effect", until="latents=25", cards=0, **SMALL_SAMPLE),
    "frankenstein": lambda a, b: frankenstein([a, b], search_refit=True, **SMALL_SAMPLE),
}


@pytest.mark.parametrize("kind", ["relu", "jumprelu"])
@pytest.mark.parametrize("how", COMPOSED)
def test_what_is_composed_of_equal_functions_is_equal(how, kind):
    """Encoders rescaled against decoders, and biases folded: choices, refits, sparsity curves and errors."""
    small, large = dictionary(kind, N, 1, "small"), dictionary(kind, M, 2, "large")
    drawn = torch.rand(N + M, generator=torch.Generator().manual_seed(5)).mul(4).exp().div(8)
    others = [biases_folded(rescaled(d, s), s) for d, s in ((small, drawn[:N]), (large, drawn[N:]))]
    assert_equal_tables(COMPOSED[how](small, large), COMPOSED[how](*others))


@pytest.mark.parametrize("change", [with_dead, permuted])
@pytest.mark.parametrize("how", ["effect", "cosine", "optimal"])
def test_dead_latents_and_another_order_change_no_error_of_what_is_stitched(how, change):
    """Counts of latents, and tables with a row for each, are others."""
    small, large = dictionary("relu", N, 1, "small"), dictionary("relu", M, 2, "large")
    drawn = torch.rand(N + M, generator=torch.Generator().manual_seed(5))
    changed = change(small, drawn[:N]), change(large, drawn[N:])
    one, other = (COMPOSED[how](*pair).tables["quality"].frame for pair in ((small, large), changed))
    assert one["dictionary"].tolist() == other["dictionary"].tolist()
    for column in ("L0", "MSE", "explained variance"):
        np.testing.assert_allclose(other[column], one[column], rtol=2e-3)


def test_what_is_inserted_is_the_same_beside_two_halves_of_each_latent():
    """Two ReLU latents with half the decoder row each. L0, counts, and refitted decoders are others: a ridge is a
    latent's, and there are two."""
    small, large = dictionary("relu", N, 1, "small"), dictionary("relu", M, 2, "large")
    halves = replace(
        small,
        W_enc=small.W_enc.repeat(1, 2),
        b_enc=small.b_enc.repeat(2),
        W_dec=small.W_dec.repeat(2, 1) / 2,
    )
    one, other = (novelty(d, large, data=X, tokens=720).tables["latents"].frame for d in (small, halves))
    columns = ["latent", "class", "change in MSE", "max cosine", "class by cosine"]
    pd.testing.assert_frame_equal(_sorted(one[columns]), _sorted(other[columns]), rtol=2e-3, atol=2e-4)
    for how in ("effect", "cosine"):
        reports = [stitching(d, [large], select=how, refit="none", cards=0, **SMALL_SAMPLE) for d in (small, halves)]
        one, other = (r.tables["quality"].frame.set_index("dictionary")["MSE"] for r in reports)
        np.testing.assert_allclose(other, one, rtol=2e-3)


@pytest.mark.parametrize("written", ["float16", "saelens"])
def test_precision_and_format_of_a_file_change_no_table_of_what_is_stitched(tmp_path, written):
    """A file in float16 of values that float16 holds, and what SAELens' format gives back."""
    plain, read = [], []
    for n, seed, name in ((N, 1, "small"), (M, 2, "large")):
        d = dictionary("relu", n, seed, name)
        held = {part: getattr(d, part).half().float() for part in ("W_enc", "b_enc", "W_dec", "b_pre", "b_out")}
        d = replace(d, **held)
        if written == "float16":
            save(d, tmp_path / f"{name}.safetensors", torch.float16)
            read.append(load(tmp_path / f"{name}.safetensors"))
        else:
            read.append(replace(load(write(d, tmp_path / name, "saelens")), name=name))
        plain.append(d)
    assert_equal_tables(COMPOSED["effect"](*plain), COMPOSED["effect"](*read))


def test_a_signed_dictionary_has_nothing_that_its_negative_lacks():
    small = dictionary("abstopk", N, 1, "small")
    negative = replace(flipped(small, torch.full((N,), 2.0)), name="negative")
    report = novelty(small, negative, data=X, tokens=720)
    assert (report.tables["latents"].frame["class by cosine"] != "novel").all()
    assert "either sign" in " ".join(report.warnings)


def test_a_file_is_what_was_written(tmp_path):
    small, large = dictionary("jumprelu", N, 1, "small"), dictionary("topk", M, 2, "large")
    read = []
    for one in (small, large):
        save(one, tmp_path / f"{one.name}.safetensors")
        read.append(load(tmp_path / f"{one.name}.safetensors"))
    for name, report in reports(small, large).items():
        assert_equal_tables(report, reports(*read)[name])


def test_a_dictionary_without_an_alive_latent_is_said_to_be_one():
    dead = replace(dictionary("relu", N, 1, "dead"), b_enc=torch.full((N,), -1e4))
    with pytest.raises(Exception, match=r"dead: all of its 20 latents are dead"):
        matching([dead, dictionary("relu", M, 2, "other")], data=X, tokens=720)
