"""Checkpoints of bartbussmann/BatchTopK, which is no package: formulas are those of its specification."""

import json

import numpy as np
import pytest
import torch

import dictlab
from dictlab import ReLU, TopK
from dictlab.dictionary.activation_functions import BatchTopK, JumpReLU
from dictlab.dictionary.normalisation import LayerNorm, NoNormalisation
from dictlab.formats.loading import mapped, recognised
from dictlab.formats.reading.source import Source
from tests.dense import agrees, draw, largest, layer_norm, refused, relu

D, M, K = 12, 40, 6
KINDS = ("vanilla", "topk", "batchtopk", "jumprelu", "batch-topk", "global-matryoshka-topk")


def config(**changes):
    """What a run with the settings of the repository writes: JSON, other values as texts; None takes a field out."""
    made = {
        "seed": 49,
        "batch_size": 4096,
        "lr": 3e-4,
        "num_tokens": 1_000_000_000,
        "l1_coeff": 0.004,
        "beta1": 0.9,
        "beta2": 0.99,
        "max_grad_norm": 100000,
        "seq_len": 128,
        "dtype": "torch.float32",
        "model_name": "gpt2-small",
        "site": "resid_pre",
        "layer": 8,
        "act_size": D,
        "dict_size": M,
        "device": "cuda:0",
        "model_batch_size": 512,
        "num_batches_in_buffer": 10,
        "dataset_path": "Skylion007/openwebtext",
        "wandb_project": "sparse_autoencoders",
        "input_unit_norm": True,
        "perf_log_freq": 1000,
        "sae_type": "topk",
        "checkpoint_freq": 10000,
        "n_batches_to_dead": 5,
        "top_k": K,
        "top_k_aux": 512,
        "aux_penalty": 1 / 32,
        "bandwidth": 0.001,
        "hook_point": "blocks.8.hook_resid_pre",
        "name": "gpt2-small_blocks.8.hook_resid_pre_40_topk_6_0.0003",
    } | changes
    return {name: value for name, value in made.items() if value is not None}


def tensors(kind="topk", **changes):
    made = {
        "b_dec": torch.from_numpy(0.5 * draw(D, seed=1)),
        "b_enc": torch.from_numpy(draw(M, seed=2)),  # for topk it would change the codes, if it were used
        "W_enc": torch.from_numpy(0.3 * draw(D, M, seed=3)),
        "W_dec": torch.from_numpy(0.3 * draw(M, D, seed=4)),
    } | changes
    if kind == "jumprelu":
        made.setdefault("jumprelu.log_threshold", torch.from_numpy(0.5 * draw(M, seed=5)))
    if kind in ("batch-topk", "global-matryoshka-topk"):
        made.setdefault("threshold", torch.tensor(0.4))
    return made


def saved(folder, settings, weights=None):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights or tensors(settings["sae_type"]), folder / "sae.pt")
    (folder / "config.json").write_text(json.dumps(settings))
    return folder / "sae.pt"


def reference(kind, normed, weights, x):
    """Codes and reconstructions, densely, in float64."""
    t = {name: value.double().numpy() for name, value in weights.items()}
    h, mean, std = layer_norm(x.astype(np.float64)) if normed else (x.astype(np.float64), 0, 1)
    if kind == "vanilla":
        f = relu((h - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    elif kind == "topk":
        f = largest(relu((h - t["b_dec"]) @ t["W_enc"]), K)
    elif kind == "batchtopk":
        z = relu((h - t["b_dec"]) @ t["W_enc"])
        f = largest(z.reshape(1, -1), K * len(x)).reshape(z.shape)
    elif kind in ("batch-topk", "global-matryoshka-topk"):
        r = relu((h - t["b_dec"]) @ t["W_enc"])
        f = r * (r > t["threshold"])
    else:
        r = relu(h @ t["W_enc"] + t["b_enc"])
        f = r * (r > np.exp(t["jumprelu.log_threshold"]))
    return f, (f @ t["W_dec"] + t["b_dec"]) * std + mean


@pytest.mark.parametrize("normed", [True, False], ids=["unit norm", "raw"])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_reconstructions_are_those_of_the_formula(tmp_path, kind, normed):
    weights = tensors(kind)
    dictionary = dictlab.load(saved(tmp_path, config(sae_type=kind, input_unit_norm=normed), weights))
    x = 2 * draw(50, D, seed=9) + 0.5
    # Of the batch's values, two nearly equal ones could stand at the limit: not with this seed.
    agrees(dictionary, x, *reference(kind, normed, weights, x))
    assert dictionary.normalisation == (LayerNorm(1e-5) if normed else NoNormalisation())


@pytest.mark.parametrize(
    ("kind", "made"), list(zip(KINDS, (ReLU, TopK, BatchTopK, JumpReLU, JumpReLU, JumpReLU), strict=True))
)
def test_each_type_is_its_activation_function(tmp_path, kind, made):
    dictionary = dictlab.load(saved(tmp_path, config(sae_type=kind)))
    assert type(dictionary.activation) is made
    assert getattr(dictionary.activation, "k", K) == K
    assert bool(dictionary.b_enc.any()) == (kind in ("vanilla", "jumprelu"))
    assert bool(dictionary.b_pre.any()) == (kind != "jumprelu")
    assert any("threshold" in note for note in dictionary.metadata.notes) == (kind == "batchtopk")


def test_without_the_field_inputs_are_not_normalised(tmp_path):
    assert dictlab.load(saved(tmp_path, config(input_unit_norm=None))).normalisation == NoNormalisation()


def test_metadata_comes_from_the_configuration(tmp_path):
    settings = config()
    about = dictlab.load(saved(tmp_path / "run_30517", settings)).metadata
    assert (about.model, about.site, about.seed) == ("gpt2", "blocks.8.hook_resid_pre", 49)
    assert (about.objective, about.convention) == ("local", "transformer_lens")
    assert about.training == {"l1": 0.004, "context": 128}
    assert about.foreign == settings


def test_a_folder_is_named_after_its_checkpoint_and_weights_are_mapped(tmp_path):
    weights = {name: t.bfloat16() for name, t in tensors().items()}
    path = saved(tmp_path / "run_100", config(), weights)
    seen = mapped(tmp_path / "run_100")
    assert seen.name == "run_100"
    assert seen.W_enc.dtype == torch.bfloat16
    assert recognised(Source.open(path)) == ["batchtopk"]


def test_a_matryoshka_dictionary_keeps_its_groups_and_says_where_no_threshold_was_estimated(tmp_path):
    settings = config(sae_type="global-matryoshka-topk", group_sizes=[10, 30], top_k_matryoshka=[10, 10])
    about = dictlab.load(saved(tmp_path / "a", settings)).metadata
    assert about.training["group_sizes"] == [10, 30] and about.training["k"] == K
    assert (about.library, about.convention) == ("bartbussmann/matryoshka_sae", "huggingface")
    early = saved(tmp_path / "b", settings, tensors("global-matryoshka-topk", threshold=torch.tensor(0.0)))
    assert any("threshold is 0" in note for note in dictlab.load(early).metadata.notes)


REFUSED = {
    "unknown type": ({"sae_type": "quantile"}, ["sae_type", "quantile"]),
    "unknown field": ({"tied_weights": False}, ["tied_weights", "unknown"]),
    "normalisation as a text": ({"input_unit_norm": "True"}, ["input_unit_norm", "True"]),
    "no k": ({"top_k": None}, ["top_k", "None"]),
    "k is no whole number": ({"top_k": 2.5}, ["top_k", "2.5"]),
    "k too large": ({"top_k": M + 1}, ["top_k", f"{M + 1}", f"{M}"]),
    "width is true": ({"dict_size": True}, ["dict_size", "True"]),
    "another width": ({"act_size": D + 1}, ["W_enc", f"[{D}, {M}]", f"[{D + 1}, {M}]"]),
    "seed is a text": ({"seed": "49"}, ["seed", "49"]),
}


@pytest.mark.parametrize(("changes", "needles"), REFUSED.values(), ids=REFUSED)
def test_a_configuration_that_is_not_understood_is_refused_by_field(tmp_path, changes, needles):
    path = saved(tmp_path, config(**changes))
    with refused(path, *needles):
        dictlab.load(path)


WRONG = {
    "unknown tensor": ("topk", {"W_skip": torch.zeros(D, D)}, ["W_skip"]),
    "threshold of another type": ("topk", {"jumprelu.log_threshold": torch.zeros(M)}, ["jumprelu.log_threshold"]),
    "turned decoder": ("topk", {"W_dec": torch.zeros(D, M)}, ["W_dec", f"[{D}, {M}]"]),
    "short threshold": ("jumprelu", {"jumprelu.log_threshold": torch.zeros(3)}, ["jumprelu.log_threshold", "[3]"]),
    "endless threshold": ("jumprelu", {"jumprelu.log_threshold": torch.full((M,), 1e4)}, ["threshold", "infinite"]),
}


@pytest.mark.parametrize(("kind", "changes", "needles"), WRONG.values(), ids=WRONG)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, kind, changes, needles):
    path = saved(tmp_path, config(sae_type=kind), tensors(kind, **changes))
    with refused(path, *needles):
        dictlab.load(path)


def test_a_field_that_the_user_knows_to_be_harmless_is_passed_over(tmp_path):
    path = saved(tmp_path, config(tied_weights=False))
    assert dictlab.load(path, ignore=["tied_weights"]).n_latents == M


def test_forced_without_a_configuration_it_says_what_is_missing(tmp_path):
    path = saved(tmp_path, config())
    (tmp_path / "config.json").unlink()
    with refused(path, "act_size"):
        dictlab.load(path, format="batchtopk")


def test_a_scale_that_would_be_passed_over_is_refused(tmp_path):
    path = saved(tmp_path, config())
    with refused(path, "scale", "2.0"):
        dictlab.load(path, scale=2.0)
