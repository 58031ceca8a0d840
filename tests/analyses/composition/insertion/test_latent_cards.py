"""What is said of a latent is so: its contexts, their shading, its neighbours, its tokens."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from analyses.common.max_activating import AFTER, BEFORE
from analyses.composition.insertion.insertion_effects import insertion_effects
from analyses.composition.insertion.latent_cards import (
    CONTEXTS,
    NEAREST,
    CardContext,
    portrait_cards,
    portrait_table,
    portraits,
)
from analyses.composition.insertion.single_insertions import SingleInsertions, nearest_alive
from dictlab import Metadata, ReLU
from dictlab.dictionary.activation_functions import AbsTopK
from tests.planted import SITE, random_dictionary, tiny_model

LATENTS = [4, 0, 11]


@pytest.fixture(scope="module")
def context():
    return CardContext(tiny_model(), torch.randint(1, 97, (9, 20), generator=torch.Generator().manual_seed(0)), 0)


def drawn(context, activation, site=SITE, **changes):
    small = random_dictionary(10, 16, seed=1, name="small", metadata=Metadata(site=site))
    large = random_dictionary(14, 16, seed=2, name="large", activation=activation, metadata=Metadata(site=site))
    large = replace(large, **changes)
    x = context.model.capture(context.sequences, site)[site]
    pair = SingleInsertions(small, large, insertion_effects(small, large, [x]), nearest_alive(large, small), 0.7)
    return pair, portraits(pair, LATENTS, context), x


@pytest.mark.parametrize("activation", [ReLU(), AbsTopK(3)])
def test_contexts_are_where_the_latent_is_most_active_and_shaded_by_it(context, activation):
    pair, found, x = drawn(context, activation)
    large = pair.large
    codes = large.encode(x).dense().abs().view(9, 20, 14)
    for one in found:
        own = codes[:, :, one.latent]
        order = own.amax(1).argsort(descending=True)
        assert len(one.contexts) == min(CONTEXTS, int((own.amax(1) > 0).sum()))
        for passage, sequence in zip(one.contexts, order.tolist(), strict=False):
            at = int(own[sequence].argmax())
            window = slice(max(0, at - BEFORE), at + AFTER + 1)
            weights = torch.tensor([piece.weight for piece in passage.pieces])
            torch.testing.assert_close(weights, own[sequence, window] / own.max(), atol=1e-3, rtol=0)
            assert passage.peak == at - window.start
            expected = context.model.tokenizer.decode(context.sequences[sequence, window])
            assert "".join(piece.text for piece in passage.pieces) == expected.replace("\n", "↵")


def test_neighbours_are_the_nearest_alive_latents_of_small(context):
    pair, found, _ = drawn(context, ReLU())
    small, large = pair.small, pair.large
    cosine = normalize(large.W_dec, dim=1) @ normalize(small.W_dec, dim=1).T
    for one in found:
        best = cosine[one.latent].topk(NEAREST)
        assert [number for number, _ in one.near] == best.indices.tolist()
        assert [value for _, value in one.near] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert one.parent_contexts, "what the nearest one is stands beside it"


def test_a_latent_that_points_at_a_token_promotes_it(context):
    """Also through the blocks that are left out: the direct effect is what is listed."""
    tokens = [40, 12, 77]
    W_dec = torch.randn(14, 16, generator=torch.Generator().manual_seed(3))
    W_dec[LATENTS] = context.model.model.lm_head.weight[tokens].detach()
    _, found, _ = drawn(context, ReLU(), W_dec=W_dec)
    for one, token in zip(found, tokens, strict=True):
        assert one.promoted[0][0] == context.model.tokenizer.decode([token])
        assert [v for _, v in one.promoted] == sorted((v for _, v in one.promoted), reverse=True)
        assert one.promoted[0][1] > 0 > one.suppressed[0][1]


def test_no_tokens_are_listed_where_directions_are_not_of_the_stream(context):
    pair, found, _ = drawn(context, ReLU(), site="blocks.1.attn.hook_z")
    assert all(one.promoted is None and one.suppressed is None for one in found)
    cards = portrait_cards(pair, found)
    assert "No tokens are listed" in cards.caption and "promotes" not in cards.cards[0].fields
    assert portrait_table(pair, found)["promoted"].isna().all()


def test_a_silent_latent_has_a_card_without_contexts(context):
    pair, found, _ = drawn(context, ReLU(), b_enc=torch.full((14,), -1e6))
    assert all(one.contexts == () for one in found)
    cards = portrait_cards(pair, found)
    assert cards.cards[0].fields["class"].startswith("dead")


def test_the_table_says_what_the_cards_say(context):
    pair, found, _ = drawn(context, ReLU())
    table, cards = portrait_table(pair, found), portrait_cards(pair, found)
    assert table["latent"].tolist() == LATENTS
    for (_, row), card, one in zip(table.iterrows(), cards.cards, found, strict=True):
        assert card.title == f"Latent {row['latent']} of large"
        assert row["promoted"] == card.fields["promotes"] and row["nearest"] == card.fields["nearest in SMALL"]
        assert row["context 1"] == str(one.contexts[0]) == str(card.passages["Most active at"][0])
        assert f"{row['change in MSE']:+.4g}" in card.fields["change in MSE"]
