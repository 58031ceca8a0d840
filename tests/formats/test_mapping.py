"""A plain state dict is the dictionary that its mapping says, or the error says what is wrong with which key."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import dictlab
from dictlab import DictlabError, TopK, load
from dictlab.dictionary.activation_functions import AbsTopK, BatchTopK, GroupMax, JumpReLU
from dictlab.dictionary.normalisation import ConstantNorm, LayerNorm, NoNormalisation, Scale
from dictlab.formats.loading import mapped
from tests.dense import agrees, draw, largest, layer_norm, refused, relu

D, M = 12, 40
ARRAYS = {
    "W_enc": 0.3 * draw(D, M, seed=1),
    "b_enc": 0.3 * draw(M, seed=2),
    "W_dec": 0.3 * draw(M, D, seed=3),
    "b_pre": 0.5 * draw(D, seed=4),
    "b_out": 0.5 * draw(D, seed=5),
}
PLAIN = {name: name for name in ARRAYS} | {"activation": "relu", "normalisation": "none"}
X = draw(50, D, seed=9)


def saved(path, content=None):
    tensors = ARRAYS if content is None else content
    torch.save({n: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for n, a in tensors.items()}, path)
    return path


def reference(x, act=relu, b_pre=None, b_out=None, b_enc=None, W_dec=None):
    """Codes and reconstructions, densely, in float64."""
    a = {name: array.astype(np.float64) for name, array in ARRAYS.items()}
    given = {"b_pre": b_pre, "b_out": b_out, "b_enc": b_enc, "W_dec": W_dec}
    a |= {name: array for name, array in given.items() if array is not None}
    f = act((x.astype(np.float64) - a["b_pre"]) @ a["W_enc"] + a["b_enc"])
    return f, f @ a["W_dec"] + a["b_out"]


# Files of other projects


def test_linear_layers_as_goodfire_saves_them(tmp_path):
    content = {
        "encoder_linear.weight": ARRAYS["W_enc"].T.copy(),
        "encoder_linear.bias": ARRAYS["b_enc"],
        "decoder_linear.weight": ARRAYS["W_dec"].T.copy(),
        "decoder_linear.bias": ARRAYS["b_out"],
    }
    said = {
        "W_enc": "encoder_linear.weight.T",
        "b_enc": "encoder_linear.bias",
        "W_dec": "decoder_linear.weight.T",
        "b_pre": "zero",
        "b_out": "decoder_linear.bias",
        "activation": "relu",
        "normalisation": "none",
        "site": "model.layers.19",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "convention": "huggingface",
    }
    dictionary = load(saved(tmp_path / "SAE-l19.pth", content), map=said)
    agrees(dictionary, X, *reference(X, b_pre=np.zeros(D)))
    about = dictionary.metadata
    assert (about.site, about.convention) == ("blocks.19.hook_resid_post", "huggingface")
    assert (about.model, about.foreign) == ("meta-llama/Llama-3.1-8B-Instruct", {"map": said})
    assert not about.notes


def test_turned_matrices_with_top_k_as_qwen_scope_saves_them(tmp_path):
    content = {
        "W_enc": ARRAYS["W_enc"].T.copy(),
        "W_dec": ARRAYS["W_dec"].T.copy(),
        "b_enc": ARRAYS["b_enc"],
        "b_dec": ARRAYS["b_out"],
    }
    said = {
        "W_enc": "W_enc.T",
        "W_dec": "W_dec.T",
        "b_enc": "b_enc",
        "b_pre": "zero",
        "b_out": "b_dec",
        "activation": "topk:5",
        "normalisation": "none",
    }
    dictionary = load(saved(tmp_path / "layer5.sae.pt", content), map=said)
    assert dictionary.activation == TopK(5)
    agrees(dictionary, X, *reference(X, lambda z: relu(largest(z, 5)), b_pre=np.zeros(D)))


def test_one_turned_matrix_in_safetensors_as_in_mwhannas_files(tmp_path):
    content = {
        "W_enc": ARRAYS["W_enc"].T.copy(),
        **{n: ARRAYS[n] for n in ("W_dec", "b_enc")},
        "b_dec": ARRAYS["b_out"],
    }
    save_file({name: torch.from_numpy(array) for name, array in content.items()}, tmp_path / "layer_3.safetensors")
    said = PLAIN | {"W_enc": "W_enc.T", "b_pre": "zero", "b_out": "b_dec"}
    agrees(load(tmp_path / "layer_3.safetensors", map=said), X, *reference(X, b_pre=np.zeros(D)))


# What can be said


def test_one_bias_can_be_both(tmp_path):
    said = {name: value for name, value in PLAIN.items() if name not in ("b_pre", "b_out")} | {"b_dec": "b_pre"}
    agrees(load(saved(tmp_path / "a.pt"), map=said), X, *reference(X, b_out=ARRAYS["b_pre"]))


def test_zero_is_no_bias(tmp_path):
    said = PLAIN | {"b_enc": "zero", "b_pre": "zero", "b_out": "zero"}
    zeros = {"b_pre": np.zeros(D), "b_out": np.zeros(D), "b_enc": np.zeros(M)}
    dictionary = load(saved(tmp_path / "a.pt"), map=said)
    agrees(dictionary, X, *reference(X, **zeros))
    assert "b_pre [12]" in dictionary.metadata.notes[0], "what was left aside is said"


def test_tensors_of_nested_dictionaries_are_named_from_outside_in(tmp_path):
    torch.save({"step": 3, "sae": {"net": {n: torch.from_numpy(a) for n, a in ARRAYS.items()}}}, tmp_path / "a.pt")
    said = PLAIN | {name: f"sae/net/{name}" for name in ARRAYS}
    agrees(load(tmp_path / "a.pt", map=said), X, *reference(X))


def test_a_tied_decoder_is_the_encoders_tensor_turned(tmp_path):
    said = PLAIN | {"W_dec": "W_enc.T"}
    agrees(load(saved(tmp_path / "a.pt"), map=said), X, *reference(X, W_dec=ARRAYS["W_enc"].T))


def test_a_tensor_whose_name_ends_like_a_transpose_is_meant_by_it(tmp_path):
    content = ARRAYS | {"kernel.T": ARRAYS["W_enc"]}
    agrees(load(saved(tmp_path / "a.pt", content), map=PLAIN | {"W_enc": "kernel.T"}), X, *reference(X))


def test_decoder_directions_can_be_brought_to_unit_length(tmp_path):
    unit = ARRAYS["W_dec"] / np.linalg.norm(ARRAYS["W_dec"], axis=1, keepdims=True)
    path = saved(tmp_path / "a.pt")
    agrees(load(path, map=PLAIN | {"unit_decoder": "yes"}), X, *reference(X, W_dec=unit))
    agrees(load(path, map=PLAIN | {"unit_decoder": "no"}), X, *reference(X))


def top_of_batch(z, k):
    return largest(relu(z).reshape(1, -1), k * len(z)).reshape(z.shape)


ACTIVATIONS = {
    "relu": (relu, None),
    "topk:3": (lambda z: relu(largest(z, 3)), TopK(3)),
    "abstopk:3": (lambda z: np.sign(z) * largest(abs(z), 3), AbsTopK(3)),
    "batchtopk:3": (lambda z: top_of_batch(z, 3), BatchTopK(3)),
    "groupmax:4": (lambda z: np.concatenate([relu(largest(g, 1)) for g in np.split(z, 4, axis=1)], 1), GroupMax(4)),
    "jumprelu:0.3": (lambda z: relu(z) * (z > 0.3), None),
}


@pytest.mark.parametrize("said", ACTIVATIONS)
def test_each_activation_function_can_be_said(tmp_path, said):
    act, made = ACTIVATIONS[said]
    dictionary = load(saved(tmp_path / "a.pt"), map=PLAIN | {"activation": said})
    agrees(dictionary, X, *reference(X, act))
    assert made is None or dictionary.activation == made


@pytest.mark.parametrize(
    "stored", [draw(M, seed=6), np.float32(0.4), np.array([0.4], np.float32)], ids=["each", "all", "[1]"]
)
def test_a_threshold_is_that_of_each_latent_or_of_all(tmp_path, stored):
    content = ARRAYS | {"threshold": torch.as_tensor(stored)}
    dictionary = load(
        saved(tmp_path / "a.pt", content), map=PLAIN | {"activation": "jumprelu", "threshold": "threshold"}
    )
    assert isinstance(dictionary.activation, JumpReLU)
    agrees(dictionary, X, *reference(X, lambda z: relu(z) * (z > np.asarray(stored, np.float64))))


def test_gated_has_its_three_vectors(tmp_path):
    own = {"b_gate": draw(M, seed=6), "r_mag": 0.3 * draw(M, seed=7), "b_mag": draw(M, seed=8)}
    path = saved(tmp_path / "a.pt", ARRAYS | own)
    said = PLAIN | {"activation": "gated", "b_enc": "zero"} | {name: name for name in own}

    def act(z, b_mag=own["b_mag"]):
        return (z + own["b_gate"] > 0) * relu(z * np.exp(own["r_mag"].astype(np.float64)) + b_mag)

    agrees(load(path, map=said), X, *reference(X, act, b_enc=np.zeros(M)))
    without = load(path, map=said | {"b_mag": "zero"})
    agrees(without, X, *reference(X, lambda z: act(z, 0), b_enc=np.zeros(M)))


NORMALISATIONS = {
    "none": NoNormalisation(),
    "layer_norm": LayerNorm(1e-5),
    "constant_norm": ConstantNorm(),
    "scale:2.5": Scale(2.5),
}


@pytest.mark.parametrize("said", NORMALISATIONS)
def test_each_normalisation_can_be_said(tmp_path, said):
    dictionary = load(saved(tmp_path / "a.pt"), map=PLAIN | {"normalisation": said})
    assert dictionary.normalisation == NORMALISATIONS[said]
    x = X.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True) / D**0.5
    normed, mean, std = layer_norm(x)
    h, scale, shift = {
        "none": (x, 1, 0),
        "layer_norm": (normed, std, mean),
        "constant_norm": (x / length, length, 0),
        "scale:2.5": (2.5 * x, 1 / 2.5, 0),
    }[said]
    f, y = reference(h)
    agrees(dictionary, X, f, y * scale + shift)


def test_tensors_stay_in_the_file_as_they_are_until_used(tmp_path):
    halves = {name: torch.from_numpy(array).bfloat16() for name, array in ARRAYS.items()}
    path = saved(tmp_path / "a.pt", halves)
    seen = mapped(path, map=PLAIN | {"b_out": "zero"})
    assert {t.dtype for _, t in seen._weights()} == {torch.bfloat16}
    assert load(path, map=PLAIN).W_enc.dtype == torch.float32


# What cannot be read


def without(*keys):
    return {name: value for name, value in PLAIN.items() if name not in keys}


REFUSED = {
    "no decoder": (without("W_dec"), ["W_dec", "missing"]),
    "no encoder bias": (without("b_enc"), ["b_enc", "missing", "b_enc=zero"]),
    "no pre-bias": (without("b_pre"), ["b_pre", "missing", "b_pre=zero"]),
    "no output bias": (without("b_out"), ["b_out", "missing", "b_out=zero"]),
    "no activation": (without("activation"), ["activation", "missing", "topk"]),
    "no normalisation": (without("normalisation"), ["normalisation", "missing", "layer_norm"]),
    "nothing": ({}, ["W_enc", "missing"]),
    "unknown key": (PLAIN | {"W_skip": "W_enc"}, ["W_skip", "unknown", "W_dec"]),
    "unknown tensor": (PLAIN | {"W_enc": "encoder"}, ["W_enc", "'encoder'", "no such tensor"]),
    "zero is no weight": (PLAIN | {"W_enc": "zero"}, ["W_enc", "zero", "no such tensor"]),
    "both biases twice": (PLAIN | {"b_dec": "b_pre"}, ["b_dec", "b_pre", "b_out"]),
    "turned": (PLAIN | {"W_enc": "W_enc.T"}, ["W_enc", f"[{M}, {D}]", f"[{D}, {M}]", ".T"]),
    "a vector turned": (PLAIN | {"b_enc": "b_enc.T"}, ["b_enc.T", f"[{M}]"]),
    "a vector for a matrix": (PLAIN | {"W_dec": "b_enc"}, ["W_dec", "b_enc", f"[{M}]"]),
    "another bias": (PLAIN | {"b_enc": "b_out"}, ["b_enc", "b_out", f"[{D}]", f"[{M}]"]),
    "whole numbers": (PLAIN | {"b_enc": "counts"}, ["b_enc", "counts", "int64"]),
    "unknown activation": (PLAIN | {"activation": "gelu"}, ["activation", "gelu", "relu"]),
    "relu with a number": (PLAIN | {"activation": "relu:3"}, ["activation", "relu:3"]),
    "topk without k": (PLAIN | {"activation": "topk"}, ["activation", "topk:k"]),
    "topk of none": (PLAIN | {"activation": "topk:0"}, ["activation", "topk:0", f"1 to {M}"]),
    "topk of too many": (PLAIN | {"activation": f"topk:{M + 1}"}, ["activation", f"{M + 1}"]),
    "topk of a huge number": (PLAIN | {"activation": "topk:" + "9" * 5000}, ["activation", "topk:999"]),
    "topk of a part": (PLAIN | {"activation": "topk:2.5"}, ["activation", "2.5"]),
    "uneven groups": (PLAIN | {"activation": "groupmax:7"}, ["groupmax", "7"]),
    "jumprelu without threshold": (PLAIN | {"activation": "jumprelu"}, ["threshold", "missing"]),
    "two thresholds": (PLAIN | {"activation": "jumprelu:0.3", "threshold": "b_enc"}, ["threshold", "jumprelu:0.3"]),
    "threshold of nothing": (PLAIN | {"activation": "jumprelu:nan"}, ["activation", "nan", "number"]),
    "threshold for relu": (PLAIN | {"threshold": "b_enc"}, ["threshold", "relu"]),
    "gated without gate": (PLAIN | {"activation": "gated"}, ["b_gate", "missing", "zero"]),
    "unknown normalisation": (PLAIN | {"normalisation": "rms"}, ["normalisation", "rms", "layer_norm"]),
    "layer norm with a number": (PLAIN | {"normalisation": "layer_norm:1"}, ["normalisation", "layer_norm:1"]),
    "no factor": (PLAIN | {"normalisation": "scale"}, ["normalisation", "scale", "number"]),
    "factor 0": (PLAIN | {"normalisation": "scale:0"}, ["normalisation", "scale:0", "above 0"]),
    "factor below 0": (PLAIN | {"normalisation": "scale:-1"}, ["normalisation", "scale:-1", "above 0"]),
    "endless factor": (PLAIN | {"normalisation": "scale:inf"}, ["normalisation", "inf", "number"]),
    "unknown convention": (PLAIN | {"convention": "jax"}, ["convention", "jax", "huggingface"]),
    "unit decoder perhaps": (PLAIN | {"unit_decoder": "true"}, ["unit_decoder", "true", "yes or no"]),
    "an empty value": (PLAIN | {"b_enc": ""}, ["b_enc", "text"]),
}


@pytest.mark.parametrize(("said", "needles"), REFUSED.values(), ids=REFUSED)
def test_errors_name_the_key_what_was_found_and_the_tensors_there_are(tmp_path, said, needles):
    path = saved(tmp_path / "a.pt", ARRAYS | {"counts": torch.zeros(M, dtype=torch.long)})
    with refused(path, "map", *needles, f"W_enc [{D}, {M}]", f"b_enc [{M}]"):
        load(path, map=said)


def test_what_is_given_beside_the_mapping_is_refused(tmp_path):
    path = saved(tmp_path / "a.pt")
    with refused(path, "#part", "outer/inner"):
        load(f"{path}#part", map=PLAIN)
    with refused(path, "scale", "2.0", "normalisation"):
        load(path, map=PLAIN, scale=2.0)


def test_nested_tensors_are_listed_in_errors(tmp_path):
    torch.save({"sae": {"W": torch.zeros(3, 4)}}, tmp_path / "a.pt")
    with refused("sae/W [3, 4]"):
        load(tmp_path / "a.pt", map=PLAIN)


def test_names_with_line_breaks_leave_the_message_on_one_line(tmp_path):
    torch.save({"a\nb": torch.zeros(3, 4)}, tmp_path / "a.pt")
    with pytest.raises(DictlabError) as caught:
        load(tmp_path / "a.pt", map=PLAIN | {"W_enc": "c\nd"})
    assert re.fullmatch(r"[^\n]*", str(caught.value))


def test_a_mapped_dictionary_is_saved_and_comes_back_the_same(tmp_path):
    dictionary = load(saved(tmp_path / "a.pt"), map=PLAIN | {"site": "h.3"})
    back = load(dictlab.save(dictionary, tmp_path / "b.safetensors"))
    assert back.metadata == dictionary.metadata
    assert torch.equal(back.W_enc, dictionary.W_enc)
