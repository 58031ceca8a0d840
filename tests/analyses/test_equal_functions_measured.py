"""How a function is written (scales shared between encoder and decoder, folded biases and input scales, dead latents)
changes nothing of what is measured of it, on an array and in a model."""

from dataclasses import replace

import pytest
import torch

from analyses import ablation, explanations, path, shrinkage, stitching
from analyses.composition.frankenstein.append_rule import appended
from analyses.pool.gradient_refit import finetuned
from dictlab import Metadata
from dictlab.dictionary.unit_directions import with_unit_directions
from tests.analyses.test_equal_functions import (
    SMALL_SAMPLE,
    D,
    M,
    N,
    X,
    assert_equal_tables,
    biases_folded,
    dictionary,
    rescaled,
    scaled_input,
    with_dead,
)
from tests.planted import SITE, many_documents, tiny_model

DRAWN = torch.rand(N + M, generator=torch.Generator().manual_seed(5)).mul(2).exp().div(2)


def pair(kind: str):
    return dictionary(kind, N, 1, "small"), dictionary(kind, M, 2, "large")


def rewritten(small, large):
    """The same functions, with other scales, biases and units of the input."""
    made = []
    for one, drawn in ((small, DRAWN[:N]), (large, DRAWN[N:])):
        made.append(scaled_input(biases_folded(rescaled(one, drawn), drawn), drawn))
    return made


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "gated", "topk", "abstopk"])
def test_unit_directions_are_the_same_function_whatever_it_was_written_as(kind):
    small, _ = pair(kind)
    unit, other = (with_unit_directions(d) for d in (small, scaled_input(rescaled(small, DRAWN[:N]), DRAWN)))
    flat = X.reshape(-1, D)
    torch.testing.assert_close(unit.reconstruct(flat), small.reconstruct(flat), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(unit.W_dec.norm(dim=1), torch.ones(N))
    torch.testing.assert_close(other.W_enc, unit.W_enc, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other.encode(flat).dense(), unit.encode(flat).dense(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["relu", "gated"])
def test_contributions_sum_to_the_reconstruction_and_do_not_depend_on_scales(kind):
    small, _ = pair(kind)
    flat = X.reshape(-1, D)[:50]
    for one in (small, rewritten(*pair(kind))[0]):
        lengths = one.contributions(one.encode(flat), flat).dense()
        whole = lengths @ one.directions + small.b_out
        torch.testing.assert_close(whole, small.reconstruct(flat), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("parameters", ["biases", "all"])
def test_a_refit_by_gradient_does_not_depend_on_how_scales_are_shared_nor_on_dead_latents(parameters):
    small, _ = pair("relu")
    flat = X.reshape(-1, D)
    tuned = [
        finetuned(d, [X], parameters, steps=20).dictionary.reconstruct(flat)
        for d in (small, rescaled(small, DRAWN[:N]), with_dead(small, DRAWN))
    ]
    assert not torch.allclose(tuned[0], small.reconstruct(flat), atol=1e-3)
    for other in tuned[1:]:
        torch.testing.assert_close(other, tuned[0], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
def test_shrinkage_of_equal_functions_is_equal(kind):
    one, other = (
        shrinkage(list(ds), data=X, contexts=10, l0_levels=(2, 4)) for ds in (pair(kind), rewritten(*pair(kind)))
    )
    assert_equal_tables(one, other)


@pytest.mark.parametrize("order", ["cosine", "effect", "greedy"])
def test_dead_latents_are_no_steps_of_a_path(order):
    small, large = pair("relu")
    dead = with_dead(small, DRAWN), with_dead(large, DRAWN)
    one, other = (path(a, [b], order=order, random_orders=0, **SMALL_SAMPLE) for a, b in ((small, large), dead))
    assert_equal_tables(one, other)
    assert one.summary == other.summary


def test_dead_latents_are_not_counted_on_the_way():
    small, large = pair("relu")
    dead = with_dead(small, DRAWN), with_dead(large, DRAWN)
    points = [
        stitching(a, [b], select="effect", until="latents=25", cards=0, **SMALL_SAMPLE).settings["point"]
        for a, b in ((small, large), dead)
    ]
    assert points == [5, 5]


def test_frankensteins_rule_begins_with_the_fewest_alive_latents():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, D, generator=generator) for n in (9, 6)]
    rates = [torch.full((9,), 0.1), torch.full((6,), 0.1)]
    plain = appended(rows, rates)
    assert plain.order == (1, 0)
    padded = torch.cat([rows[1], torch.randn(8, D, generator=generator)])
    dead = appended([rows[0], padded], [rates[0], torch.cat([rates[1], torch.zeros(8)])])
    assert dead.order == plain.order and dead.near == plain.near and dead.twice == plain.twice
    assert (dead.chosen[:15] == plain.chosen).all() and not dead.chosen[15:].any()


IN_MODEL = {
    "ablation": lambda ds, **given: ablation(ds, contexts=3, latents_per_token=3, positions=3, **given),
    "explanations": lambda ds, **given: explanations(
        ds, latents=6, examples=3, max_pattern_length=5, tokens=160, **given
    ),
}


@pytest.mark.parametrize("name", IN_MODEL)
def test_what_is_measured_in_a_model_is_equal(name, tmp_path):
    given = {"model": tiny_model(d=12), "text": many_documents(tmp_path)}
    plain = [replace(d, metadata=Metadata(site=SITE)) for d in pair("relu")]
    one, other = (IN_MODEL[name](ds, **given) for ds in (plain, rewritten(*plain)))
    assert_equal_tables(one, other)
    assert all(len(table.frame) for table in one.tables.values())
