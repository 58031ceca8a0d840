"""Files of openai/sparse_autoencoder. The library does not install here: formulas are those of its specification."""

import numpy as np
import pytest
import torch

import dictlab
from dictlab import ReLU, TopK
from dictlab.dictionary.normalisation import LayerNorm, NoNormalisation
from dictlab.formats.loading import mapped, recognised
from dictlab.formats.reading.source import Source
from tests.dense import agrees, draw, largest, layer_norm, refused, relu

D, M, K = 12, 40, 6
TOPK = {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}


def state(**changes):
    """A state dict as the library saves it; None takes an entry out."""
    made = {
        "pre_bias": torch.from_numpy(draw(D, seed=1)),
        "latent_bias": torch.from_numpy(0.3 * draw(M, seed=2)),
        "stats_last_nonzero": torch.arange(M),
        "latents_activation_frequency": torch.ones(M),
        "latents_mean_square": torch.zeros(M),
        "encoder.weight": torch.from_numpy(0.3 * draw(M, D, seed=3)),
        "decoder.weight": torch.from_numpy(0.3 * draw(D, M, seed=4)),
        "activation": "ReLU",
        "activation_state_dict": {},
    } | changes
    return {name: value for name, value in made.items() if value is not None}


def saved(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def reference(content, x):
    """Codes and reconstructions, densely, in float64."""
    t = {name: value.double().numpy() for name, value in content.items() if isinstance(value, torch.Tensor)}
    decoder = t.get("decoder.weight", t["encoder.weight"].T)
    topk = content.get("activation") == "TopK"
    h, mean, std = layer_norm(x.astype(np.float64)) if topk else (x.astype(np.float64), 0, 1)
    z = (h - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"]
    f = relu(largest(z, content["activation_state_dict"]["k"]) if topk else z)
    return f, (f @ decoder.T + t["pre_bias"]) * std + mean


VARIANTS = {
    "relu": {},
    "relu by default": {"activation": None, "activation_state_dict": None},
    "topk": TOPK,
    # current torch writes these beside the others
    "strays": {**TOPK, "activation.k": K, "activation.postact_fn": "ReLU"},
    "tied": {**TOPK, "decoder.weight": None},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_codes_and_reconstructions_are_those_of_the_formula(tmp_path, changes):
    content = state(**changes)
    dictionary = dictlab.load(saved(tmp_path / "8.pt", content))
    x = 2 * draw(50, D, seed=9) + 0.5
    agrees(dictionary, x, *reference(content, x))
    topk = content.get("activation") == "TopK"
    assert dictionary.activation == (TopK(K) if topk else ReLU())
    assert dictionary.normalisation == (LayerNorm(1e-5) if topk else NoNormalisation())


def test_topk_chooses_before_relu_so_fewer_than_k_can_be_active(tmp_path):
    content = state(**TOPK, latent_bias=torch.full((M,), -1.5))
    codes = dictlab.load(saved(tmp_path / "8.pt", content)).encode(torch.from_numpy(draw(50, D, seed=9)))
    assert codes.l0().min() < K


def test_a_state_dict_of_the_training_loop_is_read_once_k_is_said(tmp_path):
    """Its class (FastAutoencoder in train.py): relu(topk(encoder(x - pre_bias) + latent_bias)), no layer norm."""
    content = state(activation=None, activation_state_dict=None)
    del content["latents_activation_frequency"], content["latents_mean_square"]
    path = saved(tmp_path / "ae.pt", content)
    with refused(path, "training loop", "k stands in no file", "activation=topk:K"):
        dictlab.load(path)
    said = "W_enc=encoder.weight.T b_enc=latent_bias W_dec=decoder.weight.T b_dec=pre_bias normalisation=none"
    loaded = dictlab.load(path, map=dict(pair.split("=") for pair in said.split()) | {"activation": f"topk:{K}"})
    x = draw(50, D, seed=9)
    t = {name: value.double().numpy() for name, value in content.items()}
    f = relu(largest((x - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"], K))
    agrees(loaded, x, f, f @ t["decoder.weight"].T + t["pre_bias"])


def test_a_tied_decoder_under_the_name_of_its_module_is_read(tmp_path):
    content = state(**TOPK, **{"decoder.weight": None})
    content["decoder.linear.weight"] = content["encoder.weight"]
    dictionary = dictlab.load(saved(tmp_path / "8.pt", content))
    assert torch.equal(dictionary.W_dec, dictionary.W_enc.T)


def test_metadata_says_what_is_known_and_the_path_what_the_file_does_not(tmp_path):
    folder = tmp_path / "sparse-autoencoder" / "gpt2-small"
    loaded = dictlab.load(saved(folder / "resid_post_mlp_v5_32k" / "autoencoders" / "8.pt", state(**TOPK)))
    about = loaded.metadata
    assert (about.model, about.site) == ("gpt2", "blocks.8.hook_resid_post")
    assert (about.convention, about.objective) == ("huggingface", "local")
    assert about.foreign == TOPK
    assert not about.notes
    other = dictlab.load(saved(folder / "mlp_post_act" / "autoencoders" / "3.pt", state()))
    assert other.metadata.site == "blocks.3.mlp.hook_post"
    bare = dictlab.load(saved(tmp_path / "8.pt", state()))
    assert (bare.metadata.model, bare.metadata.site) == (None, None)
    assert bare.metadata.notes


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (torch.ones(M), False),
        (torch.linspace(0, 0.5, M), True),
        (torch.zeros(M), False),
        (torch.full((M,), 3.0), False),
    ],
    ids=["never measured", "measured", "none fires", "no share"],
)
def test_firing_rates_are_those_that_somebody_measured(tmp_path, stored, kept):
    dictionary = dictlab.load(saved(tmp_path / "8.pt", state(latents_activation_frequency=stored)))
    assert (dictionary.firing_rate is not None) == kept
    if kept:
        assert torch.equal(dictionary.firing_rate, stored)


def test_weights_stay_in_the_file_in_its_precision_until_used(tmp_path):
    halves = {name: t.half() if t.is_floating_point() else t for name, t in state().items() if torch.is_tensor(t)}
    path = saved(tmp_path / "8.pt", halves)
    seen = mapped(path)
    assert seen.W_enc.dtype == seen.W_dec.dtype == torch.float16
    source = Source.open(path)
    assert dictlab.load(path).W_enc.dtype == torch.float32
    assert recognised(source) == ["openai"]


REFUSED = {
    "identity": ({"activation": "Identity"}, ["activation", "Identity"]),
    "unknown function": ({"activation": "GELU"}, ["activation", "GELU"]),
    "function of another type": ({"activation": 3}, ["activation", "3"]),
    "no k": ({"activation": "TopK", "activation_state_dict": {"postact_fn": "ReLU"}}, ["activation_state_dict", "'k'"]),
    "k is true": (
        {"activation": "TopK", "activation_state_dict": {"k": True, "postact_fn": "ReLU"}},
        ["k is True", "whole number"],
    ),
    "k too large": (
        {"activation": "TopK", "activation_state_dict": {"k": M + 1, "postact_fn": "ReLU"}},
        [f"k is {M + 1}", f"at most {M}"],
    ),
    "values as they are": (
        {"activation": "TopK", "activation_state_dict": {"k": 2, "postact_fn": "Identity"}},
        ["postact_fn", "Identity"],
    ),
    "unknown tensor": ({"skip": torch.zeros(D, D)}, ["skip", "unknown"]),
    "unknown entry": ({"normalize": False}, ["normalize", "unknown"]),
    "turned decoder": ({"decoder.weight": torch.zeros(M, D)}, ["decoder.weight", f"[{M}, {D}]", f"[{D}, {M}]"]),
    "flat encoder": ({"encoder.weight": torch.zeros(M)}, ["encoder.weight", f"[{M}]"]),
    "short bias": ({"latent_bias": torch.zeros(3)}, ["latent_bias", "[3]", f"[{M}]"]),
    "whole numbers": ({"encoder.weight": torch.zeros(M, D, dtype=torch.long)}, ["encoder.weight", "int64"]),
    "not a number": ({"pre_bias": torch.full((D,), float("nan"))}, ["b_pre", "NaN"]),
}


@pytest.mark.parametrize(("changes", "needles"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_exactly_is_refused_by_name(tmp_path, changes, needles):
    path = saved(tmp_path / "8.pt", state(**changes))
    with refused(path, *needles):
        dictlab.load(path)


def test_what_the_user_knows_to_be_harmless_is_passed_over(tmp_path):
    path = saved(tmp_path / "8.pt", state(normalize=False))
    assert dictlab.load(path, ignore=["normalize"]).n_latents == M


def test_there_is_one_dictionary_in_a_file(tmp_path):
    with refused("#", "blocks.8"):
        dictlab.load(f"{saved(tmp_path / '8.pt', state())}#blocks.8")


def test_a_scale_that_would_be_passed_over_is_refused(tmp_path):
    path = saved(tmp_path / "8.pt", state())
    with refused(path, "scale", "2.0"):
        dictlab.load(path, scale=2.0)
