"""Transcoders in files of the libraries that have them: codes and outputs equal to each library's own formula."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from dictlab import DictlabError, load
from dictlab.dictionary.activation_functions import GroupMax, JumpReLU, TopK
from dictlab.dictionary.normalisation import LayerNorm, Scale
from dictlab.formats import conversion
from tests.planted import random_transcoder

D, OUT, M, K = 6, 5, 24, 4
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
X = torch.randn(40, D, generator=torch.Generator().manual_seed(1)) + 0.3


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(d_out=OUT):
    """In the orientation of SAELens and Gemma Scope."""
    return {
        "W_enc": 0.6 * drawn(D, M, seed=1),
        "b_enc": 0.3 * drawn(M, seed=2),
        "W_dec": drawn(M, d_out, seed=3),
        "b_dec": drawn(d_out, seed=4),
    }


SKIP = drawn(OUT, D, seed=5)  # y += x SKIP^T
THRESHOLD = drawn(M, seed=6).abs()


def write(folder, tensors, config, name="sae_weights.safetensors", config_name="cfg.json"):
    folder.mkdir(parents=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / name)
    (folder / config_name).write_text((yaml.dump if config_name.endswith("yaml") else json.dumps)(config))
    return folder / name


def assert_is(made, f, y, sites):
    codes, predicted = made(X)
    assert made.transcodes and (f > 0).any() and (f == 0).any()
    torch.testing.assert_close(codes.dense(), f, **CLOSE)
    torch.testing.assert_close(predicted, y, **CLOSE)
    assert (made.metadata.site, made.metadata.writes) == sites


SAELENS = {
    "d_in": D,
    "d_sae": M,
    "d_out": OUT,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": False,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {
        "sae_lens_version": "6.54.12",
        "model_name": "google/gemma-3-1b-pt",
        "hook_name": "blocks.7.hook_mlp_in",
        "hook_name_out": "blocks.7.hook_mlp_out",
        "hf_hook_name": "model.layers.7.pre_feedforward_layernorm.output",
        "hf_hook_name_out": "model.layers.7.post_feedforward_layernorm.output",
    },
}
MODULES = ("model.layers.7.pre_feedforward_layernorm:out", "model.layers.7.post_feedforward_layernorm:out")
FOUR = ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]


def saelens(folder, name, **changes):
    architecture = changes.pop("architecture", name)
    if architecture != name:  # the tensors are those of `name`
        return write(folder, weights(), SAELENS | {"architecture": architecture})
    tensors = weights()
    tensors |= {"W_skip": SKIP} if "skip" in architecture else {}
    tensors |= {"threshold": THRESHOLD} if "jumprelu" in architecture else {}
    return write(folder, tensors, SAELENS | {"architecture": architecture} | changes)


@pytest.mark.parametrize("normalisation", ["none", "layer_norm"])
@pytest.mark.parametrize("architecture", FOUR)
def test_of_saelens(architecture, normalisation, tmp_path):
    made, w, h = load(saelens(tmp_path / "t", architecture, normalize_activations=normalisation)), weights(), X
    if normalisation == "layer_norm":  # on the way in alone
        centred = X - X.mean(dim=1, keepdim=True)
        h = centred / (centred.std(dim=1, keepdim=True) + 1e-5)
    z = h @ w["W_enc"] + w["b_enc"]
    f = z.relu() * (z > (THRESHOLD if "jumprelu" in architecture else 0))
    y = f @ w["W_dec"] + w["b_dec"] + (X @ SKIP.T if "skip" in architecture else 0)
    assert_is(made, f, y, MODULES)


def test_of_saelens_a_hook_that_was_misnamed_is_doubted(tmp_path):
    about = {n: v for n, v in SAELENS["metadata"].items() if not n.startswith("hf_")}
    made = load(saelens(tmp_path / "t", "transcoder", metadata=about))
    assert (made.metadata.site, made.metadata.writes) == ("blocks.7.hook_resid_mid", "blocks.7.hook_mlp_out")
    assert "before the norm" in made.metadata.notes[0]
    about |= {"hook_name": "blocks.7.mlp.hook_in"}
    made = load(saelens(tmp_path / "u", "transcoder", metadata=about))
    assert made.metadata.site == "blocks.7.ln2.hook_out" and made.metadata.notes == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"apply_b_dec_to_input": True}, "apply_b_dec_to_input is true"),
        ({"apply_b_dec_to_input": None}, "apply_b_dec_to_input is true .the default"),
        ({"d_out": None}, "d_out is None"),
        ({"d_out": OUT + 1}, r"W_dec has shape"),
        ({"reshape_activations": "hook_z"}, "hook_z' with a transcoder"),
        ({"normalize_activations": "expected_average_only_in"}, "both of its sites"),
        ({"architecture": "skip_transcoder"}, "'W_skip' is missing"),
        ({"metadata": SAELENS["metadata"] | {"hook_head_index_out": 2}}, "hook_head_index is 2"),
    ],
)
def test_of_saelens_what_two_sites_cannot_mean_is_refused(changes, words, tmp_path):
    with pytest.raises(DictlabError, match=words):
        load(saelens(tmp_path / "t", "transcoder", **changes))


@pytest.mark.parametrize("normalisation", [None, Scale(2.5)])
@pytest.mark.parametrize("activation", [None, JumpReLU(THRESHOLD)])
@pytest.mark.parametrize("skip", [True, False])
def test_what_is_written_for_saelens_is_the_same_function(skip, activation, normalisation, tmp_path):
    from dictlab import ReLU

    whole = random_transcoder(
        M,
        D,
        OUT,
        skip=skip,
        activation=activation or ReLU(),
        normalisation=normalisation,
        reads="model.layers.7.mlp:in",
    )
    back = load(conversion.write(whole, tmp_path / "t", "saelens"))
    torch.testing.assert_close(back.reconstruct(X), whole.reconstruct(X), atol=1e-4, rtol=1e-4)
    assert back.metadata.writes == whole.metadata.writes
    tensors, config = (
        load_file(tmp_path / "t" / "sae_weights.safetensors"),
        json.loads((tmp_path / "t/cfg.json").read_text()),
    )
    assert config["apply_b_dec_to_input"] is False and config["d_out"] == OUT
    assert config["metadata"]["hook_name_out"] == "blocks.1.hook_mlp_out"
    if skip:
        assert tensors["W_skip"].shape == (OUT, D)


def test_what_saelens_cannot_hold_is_not_written(tmp_path):
    with pytest.raises(DictlabError, match="transcoders of ReLU and JumpReLU"):
        conversion.write(random_transcoder(M, D, OUT), tmp_path / "t", "saelens")


SPARSIFY = {"activation": "topk", "expansion_factor": 4, "normalize_decoder": True, "num_latents": M, "k": K, "multi_topk": False, "d_in": D}  # fmt: skip


def sparsify(folder, skip, **fields):
    w = weights(D)
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    tensors |= {"W_skip": drawn(D, D, seed=7)} if skip else {}
    return write(folder, tensors, SPARSIFY | fields, "sae.safetensors")


@pytest.mark.parametrize(("transcode", "skip"), [(True, False), (False, True), (True, True)])
def test_of_sparsify(transcode, skip, tmp_path):
    path = sparsify(tmp_path / "layers.5.mlp", skip, transcode=transcode, skip_connection=skip)
    w, made = weights(D), load(path)
    r = ((X if transcode else X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    top = r.topk(K)
    f = torch.zeros_like(r).scatter(1, top.indices, top.values)
    y = f @ w["W_dec"] + w["b_dec"] + (X @ drawn(D, D, seed=7).T if skip else 0)
    codes, predicted = made(X)
    torch.testing.assert_close(codes.dense(), f, **CLOSE)
    torch.testing.assert_close(predicted, y, **CLOSE)
    assert made.transcodes == transcode and (made.W_skip is not None) == skip and made.metadata.notes == ()
    sites = ("layers.5.mlp:in", "layers.5.mlp:out") if transcode else ("layers.5.mlp", None)
    assert (made.metadata.site, made.metadata.writes) == sites
    back = load(conversion.write(made, tmp_path / "again" / "layers.5.mlp", "sparsify"))
    torch.testing.assert_close(back.reconstruct(X), y, **CLOSE)
    fields = json.loads((tmp_path / "again" / "layers.5.mlp" / "cfg.json").read_text())
    assert (fields["transcode"], fields["skip_connection"]) == (transcode, skip)


def test_of_sparsify_a_whole_block_reads_and_writes_the_stream(tmp_path):
    about = load(sparsify(tmp_path / "layers.5", False, transcode=True, skip_connection=False)).metadata
    assert (about.site, about.writes) == ("blocks.5.hook_resid_pre", "blocks.5.hook_resid_post")


def test_of_sparsify_a_skip_without_a_word_on_transcode_is_doubted_or_refused(tmp_path):
    made = load(sparsify(tmp_path / "run" / "layers.5.mlp", True, skip_connection=True))
    assert not made.transcodes and "does not say transcode" in made.metadata.notes[0]
    path = sparsify(tmp_path / "skip-transcoder-Llama-3.2-1B-131k" / "layers.5.mlp", True, skip_connection=True)
    with pytest.raises(DictlabError, match=r"skip-transcoder-Llama-3.2-1B-131k is named as one of transcoders"):
        load(path)


@pytest.mark.parametrize(
    ("dictionary", "words"),
    [
        (random_transcoder(M, D, OUT), "one width for both"),
        (random_transcoder(M, D, D, normalisation=LayerNorm()), "layer_norm"),
    ],
)
def test_what_sparsify_cannot_hold_is_not_written(dictionary, words, tmp_path):
    with pytest.raises(DictlabError, match=words):
        conversion.write(dictionary, tmp_path / "t", "sparsify")


@pytest.mark.parametrize("activation", [TopK(K), GroupMax(K)])
def test_a_pre_bias_is_folded_for_sparsify(activation, tmp_path):
    whole = random_transcoder(M, D, D, activation=activation, normalisation=Scale(0.5))
    back = load(conversion.write(whole, tmp_path / "layers.1.mlp", "sparsify"))
    torch.testing.assert_close(back.reconstruct(X), whole.reconstruct(X), atol=1e-4, rtol=1e-4)


PLT = {
    "model_name": "Qwen/Qwen3-0.6B", "model_kind": "transcoder_set", "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "hook_mlp_out",
}  # fmt: skip


def circuit_tracer(folder, name="layer_3.safetensors", config=PLT, **more):
    w = weights()
    return write(folder, {**w, "W_enc": w["W_enc"].T} | more, config, name, "config.yaml")


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("jumps", [True, False])
def test_of_circuit_tracer(jumps, skip, tmp_path):
    more = ({"activation_function.threshold": THRESHOLD} if jumps else {}) | ({"W_skip": SKIP} if skip else {})
    w, made = weights(), load(circuit_tracer(tmp_path / "set", **more))
    z = X @ w["W_enc"] + w["b_enc"]
    f = z * (z > THRESHOLD) if jumps else z.relu()
    y = f @ w["W_dec"] + w["b_dec"] + (X @ SKIP.T if skip else 0)
    assert_is(made, f, y, ("blocks.3.ln2.hook_out", "blocks.3.hook_mlp_out"))
    assert made.metadata.model == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize(
    ("config", "more", "words"),
    [
        (PLT | {"activation": "topk", "k": 8}, {}, "whatever their sign"),
        (PLT, {"k": torch.tensor(8.0)}, "whatever their sign"),
        (PLT | {"model_kind": "cross_layer_transcoder"}, {}, "writes several sites"),
        (PLT | {"post_norm": True}, {}, "'post_norm' is unknown"),
        (PLT, {"activation_function.threshold": -THRESHOLD}, "is negative"),
        (PLT, {"W_skip": SKIP.T}, "W_skip has shape"),
    ],
)
def test_of_circuit_tracer_what_is_not_understood_is_refused(config, more, words, tmp_path):
    with pytest.raises(DictlabError, match=words):
        load(circuit_tracer(tmp_path / "set", config=config, **more))


def test_of_circuit_tracer_cross_layer_files_are_refused_by_name(tmp_path):
    tensors = {"W_enc_0": drawn(M, D, seed=1), "b_enc_0": drawn(M, seed=2), "b_dec_0": drawn(D, seed=3)}
    path = write(
        tmp_path / "clt", tensors, PLT | {"model_kind": "cross_layer_transcoder"}, "W_enc_0.safetensors", "config.yaml"
    )
    with pytest.raises(DictlabError, match="cross-layer transcoder writes several sites"):
        load(path)


def test_of_circuit_tracer_a_norm_without_gain_is_doubted(tmp_path):
    made = load(circuit_tracer(tmp_path / "set", config=PLT | {"feature_input_hook": "ln2.hook_normalized"}))
    assert made.metadata.site == "blocks.3.ln2.hook_normalized" and "dictlab verify" in made.metadata.notes[0]


GEMMA = {
    "hf_hook_point_in": "model.layers.7.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.7.post_feedforward_layernorm.output",
    "width": M,
    "model_name": "google/gemma-3-1b-pt",
    "architecture": "jump_relu",
    "l0": 50,
    "affine_connection": False,
    "type": "transcoder",
}


@pytest.mark.parametrize("affine", [True, False])
def test_of_gemma_scope_2(affine, tmp_path):
    w, signed = weights(), drawn(M, seed=6)
    tensors = {"w_enc": w["W_enc"], "w_dec": w["W_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"], "threshold": signed}
    tensors |= {"affine_skip_connection": SKIP.T} if affine else {}
    folder = tmp_path / "gemma-scope-2-1b-pt" / "transcoder" / f"layer_7_width_16k_l0_medium{'_affine' * affine}"
    made = load(write(folder, tensors, GEMMA | {"affine_connection": affine}, "params.safetensors", "config.json"))
    z = X @ w["W_enc"] + w["b_enc"]
    f = z.relu() * (z > signed)
    y = f @ w["W_dec"] + w["b_dec"] + (X @ SKIP.T if affine else 0)
    assert_is(made, f, y, ("blocks.7.ln2.hook_out", "blocks.7.hook_mlp_out"))


def test_of_gemma_scope_1_the_norm_is_read_without_its_gain(tmp_path):
    import numpy as np

    folder = tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_3" / "width_16k" / "average_l0_76"
    folder.mkdir(parents=True)
    w = weights(D) | {"threshold": THRESHOLD}
    np.savez(folder / "params.npz", **{name: t.numpy() for name, t in w.items()})
    z = X @ w["W_enc"] + w["b_enc"]
    f = z.relu() * (z > THRESHOLD)
    sites = ("blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out")
    assert_is(load(folder / "params.npz"), f, f @ w["W_dec"] + w["b_dec"], sites)


def test_of_dunefsky_the_input_has_a_bias_of_its_own(tmp_path):
    w, centre = weights(), drawn(D, seed=8)
    state = {"W_enc": w["W_enc"], "b_enc": w["b_enc"], "W_dec": w["W_dec"], "b_dec": centre, "b_dec_out": w["b_dec"]}
    torch.save({"state_dict": state}, tmp_path / "t.pt")
    made = load(tmp_path / "t.pt")
    f = ((X - centre) @ w["W_enc"] + w["b_enc"]).relu()
    assert_is(made, f, f @ w["W_dec"] + w["b_dec"], (None, None))
    assert made.metadata.convention == "transformer_lens"
