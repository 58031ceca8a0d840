"""Explanations by strings of tokens: planted patterns, tries against brute force, and splices against whole forwards."""

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import one_hot

from analyses import explanations
from analyses.common.firings import LatentFirings, collect_firings
from analyses.features.explanations.bigram_baseline import Bigrams
from analyses.features.explanations.n2g import Padding, last_activations, padding_of, patterns
from analyses.features.explanations.n2g_trie import WILDCARD, Pattern, Trie
from analyses.features.explanations.report import differences_table
from analyses.features.explanations.simulation import (
    ExplainedDictionary,
    ExplainedLatent,
    Score,
    drawn_examples,
    factor,
    score,
    simulated,
    spliced,
    with_simulation,
)
from dictlab import Dictionary, Metadata, ReLU, TopK
from dictlab.dictionary.activation_functions import BatchTopK
from dictlab.errors import DictlabError
from tests.planted import SITE, many_documents, random_dictionary, tiny_model

VOCABULARY = 7
PADDING = Padding(6, 5)


class NgramModel:
    """A model whose activations say which token stands here, one and two before, and whether this is the first."""

    device = "cpu"
    tokenizer = None
    width = 3 * VOCABULARY + 1

    def capture(self, tokens, site):
        x = torch.zeros(*tokens.shape, self.width)
        for back in range(3):
            x[:, back:, back * VOCABULARY : (back + 1) * VOCABULARY] = one_hot(
                tokens[:, : tokens.shape[1] - back], VOCABULARY
            ).float()
        x[:, 0, -1] = 1
        return {site: x}


def planted_dictionary(*conditions):
    """A latent for each set of conditions, active (at 0.5) where all of them hold."""
    W = torch.zeros(NgramModel.width, len(conditions))
    bias = torch.zeros(len(conditions))
    for j, rows in enumerate(conditions):
        W[list(rows), j] = 1.0
        bias[j] = 0.5 - len(rows)
    zero = torch.zeros(NgramModel.width)
    return Dictionary(W, bias, W.T.clone(), zero, zero, ReLU(), metadata=Metadata(site=SITE), name="planted")


def here(token, back=0):
    return back * VOCABULARY + token


FIRST = NgramModel.width - 1
PLANTED = planted_dictionary([here(1, 2), here(2)], [here(3)], [here(4), FIRST])


@pytest.fixture(scope="module")
def explained():
    """Planted latents explained from one text, and what is said of another one."""
    model, generator = NgramModel(), torch.Generator().manual_seed(0)
    train, held = (torch.randint(VOCABULARY - 1, (400, 12), generator=generator) for _ in range(2))
    before, after = (collect_firings(PLANTED, model, split, [0, 1, 2]) for split in (train, held))
    drawn = drawn_examples([0, 1, 2], before, train, 16, longest=6, seed=0)
    built = patterns(drawn, last_activations(model, PLANTED, []), PADDING, 6)
    of = [[p for e, p in zip(drawn, built, strict=True) if e.latent == latent] for latent in range(3)]
    said = simulated([Trie.of(own) for own in of], held)
    return of, said, after, held


def test_a_planted_string_with_a_gap_is_found(explained):
    (gapped, single, _), *_ = explained
    assert len(gapped) == 16 and {(p.path, p.at_start) for p in gapped} == {((1, WILDCARD, 2), False)}
    assert {(p.path, p.at_start) for p in single} == {((3,), False)}


def test_a_latent_that_needs_the_beginning_is_marked_so(explained):
    assert {(p.path, p.at_start) for p in explained[0][2]} == {((4,), True)}


def test_planted_patterns_have_precision_and_recall_1(explained):
    _, said, after, held = explained
    for found, active in zip(said, after.latents, strict=True):
        counts = score(found, active, tuple(held.shape))
        assert counts.active.sum() > 10
        assert counts.both.tolist() == counts.fired.tolist() == counts.active.tolist()
        assert found.activation.tolist() == pytest.approx(active.activation.tolist())


def test_what_is_stronger_at_the_beginning_need_not_be_there():
    dictionary = planted_dictionary([here(3)])  # 0.5 anywhere, 1.5 at the beginning
    dictionary.W_enc[FIRST, 0] = 1.0
    tokens = torch.tensor([[1, 5, 3]])
    drawn = drawn_examples([0], collect_firings(dictionary, NgramModel(), tokens, [0]), tokens, 1, longest=3, seed=0)
    (pattern,) = patterns(drawn, last_activations(NgramModel(), dictionary, []), PADDING, 3)
    assert pattern.path == (3,) and pattern.activation == pytest.approx(1.5) and not pattern.at_start


def test_strings_that_several_ask_about_go_through_the_model_once():
    class Counted(NgramModel):
        strings = 0

        def capture(self, tokens, site):
            self.strings += len(tokens)
            return super().capture(tokens, site)

    model, generator = Counted(), torch.Generator().manual_seed(2)
    strings = torch.randint(VOCABULARY, (3000, 3), generator=generator)
    latents = torch.randint(3, (3000,), generator=generator)
    found = last_activations(model, PLANTED, [4])(strings, latents)
    assert model.strings == len({tuple(own) for own in strings.tolist()})
    led = torch.cat([torch.full((3000, 1), 4), strings], dim=1)
    every = PLANTED.encode(NgramModel().capture(led, SITE)[SITE][:, -1]).dense()
    assert torch.equal(found, (every * PLANTED.W_dec.norm(dim=1))[range(3000), latents])


def test_examples_are_active_tokens_with_what_leads_to_them():
    tokens = torch.tensor([[0, 1, 5, 2, 3], [1, 1, 2, 2, 0]])
    found = collect_firings(PLANTED, NgramModel(), tokens, [0, 1])
    assert [one.token.tolist() for one in found.latents] == [[3, 7, 8], [4]] and found.share == 1.0
    drawn = drawn_examples([0, 1], found, tokens, 9, longest=3, seed=1)
    assert {e.tokens for e in drawn if e.latent == 0} == {(1, 5, 2), (1, 1, 2), (1, 2, 2)}
    assert [e.tokens for e in drawn if e.latent == 1] == [(5, 2, 3)]
    assert len(drawn_examples([0, 1], found, tokens, 2, longest=3, seed=1)) == 3


def test_what_needs_more_tokens_than_are_tried_is_kept_whole():
    tokens = torch.tensor([[1, 5, 2]])
    found = collect_firings(PLANTED, NgramModel(), tokens, [0])
    drawn = drawn_examples([0], found, tokens, 1, longest=2, seed=0)
    (pattern,) = patterns(drawn, last_activations(NgramModel(), PLANTED, []), PADDING, 2)
    assert not pattern.reached and pattern.path == (5, 2) and pattern.activation == pytest.approx(0.5 * 2**0.5)


def test_a_token_that_is_the_padding_is_replaced_by_another():
    dictionary = planted_dictionary([here(PADDING.token)])
    tokens = torch.tensor([[1, PADDING.token]])
    drawn = drawn_examples([0], collect_firings(dictionary, NgramModel(), tokens, [0]), tokens, 1, longest=2, seed=0)
    (pattern,) = patterns(drawn, last_activations(NgramModel(), dictionary, []), PADDING, 2)
    assert pattern.path == (PADDING.token,) and not pattern.at_start


def pattern(path, activation=1.0, at_start=False):
    kept = tuple(token != WILDCARD for token in path)
    return Pattern(tuple(max(t, 0) for t in path), kept, (1.0,) * len(path), activation, at_start)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([WILDCARD, 0, 1]), min_size=1, max_size=4),
    st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 2),
)
def test_a_trie_of_one_pattern_fires_where_a_search_finds_it(path, rows, at_start, first):
    tokens = np.array(rows)
    found = Trie.of([pattern(path, 2.5, at_start)]).simulate(tokens, first)
    expected = [
        row * 6 + i
        for row, own in enumerate(rows)
        for i in range(first + len(path) - 1, 6)
        if (not at_start or i == first + len(path) - 1)
        and all(p in (WILDCARD, own[i - len(path) + 1 + k]) for k, p in enumerate(path))
    ]
    assert found.token.tolist() == expected and set(found.activation.tolist()) <= {2.5}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from([WILDCARD, 0, 1, 2]), min_size=1, max_size=4), st.booleans()), max_size=6
    ),
    st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=3),
    st.integers(0, 2),
)
def test_all_tokens_together_are_said_what_each_is_said_alone(several, rows, first):
    trie = Trie.of([pattern(path, 1.0 + i, at_start) for i, (path, at_start) in enumerate(several)])
    found = trie.simulate(np.array(rows), first)
    alone = {row * 5 + i: trie.at(own, i, first) for row, own in enumerate(rows) for i in range(5)}
    said = dict(zip(found.token.tolist(), found.activation.tolist(), strict=True))
    assert said == {place: value for place, value in alone.items() if value} and list(said) == sorted(said)


def test_an_exact_token_is_preferred_and_there_is_no_going_back():
    trie = Trie.of([pattern((1, WILDCARD, 3), 1.0), pattern((5, 2, 3), 7.0)])
    assert trie.at([5, 2, 3], 2) == 7.0
    assert trie.at([1, 4, 3], 2) == 1.0
    assert trie.at([1, 2, 3], 2) == 0.0  # the exact 2 leads to a node that has no 1


def test_the_first_value_on_the_way_counts_and_the_last_document_wins():
    trie = Trie.of([pattern((9, 3), 5.0), pattern((3,), 1.0), pattern((3,), 2.0)])
    assert trie.at([9, 3], 1) == 2.0


def test_the_factor_is_that_of_least_squares():
    s, a = np.array([1.0, 2.0, 0.0, 3.0]), np.array([0.0, 1.0, 4.0, 2.0])
    found = factor(LatentFirings(np.flatnonzero(s), s[s != 0]), LatentFirings(np.flatnonzero(a), a[a != 0]))
    assert found == pytest.approx(np.linalg.lstsq(s[:, None], a, rcond=None)[0][0])
    nothing = LatentFirings(np.array([], dtype=int), np.array([]))
    assert factor(nothing, LatentFirings(np.array([1]), np.array([2.0]))) == 0.0


def test_replaced_codes_are_the_others_and_what_is_put_in():
    codes = random_dictionary(20, 8).encode(torch.randn(6, 8, generator=torch.Generator().manual_seed(3)))
    places, indices, values = torch.tensor([0, 0, 5]), torch.tensor([2, 7, 2]), torch.tensor([1.0, 2.0, 3.0])
    expected = codes.dense()
    expected[:, [2, 7]] = 0
    expected[places, indices] = values
    assert torch.equal(with_simulation(codes, torch.tensor([2, 7]), places, indices, values).dense(), expected)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return many_documents(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def bigrams(text, model):
    return Bigrams.fitted(text.sample(model.tokenizer, 32, 20).numpy(), 97)


def test_simulating_the_activations_themselves_is_the_reconstruction(model, text, bigrams):
    dictionary, latents = random_dictionary(40, 16, activation=TopK(4)), list(range(0, 40, 2))
    held = text.as_split("heldout").sample(model.tokenizer, 32, 3)
    found = collect_firings(dictionary, model, held, latents)
    said = [LatentFirings(one.token, one.activation / 2) for one in found.latents]
    sums = spliced(dictionary, model, held, latents, said, [2.0] * 20, bigrams)
    assert sums["simulated"].tolist() == pytest.approx(sums["reconstruction"].tolist(), rel=1e-5)
    assert not np.allclose(sums["zeroed"], sums["reconstruction"], rtol=1e-3)


def test_cross_entropies_are_those_of_whole_forwards(model, text, bigrams):
    dictionary, latents = random_dictionary(40, 16, activation=TopK(4)), [1, 3, 5, 8]
    held = text.as_split("heldout").sample(model.tokenizer, 32, 3)
    said = [LatentFirings(np.array([k, 40 + k]), np.array([1.5, 0.5])) for k in range(4)]
    sums = spliced(dictionary, model, held, latents, said, [1.0, 2.0, 0.0, 1.0], bigrams)
    codes = dictionary.encode(model.capture(held, SITE)[SITE]).dense()
    codes[:, latents] = 0
    without = codes.clone()
    for latent, own, c in zip(latents, said, [1.0, 2.0, 0.0, 1.0], strict=True):
        codes[own.token, latent] = torch.tensor(own.activation, dtype=torch.float) * c
    for name, dense in (("zeroed", without), ("simulated", codes)):
        x_hat = (dense @ dictionary.W_dec + dictionary.b_out).view(3, 32, 16)
        log_p = model.splice(held, SITE, x_hat).logits[:, :-1].log_softmax(dim=-1)
        expected = -log_p.gather(2, held[:, 1:, None])[..., 0].sum(dim=1)
        assert sums[name].tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_bigrams_are_a_distribution_and_count_what_they_saw():
    contexts = torch.randint(5, (30, 9), generator=torch.Generator().manual_seed(1)).numpy()
    own = Bigrams.counted(contexts, 5).at(3.0)
    every = np.array([[v, w] for v in range(5) for w in range(5)])
    probability = np.exp(-own.losses(every)).reshape(5, 5)
    assert probability.sum(axis=1).tolist() == pytest.approx([1.0] * 5)
    pairs = [(a, b) for row in contexts.tolist() for a, b in pairwise(row)]
    alone = ((contexts == 2).sum() + 1) / (contexts.size + 5)
    expected = (pairs.count((4, 2)) + 3.0 * alone) / (sum(a == 4 for a, _ in pairs) + 3.0)
    assert probability[4, 2] == pytest.approx(expected)


def test_a_text_that_repeats_itself_is_foretold_by_bigrams():
    contexts = np.tile(np.arange(5), (40, 4))
    assert Bigrams.fitted(contexts, 5).losses(contexts).mean() < 0.05
    random = np.random.default_rng(0).integers(0, 5, (40, 20))
    assert Bigrams.fitted(random, 5).losses(random).mean() == pytest.approx(math.log(5), abs=0.1)


def measured(name, counts, simulated, seed=0):
    """A dictionary of which so many (fired, active, both) tokens of 4 sequences were counted for each latent."""
    latents = [
        ExplainedLatent(i, [], Score(*(np.full(4, c / 4) for c in own)), None, None, None, 1.0) for i, own in counts
    ]
    levels = {"clean": 0.0, "reconstruction": 1.0, "simulated": simulated, "zeroed": 5.0, "predicted": 1.0}
    sums = {key: value + np.arange(4.0) * (key != "predicted") for key, value in levels.items()}
    sums["tokens"] = sums["predicted"] + 1
    return ExplainedDictionary(random_dictionary(6, 4, name=name), latents, 1.0, sums, seed)


def test_differences_are_those_of_the_means_and_losses_are_paired():
    good = measured("good", enumerate([(4, 4, 4), (4, 8, 3)] * 10), 2.0)
    bad = measured("bad", enumerate([(8, 8, 2), (8, 8, 1), (0, 4, 0)] * 10), 3.5)
    frame = differences_table([bad, good]).set_index("measure")
    assert set(frame["dictionary"]) == {"good"} and set(frame["against"]) == {"bad"}
    assert frame.loc["precision", "difference"] == pytest.approx(0.875 - 1.5 / 8)  # a latent without firings has none
    assert frame.loc["recall", "ratio"] == pytest.approx((1 + 3 / 8) / 2 / (3 / 8 / 3))
    assert frame.loc["precision", "low"] < 0.875 - 1.5 / 8 < frame.loc["precision", "high"]
    simulated = frame.loc["CE increase, simulated"]  # the same sequences, 1.5 less in each
    assert [simulated[name] for name in ("difference", "low", "high")] == pytest.approx([-1.5] * 3)
    assert frame.loc["recovered", "difference"] == pytest.approx((3 - 1.5) / 4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_latents_of_two_dictionaries_are_resampled_independently(seed):
    draw = np.random.default_rng(seed)
    both = draw.integers(1, 9, (2, 40))
    a, b = (
        measured(name, [(i, (10, 10, n)) for i, n in enumerate(own)], 2.0) for name, own in zip("ab", both, strict=True)
    )
    row = differences_table([a, b]).set_index("measure").loc["recall"]
    spread = np.hypot(*(own.std() / 10 / 40**0.5 for own in both))
    assert row["high"] - row["low"] == pytest.approx(3.92 * spread, rel=0.2)  # of independent means


def test_a_dictionary_whose_patterns_were_never_met_has_no_difference_of_precision():
    row = differences_table([measured("a", [(0, (0, 4, 0))], 2.0), measured("b", [(0, (4, 4, 4))], 2.0)]).iloc[0]
    assert row["measure"] == "precision" and np.isnan([row[c] for c in ("difference", "low", "ratio")]).all()


def test_the_report_explains_the_latents_that_it_names(model, text):
    family = [random_dictionary(40, 16, activation=a, name=n) for n, a in (("a", TopK(4)), ("b", ReLU()))]
    report = explanations(family, model=model, text=text, latents=5, examples=4, max_pattern_length=4, tokens=160)
    overview, frame = report.tables["overview"].frame, report.tables["latents"].frame
    assert overview["dictionary"].tolist() == ["a", "b"] and overview["latents"].tolist() == [5, 5]
    assert frame.groupby("dictionary").size().tolist() == [5, 5] and (frame["examples"] >= 1).all()
    assert frame["recall"].dropna().between(0, 1).all() and frame["precision"].dropna().between(0, 1).all()
    rebuilt = report.tables["reconstruction"].frame
    assert (rebuilt["clean"] > 0).all() and rebuilt["share"].between(0, 1).all()
    assert len(report.cards["patterns"].cards) == 10
    assert report.tables["differences"].frame["against"].unique().tolist() == ["a"]
    again = explanations(family, model=model, text=text, latents=5, examples=4, max_pattern_length=4, tokens=160)
    assert again.tables["patterns"].frame.equals(report.tables["patterns"].frame)


def test_all_latents_are_explained_on_demand(model, text):
    own = random_dictionary(24, 16, activation=BatchTopK(4))
    report = explanations([own], model=model, text=text, latents=0, examples=1, max_pattern_length=2, tokens=96)
    assert "differences" not in report.tables and "encoded together" in report.warnings[0]
    assert report.tables["reconstruction"].frame["share"].tolist() == pytest.approx([1.0], abs=0.02)


def test_a_dictionary_of_which_nothing_fires_is_refused(model, text):
    silent = replace(random_dictionary(40, 16, activation=ReLU()), b_enc=torch.full((40,), -1e4))
    with pytest.raises(DictlabError, match="no latent is active"):
        explanations([silent], model=model, text=text, tokens=96)


@pytest.mark.parametrize(
    ("option", "value"), [("tokens", 40), ("latents", -1), ("examples", 0), ("max_pattern_length", 0)]
)
def test_options_that_make_no_sense_are_refused(model, text, option, value):
    with pytest.raises(DictlabError, match=option):
        explanations([random_dictionary(40, 16)], model=model, text=text, **{option: value})


def test_a_tokenizer_without_padding_is_refused():
    def tokenizer(text, add_special_tokens):
        return {"input_ids": [1, 2, 3]}

    with pytest.raises(DictlabError, match="as one token"):
        padding_of(type("T", (), {"__call__": staticmethod(tokenizer), "unk_token_id": None})())
    own = SimpleNamespace(unk_token_id=9, ids={" _": [1, 2], "_": [9], " ": [4], "a": [4], "e": [5]})
    made = type(
        "T", (), {"__call__": lambda self, text, add_special_tokens: {"input_ids": own.ids[text]}, "unk_token_id": 9}
    )()
    assert padding_of(made) == Padding(4, 5)
