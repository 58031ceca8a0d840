"""The comparison of a meta-dictionary: planted compositions, whose atoms are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from analyses.similarity.meta import explained, meta
from dictlab import DictlabError, TopK
from tests.planted import random_dictionary

D, ATOMS = 32, 12


def atoms() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0))).Q[:ATOMS]


def composed(n: int = 200):
    """A dictionary whose directions are sums of two atoms each, and a meta-dictionary that knows the atoms."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.zeros(n, ATOMS).scatter(1, torch.rand(n, ATOMS, generator=generator).topk(2, dim=1).indices, 1.0)
    weights *= 0.5 + torch.rand(n, ATOMS, generator=generator)
    large = replace(random_dictionary(n, D, name="large"), W_dec=normalize(weights @ atoms(), dim=1))
    return large, over(atoms(), 2)


def over(rows: torch.Tensor, k: int, name: str = "meta"):
    nothing = torch.zeros(D)
    made = random_dictionary(len(rows), D, activation=TopK(k), name=name)
    return replace(made, W_enc=rows.T.clone(), b_enc=torch.zeros(len(rows)), W_dec=rows, b_pre=nothing, b_out=nothing)


def test_the_atoms_explain_everything_and_fewer_active_ones_less():
    large, whole = composed()
    found = explained(whole, large.directions)
    assert found.centred == pytest.approx(1, abs=1e-5) and found.plain == pytest.approx(1, abs=1e-5) and found.l0 == 2
    one = explained(over(atoms(), 1), large.directions)
    best = (large.directions @ atoms().T).amax(dim=1)
    assert one.plain == pytest.approx(float(best.square().mean()), abs=1e-5)


def test_the_mean_direction_alone_explains_nothing_of_the_variance():
    large, whole = composed()
    mean = replace(whole, W_dec=torch.zeros(ATOMS, D), b_out=large.directions.mean(dim=0))
    found = explained(mean, large.directions)
    assert found.centred == pytest.approx(0, abs=1e-6) and found.plain > 0.05


def test_meta_latents_are_those_of_the_dictionary_that_has_the_atoms():
    large, whole = composed()
    same = over(atoms()[torch.randperm(ATOMS)], 2, "same")
    other = random_dictionary(ATOMS, D, seed=5, name="other")
    report = meta(whole, large, [same, other])
    table = report.tables["cosines"].frame.set_index("dictionary")
    assert table.loc["same", "mean max cosine"] == pytest.approx(1, abs=1e-5)
    assert table.loc["other", "mean max cosine"] < 0.6
    for name in ("same", "other"):
        assert table.loc[name, "chance (isotropic)"] < 0.6
    assert "same" in report.summary and table.loc["large", "is"] == "base"
    share = report.tables["explained"].frame.iloc[0]
    assert share["low"] <= share["explained (centred)"] <= share["high"] + 1e-12 and share["active"] == ATOMS


def test_a_trained_one_is_measured_as_the_formula_says():
    """Plain gradient descent on the directions, then the formula written out."""
    large, _ = composed(120)
    made = random_dictionary(16, D, activation=TopK(2), name="meta")
    weights = {name: getattr(made, name).clone().requires_grad_() for name in ("W_enc", "b_enc", "W_dec", "b_out")}
    optimizer = torch.optim.Adam(weights.values(), lr=0.02)
    for _ in range(200):
        loss = (large.directions - replace(made, **weights)(large.directions)[1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = replace(made, **{name: weight.detach() for name, weight in weights.items()})
    rows, x_hat = large.directions.numpy(), trained.reconstruct(large.directions).numpy()
    expected = 1 - np.square(rows - x_hat).sum() / np.square(rows - rows.mean(axis=0)).sum()
    report = meta(trained, large, [])
    assert report.tables["explained"].frame["explained (centred)"][0] == pytest.approx(expected, abs=1e-5)
    assert expected > 0.1


def test_bad_input_is_answered_in_a_sentence():
    large, whole = composed()
    with pytest.raises(DictlabError, match="width"):
        meta(random_dictionary(8, 16, name="narrow"), large, [])
    silent = replace(whole, W_dec=torch.zeros(ATOMS, D))
    with pytest.raises(DictlabError, match="active"):
        meta(silent, large, [])
    dead = replace(large, firing_rate=torch.zeros(200))
    with pytest.raises(DictlabError, match="all of its 200 latents are dead"):
        meta(whole, dead, [])
    named = replace(whole, metadata=replace(whole.metadata, sources=("another",)))
    assert any("another" in warning for warning in meta(named, large, []).warnings)
