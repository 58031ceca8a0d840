"""Files of sparsify, written by hand from its formula, are the same functions here."""

import json
import resource
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dictlab import DictlabError, Metadata, ReLU, TopK, load
from dictlab.dictionary.activation_functions import AbsTopK, BatchTopK, GroupMax, JumpReLU
from dictlab.dictionary.normalisation import Centred, LayerNorm, NoNormalisation, Scale
from dictlab.formats.libraries.sparsify import write
from dictlab.formats.loading import mapped
from tests.planted import random_dictionary

D, M, K = 6, 24, 4
CLOSE = {"atol": 1e-5, "rtol": 0}  # values of order 1, sums of D or M terms in float32
CONFIG = {
    "activation": "topk", "expansion_factor": 4, "normalize_decoder": True, "num_latents": M, "k": K,
    "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D,
}  # fmt: skip
OLD = {"expansion_factor": 4, "normalize_decoder": True, "k": K, "signed": False, "d_in": D}
RUN = {"sae": CONFIG, "hookpoints": ["layers.6", "odd_name"], "init_seeds": [7], "loss_fn": "fvu", "ctx_len": 256, "lr": 0.01,
       "model": "EleutherAI/pythia-70m", "dataset": "some/text", "optimizer": "signum"}  # fmt: skip


def state(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return {"encoder.weight": 0.5 * draw(M, D), "encoder.bias": draw(M), "W_dec": 0.4 * draw(M, D), "b_dec": draw(D)}


def folder(path, tensors, config=CONFIG):
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "sae.safetensors")
    if config is not None:
        (path / "cfg.json").write_text(json.dumps(config))
    return path


def batch(n=64, d=D):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1)) + 0.5


def reference(kind, s, x):
    """Codes and reconstruction, dense, as the library defines them."""
    z = (x - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"]
    f = torch.zeros_like(z)
    if kind == "signed":
        chosen = z.abs().topk(K).indices
        f = f.scatter(1, chosen, z.gather(1, chosen))
    elif kind == "groupmax":
        values, indices = z.relu().unflatten(1, (K, M // K)).max(dim=2)
        f = f.scatter(1, indices + torch.arange(0, M, M // K), values)
    else:
        f = f.scatter(1, z.relu().topk(K).indices, z.relu().topk(K).values)
    return f, f @ s["W_dec"] + s["b_dec"]


def assert_same(dictionary, f, x_hat, x):
    codes, made = dictionary(x)
    assert torch.equal(codes.dense() != 0, f != 0)
    torch.testing.assert_close(codes.dense(), f, **CLOSE)
    torch.testing.assert_close(made, x_hat, **CLOSE)


# Reading


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("topk", CONFIG),
        ("topk", CONFIG | {"num_latents": 0}),  # stands for d_in times the expansion factor
        ("topk", CONFIG | {"multi_topk": True, "normalize_decoder": False}),  # matters of training
        ("topk", OLD),
        ("topk", OLD | {"num_latents": M}),
        ("groupmax", CONFIG | {"activation": "groupmax"}),
        ("signed", OLD | {"signed": True}),
    ],
)
def test_codes_and_reconstructions_are_those_of_the_formula(kind, config, tmp_path):
    tensors, x = state(), batch()
    found = load(folder(tmp_path / "layers.6", tensors, config))
    assert_same(found, *reference(kind, tensors, x), x)
    assert isinstance(found.activation, {"topk": TopK, "groupmax": GroupMax, "signed": AbsTopK}[kind])
    assert found.metadata.foreign == config


def test_fewer_than_k_are_active_where_fewer_are_positive(tmp_path):
    tensors, x = state(), batch()
    tensors["encoder.bias"] -= 3
    found = load(folder(tmp_path, tensors))
    assert found.encode(x).l0().min() < K
    assert_same(found, *reference("topk", tensors, x), x)


def test_half_precision_is_computed_with_in_single_precision(tmp_path):
    tensors, x = {name: tensor.to(torch.bfloat16) for name, tensor in state().items()}, batch()
    assert mapped(folder(tmp_path, tensors)).W_dec.dtype == torch.bfloat16
    assert_same(load(tmp_path), *reference("topk", {n: t.float() for n, t in tensors.items()}, x), x)


@pytest.mark.parametrize(
    ("place", "site", "seed"),
    [
        ("layers.6", "blocks.6.hook_resid_post", 7),
        ("h.6", "blocks.6.hook_resid_post", 7),
        ("layers.6.mlp", "layers.6.mlp", 7),
        ("layers.0.attention", "layers.0.attention", 7),
        ("layers.6.mlp.dense_h_to_4h", "layers.6.mlp.dense_h_to_4h", 7),
        ("embed_tokens", "embed_tokens", 7),
        ("layers.6/seed2", "blocks.6.hook_resid_post", 2),
        ("best/layers.6/layers.6", "blocks.6.hook_resid_post", 7),
        ("odd_name", "odd_name", 7),  # the run's configuration says that it is one
        ("my_copy", None, 7),
    ],
)
def test_the_site_is_the_folder_and_the_model_is_the_runs(place, site, seed, tmp_path):
    path = folder(tmp_path / "run" / place, state())
    (tmp_path / "run" / "config.json").write_text(json.dumps(RUN))
    about = load(path).metadata
    assert (about.site, about.seed, about.model) == (site, seed, "EleutherAI/pythia-70m")
    assert (about.objective, about.convention, about.library) == ("local", "huggingface", "sparsify")
    assert about.training["context"] == 256
    (tmp_path / "run" / "config.json").unlink()
    alone = load(path / "sae.safetensors").metadata
    assert alone.site == (None if place == "odd_name" else site)
    assert (alone.seed, alone.model) == (2 if "seed" in place else None, None)


def test_training_on_the_models_output_is_end_to_end(tmp_path):
    path = folder(tmp_path / "layers.6", state())
    (tmp_path / "config.json").write_text(json.dumps(RUN | {"loss_fn": "kl"}))
    assert load(path).metadata.objective == "e2e"


def test_a_folder_of_several_names_those_that_are_in_it(tmp_path):
    for place in ("layers.6/seed0", "layers.6/seed1", "layers.7/seed0"):
        folder(tmp_path / place, state())
    (tmp_path / "config.json").write_text(json.dumps(RUN))
    torch.save({"global_step": 3}, tmp_path / "state.pt")
    torch.save({"state": {0: {"z": torch.ones(2)}}}, tmp_path / "optimizer_0.pt")
    with pytest.raises(DictlabError, match=r"folders \(layers\.6, layers\.7\); name one of them"):
        load(tmp_path)
    with pytest.raises(DictlabError, match=r"folders \(seed0, seed1\); name one of them"):
        load(tmp_path / "layers.6")


# Refusals


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"skip_connection": True}, "the tensor 'W_skip' is missing"),
        ({"skip_connection": 1}, "skip_connection is 1; expected true or false"),
        ({"signed": "yes"}, "signed is yes; expected true or false"),
        ({"activation": "relu"}, "activation is relu; expected 'topk' or 'groupmax'"),
        ({"activation": None}, "activation is None"),
        ({"activation": "groupmax", "signed": True}, "groupmax with signed true"),
        ({"activation": "groupmax", "k": 5}, "24 latents do not divide into k = 5 groups"),
        ({"k": 0}, "k is 0"),
        ({"k": True}, "k is True"),
        ({"k": M + 1}, "k is 25; it has 24 latents"),
        ({"d_in": 7}, "d_in is 7; the tensors have 6"),
        ({"num_latents": 25}, "num_latents is 25"),
        ({"num_latents": 0, "expansion_factor": 5}, "30 latents; the tensors have 24"),
        ({"num_latents": -1}, "num_latents is -1"),
        ({"num_latents": False}, "num_latents is False"),
        ({"jump": 0.1}, "'jump' is unknown"),
    ],
)
def test_what_the_configuration_says_is_honoured_or_refused_by_name(change, said, tmp_path):
    with pytest.raises(DictlabError, match=said) as caught:
        load(folder(tmp_path, state(), CONFIG | change))
    assert str(tmp_path / "sae.safetensors") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["layers.3.mlp", "layers.3.mlp/seed1", "best/layers.3.mlp"])
@pytest.mark.parametrize(
    "run",
    [
        {"transcode": True},
        {"sae": OLD | {"transcode": True}},
        {"sae": OLD | {"transcode": True, "skip_connection": True}},
    ],
)
def test_a_transcoder_of_a_version_that_says_so_in_the_runs_configuration_only_is_one(run, place, tmp_path):
    path = folder(tmp_path / "run" / place, state(), OLD)
    assert "whether it is a transcoder" in load(path).metadata.notes[0]
    (tmp_path / "run" / "config.json").write_text(json.dumps(RUN | {"transcode": False}))
    assert load(path).metadata.notes == ()
    (tmp_path / "run" / "config.json").write_text(json.dumps(RUN | run))
    skip = {"W_skip": torch.eye(D)} if run.get("sae", {}).get("skip_connection") else {}
    made = load(folder(tmp_path / "run" / place, state() | skip, OLD))
    assert made.transcodes and not made.b_pre.any() and (made.W_skip is not None) == bool(skip)


def test_an_unknown_field_can_be_passed_over(tmp_path):
    assert load(folder(tmp_path, state(), CONFIG | {"jump": 0.1}), ignore=["jump"]).activation == TopK(K)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"W_skip": torch.zeros(D, D)}, "'W_skip' is unknown"),
        ({"W_dec": torch.zeros(D, M)}, "W_dec has shape"),
        ({"encoder.weight": torch.zeros(M)}, "encoder.weight has shape"),
        ({"encoder.bias": torch.zeros(M + 1)}, "encoder.bias has shape"),
        ({"b_dec": torch.zeros(D, dtype=torch.int32)}, "b_dec holds int32"),
        ({"b_dec": torch.full((D,), float("inf"))}, "NaN or infinite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(change, said, tmp_path):
    with pytest.raises(DictlabError, match=said):
        load(folder(tmp_path, state() | change))


@pytest.mark.parametrize("content", [None, "{"])
def test_without_a_configuration_k_is_unknown(content, tmp_path):
    path = folder(tmp_path, state(), None)
    if content is not None:
        (path / "cfg.json").write_text(content)
    with pytest.raises(DictlabError, match=r"configuration is missing"):
        load(path)


# Laziness


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_opening_reads_no_numbers(tmp_path):
    """Eight gigabytes, of which the disk holds none: looking at it brings nothing into memory."""
    d, m = 4096, 1 << 18
    shapes = {"encoder.weight": [m, d], "encoder.bias": [m], "W_dec": [m, d], "b_dec": [d]}
    entries, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(entries).encode()
    with (tmp_path / "sae.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
    (tmp_path / "cfg.json").write_text(json.dumps(CONFIG | {"d_in": d, "num_latents": m}))

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    found = mapped(tmp_path)
    assert (found.d_in, found.n_latents) == (d, m)
    assert float(found.W_dec[m - 1].sum()) == 0
    assert resident() - before < 64 << 20


# Writing


@pytest.mark.parametrize("config", [CONFIG, CONFIG | {"activation": "groupmax", "multi_topk": True}, OLD])
def test_what_was_read_is_written_back_tensor_by_tensor(config, tmp_path):
    tensors = state()
    first = load(folder(tmp_path / "a" / "layers.6", tensors, config))
    path = write(first, tmp_path / "b")
    again = load_file(path / "sae.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    written = json.loads((path / "cfg.json").read_text())
    assert {name: value for name, value in written.items() if name != "dictlab"} == {
        **CONFIG, **{name: value for name, value in config.items() if name != "signed"}
    }  # fmt: skip
    second = load(path)
    x = batch()
    assert_same(second, first.encode(x).dense(), first.reconstruct(x), x)
    assert replace(second.metadata, foreign={}) == replace(first.metadata, foreign={})


@st.composite
def expressible(draw):
    k, size, d = draw(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6)))
    activation = draw(st.sampled_from([TopK(k), GroupMax(k)]))
    scale = draw(st.sampled_from([NoNormalisation(), Scale(0.25), Scale(3.0)]))
    return random_dictionary(k * size, d, activation=activation, normalisation=scale, seed=draw(st.integers(0, 1000)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dictionary=expressible())
def test_any_dictionary_that_it_can_express_is_the_same_function_read_back(dictionary, tmp_path_factory):
    """Constant scales and separate biases are folded: the same codes and reconstructions, up to rounding."""
    back = load(write(dictionary, tmp_path_factory.mktemp("written") / "folder"))
    x = batch(32, dictionary.d_in)
    (f, x_hat), (f_back, x_hat_back) = dictionary(x), back(x)
    torch.testing.assert_close(f_back.dense(), f.dense(), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(x_hat_back, x_hat, atol=1e-4, rtol=1e-5)  # divided by a scale of a quarter


@pytest.mark.parametrize(
    ("dictionary", "said"),
    [
        (random_dictionary(activation=ReLU()), "activation function .relu"),
        (random_dictionary(activation=JumpReLU(torch.ones(24))), "jumprelu"),
        (random_dictionary(activation=BatchTopK(2)), "batchtopk"),
        (random_dictionary(activation=AbsTopK(2)), "abstopk"),  # the library forgot `signed`, and would read TopK
        (random_dictionary(normalisation=LayerNorm()), "input normalisation .layer_norm"),
        (random_dictionary(normalisation=Centred()), "centred"),
        (random_dictionary(metadata=Metadata(training={"x": {1, 2}})), "metadata is no JSON"),
    ],
)
def test_what_it_cannot_express_is_refused_and_leaves_nothing_behind(dictionary, said, tmp_path):
    with pytest.raises(DictlabError, match=said):
        write(dictionary, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(DictlabError, match="exists already"):
        write(random_dictionary(), tmp_path / "out")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine"]


def test_metadata_of_any_dictionary_survives(tmp_path):
    about = Metadata(
        model="gpt2", site="blocks.6.hook_resid_pre", seed=4, tokens=123, convention="transformer_lens", objective="e2e",
        training={"context": 64}, metrics={"l0": 3.5}, notes=("a note",), library="sae_lens 6",
    )  # fmt: skip
    back = load(write(random_dictionary(metadata=about), tmp_path / "layers.9")).metadata
    assert replace(back, foreign={}) == about


@pytest.mark.parametrize(("longer", "unit"), [(1.0, True), (2.0, False)])
def test_whether_the_decoder_is_normalised_is_written_as_it_is(longer, unit, tmp_path):
    dictionary = random_dictionary()
    path = write(replace(dictionary, W_dec=longer * dictionary.W_dec), tmp_path / "out")
    assert json.loads((path / "cfg.json").read_text())["normalize_decoder"] is unit


def test_all_tensors_are_written_in_one_precision(tmp_path):
    dictionary = replace(random_dictionary().to(dtype=torch.bfloat16), activation=TopK(2))
    folded = load_file(write(dictionary, tmp_path / "folded") / "sae.safetensors")
    assert {tensor.dtype for tensor in folded.values()} == {torch.float32}
    kept = load_file(write(replace(dictionary, b_pre=dictionary.b_out), tmp_path / "kept") / "sae.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}
