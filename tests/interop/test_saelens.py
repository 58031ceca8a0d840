"""Dictionaries of SAELens' own classes, saved by its own code, do here what they do there; and what is written, there."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig, AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig, GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig, JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
from sae_lens.saes.sae import SAE, SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    Transcoder,
    TranscoderConfig,
)
from sae_lens.training.sae_trainer import SAETrainer, _log_feature_sparsity
from safetensors.torch import load_file, save_file

from dictlab import DictlabError, Metadata, ReLU, TopK, load
from dictlab.dictionary.activation_functions import AbsTopK, Gated, JumpReLU
from dictlab.dictionary.normalisation import ConstantNorm, LayerNorm, NoNormalisation, Scale
from dictlab.formats.libraries import saelens
from tests.planted import SITE, random_dictionary, sparse_data

pytestmark = pytest.mark.interop

D, N, K = 16, 64, 8
CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # values are O(1); sums of D or N of them in float32
BF16 = {"atol": 1e-2, "rtol": 1e-2}  # against the library's class in float32, holding the same rounded numbers
INFERENCE = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": K}),
    "topk, rescaled": (TopKSAE, TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
    "abstopk": (AbsTopKSAE, AbsTopKSAEConfig, {"k": K}),
    "abstopk, rescaled": (AbsTopKSAE, AbsTopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
}
TRAINING = {
    "standard": (StandardTrainingSAE, StandardTrainingSAEConfig, {"l1_coefficient": 0.1}),
    "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, {"l0_coefficient": 0.1}),
    "gated": (GatedTrainingSAE, GatedTrainingSAEConfig, {"l1_coefficient": 0.1}),
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig, {"k": K}),
    "topk, not rescaled": (TopKTrainingSAE, TopKTrainingSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": False}),
    "abstopk": (AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig, {"k": K}),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": 4.5, "topk_threshold_lr": 0.2}),
    "batchtopk, not rescaled": (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        {"k": 4.5, "topk_threshold_lr": 0.2, "rescale_acts_by_decoder_norm": False},
    ),
    "matryoshka": (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
        {"k": 5.0, "topk_threshold_lr": 0.2, "matryoshka_widths": [16, 32, N]},
    ),
}


@pytest.fixture(autouse=True)
def quiet():
    """It warns of every dictionary that says how its model was opened."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="\nThis SAE has non-empty", category=UserWarning)
        yield


def made(name: str, seed: int = 0, **settings) -> SAE:
    """One of the library's classes with random numbers in every parameter."""
    cls, config, own = INFERENCE[name]
    metadata = SAEMetadata(
        model_name="gpt2",
        hook_name="blocks.3.hook_resid_pre",
        model_from_pretrained_kwargs={"center_writing_weights": False},
    )
    sae = cls(config(**{"d_in": D, "d_sae": N, "metadata": metadata, **own, **settings}))
    generator = torch.Generator().manual_seed(seed)
    for part, parameter in sae.named_parameters():
        size = {"W_enc": D**-0.5, "W_dec": 0.4}.get(part, 0.3)
        drawn = size * torch.randn(parameter.shape, generator=generator)
        parameter.data = (drawn.abs() if part == "threshold" else drawn).to(parameter.dtype)
    return sae


def inputs(seed: int = 3) -> torch.Tensor:
    return torch.randn(40, D, generator=torch.Generator().manual_seed(seed)) + 0.2


@torch.no_grad()
def assert_same(dictionary, sae, x: torch.Tensor, within=CLOSE) -> None:
    """Codes, the set of active latents, and reconstructions of both."""
    f = sae.encode(x)
    f = f.to_dense() if f.is_sparse else f
    codes = dictionary.encode(x).dense()
    assert torch.equal(codes != 0, f != 0), "other latents are active"
    assert (f != 0).any()
    torch.testing.assert_close(codes, f.float(), **within)
    torch.testing.assert_close(dictionary.reconstruct(x), sae.decode(f).float(), **within)


# Read


@pytest.mark.parametrize("normalised", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("name", INFERENCE)
def test_an_inference_file_is_the_same_function(tmp_path, name, pre_bias, normalised):
    sae = made(name, apply_b_dec_to_input=pre_bias, normalize_activations=normalised)
    sae.save_model(tmp_path)
    assert_same(load(tmp_path), sae, inputs())


@pytest.mark.parametrize("name", INFERENCE)
def test_bfloat16_is_the_same_function_of_the_rounded_numbers(tmp_path, name):
    made(name, dtype="bfloat16").save_model(tmp_path)
    assert_same(load(tmp_path), SAE.load_from_disk(tmp_path, dtype="float32"), inputs(), BF16)


def trained(name: str, path, steps: int = 30, **settings) -> tuple[SAE, SAETrainer]:
    """A few steps with the library's own trainer, and its own checkpoint of them."""
    cls, config, own = TRAINING[name]
    torch.manual_seed(0)
    metadata = SAEMetadata(model_name="gpt2", hook_name="blocks.3.hook_resid_pre", model_from_pretrained_kwargs={})
    sae = cls(config(**{"d_in": D, "d_sae": N, "metadata": metadata, **own, **settings}))
    x, _ = sparse_data(256 * steps, n=48, d=D, active=3)
    x = 2.5 * x
    rows = iter(x.split(256))
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=256 * steps,
            device="cpu",
            autocast=False,
            lr=3e-3,
            lr_end=3e-4,
            lr_scheduler_name="constant",
            lr_warm_up_steps=0,
            adam_beta1=0.9,
            adam_beta2=0.999,
            lr_decay_steps=0,
            n_restart_cycles=1,
            train_batch_size_samples=256,
            dead_feature_window=1000,
            feature_sampling_window=2000,
            n_checkpoints=0,
            checkpoint_path=str(path),
            save_final_checkpoint=False,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=rows,
    )
    if sae.cfg.normalize_activations == "expected_average_only_in":
        trainer.activation_scaler.estimate_scaling_factor(D, iter(x.split(256)), 5)
    for batch in rows:
        trainer.step(batch)
        trainer.n_training_steps += 1
    trainer.save_checkpoint("checkpoint")
    return sae, trainer


def exported(sae, path) -> SAE:
    """What the library makes of it for use: a threshold in the place of BatchTopK's choice in a batch."""
    sae.save_inference_model(path)
    return SAE.load_from_disk(path)


@pytest.mark.parametrize("name", TRAINING)
def test_a_checkpoint_is_the_function_that_was_trained(tmp_path, name):
    sae, trainer = trained(name, tmp_path)
    theirs = exported(sae, tmp_path / "export") if isinstance(sae, BatchTopKTrainingSAE) else sae
    ours, x = load(tmp_path / "checkpoint"), 2.5 * sparse_data(60, n=48, d=D, active=3, seed=1)[0]
    assert_same(ours, theirs, x)
    torch.testing.assert_close(
        ours.firing_rate, trainer.feature_sparsity, rtol=1e-4, atol=0
    )  # through float32 logarithms
    assert ours.metadata.convention == "huggingface"
    assert ours.metadata.objective == "local"


@pytest.mark.parametrize("name", TRAINING)
def test_an_export_is_the_function_that_the_library_opens(tmp_path, name):
    sae, _ = trained(name, tmp_path)
    theirs, x = exported(sae, tmp_path / "export"), 2.5 * sparse_data(60, n=48, d=D, active=3, seed=1)[0]
    assert_same(load(tmp_path / "export"), theirs, x)


@pytest.mark.parametrize("name", ["standard", "topk", "batchtopk", "gated"])
def test_a_checkpoint_in_scaled_units_is_the_folded_function(tmp_path, name):
    """The library's fold changes codes by the scale where it rescales them: its rows are then shorter."""
    sae, trainer = trained(name, tmp_path, normalize_activations="expected_average_only_in")
    s = trainer.activation_scaler.scaling_factor
    assert abs(s - 1) > 0.1
    ours, x = load(tmp_path / "checkpoint"), 2.5 * sparse_data(60, n=48, d=D, active=3, seed=1)[0]
    sae.fold_activation_norm_scaling_factor(s)
    if sae.cfg.architecture() in ("topk", "batchtopk"):
        ours = ours.in_input_units()
    assert_same(ours, exported(sae, tmp_path / "export"), x)


def test_a_configuration_of_an_older_version_is_read_as_the_library_reads_it(tmp_path):
    """Flat, with the old names, top-k as an activation function of a standard architecture."""
    sae = made("topk")
    sae.save_model(tmp_path)
    flat = {
        "architecture": "standard",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "d_in": D,
        "d_sae": N,
        "dtype": "torch.float32",
        "model_name": "gpt2-small",
        "hook_point": "blocks.3.hook_resid_pre",
        "hook_point_layer": 3,
        "hook_point_head_index": None,
        "normalize_activations": False,
        "sae_lens_training_version": "3.5.0",
    }
    (tmp_path / "cfg.json").write_text(json.dumps(flat))
    theirs = SAE.load_from_disk(tmp_path)
    assert isinstance(theirs, TopKSAE)
    assert_same(load(tmp_path), theirs, inputs())


def test_heads_side_by_side_are_what_the_library_makes_of_heads(tmp_path):
    metadata = SAEMetadata(model_name="gpt2", hook_name="blocks.3.attn.hook_z", model_from_pretrained_kwargs={})
    sae = made("standard", reshape_activations="hook_z", metadata=metadata)
    sae.save_model(tmp_path / "a")
    ours, x = load(tmp_path / "a"), inputs()
    with torch.no_grad():
        heads = x.reshape(-1, 4, D // 4)
        f = sae.encode(heads)
        torch.testing.assert_close(ours.encode(x).dense(), f, **CLOSE)
        torch.testing.assert_close(ours.reconstruct(x), sae.decode(f).flatten(1), **CLOSE)
        again = SAE.load_from_disk(saelens.write(ours, tmp_path / "b"))
        torch.testing.assert_close(again.encode(heads), f, **CLOSE)


@pytest.mark.parametrize(
    ("cls", "config", "settings", "name"),
    [
        (MatchingPursuitSAE, MatchingPursuitSAEConfig, {}, "matching_pursuit"),
        (TemporalSAE, TemporalSAEConfig, {"n_heads": 2, "bottleneck_factor": 2, "kval_topk": 4}, "temporal"),
    ],
)
def test_what_is_no_dictionary_is_refused_by_its_name(tmp_path, cls, config, settings, name):
    cls(config(d_in=D, d_sae=N, **settings)).save_model(tmp_path)
    with pytest.raises(DictlabError, match=f"'{name}'"):
        load(tmp_path)


TRANSCODERS = {
    "transcoder": (Transcoder, TranscoderConfig),
    "skip_transcoder": (SkipTranscoder, SkipTranscoderConfig),
    "jumprelu_transcoder": (JumpReLUTranscoder, JumpReLUTranscoderConfig),
    "jumprelu_skip_transcoder": (JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig),
}


@pytest.mark.parametrize("normalisation", ["none", "layer_norm"])
@pytest.mark.parametrize("name", TRANSCODERS)
def test_transcoders_are_the_same_function_both_ways(tmp_path, name, normalisation):
    cls, config = TRANSCODERS[name]
    torch.manual_seed(0)
    theirs = cls(config(d_in=D, d_sae=N, d_out=D + 3, apply_b_dec_to_input=False, normalize_activations=normalisation))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
        if "jumprelu" in name:
            theirs.threshold.abs_()
    theirs.save_model(tmp_path / "theirs")
    x = torch.randn(50, D) + 0.5
    f, y = theirs.encode(x).detach(), theirs(x).detach()
    ours = load(tmp_path / "theirs")
    torch.testing.assert_close(ours.encode(x).dense(), f, **CLOSE)
    torch.testing.assert_close(ours.reconstruct(x), y, **CLOSE)
    back = SAE.load_from_disk(saelens.write(ours, tmp_path / "again"))
    assert back.cfg.architecture() == name
    torch.testing.assert_close(back.encode(x).detach(), f, **CLOSE)
    torch.testing.assert_close(back(x).detach(), y, **CLOSE)


# Write


def gated(n: int) -> Gated:
    generator = torch.Generator().manual_seed(5)
    return Gated(*(0.3 * torch.randn(n, generator=generator) for _ in range(3)))


ACTIVATIONS = {
    "relu": ReLU(),
    "topk": TopK(K),
    "abstopk": AbsTopK(K),
    "jumprelu": JumpReLU(0.5 * torch.rand(N, generator=torch.Generator().manual_seed(4))),
    "gated": gated(N),
}


@pytest.mark.parametrize("normalisation", [NoNormalisation(), LayerNorm(1e-5), ConstantNorm(), Scale(0.4)])
@pytest.mark.parametrize("biases", ["shared", "separate", "no pre-bias"])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_the_library_opens_what_is_written_with_the_same_outputs(tmp_path, kind, biases, normalisation):
    ours = random_dictionary(N, D, activation=ACTIVATIONS[kind], normalisation=normalisation)
    ours = replace(ours, W_enc=0.3 * ours.W_enc, firing_rate=torch.rand(N))
    if biases != "separate":
        ours = replace(ours, b_pre=ours.b_out if biases == "shared" else torch.zeros(D))
    path = saelens.write(ours, tmp_path / "a")
    theirs, x = SAE.load_from_disk(path), inputs()
    assert_same(ours, theirs, x)
    assert theirs.cfg.apply_b_dec_to_input == (biases == "shared")
    assert_same(load(path), theirs, x)


@pytest.mark.parametrize("name", INFERENCE)
def test_there_and_back_the_library_has_its_own_again(tmp_path, name):
    """Its metadata too; what it did with the lengths of decoder rows is folded."""
    first = made(name, apply_b_dec_to_input=False)
    first.save_model(tmp_path / "a")
    second = SAE.load_from_disk(saelens.write(load(tmp_path / "a"), tmp_path / "b"))
    x = inputs()
    assert_same(load(tmp_path / "a"), second, x)
    assert second.cfg.architecture() == first.cfg.architecture()
    for field in ("model_name", "hook_name", "model_from_pretrained_kwargs"):
        assert second.cfg.metadata[field] == first.cfg.metadata[field]
    second.save_model(tmp_path / "c")  # and saved by the library once more, it is still known
    assert load(tmp_path / "c").metadata.site == "blocks.3.hook_resid_pre"


def test_the_library_reads_where_a_dictionary_comes_from(tmp_path):
    metadata = Metadata(
        model="EleutherAI/pythia-70m",
        site="blocks.2.hook_resid_post",
        convention="transformer_lens",
        training={"context": 256},
        metrics={"l0": 12.0},
    )
    read = SAE.load_from_disk(saelens.write(random_dictionary(N, D, metadata=metadata), tmp_path / "a")).cfg.metadata
    assert (read.model_name, read.hook_name, read.context_size, read.l0) == (
        "EleutherAI/pythia-70m", "blocks.2.hook_resid_post", 256, 12.0,
    )  # fmt: skip
    assert read.model_from_pretrained_kwargs["center_writing_weights"] is True


def test_firing_rates_are_in_the_units_of_the_library(tmp_path):
    """log10 of the share, plus 1e-10 as its trainer adds it."""
    rate = torch.tensor([0.0, 1e-6, 0.25, 1.0])
    path = saelens.write(replace(random_dictionary(4, 3), firing_rate=rate), tmp_path / "a")
    torch.testing.assert_close(load_file(path / "sparsity.safetensors")["sparsity"], _log_feature_sparsity(rate))


def test_a_scaling_factor_is_treated_as_the_library_treats_it(tmp_path):
    """Ones are ignored by both, and anything else is refused by both where the configuration does not announce it."""
    sae = made("standard")
    sae.save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"finetuning_scaling_factor": False}))
    state = {name: t.detach().clone() for name, t in sae.state_dict().items()}
    save_file(state | {"scaling_factor": torch.ones(N)}, tmp_path / "sae_weights.safetensors")
    assert_same(load(tmp_path), SAE.load_from_disk(tmp_path), inputs())
    save_file(state | {"scaling_factor": torch.full((N,), 2.0)}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(ValueError, match="finetuning_scaling_factor"):
        SAE.load_from_disk(tmp_path)
    with pytest.raises(DictlabError, match="finetuning_scaling_factor"):
        load(tmp_path)


def test_saelens_own_settings_of_tokens_are_read_and_opened_again(tmp_path):
    """Written by SAELens' own configuration, read, written here, and opened by SAELens."""
    told = {"prepend_bos": False, "seqpos_slice": (2, None), "exclude_special_tokens": True, "hook_name": SITE}
    sae = StandardSAE(StandardSAEConfig(d_in=D, d_sae=N, metadata=SAEMetadata(**told)))
    sae.save_model(tmp_path / "a")
    dictionary = load(tmp_path / "a")
    assert dictionary.metadata.training["token_selection"] == "without-first=2,without-bos,without-special"
    opened = SAE.load_from_disk(saelens.write(dictionary, tmp_path / "b")).cfg.metadata
    assert (opened.prepend_bos, list(opened.seqpos_slice), opened.exclude_special_tokens) == (False, [2, None], True)
    plain = replace(dictionary, metadata=Metadata(site=SITE, training={"token_selection": "positions=1:-2"}))
    opened = SAE.load_from_disk(saelens.write(plain, tmp_path / "c")).cfg.metadata
    assert (opened.prepend_bos, opened.seqpos_slice, opened.exclude_special_tokens) == (True, [1, -2], False)
