"""A dictionary of SAELens computes what its formulas say, whatever version wrote it; what is not understood is refused."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dictlab import DictlabError, Metadata, ReLU, TopK, load
from dictlab.dictionary.activation_functions import AbsTopK, BatchTopK, Gated, GroupMax, JumpReLU
from dictlab.dictionary.normalisation import Centred, ConstantNorm, LayerNorm, NoNormalisation, Scale
from dictlab.dictionary.union import Union
from dictlab.formats.libraries import saelens
from dictlab.formats.loading import mapped
from dictlab.formats.reading.source import Source
from tests.planted import random_dictionary

D, N, K = 6, 20, 4
# Values are O(1), folding and summing D or N of them in float32 leaves about 1e-6.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
BF16 = {"atol": 1e-2, "rtol": 1e-2}
ORIGIN = {
    "sae_lens_version": "6.12.1",
    "sae_lens_training_version": "6.12.0",
    "model_name": "gpt2-small",
    "model_class_name": "HookedTransformer",
    "hook_name": "blocks.3.hook_resid_pre",
    "hook_head_index": None,
    "model_from_pretrained_kwargs": {"center_writing_weights": False},
    "context_size": 128,
}


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tensors_of(architecture: str) -> dict[str, torch.Tensor]:
    made = {
        "W_enc": drawn(D, N, seed=1) / D**0.5,
        "W_dec": drawn(N, D, seed=2),  # rows of very different lengths
        "b_dec": drawn(D, seed=3),
    }
    if architecture == "gated":
        return made | {name: 0.5 * drawn(N, seed=4 + i) for i, name in enumerate(("b_gate", "r_mag", "b_mag"))}
    made["b_enc"] = 0.5 * drawn(N, seed=4)
    if architecture == "jumprelu":
        made["threshold"] = 0.5 * drawn(N, seed=7).abs()
    if architecture.endswith("batchtopk"):
        made["topk_threshold"] = torch.tensor(0.6, dtype=torch.float64)
    return made


def config_of(architecture: str, **changes) -> dict:
    own = {"k": K} if architecture in ("topk", "abstopk") else {}
    return {
        "architecture": architecture,
        "d_in": D,
        "d_sae": N,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": ORIGIN,
        **own,
        **changes,
    }


def folder(path: Path, config: dict, tensors: dict[str, torch.Tensor], sparsity=None, **beside: dict) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, path / "sae_weights.safetensors")
    if sparsity is not None:
        save_file({"sparsity": sparsity}, path / "sparsity.safetensors")
    for name, content in beside.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def inputs(n: int = 50, seed: int = 9) -> torch.Tensor:
    return 1.5 * drawn(n, D, seed=seed) + 0.3


def largest(z: torch.Tensor, by: torch.Tensor, k: int) -> torch.Tensor:
    """z where `by` is among the k largest of its row, by sorting."""
    least = by.sort(dim=1, descending=True).values[:, k - 1 : k]
    return torch.where(by >= least, z, 0)


def formula(config: dict, tensors: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and reconstruction, written densely in float64."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    x, architecture, normalised = x.double(), config["architecture"], config["normalize_activations"]
    mean, size, eps = torch.zeros(len(x), 1), torch.ones(len(x), 1), 0.0
    if normalised == "layer_norm":
        mean = x.sum(1, keepdim=True) / D
        size, eps = (((x - mean) ** 2).sum(1, keepdim=True) / (D - 1)) ** 0.5, 1e-5
    if normalised == "constant_norm_rescale":
        size = (x**2).sum(1, keepdim=True) ** 0.5 / D**0.5
    u = (x - mean) / (size + eps) - (t["b_dec"] if config["apply_b_dec_to_input"] else 0)
    length = (t["W_dec"] ** 2).sum(1) ** 0.5 if config.get("rescale_acts_by_decoder_norm") else torch.ones(N)
    if architecture == "gated":
        gate, magnitude = u @ t["W_enc"] + t["b_gate"], u @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]
        f = torch.where(gate > 0, magnitude.relu(), 0)
    else:
        z = (u @ t["W_enc"] + t["b_enc"]) * length
        f = {
            "standard": lambda: z.relu(),
            "jumprelu": lambda: torch.where(z > t["threshold"], z.relu(), 0),
            "topk": lambda: largest(z, z, K).relu(),
            "abstopk": lambda: largest(z, z.abs(), K),
            "batchtopk": lambda: torch.where(z > t["topk_threshold"], z.relu(), 0),
            "matryoshka_batchtopk": lambda: torch.where(z > t["topk_threshold"], z.relu(), 0),
        }[architecture]()
    return f, (f / length) @ t["W_dec"] * size + t["b_dec"] * size + mean


def assert_same(dictionary, f: torch.Tensor, x_hat: torch.Tensor, x: torch.Tensor, within=CLOSE) -> None:
    codes = dictionary.encode(x)
    assert torch.equal(codes.dense() != 0, f != 0), "other latents are active"
    torch.testing.assert_close(codes.dense(), f.float(), **within)
    torch.testing.assert_close(dictionary.reconstruct(x), x_hat.float(), **within)


# Reading the function


@pytest.mark.parametrize("normalised", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk", "abstopk"])
def test_codes_and_reconstructions_are_those_of_the_formula(tmp_path, architecture, pre_bias, normalised):
    config = config_of(architecture, apply_b_dec_to_input=pre_bias, normalize_activations=normalised)
    tensors, x = tensors_of(architecture), inputs()
    assert_same(load(folder(tmp_path, config, tensors)), *formula(config, tensors, x), x)


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_lengths_of_decoder_rows_decide_which_latents_win_where_the_file_says_so(tmp_path, architecture):
    tensors, x = tensors_of(architecture), inputs()
    made = {}
    for rescaled in (True, False):
        config = config_of(architecture, rescale_acts_by_decoder_norm=rescaled)
        made[rescaled] = formula(config, tensors, x)
        assert_same(load(folder(tmp_path / str(rescaled), config, tensors)), *made[rescaled], x)
    assert not torch.equal(made[True][0] != 0, made[False][0] != 0), "the data cannot tell the two rules apart"


def test_topk_keeps_fewer_than_k_where_the_largest_are_negative(tmp_path):
    tensors, x = tensors_of("topk"), inputs()
    tensors["b_enc"] -= 2.0
    made = load(folder(tmp_path, config_of("topk"), tensors))
    firing = (made.encode(x).dense() != 0).sum(1)
    assert (firing < K).any()
    assert_same(made, *formula(config_of("topk"), tensors, x), x)


@pytest.mark.parametrize(
    ("written", "version", "rescaled"),
    [
        (True, "6.20.0", True),
        (False, "6.20.0", False),
        (None, "6.14.0", True),  # the default of the training classes since then
        (None, "6.13.1", False),  # before, there was no rescaling
        (None, "6.1.0", False),
        (None, None, False),  # a version that has the field writes it
    ],
)
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_the_threshold_of_a_checkpoint_is_in_units_of_unit_decoder_rows(
    tmp_path, architecture, written, version, rescaled
):
    config = config_of(architecture, k=3.5, metadata={"sae_lens_version": version} if version else {})
    if written is not None:
        config["rescale_acts_by_decoder_norm"] = written
    tensors, x = tensors_of(architecture), inputs()
    expected = formula(config | {"rescale_acts_by_decoder_norm": rescaled}, tensors, x)
    made = load(folder(tmp_path, config, tensors))
    assert isinstance(made.activation, JumpReLU)
    assert_same(made, *expected, x)
    assert made.metadata.notes == ()


def test_a_threshold_that_was_never_estimated_is_said(tmp_path):
    tensors = tensors_of("batchtopk") | {"topk_threshold": torch.tensor(0.0, dtype=torch.float64)}
    made = load(folder(tmp_path, config_of("batchtopk", k=3.0), tensors))
    assert any("topk_threshold is 0" in note for note in made.metadata.notes)


def test_decoder_rows_of_length_0_do_no_harm(tmp_path):
    tensors = tensors_of("topk")
    tensors["W_dec"][3] = 0
    made = load(folder(tmp_path, config_of("topk", rescale_acts_by_decoder_norm=True), tensors))
    assert torch.isfinite(made.reconstruct(inputs())).all()


def test_a_logarithm_of_the_threshold_is_taken_back(tmp_path):
    tensors, x = tensors_of("jumprelu"), inputs()
    logarithms = {name: t for name, t in tensors.items() if name != "threshold"}
    logarithms["log_threshold"] = tensors["threshold"].log()
    made = load(folder(tmp_path, config_of("jumprelu"), logarithms))
    assert_same(made, *formula(config_of("jumprelu"), tensors, x), x)


def test_bfloat16_is_computed_with_in_float32(tmp_path):
    tensors = {name: t.bfloat16() for name, t in tensors_of("topk").items()}
    config = config_of("topk", dtype="torch.bfloat16", rescale_acts_by_decoder_norm=True)
    made, x = load(folder(tmp_path, config, tensors)), inputs()
    assert_same(made, *formula(config, tensors, x), x, BF16)
    assert made.W_dec.dtype == torch.float32


def test_a_scale_comes_from_beside_or_from_the_user(tmp_path):
    """h = s x and x_hat = y / s."""
    config, tensors, x, s = config_of("standard"), tensors_of("standard"), inputs(), 0.37
    f, y = formula(config, tensors, s * x)
    config["normalize_activations"] = "expected_average_only_in"
    scaler = {"scaling_factor": s, "has_whitening": False}
    beside = folder(tmp_path / "a", config, tensors, activation_scaler=scaler)
    alone = folder(tmp_path / "b", config, tensors)
    assert_same(load(beside), f, y / s, x)
    assert_same(load(alone, scale=s), f, y / s, x)
    with pytest.raises(DictlabError, match=r"activation_scaler\.json.*scale="):
        load(alone)
    with pytest.raises(DictlabError, match="above 0"):
        load(alone, scale=-1.0)
    for value in (True, 0, "1", float("inf")):
        with pytest.raises(DictlabError, match="above 0"):
            load(folder(tmp_path / "c", config, tensors, activation_scaler={"scaling_factor": value}))


def test_a_scale_for_a_dictionary_that_has_none_is_refused(tmp_path):
    with pytest.raises(DictlabError, match="normalize_activations is 'none'"):
        load(folder(tmp_path, config_of("standard"), tensors_of("standard")), scale=2.0)


def test_a_finetuned_scale_of_codes_counts_for_the_decoder_only(tmp_path):
    tensors, x, factor = tensors_of("standard"), inputs(), drawn(N, seed=11).abs() + 0.5
    flat = {"d_in": D, "d_sae": N, "dtype": "torch.float32", "hook_point": "blocks.0.hook_mlp_out"}
    config = config_of("standard")
    f, _ = formula(config, tensors, x)
    ones = load(folder(tmp_path / "a", flat, tensors | {"scaling_factor": torch.ones(N)}))
    assert_same(ones, *formula(config, tensors, x), x)
    scaled = tensors | {"scaling_factor": factor}
    x_hat = (f * factor.double()) @ tensors["W_dec"].double() + tensors["b_dec"].double()
    assert_same(load(folder(tmp_path / "b", flat | {"finetuning_scaling_factor": True}, scaled)), f, x_hat, x)
    with pytest.raises(DictlabError, match="finetuning_scaling_factor"):
        load(folder(tmp_path / "c", flat, scaled))
    with pytest.raises(DictlabError, match="finetuning_scaling_factor"):
        load(folder(tmp_path / "d", flat | {"sae_lens_version": "3.0.0"}, scaled))
    before = flat | {"sae_lens_version": "2.1.3"}  # there it is no setting: codes are always multiplied
    assert_same(load(folder(tmp_path / "e", before, scaled)), f, x_hat, x)


# Versions before 6

FLAT = {
    "d_in": D,
    "d_sae": N,
    "dtype": "torch.float32",
    "device": "cuda",
    "model_name": "gpt2-small",
    "hook_point": "blocks.{layer}.hook_resid_pre",
    "hook_point_layer": 3,
    "hook_point_head_index": None,
    "dataset_path": "Skylion007/openwebtext",
    "context_size": 128,
    "l1_coefficient": 8e-5,
    "lr": 4e-4,
    "seed": 42,
    "total_training_tokens": 300_000_000,
    "use_ghost_grads": True,
    "expansion_factor": 32,
    "b_dec_init_method": "mean",
    "wandb_project": "x",
}


def test_the_first_versions_have_defaults_for_what_they_do_not_say(tmp_path):
    tensors, x = tensors_of("standard"), inputs()
    made = load(folder(tmp_path, FLAT, tensors))
    assert_same(made, *formula(config_of("standard"), tensors, x), x)
    metadata = made.metadata
    assert (metadata.model, metadata.site) == ("gpt2", "blocks.3.hook_resid_pre")
    assert (metadata.seed, metadata.tokens, metadata.training["context"]) == (42, 300_000_000, 128)
    assert metadata.training["l1"] == 8e-5
    assert (metadata.convention, metadata.library) == ("transformer_lens", "sae_lens")
    assert metadata.foreign == FLAT


@pytest.mark.parametrize("name", ["activation_fn", "activation_fn_str"])
def test_an_old_standard_architecture_may_be_topk(tmp_path, name):
    tensors, x = tensors_of("topk"), inputs()
    config = FLAT | {"architecture": "standard", name: "topk", "activation_fn_kwargs": {"k": K}}
    made = load(folder(tmp_path, config, tensors))
    assert made.activation == TopK(K)
    assert_same(made, *formula(config_of("topk"), tensors, x), x)


@pytest.mark.parametrize(("value", "kind"), [(True, "scale"), (False, "none"), (None, "none"), ("none", "none")])
def test_an_old_normalisation_may_be_true_or_false(tmp_path, value, kind):
    tensors = tensors_of("standard")
    path = folder(tmp_path, FLAT | {"normalize_activations": value}, tensors, activation_scaler={"scaling_factor": 2.0})
    assert load(path).normalisation.kind == kind


# Metadata


def test_metadata_is_read(tmp_path):
    origin = ORIGIN | {
        "l0": 33.5,
        "training_architecture": "batchtopk",
        "training_architecture_details": {"k": 30.0, "l1_coefficient": 2.0},
        "dataset_path": "pile",
        "anything_else": [1],
    }
    config = config_of("jumprelu", metadata=origin)
    metadata = load(
        folder(tmp_path, config, tensors_of("jumprelu"), runner_cfg={"seed": 7, "training_tokens": 99})
    ).metadata
    assert (metadata.model, metadata.site, metadata.objective) == ("gpt2", "blocks.3.hook_resid_pre", "local")
    assert (metadata.seed, metadata.tokens, metadata.library) == (7, 99, "sae_lens 6.12.0")
    assert metadata.training == {"architecture": "batchtopk", "context": 128, "l1": 2.0, "dataset": "pile", "k": 30.0}
    assert metadata.metrics == {"l0": 33.5}
    assert metadata.foreign == config


def test_a_checkpoint_does_not_claim_the_tokens_of_the_whole_run(tmp_path):
    path = folder(
        tmp_path,
        config_of("standard"),
        tensors_of("standard"),
        runner_cfg={"training_tokens": 99},
        activation_scaler={"scaling_factor": None},
    )
    assert load(path).metadata.tokens is None


CENTRE = {"center_writing_weights": True}
UNTOLD = {"sae_lens_training_version": None}


@pytest.mark.parametrize(
    ("origin", "convention"),
    [
        ({"model_from_pretrained_kwargs": CENTRE}, "transformer_lens"),
        ({"model_from_pretrained_kwargs": {"center_writing_weights": False}}, "huggingface"),
        ({"model_from_pretrained_kwargs": {}}, "huggingface"),  # from_pretrained_no_processing
        ({"model_from_pretrained_kwargs": {}, "sae_lens_training_version": "3.19.1"}, "transformer_lens"),
        ({"model_from_pretrained_kwargs": {}, "sae_lens_training_version": "3.19.2"}, "huggingface"),
        ({"sae_lens_training_version": "2.1.3"}, "transformer_lens"),
        ({"sae_lens_training_version": "6.0.0-rc.0"}, None),
        (UNTOLD, None),
        ({"model_class_name": "AutoModelForCausalLM"}, "huggingface"),
        ({"model_class_name": "HookedMamba", "model_from_pretrained_kwargs": {}}, None),
        # Heads' outputs are moved by folding value biases, not by centring.
        ({"hook_name": "blocks.0.attn.hook_z", "model_from_pretrained_kwargs": CENTRE}, "huggingface"),
        (
            {"hook_name": "blocks.0.attn.hook_z", "model_from_pretrained_kwargs": {"fold_value_biases": True}},
            "transformer_lens",
        ),
    ],
)
def test_the_convention_is_how_that_version_opened_the_model(tmp_path, origin, convention):
    bare = {name: value for name, value in ORIGIN.items() if "version" not in name and "kwargs" not in name}
    config = config_of("standard", metadata=bare | origin)
    assert load(folder(tmp_path, config, tensors_of("standard"))).metadata.convention == convention


@pytest.mark.parametrize(
    ("hook", "model_class", "site"),
    [
        ("blocks.2.attn.hook_z", "HookedTransformer", "blocks.2.attn.hook_z"),
        ("model.layers.5", "AutoModelForCausalLM", "blocks.5.hook_resid_post"),
        ("transformer.h.5.mlp", "AutoModelForCausalLM", "transformer.h.5.mlp:out"),
        ("transformer.h.5.ln_1", "AutoModelForCausalLM", "transformer.h.5.ln_1:out"),
        (None, None, None),
    ],
)
def test_sites_have_one_spelling(tmp_path, hook, model_class, site):
    config = config_of("standard", metadata=ORIGIN | {"hook_name": hook, "model_class_name": model_class})
    assert load(folder(tmp_path, config, tensors_of("standard"))).metadata.site == site


def test_logarithms_of_firing_rates_are_read_and_the_dead_are_dead(tmp_path):
    rate = torch.rand(N, generator=torch.Generator().manual_seed(0)) ** 6
    rate[[2, 5]] = 0
    rate[7] = 1e-8
    rate[8] = 1
    logarithm = torch.log10(rate + 1e-10)
    logarithm[5] = -9.999999  # as rounding on another device may leave it
    made = load(folder(tmp_path, config_of("standard"), tensors_of("standard"), sparsity=logarithm))
    torch.testing.assert_close(made.firing_rate, rate, rtol=1e-4, atol=0)  # 10^x of a float32 x near -8
    assert made.alive.tolist() == (rate > 0).tolist()


def test_firing_rates_of_a_run_without_steps_are_passed_over(tmp_path):
    path = folder(tmp_path, config_of("standard"), tensors_of("standard"), sparsity=torch.full((N,), float("nan")))
    made = load(path)
    assert made.firing_rate is None
    assert any("sparsity.safetensors" in note for note in made.metadata.notes)
    save_file({"sparsity": torch.zeros(N + 1)}, path / "sparsity.safetensors")
    with pytest.raises(DictlabError, match=r"sparsity\.safetensors"):
        load(path)


# Refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "temporal"}, "architecture is 'temporal'"),
        ({"architecture": "matching_pursuit"}, "architecture is 'matching_pursuit'"),
        ({"architecture": "prolu"}, "architecture is prolu.*standard"),
        ({"architecture": None}, "architecture is None"),
        ({"architecture": ["standard"]}, "architecture is"),
        ({"d_out": D}, "'d_out'.*ignore"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening.*folded"),
        ({"normalize_activations": "constant_scalar_rescale"}, "normalize_activations is constant_scalar_rescale"),
        ({"normalize_activations": 3}, "normalize_activations is 3"),
        ({"reshape_activations": "hook_q"}, "reshape_activations is hook_q"),
        ({"metadata": ORIGIN | {"hook_head_index": 3}}, "hook_head_index is 3.*single head"),
        ({"metadata": 3}, "metadata is 3"),
        ({"metadata": ORIGIN | {"model_name": 3}}, "model_name is 3"),
        ({"metadata": ORIGIN | {"context_size": True}}, "context_size is True"),
        ({"apply_b_dec_to_input": 1}, "apply_b_dec_to_input is 1"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm is true"),
        ({"k": 3}, "k is 3"),
        ({"activation_fn": "tanh-relu"}, "activation_fn is tanh-relu"),
        ({"activation_fn": "topk", "activation_fn_kwargs": {"k": 3}}, "activation_fn is topk"),  # not since version 6
        ({"dtype": "float8_e4m3fn"}, "dtype is"),
        ({"d_in": True}, "d_in is True"),
        ({"d_in": D + 1}, r"W_enc has shape \[6, 20\]; expected \[7, 20\]"),
        ({"d_sae": -1}, "d_sae is -1"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path, changes, words):
    path = folder(tmp_path, config_of("standard") | changes, tensors_of("standard"))
    with pytest.raises(DictlabError, match=words) as error:
        load(path)
    assert "sae_weights.safetensors" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": None}, "k is None"),
        ({"k": 0}, "k is 0"),
        ({"k": 4.0}, "k is 4.0"),
        ({"k": True}, "k is True"),
        ({"activation_fn_kwargs": {"k": K, "temperature": 2}}, "activation_fn_kwargs"),
    ],
)
def test_a_number_of_latents_is_a_whole_number(tmp_path, changes, words):
    with pytest.raises(DictlabError, match=words):
        load(folder(tmp_path, config_of("topk") | changes, tensors_of("topk")))


@pytest.mark.parametrize(
    ("architecture", "changes", "words"),
    [
        ("standard", {"W_skip": torch.zeros(D, D)}, "'W_skip' does not belong"),
        ("standard", {"threshold": torch.zeros(N)}, "'threshold' does not belong"),
        ("standard", {"b_enc": torch.zeros(N - 1)}, "b_enc has shape"),
        ("standard", {"W_dec": torch.zeros(D, N)}, "W_dec has shape"),
        ("standard", {"b_dec": torch.zeros(D, dtype=torch.int64)}, "b_dec holds int64"),
        ("standard", {"b_enc": None}, "'b_enc'.*missing"),
        ("jumprelu", {"threshold": None}, "'threshold'.*missing"),
        ("jumprelu", {"threshold": torch.zeros(1)}, "threshold has shape"),
        ("gated", {"r_mag": None}, "'r_mag'.*missing"),
        ("gated", {"b_enc": torch.zeros(N)}, "'b_enc' does not belong"),
        ("batchtopk", {"topk_threshold": None}, "'topk_threshold'.*missing"),
        ("batchtopk", {"topk_threshold": torch.zeros(1)}, "topk_threshold has shape"),
    ],
)
def test_tensors_that_do_not_fit_the_architecture_are_refused(tmp_path, architecture, changes, words):
    tensors = {name: t for name, t in (tensors_of(architecture) | changes).items() if t is not None}
    with pytest.raises(DictlabError, match=words):
        load(folder(tmp_path, config_of(architecture), tensors))


def test_an_unknown_field_can_be_passed_over(tmp_path):
    path = folder(tmp_path, config_of("standard", novelty=1), tensors_of("standard"))
    with pytest.raises(DictlabError, match="'novelty'"):
        load(path)
    assert load(path, ignore=["novelty"]).n_latents == N


# Recognition


def test_it_is_recognised_by_content(tmp_path):
    tensors = tensors_of("standard")
    path = folder(tmp_path / "a", config_of("standard"), tensors, sparsity=torch.zeros(N))
    (path / "cfg.json").rename(path / "other.json")
    (path / "sae_weights.safetensors").rename(path / "renamed.safetensors")
    assert saelens.recognise(Source.open(path / "renamed.safetensors"))
    assert not saelens.recognise(Source.open(path / "sparsity.safetensors"))
    sparsify = folder(tmp_path / "b", {"d_in": D, "num_latents": N, "k": 3}, tensors)
    assert not saelens.recognise(Source.open(sparsify / "sae_weights.safetensors"))
    (sparsify / "cfg.json").write_text("[broken")
    assert not saelens.recognise(Source.open(sparsify / "sae_weights.safetensors"))
    with pytest.raises(DictlabError, match=r"cfg\.json"):
        saelens.read(Source.open(sparsify / "sae_weights.safetensors"))


@pytest.mark.parametrize("format", [None, "saelens"])
def test_other_files_of_weights_in_the_folder_are_passed_over(tmp_path, format):
    path = folder(tmp_path, config_of("standard"), tensors_of("standard"), sparsity=torch.zeros(N))
    assert load(path, format=format).firing_rate.tolist() == [1.0] * N


def test_a_large_dictionary_is_opened_without_reading_it(tmp_path):
    """4 GB of zeros that take no room on the disk."""
    d, n = 4096, 131_072
    shapes = {"W_enc": [d, n], "W_dec": [n, d], "b_enc": [n], "b_dec": [d]}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (tmp_path / "sae_weights.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (tmp_path / "cfg.json").write_text(json.dumps(config_of("standard", d_in=d, d_sae=n)))
    before = resident()
    made = mapped(tmp_path)
    assert made.W_dec[n - 1].abs().sum() == 0
    assert resident() - before < 64 << 20


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


# Writing

VECTORS = {
    "jumprelu": lambda n: JumpReLU(0.5 * drawn(n, seed=21).abs()),
    "gated": lambda n: Gated(*(0.5 * drawn(n, seed=seed) for seed in (22, 23, 24))),
}
kinds = st.sampled_from(["relu", "topk", "abstopk", "jumprelu", "gated"])
normalisations = st.sampled_from([NoNormalisation(), LayerNorm(1e-5), ConstantNorm(), Scale(0.3), Scale(7.0)])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds,
    normalisations,
    st.integers(2, 7),
    st.integers(1, 12),
    st.sampled_from(["none", "same", "other"]),
    st.integers(0, 99),
)
def test_what_is_read_back_is_the_same_function(tmp_path, kind, normalisation, d, n, pre_bias, seed):
    activation = {"relu": ReLU(), "topk": TopK(3), "abstopk": AbsTopK(3)}.get(kind) or VECTORS[kind](n)
    made = random_dictionary(n, d, activation=activation, normalisation=normalisation, seed=seed)
    if pre_bias != "other":
        made = replace(made, b_pre=made.b_out if pre_bias == "same" else torch.zeros(d))
    made = replace(made, firing_rate=torch.rand(n, generator=torch.Generator().manual_seed(seed)))
    back = load(saelens.write(made, tmp_path / f"{len(list(tmp_path.iterdir()))}"))
    x = drawn(30, d, seed=seed + 1)
    # Folding moves values by rounding. Draws are the same on every machine; none lies so close to a threshold.
    torch.testing.assert_close(back.encode(x).dense(), made.encode(x).dense(), atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(back.reconstruct(x), made.reconstruct(x), atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(back.firing_rate, made.firing_rate, rtol=1e-5, atol=0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["topk", "abstopk", "jumprelu", "gated"])
def test_the_latents_that_are_active_stay_the_same(tmp_path, kind, seed):
    activation = {"topk": TopK(3), "abstopk": AbsTopK(3)}.get(kind) or VECTORS[kind](N)
    made = random_dictionary(N, D, activation=activation, normalisation=Scale(0.5), seed=seed)
    x = inputs(seed=seed)
    assert_same(load(saelens.write(made, tmp_path / "a")), made.encode(x).dense(), made.reconstruct(x), x)


def test_the_written_file_holds_what_the_formula_says(tmp_path):
    """Not through the reader: the folded bias is in b_enc, and nothing is subtracted from the input."""
    made = random_dictionary(N, D, activation=ReLU())
    path = saelens.write(made, tmp_path / "a")
    config, tensors, x = (
        json.loads((path / "cfg.json").read_text()),
        load_file(path / "sae_weights.safetensors"),
        inputs(),
    )
    assert (config["architecture"], config["apply_b_dec_to_input"], config["dtype"]) == ("standard", False, "float32")
    f, x_hat = formula(config, tensors, x)
    assert_same(made, f, x_hat, x)


def test_metadata_survives_the_way_there_and_back(tmp_path):
    metadata = Metadata(
        model="EleutherAI/pythia-70m",
        model_fingerprint="ab",
        site="blocks.2.hook_mlp_out",
        objective="e2e+ds",
        seed=5,
        tokens=10**9,
        training={"context": 256, "l1": 0.1},
        metrics={"l0": 12.5, "l0_interval": [12.0, 13.0]},
        sources=("a", "b"),
        library="dictlab 0.1.0",
        convention="huggingface",
        notes=("a note",),
    )
    path = saelens.write(random_dictionary(N, D, metadata=metadata), tmp_path / "a")
    back = load(path).metadata
    assert replace(back, foreign={}) == metadata
    again = load(saelens.write(replace(random_dictionary(N, D), metadata=back), tmp_path / "b")).metadata
    assert replace(again, foreign={}) == metadata
    assert again.foreign == back.foreign, "what is written does not grow"
    origin = json.loads((path / "cfg.json").read_text())["metadata"]
    assert (origin["model_name"], origin["hook_name"], origin["context_size"], origin["l0"]) == (
        "EleutherAI/pythia-70m", "blocks.2.hook_mlp_out", 256, 12.5,
    )  # fmt: skip


@pytest.mark.parametrize("site", ["blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "transformer.h.1.ln_1:out", None])
@pytest.mark.parametrize("convention", ["huggingface", "transformer_lens", None])
def test_the_convention_is_said_in_the_words_of_saelens(tmp_path, site, convention):
    """It comes back without what dictlab writes about itself, unless nothing is known or a module is meant."""
    made = random_dictionary(N, D, metadata=Metadata(model="gpt2", site=site, convention=convention))
    path = saelens.write(made, tmp_path / "a")
    config = json.loads((path / "cfg.json").read_text())
    assert load(path).metadata.convention == convention
    assert config["reshape_activations"] == ("hook_z" if site and site.endswith("hook_z") else "none")
    if convention == "transformer_lens" and site and ":" in site:
        return  # no module of that name in TransformerLens
    del config["metadata"]["dictlab"]
    (path / "cfg.json").write_text(json.dumps(config))
    told = load(path).metadata
    assert told.site == site
    assert told.convention == ("huggingface" if site and ":" in site else convention)


def test_what_saelens_said_of_a_dictionary_is_written_back(tmp_path):
    origin = ORIGIN | {
        "hook_name": "blocks.2.attn.hook_z",
        "model_from_pretrained_kwargs": {"center_writing_weights": False, "n_devices": 1},
        "neuronpedia_id": "gpt2-small/2-att",
        "seqpos_slice": [None],
    }
    config = config_of("topk", reshape_activations="hook_z", metadata=origin, rescale_acts_by_decoder_norm=False)
    first = load(folder(tmp_path / "a", config, tensors_of("topk")))
    written = json.loads((saelens.write(first, tmp_path / "b") / "cfg.json").read_text())
    own = written["metadata"].pop("dictlab")
    assert own["seed"] is None and "foreign" not in own
    assert written["metadata"].pop("sae_lens_version") == "6.54.12"
    assert written["metadata"].items() >= {k: v for k, v in origin.items() if k != "sae_lens_version"}.items()
    assert {k: v for k, v in written.items() if k != "metadata"} == {k: v for k, v in config.items() if k != "metadata"}


def test_a_version_before_6_is_written_as_one_of_today(tmp_path):
    first = load(folder(tmp_path / "a", FLAT, tensors_of("standard")))
    back = load(saelens.write(first, tmp_path / "b"))
    assert replace(back.metadata, foreign={}) == replace(first.metadata, foreign={})
    origin = back.metadata.foreign["metadata"]
    assert (origin["hook_name"], origin["dataset_path"]) == ("blocks.3.hook_resid_pre", "Skylion007/openwebtext")
    assert origin["model_from_pretrained_kwargs"]["center_writing_weights"] is True
    assert "wandb_project" not in origin


def test_centring_is_left_to_a_world_that_is_centred(tmp_path):
    convention = Metadata(site="blocks.1.hook_resid_pre", convention="transformer_lens")
    for then in (NoNormalisation(), Scale(0.5), LayerNorm(1e-5)):
        made = random_dictionary(N, D, normalisation=Centred(then), metadata=convention)
        back = load(saelens.write(made, tmp_path / then.kind))
        x = inputs()
        x = x - x.mean(1, keepdim=True)
        assert_same(back, made.encode(x).dense(), made.reconstruct(x), x)
        assert back.metadata.convention == "transformer_lens"


def test_a_layer_norm_that_is_centred_twice_is_a_layer_norm(tmp_path):
    made = random_dictionary(N, D, normalisation=Centred(LayerNorm(1e-5)), metadata=Metadata(convention="huggingface"))
    x = inputs()
    assert_same(load(saelens.write(made, tmp_path / "a")), made.encode(x).dense(), made.reconstruct(x), x)


def test_half_precision_is_written_as_such_where_nothing_is_folded(tmp_path):
    made = random_dictionary(N, D, activation=ReLU())
    same = replace(made, b_pre=made.b_out).to(dtype=torch.bfloat16)
    path = saelens.write(same, tmp_path / "a")
    assert load_file(path / "sae_weights.safetensors")["W_dec"].dtype == torch.bfloat16
    assert json.loads((path / "cfg.json").read_text())["dtype"] == "bfloat16"
    assert torch.equal(load(path).W_dec, same.W_dec.float())
    folded = saelens.write(made.to(dtype=torch.bfloat16), tmp_path / "b")
    assert load_file(folded / "sae_weights.safetensors")["b_enc"].dtype == torch.float32


def test_weights_that_share_memory_are_written(tmp_path):
    made = random_dictionary(N, D, activation=Gated(*([0.1 * torch.ones(N)] * 3)))
    tied = replace(made, W_enc=made.W_dec.T, b_pre=made.b_out)
    assert torch.equal(load(saelens.write(tied, tmp_path / "a")).W_enc, tied.W_enc)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation": BatchTopK(3)}, "batchtopk.*depends on the batch"),
        ({"activation": GroupMax(4)}, "groupmax"),
        ({"activation": Union(((N, ReLU()),), torch.ones(N, dtype=torch.bool))}, "union"),
        ({"normalisation": LayerNorm(1e-6)}, "eps 1e-06"),
        ({"normalisation": Centred()}, "centred"),
        ({"b_enc": torch.full((N,), float("nan"))}, "b_enc"),
        ({"metadata": Metadata(training={"a": {1, 2}})}, "JSON"),
    ],
)
def test_what_saelens_cannot_express_is_refused_and_nothing_is_left_behind(tmp_path, changes, words):
    made = replace(random_dictionary(N, D), **changes)
    with pytest.raises(DictlabError, match=rf"x: .*{words}"):
        saelens.write(made, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path):
    (tmp_path / "a").mkdir()
    saelens.write(random_dictionary(N, D), tmp_path / "a")  # an empty folder is no obstacle
    before = (tmp_path / "a" / "cfg.json").read_bytes()
    with pytest.raises(DictlabError, match="exists already"):
        saelens.write(random_dictionary(N, D, seed=1), tmp_path / "a")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DictlabError, match="exists already"):
        saelens.write(random_dictionary(N, D), tmp_path / "file")
    assert (tmp_path / "a" / "cfg.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "file"]
