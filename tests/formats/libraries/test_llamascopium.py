"""Files of llamascopium (lm_saes) and Llama Scope: formulas are those of its specification, written out in float64."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import dictlab
from dictlab.dictionary.activation_functions import JumpReLU
from dictlab.dictionary.normalisation import NoNormalisation, Scale
from tests.dense import agrees, draw, largest, refused, relu

D, M, K = 16, 64, 7
SITE = "blocks.8.hook_resid_post"
NORM = 6.3125
KINDS = ("relu", "jumprelu", "topk", "batchtopk")
# A released file's hyperparams.json (Llama3_1-8B-Base-LXR-8x), for other sizes.
LLAMA_SCOPE = {
    "device": "cuda:0",
    "seed": 42,
    "dtype": "torch.bfloat16",
    "hook_point_in": SITE,
    "hook_point_out": SITE,
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "expansion_factor": 4,
    "d_model": D,
    "d_sae": M,
    "bias_init_method": "all_zero",
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.75,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": NORM, "out": NORM},
    "decoder_exactly_fixed_norm": False,
    "sparsity_include_decoder_norm": True,
    "use_glu_encoder": False,
    "init_decoder_norm": 0.5,
    "init_encoder_norm": None,
    "init_encoder_with_decoder_transpose": True,
    "lp": 1,
    "l1_coefficient": 8e-05,
    "l1_coefficient_warmup_steps": 78125,
    "top_k": 50,
    "k_warmup_steps": 78125,
    "use_batch_norm_mse": True,
    "use_ghost_grads": False,
    "tp_size": 1,
    "ddp_size": 1,
}


def config(**changes):
    return {
        "sae_type": "sae",
        "d_model": D,
        "expansion_factor": M / D,
        "use_decoder_bias": True,
        "act_fn": "relu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "top_k": K,
        "use_triton_kernel": False,
        "sparsity_threshold_for_triton_spmm_kernel": 0.996,
        "jumprelu_threshold_window": 2.0,
        "hook_point_in": SITE,
        "hook_point_out": SITE,
        "use_glu_encoder": False,
    } | changes


def tensors(kind="relu", **changes):
    made = {
        "W_E": torch.from_numpy(0.3 * draw(D, M, seed=1)),
        "b_E": torch.from_numpy(0.3 * draw(M, seed=2)),
        "W_D": torch.from_numpy(0.5 * draw(M, D, seed=3) * np.linspace(0.2, 2, M, dtype=np.float32)[:, None]),
        "b_D": torch.from_numpy(0.3 * draw(D, seed=4)),
        f"dataset_average_activation_norm.{SITE}": torch.tensor(NORM),
    }
    if kind == "jumprelu":
        made["activation_function.log_jumprelu_threshold"] = torch.from_numpy(0.3 * draw(M, seed=5))
    return made | changes


def saved(folder, settings, weights=None):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights or tensors(settings["act_fn"]), folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def reference(settings, weights, x):
    t = {name: value.double().numpy() for name, value in weights.items()}
    x = x.astype(np.float64)
    c = {
        "dataset-wise": math.sqrt(D) / NORM,
        "token-wise": math.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True),
        "inference": 1.0,
    }[settings["norm_activation"]]
    z = c * x @ t["W_E"] + t["b_E"]
    n = np.linalg.norm(t["W_D"], axis=1) if settings["sparsity_include_decoder_norm"] else np.ones(M)
    kind = settings["act_fn"]
    if kind == "relu":
        f = relu(z)
    elif kind == "jumprelu":
        f = z * (z * n > np.exp(t["activation_function.log_jumprelu_threshold"]))
    elif kind == "topk":
        f = largest(relu(z * n), K) / n
    else:
        f = largest(relu(z * n).reshape(1, -1), K * len(x)).reshape(z.shape) / n
    return f, n, (f @ t["W_D"] + t["b_D"]) / c


@pytest.mark.parametrize("by_length", [True, False], ids=["by decoder length", "plain"])
@pytest.mark.parametrize("norm", ["dataset-wise", "token-wise", "inference"])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_reconstructions_are_those_of_the_formula(tmp_path, kind, norm, by_length):
    settings = config(act_fn=kind, norm_activation=norm, sparsity_include_decoder_norm=by_length)
    dictionary = dictlab.load(saved(tmp_path, settings))
    x = 2 * draw(60, D, seed=9)
    f, n, x_hat = reference(settings, tensors(kind), x)
    agrees(dictionary, x, f * n if "topk" in kind else f, x_hat, tolerance=3e-5)


def llama_scope(tmp_path, **changes):
    weights = tensors()
    folder = tmp_path / "Llama3_1-8B-Base-L8R-8x"
    (folder / "checkpoints").mkdir(parents=True)
    linear = {
        "encoder.weight": weights["W_E"].T.contiguous(),
        "encoder.bias": weights["b_E"],
        "decoder.weight": weights["W_D"].T.contiguous(),
        "decoder.bias": weights["b_D"],
    }
    save_file(linear, folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps(LLAMA_SCOPE | changes))
    return folder / "checkpoints" / "final.safetensors", weights


def test_llama_scope_is_read_with_its_one_threshold_and_its_norm(tmp_path):
    path, weights = llama_scope(tmp_path)
    dictionary = dictlab.load(path)
    x = 2 * draw(60, D, seed=9)
    log = torch.full((M,), math.log(0.75 * math.sqrt(D) / NORM))  # its threshold is one of raw activations
    f, _, x_hat = reference(
        config(act_fn="jumprelu"),
        tensors("jumprelu", **weights) | {"activation_function.log_jumprelu_threshold": log},
        x,
    )
    agrees(dictionary, x, f, x_hat, tolerance=3e-5)
    about = dictionary.metadata
    assert (about.model, about.site, about.seed) == ("meta-llama/Llama-3.1-8B", SITE, 42)
    assert dictionary.normalisation == Scale(math.sqrt(D) / NORM)
    assert any("raw activations" in note for note in about.notes)


def test_a_transcoder_of_llama_scope_is_refused(tmp_path):
    path, _ = llama_scope(
        tmp_path, hook_point_in="blocks.8.ln2.hook_normalized", hook_point_out="blocks.8.hook_mlp_out"
    )
    with refused(path, "hook_point_in", "transcoder"):
        dictlab.load(path)


def test_a_pickled_checkpoint_is_the_same_dictionary(tmp_path):
    folder = saved(tmp_path / "a", config())
    other = tmp_path / "b"
    other.mkdir()
    torch.save({"sae": tensors(), "version": "2.0.0"}, other / "sae_weights.pt")
    (other / "config.json").write_text(json.dumps(config()))
    x = torch.from_numpy(draw(9, D))
    assert torch.equal(dictlab.load(folder).reconstruct(x), dictlab.load(other).reconstruct(x))


def test_a_latent_without_a_decoder_row_is_never_active_under_selection_by_length(tmp_path):
    weights = tensors("jumprelu")
    weights["W_D"][3] = 0
    for kind in KINDS:
        kept = {n: t for n, t in weights.items() if kind == "jumprelu" or "threshold" not in n}
        codes = dictlab.load(saved(tmp_path / kind, config(act_fn=kind), kept)).encode(
            torch.from_numpy(9 * draw(50, D))
        )
        assert not bool((codes.dense()[:, 3] != 0).any()), kind


def test_a_runs_own_file_does_not_say_whether_its_norms_are_folded(tmp_path):
    """The library's runner writes config.json first and folds afterwards, so the pair contradicts itself by default."""
    folder = saved(tmp_path, config(act_fn="topk"))
    (folder / "checkpoints").mkdir()
    with refused(folder, "`scale=1`", f"`scale={math.sqrt(D) / NORM:.6g}`"):
        dictlab.load(folder)
    assert dictlab.load(folder, scale=1).normalisation == NoNormalisation()
    assert dictlab.load(folder, scale=0.5).normalisation == Scale(0.5)


def test_folded_thresholds_are_noted(tmp_path):
    """The library's folding leaves thresholds in the old units: L0 is another one."""
    folded = dictlab.load(saved(tmp_path / "a", config(act_fn="jumprelu", norm_activation="inference")))
    assert any("L0 may be another" in note for note in folded.metadata.notes)
    assert isinstance(folded.activation, JumpReLU)
    plain = dictlab.load(saved(tmp_path / "b", config(act_fn="jumprelu")))
    assert not plain.metadata.notes


REFUSED = {
    "crosscoder": ({"sae_type": "crosscoder"}, ["crosscoder", "several sites"]),
    "lorsa": ({"sae_type": "lorsa"}, ["lorsa", "tokens before"]),
    "gated encoder": ({"use_glu_encoder": True}, ["use_glu_encoder", "two linear maps"]),
    "batch norm": ({"norm_activation": "batch-wise"}, ["batch-wise"]),
    "unknown function": ({"act_fn": "layertopk"}, ["act_fn", "layertopk"]),
    "unknown field": ({"tied": True}, ["tied", "unknown"]),
    "k too large": ({"act_fn": "topk", "top_k": M + 1}, ["top_k", str(M)]),
    "another width": ({"expansion_factor": 3}, ["expansion_factor", str(M)]),
    "bias before": ({"apply_decoder_bias_to_pre_encoder": True}, ["apply_decoder_bias_to_pre_encoder", "versions"]),
}


@pytest.mark.parametrize(("changes", "needles"), REFUSED.values(), ids=REFUSED)
def test_what_a_dictionary_cannot_express_or_nobody_knows_is_refused_by_name(tmp_path, changes, needles):
    folder = saved(tmp_path, config(**changes))
    with refused(folder, *needles):
        dictlab.load(folder)


def test_without_a_norm_a_scale_is_asked_for(tmp_path):
    weights = tensors()
    weights[f"dataset_average_activation_norm.{SITE}"] = torch.tensor(0.0)  # memory that was never written to
    folder = saved(tmp_path, config(), weights)
    with refused(folder, "dataset-wise", "`scale=...`"):
        dictlab.load(folder)
    assert dictlab.load(folder, scale=2.0).normalisation == Scale(2.0)


def test_tensors_without_a_configuration_are_known_by_name(tmp_path):
    save_file(tensors(), tmp_path / "sae_weights.safetensors")
    with refused(tmp_path, "llamascopium", "d_model"):
        dictlab.load(tmp_path)
