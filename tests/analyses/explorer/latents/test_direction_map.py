"""The place of each latent on the map: that of its own direction, or between the landmarks nearest to it."""

import numpy as np
import pytest
import torch

from analyses.explorer.latents import direction_map as module
from analyses.explorer.latents.direction_map import direction_map
from dictlab import Metadata, TopK
from tests.planted import random_dictionary


@pytest.fixture
def dictionaries():
    return [random_dictionary(n, 6, activation=TopK(2), seed=n, metadata=Metadata()) for n in (20, 30)]


def alive(dictionaries):
    return [np.arange(d.n_latents) % 7 != 3 for d in dictionaries]


def test_dead_latents_have_no_place_and_main_axes_are_those_of_the_unit_directions(dictionaries):
    masks = alive(dictionaries)
    placed = direction_map(dictionaries, masks, umap=False, seed=0)
    assert (placed.kind, placed.landmarks) == ("main axes", 0)
    unit = torch.cat([d.directions[torch.from_numpy(m)] for d, m in zip(dictionaries, masks, strict=True)]).numpy()
    centred = unit - unit.mean(axis=0)
    found = np.concatenate([p[m] for p, m in zip(placed.positions, masks, strict=True)])
    variance = np.linalg.svd(centred, compute_uv=False)[:2] ** 2
    assert (found**2).sum(axis=0) == pytest.approx(variance, rel=1e-4)
    assert all(np.isnan(p[~m]).all() and np.isfinite(p[m]).all() for p, m in zip(placed.positions, masks, strict=True))


def test_landmarks_stand_where_they_are_put_and_others_between_their_nearest(dictionaries, monkeypatch):
    """In place of UMAP, the first two coordinates: a latent that is no landmark lies within those of three landmarks."""
    monkeypatch.setattr(module, "embed", lambda directions, seed: directions[:, :2].numpy())
    monkeypatch.setattr(module, "LANDMARKS", 15)
    masks = [np.ones(d.n_latents, dtype=bool) for d in dictionaries]
    placed = direction_map(dictionaries, masks, umap=True, seed=0)
    assert (placed.kind, placed.landmarks) == ("UMAP", 15)
    unit, found = torch.cat([d.directions for d in dictionaries]).numpy(), np.concatenate(placed.positions)
    landmarks = np.isclose(found, unit[:, :2], atol=1e-6).all(axis=1)
    assert landmarks.sum() == 15
    for direction, place in zip(unit[~landmarks], found[~landmarks], strict=True):
        near = unit[landmarks][np.argsort(-(unit[landmarks] @ direction))[:3], :2]
        assert (near.min(axis=0) - 1e-5 <= place).all() and (place <= near.max(axis=0) + 1e-5).all()
