"""What a direction does to the logits, against the norm and unembedding written out."""

import pytest
import torch

from analyses.composition.insertion.direct_logits import extremes, leaving, logit_effects, writes_to_stream
from tests.planted import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def by_hand(model, h):
    """GPT-2's final layer norm and tied unembedding."""
    norm, unembedding = model.model.transformer.ln_f, model.model.lm_head.weight
    centred = h - h.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias
    ) @ unembedding.T


@torch.no_grad()
def test_effects_are_those_of_the_final_norm_and_unembedding(model):
    generator = torch.Generator().manual_seed(0)
    streams, directions = torch.randn(9, 16, generator=generator), torch.randn(4, 16, generator=generator)
    lengths = torch.tensor([0.5, 1, 2, 0])
    found = logit_effects(model, directions, lengths, streams)
    for i in range(4):
        moved = (by_hand(model, streams + lengths[i] * directions[i]) - by_hand(model, streams)).mean(0)
        torch.testing.assert_close(found[i], moved - moved.mean(), rtol=1e-4, atol=1e-5)
    assert found[3].abs().max() == 0


def test_a_direction_that_the_norm_takes_away_does_nothing(model):
    found = logit_effects(model, torch.ones(1, 16), torch.tensor([3.0]), torch.randn(5, 16))
    assert found.abs().max() < 1e-4


def test_the_direction_of_a_token_promotes_it(model):
    unembedding = model.model.lm_head.weight
    found = logit_effects(model, unembedding[[7, 40]], torch.tensor([2.0, 2.0]), torch.randn(30, 16))
    assert found.argmax(dim=1).tolist() == [7, 40]


def test_streams_are_what_leaves_the_last_block(model):
    sequences = torch.randint(1, 97, (5, 12), generator=torch.Generator().manual_seed(1))
    streams = leaving(model, sequences, streams=40)
    every = model.capture(sequences, model.last_site)[model.last_site].flatten(0, 1)
    assert streams.shape == (40, 16)
    assert (torch.cdist(streams, every, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values < 1e-4).all()


def test_tokens_that_the_tokenizer_does_not_know_are_left_out():
    up, down = extremes(torch.tensor([0.0, 3, -1, 2, 9, -9]), known=4, top=2)
    assert (up, down) == ([1, 3], [2, 0])


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ("blocks.1.hook_resid_pre", True),
        ("blocks.1.hook_resid_mid", True),
        ("blocks.2.hook_resid_post", True),
        ("transformer.h.1", True),
        ("blocks.1.hook_mlp_out", True),
        ("transformer.h.1.attn", True),
        ("blocks.1.attn.hook_z", False),
        ("blocks.1.mlp.hook_post", False),
        ("transformer.h.1.mlp:in", False),
    ],
)
def test_sites_whose_directions_are_of_the_residual_stream(model, site, expected):
    assert writes_to_stream(model, site) is expected
