"""A small dictionary of each kind that each library writes, by hand: the files that are then damaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from dictlab import Metadata, save
from dictlab.dictionary.activation_functions import BatchTopK, Gated, GroupMax, JumpReLU, ReLU, TopK
from dictlab.dictionary.normalisation import Centred, LayerNorm, Scale
from tests.planted import SITE, random_dictionary, random_transcoder

D, N, K = 6, 18, 3


class Seed(NamedTuple):
    """One file of weights and what lies beside it.

    Attributes:
        format: Whose it is.
        weights: The file's name.
        write: Puts everything into a folder.
        part: What follows # where the file holds several dictionaries.
    """

    format: str
    weights: str
    write: Callable[[Path], Any]
    part: str = ""


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def positive(*shape: int) -> Tensor:
    return draw(*shape).abs() + 0.01


def _json(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content))


PLAIN = {"W_enc": draw(D, N), "b_enc": draw(N), "W_dec": draw(N, D), "b_dec": draw(D)}


def native(**changes: Any) -> Seed:
    metadata = Metadata("gpt2", "f" * 8, SITE, "local", 3, 1000, {"l1": 2.0, "context": 128}, {"l0": 4.0}, ("a", "b"))

    def write(folder: Path) -> None:
        made = random_dictionary(N, D, metadata=metadata)
        save(replace(made, firing_rate=torch.rand(N), **changes), folder / "native.safetensors")

    return Seed("dictlab", "native.safetensors", write)


METADATA = {
    "sae_lens_version": "6.54.12",
    "sae_lens_training_version": "6.54.12",
    "model_name": "gpt2",
    "hook_name": "blocks.6.hook_resid_pre",
    "hook_head_index": None,
    "context_size": 128,
    "prepend_bos": True,
    "model_from_pretrained_kwargs": {"center_writing_weights": True},
    "l0": 4.5,
}


def saelens(architecture: str, tensors: Mapping[str, Tensor], scaler: float | None = None, **fields: Any) -> Seed:
    cfg = {
        "architecture": architecture,
        "d_in": D,
        "d_sae": N,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": METADATA,
    }

    def write(folder: Path) -> None:
        _json(folder, "cfg.json", cfg | fields)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
        save_file({"sparsity": -positive(N)}, folder / "sparsity.safetensors")
        if scaler is not None:
            _json(folder, "activation_scaler.json", {"scaling_factor": scaler})

    return Seed("saelens", "sae_weights.safetensors", write)


def saelens_old() -> Seed:
    cfg = {
        "model_name": "gpt2-small",
        "hook_point": "blocks.6.hook_resid_pre",
        "hook_point_layer": 6,
        "d_in": D,
        "d_sae": N,
        "dtype": "torch.float32",
        "device": "cpu",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "normalize_activations": False,
        "context_size": 128,
        "l1_coefficient": 8e-5,
        "sae_lens_version": "3.0.0",
    }

    def write(folder: Path) -> None:
        _json(folder, "cfg.json", cfg)
        save_file(dict(PLAIN), folder / "sae_weights.safetensors")

    return Seed("saelens", "sae_weights.safetensors", write)


LINEAR = {"encoder.weight": draw(N, D), "encoder.bias": draw(N), "decoder.weight": draw(D, N)}
COUNTED = {**LINEAR, "b_dec": draw(D), "k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.3)}


NO_BIAS = {name: tensor for name, tensor in LINEAR.items() if name != "encoder.bias"}
MATRYOSHKA = {**PLAIN, "k": COUNTED["k"], "threshold": COUNTED["threshold"], "group_sizes": torch.tensor([6, 12])}
STEP = {"step": 5, "ae": {**LINEAR, "bias": draw(D)}, "optimizer": {"state": {0: draw(D)}}, "norm_factor": 2.0}


def dictionary_learning(dict_class: str, content: Mapping[str, Any], legacy: bool = False) -> Seed:
    trainer = {
        "dict_class": dict_class,
        "trainer_class": "Trainer",
        "activation_dim": D,
        "dict_size": N,
        "layer": 8,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "submodule_name": "resid_post_layer_8",
        "seed": 0,
        "steps": 1000,
        "lr": 1e-4,
        **({"k": K} if "k" in content else {}),
    }

    def write(folder: Path) -> None:
        _json(folder, "config.json", {"trainer": trainer, "buffer": {"d_submodule": D, "io": "out", "ctx_len": 128}})
        torch.save(dict(content), folder / "ae.pt", _use_new_zipfile_serialization=not legacy)

    return Seed("dictionary_learning", "ae.pt", write)


def sparsify(**fields: Any) -> Seed:
    cfg = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": N,
        "k": K,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D,
    }
    tensors = {"encoder.weight": draw(N, D), "encoder.bias": draw(N), "W_dec": draw(N, D), "b_dec": draw(D)}

    def write(folder: Path) -> None:
        _json(folder, "cfg.json", cfg | fields)
        save_file(tensors, folder / "sae.safetensors")

    return Seed("sparsify", "sae.safetensors", write)


def openai(**entries: Any) -> Seed:
    content = {
        "pre_bias": draw(D),
        "encoder.weight": draw(N, D),
        "latent_bias": draw(N),
        "decoder.weight": draw(D, N),
        "stats_last_nonzero": torch.zeros(N, dtype=torch.int64),
        "latents_activation_frequency": torch.rand(N),
        "latents_mean_square": positive(N),
        **entries,
    }
    return Seed("openai", "6.pt", lambda folder: torch.save(content, folder / "6.pt"))


E2E = {
    "wandb_project": None,
    "seed": 3,
    "tlens_model_name": "gpt2-small",
    "n_samples": 400_000,
    "lr": 5e-4,
    "loss": {
        "sparsity": {"p_norm": 1.0, "coeff": 1.5},
        "in_to_orig": None,
        "out_to_orig": None,
        "out_to_in": {"coeff": 0.0},
        "logits_kl": {"coeff": 0.5},
    },
    "saes": {"sae_positions": ["blocks.6.hook_resid_pre"], "dict_size_to_input_ratio": 60.0},
}


def e2e_sae(*sites: str) -> Seed:
    linear = {"encoder.0.weight": (N, D), "encoder.0.bias": (N,), "decoder.weight": (D, N), "decoder.bias": (D,)}
    content = {f"{site.replace('.', '-')}.{name}": draw(*shape) for site in sites for name, shape in linear.items()}

    def write(folder: Path) -> None:
        torch.save(content, folder / "samples_400000.pt")
        (folder / "final_config.yaml").write_text(yaml.safe_dump(E2E))

    return Seed("e2e_sae", "samples_400000.pt", write, sites[0] if len(sites) > 1 else "")


def gemma_scope(save_with: Callable[..., None]) -> Seed:
    arrays = {name: tensor.numpy() for name, tensor in {**PLAIN, "threshold": positive(N)}.items()}
    return Seed("gemma_scope", "params.npz", lambda folder: save_with(folder / "params.npz", **arrays))


def gemma_scope_2() -> Seed:
    config = {
        "architecture": "jump_relu",
        "hf_hook_point_in": "model.layers.9.output",
        "hf_hook_point_out": "model.layers.9.output",
        "model_name": "google/gemma-3-1b-pt",
        "affine_connection": False,
        "width": N,
        "l0": 60,
    }

    def write(folder: Path) -> None:
        _json(folder, "config.json", config)
        tensors = {name.lower(): tensor for name, tensor in PLAIN.items()} | {"threshold": positive(N)}
        save_file(tensors, folder / "params.safetensors")

    return Seed("gemma_scope", "params.safetensors", write)


def batchtopk(sae_type: str, **tensors: Tensor) -> Seed:
    config = {
        "sae_type": sae_type,
        "act_size": D,
        "dict_size": N,
        "top_k": K,
        "input_unit_norm": True,
        "site": "resid_pre",
        "layer": 6,
        "hook_point": "blocks.6.hook_resid_pre",
        "model_name": "gpt2-small",
        "seq_len": 128,
        "l1_coeff": 0.0,
        "seed": 49,
        "dtype": "torch.float32",
    }

    def write(folder: Path) -> None:
        _json(folder, "config.json", config)
        torch.save({**PLAIN, **tensors}, folder / "sae.pt")

    return Seed("batchtopk", "sae.pt", write)


LLAMASCOPIUM = {"W_E": draw(D, N), "b_E": draw(N), "W_D": draw(N, D), "b_D": draw(D)}


def llamascopium(act_fn: str, **tensors: Tensor) -> Seed:
    site = "blocks.8.hook_resid_post"
    config = {
        "sae_type": "sae",
        "d_model": D,
        "expansion_factor": N / D,
        "act_fn": act_fn,
        "top_k": K,
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "hook_point_in": site,
        "hook_point_out": site,
    }

    def write(folder: Path) -> None:
        _json(folder, "config.json", config)
        norm = {f"dataset_average_activation_norm.{site}": torch.tensor(3.5)}
        save_file({**LLAMASCOPIUM, **norm, **tensors}, folder / "sae_weights.safetensors")

    return Seed("llamascopium", "sae_weights.safetensors", write)


def qwen_scope() -> Seed:
    n = 1024
    content = {"W_enc": draw(n, D), "W_dec": draw(D, n), "b_enc": draw(n), "b_dec": draw(D)}
    weights = f"SAE-Res-Qwen3-1.7B-Base-W1K-L0_{K}.sae.pt"
    return Seed("qwen_scope", weights, lambda folder: torch.save(content, folder / weights))


def native_transcoder() -> Seed:
    def write(folder: Path) -> None:
        save(random_transcoder(N, D, D - 1), folder / "native.safetensors")

    return Seed("dictlab", "native.safetensors", write)


def circuit_tracer(**tensors: Tensor) -> Seed:
    config = {
        "model_kind": "transcoder_set",
        "model_name": "Qwen/Qwen3-0.6B",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
    }

    def write(folder: Path) -> None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        save_file({**PLAIN, "W_enc": draw(N, D), **tensors}, folder / "layer_3.safetensors")

    return Seed("circuit_tracer", "layer_3.safetensors", write)


def transcoder_circuits() -> Seed:
    content = {"state_dict": {**PLAIN, "b_dec_out": draw(D)}}
    return Seed("transcoder_circuits", "transcoder.pt", lambda folder: torch.save(content, folder / "transcoder.pt"))


def gates(*names: str) -> dict[str, Tensor]:
    return {name: draw(N) for name in names}


TRANSCODER = {"d_out": D, "apply_b_dec_to_input": False}
WITHOUT_BIAS = {name: tensor for name, tensor in PLAIN.items() if name != "b_enc"}
SEEDS = (
    native(activation=TopK(K)),
    native(activation=JumpReLU(positive(N)), normalisation=Centred(Scale(0.5))),
    native(activation=Gated(draw(N), draw(N), draw(N)), normalisation=LayerNorm(1e-5)),
    native(activation=GroupMax(K)),
    native(activation=BatchTopK(K)),
    native(activation=ReLU()),
    saelens("standard", PLAIN),
    saelens("topk", PLAIN, k=K, rescale_acts_by_decoder_norm=True, normalize_activations="layer_norm"),
    saelens("jumprelu", {**PLAIN, "threshold": positive(N)}),
    saelens("gated", {**WITHOUT_BIAS, **gates("b_gate", "r_mag", "b_mag")}),
    saelens("batchtopk", {**PLAIN, "topk_threshold": torch.tensor(0.5).double()}, k=K),
    saelens("standard", PLAIN, 0.3, normalize_activations="expected_average_only_in"),
    saelens_old(),
    dictionary_learning("AutoEncoder", {**LINEAR, "bias": draw(D)}),
    dictionary_learning("AutoEncoder", {**LINEAR, "bias": draw(D)}, legacy=True),
    dictionary_learning("AutoEncoderNew", {**LINEAR, "decoder.bias": draw(D)}),
    dictionary_learning("AutoEncoderTopK", COUNTED),
    dictionary_learning("BatchTopKSAE", COUNTED),
    dictionary_learning(
        "GatedAutoEncoder", {**NO_BIAS, "decoder_bias": draw(D), **gates("r_mag", "gate_bias", "mag_bias")}
    ),
    dictionary_learning("MatryoshkaBatchTopKSAE", MATRYOSHKA),
    dictionary_learning("AutoEncoder", {**STEP, "config": {"dict_class": "AutoEncoder", "activation_dim": D}}),
    dictionary_learning("JumpReluAutoEncoder", {**PLAIN, "threshold": positive(N)}),
    sparsify(),
    sparsify(num_latents=0, expansion_factor=N // D),
    sparsify(activation="groupmax"),
    openai(),
    openai(activation="TopK", activation_state_dict={"k": K, "postact_fn": "ReLU"}),
    e2e_sae("blocks.6.hook_resid_pre"),
    e2e_sae("blocks.6.hook_resid_pre", "blocks.2.hook_resid_pre"),
    gemma_scope(np.savez),
    gemma_scope(np.savez_compressed),
    gemma_scope_2(),
    batchtopk("vanilla"),
    batchtopk("topk"),
    batchtopk("batchtopk"),
    batchtopk("jumprelu", **{"jumprelu.log_threshold": draw(N)}),
    batchtopk("global-matryoshka-topk", threshold=torch.tensor(0.3)),
    llamascopium("topk"),
    llamascopium("jumprelu", **{"activation_function.log_jumprelu_threshold": draw(N)}),
    qwen_scope(),
    native_transcoder(),
    saelens("jumprelu_skip_transcoder", {**PLAIN, "threshold": positive(N), "W_skip": draw(D, D)}, **TRANSCODER),
    sparsify(transcode=True),
    circuit_tracer(),
    circuit_tracer(**{"activation_function.threshold": positive(N), "W_skip": draw(D, D)}),
    transcoder_circuits(),
)
