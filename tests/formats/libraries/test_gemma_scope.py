"""Files of Gemma Scope 1 and 2. No library reads them here: formulas and paths are those of the releases' documents."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import dictlab
from dictlab.formats.libraries.gemma_scope import place_of
from dictlab.formats.loading import mapped, recognised
from dictlab.formats.reading.source import Source
from tests.dense import agrees, draw, refused, relu

D, M = 12, 40
FOLDER = "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
SECOND = "google/gemma-scope-2-4b-pt/resid_post/layer_17_width_16k_l0_big"
CONFIG = {
    "hf_hook_point_in": "model.layers.17.output",
    "hf_hook_point_out": "model.layers.17.output",
    "width": M,
    "model_name": "google/gemma-3-4b-pt",
    "architecture": "jump_relu",
    "l0": 150,
    "affine_connection": False,
    "type": "sae",
}


def arrays(small=False, **changes):
    w = "w" if small else "W"
    made = {
        f"{w}_enc": 0.3 * draw(D, M, seed=1),
        "b_enc": draw(M, seed=2),
        f"{w}_dec": draw(M, D, seed=3) / np.linalg.norm(draw(M, D, seed=3), axis=1, keepdims=True),
        "b_dec": draw(D, seed=4),
        "threshold": 1.5 * draw(M, seed=5),  # some below 0: relu comes first
    } | changes
    return {name: array for name, array in made.items() if array is not None}


def first(root, content=None, folder=FOLDER):
    path = root / folder / "params.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **(content or arrays()))
    return path


def second(root, content=None, folder=SECOND, config=CONFIG):
    path = root / folder / "params.safetensors"
    path.parent.mkdir(parents=True)
    save_file({n: torch.from_numpy(a) for n, a in (content or arrays(small=True)).items()}, path)
    if config is not None:
        (path.parent / "config.json").write_text(json.dumps(config))
    return path


def reference(content, x):
    """Codes and reconstructions, densely, in float64."""
    t = {name.lower(): array.astype(np.float64) for name, array in content.items()}
    z = x.astype(np.float64) @ t["w_enc"] + t["b_enc"]
    f = relu(z) * (z > t["threshold"])
    return f, f @ t["w_dec"] + t["b_dec"]


@pytest.mark.parametrize("small", [False, True], ids=["W_enc", "w_enc"])
def test_codes_and_reconstructions_of_the_first_release_are_those_of_the_formula(tmp_path, small):
    content = arrays(small)
    path = first(tmp_path, content)
    x = draw(50, D, seed=9)
    agrees(dictlab.load(path), x, *reference(content, x))
    assert recognised(Source.open(path)) == ["gemma_scope"]


@pytest.mark.parametrize("config", [CONFIG, None], ids=["configured", "bare"])
def test_codes_and_reconstructions_of_the_second_release_are_those_of_the_formula(tmp_path, config):
    content = arrays(small=True)
    path = second(tmp_path, content, config=config)
    dictionary = dictlab.load(path)
    x = draw(50, D, seed=9)
    agrees(dictionary, x, *reference(content, x))
    assert recognised(Source.open(path)) == ["gemma_scope"]
    about = dictionary.metadata
    assert (about.model, about.site) == ("google/gemma-3-4b-pt", "blocks.17.hook_resid_post")
    assert about.convention == "huggingface"


def test_the_path_of_the_first_release_is_its_configuration(tmp_path):
    dictionary = dictlab.load(first(tmp_path))
    about = dictionary.metadata
    assert (about.model, about.site) == ("google/gemma-2-2b", "blocks.20.hook_resid_post")
    assert (about.metrics, about.convention, about.objective) == ({"l0": 71.0}, "huggingface", "local")
    assert about.foreign == {"layer": 20, "width": "16k", "l0": "71"}
    assert about.library == "google/gemma-scope-2b-pt-res"
    assert dictionary.name == "average_l0_71"
    assert any("width 16k" in note and f"{M} latents" in note for note in about.notes)


CACHE = "hub/models--google--gemma-scope-{}/snapshots/0123abcd"
PLACES = {
    "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71": ("blocks.20.hook_resid_post", "google/gemma-2-2b"),
    "google/gemma-scope-9b-it-res/layer_9/width_131k/average_l0_121": (
        "blocks.9.hook_resid_post",
        "google/gemma-2-9b-it",
    ),
    "x/gemma-scope-27b-pt-res/layer_22/width_131k/average_l0_82": ("blocks.22.hook_resid_post", "google/gemma-2-27b"),
    "google/gemma-scope-2b-pt-mlp/layer_0/width_65k/average_l0_9": ("blocks.0.hook_mlp_out", "google/gemma-2-2b"),
    "google/gemma-scope-2b-pt-att/layer_4/width_16k/average_l0_50": ("blocks.4.attn.hook_z", "google/gemma-2-2b"),
    "google/gemma-scope-2b-pt-res-canonical/layer_3/width_1m/canonical": (
        "blocks.3.hook_resid_post",
        "google/gemma-2-2b",
    ),
    CACHE.format("2b-pt-res") + "/layer_20/width_16k/average_l0_71": ("blocks.20.hook_resid_post", "google/gemma-2-2b"),
    "layer_20/width_16k/average_l0_71": (None, None),
    "elsewhere": (None, None),
    "google/gemma-scope-2-270m-pt/mlp_out_all/layer_3_width_16k_l0_small": (
        "blocks.3.hook_mlp_out",
        "google/gemma-3-270m",
    ),
    "google/gemma-scope-2-1b-it/attn_out/layer_7_width_1m_l0_medium": ("blocks.7.attn.hook_z", "google/gemma-3-1b-it"),
    CACHE.format("2-12b-it") + "/resid_post_all/layer_5_width_262k_l0_big": (
        "blocks.5.hook_resid_post",
        "google/gemma-3-12b-it",
    ),
}


@pytest.mark.parametrize(("folder", "told"), PLACES.items(), ids=PLACES)
def test_folders_tell_site_and_model(folder, told):
    place = place_of(Path("/layer_1/home", folder).parts)
    assert (place.site, place.model) == told


def test_a_file_away_from_its_folders_is_read_and_says_what_is_unknown(tmp_path):
    about = dictlab.load(first(tmp_path, folder="average_l0_71")).metadata
    assert (about.site, about.model) == (None, None)
    assert any("site" in note for note in about.notes)


POINTS = {
    "model.layers.17.output": "blocks.17.hook_resid_post",
    "model.language_model.layers.3.output": "blocks.3.hook_resid_post",
    "model.layers.17.post_feedforward_layernorm.output": "blocks.17.hook_mlp_out",
    "model.layers.17.self_attn.o_proj.input": "blocks.17.attn.hook_z",
    "model.layers.17.mlp.gate_proj.output": "model.layers.17.mlp.gate_proj:out",
}


@pytest.mark.parametrize(("point", "site"), POINTS.items())
def test_hook_points_of_configurations_are_sites(tmp_path, point, site):
    config = CONFIG | {"hf_hook_point_in": point, "hf_hook_point_out": point}
    about = dictlab.load(second(tmp_path, config=config)).metadata
    assert (about.site, about.metrics, about.foreign) == (site, {"l0": 150}, config)


def test_models_of_the_second_release_are_called_as_on_the_hub(tmp_path):
    names = {"gemma-v3-1b-it": "google/gemma-3-1b-it", "google/gemma-3-270m-pt": "google/gemma-3-270m"}
    for number, (said, model) in enumerate(names.items()):
        path = second(tmp_path, folder=str(number), config=CONFIG | {"model_name": said})
        assert dictlab.load(path).metadata.model == model


def test_arrays_are_mapped_and_the_same_names_elsewhere_are_nobodys(tmp_path):
    path = first(tmp_path)
    with np.load(path) as stored:
        assert torch.equal(mapped(path).W_enc, torch.from_numpy(stored["W_enc"]))
    weights = {name: torch.from_numpy(array) for name, array in arrays().items()}
    save_file(weights, tmp_path / "plain.safetensors")
    torch.save(weights, tmp_path / "plain.pt")
    torch.save({name.lower(): tensor for name, tensor in weights.items()}, tmp_path / "small.pt")
    for name in ("plain.safetensors", "plain.pt", "small.pt"):
        assert recognised(Source.open(tmp_path / name)) == []


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is looked up where Linux has it")
def test_a_large_dictionary_is_opened_without_reading_it(tmp_path):
    """4 GiB of weights in a file with holes: only the row that is asked for comes into memory."""
    d, m = 2048, 1 << 18
    shapes = {"w_enc": [d, m], "w_dec": [m, d], "b_enc": [m], "b_dec": [d], "threshold": [m]}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path = tmp_path / "params.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    before = resident()
    seen = mapped(path)
    assert (seen.d_in, seen.n_latents) == (d, m)
    assert not seen.W_dec[1000].any()
    assert resident() - before < 256 << 20


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


FIRST_REFUSED = {
    "embeddings": (
        "google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6",
        {},
        ["embeddings", "sqrt", "mapping"],
    ),
    "unknown array": (FOLDER, {"W_skip": draw(D, D)}, ["W_skip", "unknown"]),
    "factors": (FOLDER, {"scaling_factor": np.full(M, 2, np.float32)}, ["scaling_factor"]),
    "turned": (FOLDER, {"W_dec": draw(D, M)}, ["W_dec", f"[{D}, {M}]"]),
    "short threshold": (FOLDER, {"threshold": draw(1)}, ["threshold", "[1]", f"[{M}]"]),
    "whole numbers": (FOLDER, {"W_enc": np.ones((D, M), np.int64)}, ["W_enc", "int64"]),
}


@pytest.mark.parametrize(("folder", "changes", "needles"), FIRST_REFUSED.values(), ids=FIRST_REFUSED)
def test_of_the_first_release_what_is_no_such_dictionary_is_refused(tmp_path, folder, changes, needles):
    path = first(tmp_path, arrays(**changes), folder)
    with refused(path, *needles):
        dictlab.load(path)


def test_factors_of_one_change_nothing(tmp_path):
    assert dictlab.load(first(tmp_path, arrays(scaling_factor=np.ones(M, np.float32)))).n_latents == M


AFFINE = {"affine_skip_connection": draw(D, D)}
OTHER_END = {"hf_hook_point_out": "model.layers.17.post_feedforward_layernorm.output"}
TRANSCODERS = "google/gemma-scope-2-4b-pt/transcoder_all/layer_5_width_16k_l0_big_affine"
SECOND_REFUSED = {
    "affine": (SECOND, AFFINE, CONFIG, ["transcoder", "affine skip"]),
    "affine by its configuration": (SECOND, {}, CONFIG | {"affine_connection": True}, ["affine skip"]),
    "transcoder": (SECOND, {}, CONFIG | {"type": "transcoder"}, ["type", "transcoder"]),
    "transcoder by its ends": (SECOND, {}, CONFIG | OTHER_END, ["transcoder", "post_feedforward_layernorm"]),
    "transcoder by its path": (TRANSCODERS, {}, None, ["transcoder", "path"]),
    "crosscoder": (SECOND, {}, CONFIG | {"type": "crosscoder"}, ["crosscoder"]),
    "cross-layer": (SECOND, {"w_dec": draw(M, 3, D)}, CONFIG, ["cross-layer"]),
    "another architecture": (SECOND, {}, CONFIG | {"architecture": "topk"}, ["architecture", "topk"]),
    "another width": (SECOND, {}, CONFIG | {"width": 16384}, ["width", "16384", f"{M}"]),
    "unknown field": (SECOND, {}, CONFIG | {"normalize": True}, ["normalize", "unknown"]),
    "l0 is a text": (SECOND, {}, CONFIG | {"l0": "150"}, ["l0", "150"]),
    "affine is a text": (SECOND, {}, CONFIG | {"affine_connection": "no"}, ["affine_connection", "no"]),
}


@pytest.mark.parametrize(("folder", "changes", "config", "needles"), SECOND_REFUSED.values(), ids=SECOND_REFUSED)
def test_of_the_second_release_what_is_no_such_dictionary_is_refused(tmp_path, folder, changes, config, needles):
    path = second(tmp_path, arrays(small=True, **changes), folder, config)
    with refused(path, *needles):
        dictlab.load(path)


def test_a_scale_that_would_be_passed_over_is_refused(tmp_path):
    path = first(tmp_path)
    with refused(path, "scale", "2.0"):
        dictlab.load(path, scale=2.0)
