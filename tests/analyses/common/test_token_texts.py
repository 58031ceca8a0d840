"""Tokens as they are shown: letters cut by tokens, bytes that are no letter, and characters that nobody sees."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from analyses.common.token_texts import token_bytes, token_text, token_texts, visible


def byte_level():
    """A tokenizer of GPT-2's kind, of single bytes and one merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)} | {"Ġa": 256, "<|endoftext|>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "a")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def byte_fallback():
    """A tokenizer of SentencePiece's kind: some letters, and bytes for all else."""
    vocabulary = [("<unk>", 0.0), *((f"<0x{i:02X}>", -9.0) for i in range(256)), ("▁a", -1.0), ("b", -1.0), ("▁", -2.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


class Bytes:
    """A tokenizer that only decodes, with one token a byte."""

    def decode(self, ids, clean_up_tokenization_spaces):
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("text", ["a é 中 b", "🙂 a", "naïve  a\n\tb", "\u0645\u0631\u062d a"])
def test_all_texts_together_are_the_text(tokenizer, text):
    assert "".join(token_texts(tokenizer, ids_of(tokenizer, text))) == visible(text)


def test_a_letter_of_several_tokens_stands_at_its_last_one_and_its_bytes_at_the_peak(tokenizer):
    ids = ids_of(tokenizer, "a中b")
    assert token_texts(tokenizer, ids) == ["a", "", "", "中", "b"]
    assert token_texts(tokenizer, ids, peak=2) == ["a", "", "\\xb8", "中", "b"]
    assert [token_text(tokenizer, i) for i in ids] == ["a", "\\xe4", "\\xb8", "\\xad", "b"]


def test_bytes_of_no_letter_stand_at_their_own_tokens(tokenizer):
    ids = ids_of(tokenizer, "中a中")
    assert token_texts(tokenizer, ids[1:]) == ["\\xb8", "\\xad", "a", "", "", "中"]
    assert token_texts(tokenizer, ids[:-1]) == ["", "", "中", "a", "\\xe4", "\\xb8"]


def test_random_bytes_are_all_seen_in_their_order(tokenizer):
    """Against a decoding of everything at once, whatever the tokens."""
    drawn, alphabet = random.Random(0), sorted(pre_tokenizers.ByteLevel.alphabet())
    for _ in range(200):
        ids = [drawn.randrange(256) for _ in range(12)]
        raw = b"".join(part for part in token_bytes(tokenizer, ids) if part is not None)
        assert len(raw) == 12 == len([alphabet[i] for i in ids])
        expected = "".join(
            f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else visible(c)
            for c in raw.decode("utf-8", "surrogateescape")
        )
        assert "".join(token_texts(tokenizer, ids)) == expected


def test_a_special_token_is_shown_as_it_is_written(tokenizer):
    assert token_texts(tokenizer, [257, *ids_of(tokenizer, "é")]) == ["<|endoftext|>", "", "é"]


def test_the_byte_fallback_of_sentencepiece_is_seen_as_bytes():
    tokenizer = byte_fallback()
    ids = ids_of(tokenizer, "a 中 b")
    texts = token_texts(tokenizer, ids)
    assert "".join(texts) == "a 中 b" and texts.count("") == 2
    first = ids.index(1 + 0xE4)
    assert token_texts(tokenizer, ids, peak=first)[first] == "\\xe4"
    assert token_texts(tokenizer, ids[first + 1 :])[:2] == ["\\xb8", "\\xad"]
    assert "\ufffd" not in "".join(token_texts(tokenizer, ids[first + 1 :]))
    assert token_text(tokenizer, 1 + 0x1B) == "\\x1b"


def test_a_tokenizer_that_only_decodes_is_taken_at_its_word():
    ids = list("aé中b".encode())
    assert token_texts(Bytes(), ids) == ["a", "", "é", "", "", "中", "b"]
    assert token_texts(Bytes(), ids, peak=1)[1] == "\ufffd" and token_texts(Bytes(), ids[:2]) == ["a", ""]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a b"),
        ("a\n\tb\r", "a↵⇥b↵"),
        ("\x1b[31mred\x00", "\\x1b[31mred\\x00"),
        ("\u202eevil\u2066\u200f", "\\u202eevil\\u2066\\u200f"),
        ("zero\u200bwidth\ufeff\u2028", "zero\\u200bwidth\\ufeff\\u2028"),
        ("é中🙂\u00a0́", "é中🙂\u00a0́"),
        ("\udce4", "\\xe4"),
    ],
)
def test_what_cannot_be_seen_or_acts_on_a_terminal_is_escaped(text, shown):
    assert visible(text) == shown
