"""The strongest contexts of each latent, against a search through all of them."""

from dataclasses import replace

import pytest
import torch

from analyses.common.max_activating import excerpt, excerpts, find_contexts, peaks
from dictlab import DictlabError, Metadata, ReLU
from dictlab.data.text import Text
from dictlab.dictionary.activation_functions import AbsTopK
from tests.planted import SITE, random_dictionary, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def sequences():
    return torch.randint(1, 97, (11, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("activation", [ReLU(), AbsTopK(3)])
def test_peaks_are_those_of_a_search_through_everything(model, sequences, activation, monkeypatch):
    monkeypatch.setattr("dictlab.data.activations.CPU_FORWARD_TOKENS", 24)  # several batches, the last one smaller
    dictionary = random_dictionary(20, 16, activation=activation)
    found = peaks([dictionary], model, sequences, top=3)[0]
    codes = dictionary.encode(model.capture(sequences, SITE)[SITE]).dense().abs().view(11, 8, 20)
    for latent in range(20):
        by_sequence = codes[:, :, latent].max(dim=1)
        best = by_sequence.values.sort(descending=True)
        assert torch.allclose(found.activation[latent], best.values[:3], atol=1e-5)
        for value, sequence, position in zip(*(part[latent] for part in found), strict=True):
            if value > 0:
                assert codes[sequence, position, latent] == pytest.approx(float(value), abs=1e-5)
        live = int((best.values[:3] > 0).sum())
        assert len(set(found.sequence[latent, :live].tolist())) == live, "each from another sequence"


def test_dictionaries_in_one_pass_have_the_peaks_they_have_alone(model, sequences):
    family = [random_dictionary(20, 16, seed=1), random_dictionary(9, 16, seed=2, activation=ReLU())]
    together = peaks(family, model, sequences)
    for dictionary, found in zip(family, together, strict=True):
        for a, b in zip(found, peaks([dictionary], model, sequences)[0], strict=True):
            assert torch.equal(a, b)


def test_a_latent_that_is_silent_has_no_context(model, sequences):
    dictionary = random_dictionary(20, 16, activation=ReLU())
    dictionary = replace(dictionary, b_enc=torch.full((20,), -1e6))
    shown = excerpts(model.tokenizer, sequences, peaks([dictionary], model, sequences)[0], range(20))
    assert shown == {latent: [] for latent in range(20)}


def test_codes_that_are_no_numbers_are_refused(model, sequences):
    dictionary = replace(random_dictionary(20, 16, activation=ReLU(), name="bad"), b_enc=torch.full((20,), torch.inf))
    with pytest.raises(DictlabError, match=r"bad: .*not all finite"):
        peaks([dictionary], model, sequences)


class Bytes:
    """A tokenizer with one token a byte, so that a letter can be cut."""

    def decode(self, ids, clean_up_tokenization_spaces):
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    ("position", "expected"),
    [(0, "«a»bcde"), (3, "abc«d»efgh"), (10, "cdefghij«k»lm↵o"), (15, "hijklm↵o«p»")],
)
def test_the_token_at_the_maximum_is_marked_in_its_surroundings(position, expected):
    assert excerpt(Bytes(), torch.tensor(list(b"abcdefghijklm\nop")), position) == expected


def test_a_letter_of_several_tokens_does_not_break_the_mark():
    tokens = torch.tensor(list("aé中b".encode()))
    for position in range(len(tokens)):
        shown = excerpt(Bytes(), tokens, position)
        assert shown.count("«") == shown.count("»") == 1 and shown.index("«") < shown.index("»")
    assert excerpt(Bytes(), tokens, 0).startswith("«a»é")


# When there are contexts, and when not


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog.\n" * 2000)
    return Text.files(tmp_path / "text.txt")


def test_no_tokens_no_contexts_and_no_model_is_looked_for(text):
    unreachable = random_dictionary(metadata=Metadata(model="/nowhere", site=SITE))
    assert find_contexts([unreachable], None, text, 0, 0, "cpu") == (None, ())


@pytest.mark.parametrize(
    ("about", "says"),
    [
        (Metadata(site=SITE), "names no model"),
        (Metadata(model="/nowhere", site=SITE), "/nowhere"),
    ],
)
def test_a_model_that_cannot_be_opened_is_a_warning_that_says_why(text, about, says):
    found, (warning,) = find_contexts([random_dictionary(20, 16, metadata=about)], None, text, 64, 0, "cpu")
    assert found is None and says in warning and "tokens=0" in warning


def test_a_model_that_is_given_must_do(text, model):
    other = random_dictionary(20, 16, metadata=Metadata(site=SITE, model="x", model_fingerprint="0" * 16))
    with pytest.raises(DictlabError, match="other weights"):
        find_contexts([other], model, text, 64, 0, "cpu")
    with pytest.raises(DictlabError, match="at which site"):
        find_contexts([random_dictionary(20, 16, metadata=Metadata())], model, text, 64, 0, "cpu")


def test_fewer_tokens_than_a_context_are_refused(text, model):
    with pytest.raises(DictlabError, match="tokens is 5"):
        find_contexts([random_dictionary(20, 16)], model, text, 5, 0, "cpu")


def test_contexts_come_from_the_text(text, model):
    found, warnings = find_contexts([random_dictionary(20, 16)], model, text, 320, 0, "cpu")
    assert warnings == () and found is not None and found.record["tokens"] == 320
    source = (
        "the quick brown fox jumps over the lazy dog.\n".replace(" ", "") * 3
    )  # this tokenizer puts spaces anywhere
    for shown in found.of("random", range(20)).values():
        for one in shown:
            assert "".join(c for c in one.replace("↵", "\n") if c not in "«» ") in source
