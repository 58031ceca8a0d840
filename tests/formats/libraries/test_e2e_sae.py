"""Checkpoints of ApolloResearch/e2e_sae, written by hand; the library itself is asked in tests/interop."""

import copy
import json

import numpy as np
import pytest
import torch
import yaml

import dictlab
from dictlab.formats.loading import mapped, recognised
from dictlab.formats.reading.source import Source
from tests.dense import agrees, draw, refused, relu

D, M = 12, 40
SITES = ("blocks-2-hook_resid_pre", "blocks-6-hook_resid_pre", "blocks-6-hook_mlp_out")
CONFIG = {
    "wandb_project": None,
    "seed": 3,
    "tlens_model_name": "gpt2-small",
    "tlens_model_path": None,
    "n_samples": 400_000,
    "batch_size": 8,
    "lr": 5e-4,
    "lr_schedule": "cosine",
    "loss": {
        "sparsity": {"p_norm": 1.0, "coeff": 1.5},
        "in_to_orig": {"hook_positions": ["blocks.7.hook_resid_pre"], "total_coeff": 2.5},
        "out_to_orig": None,
        "out_to_in": {"coeff": 0.0},
        "logits_kl": {"coeff": 0.5},
    },
    "train_data": {"dataset_name": "x", "tokenizer_name": "gpt2", "split": "train", "n_ctx": 1024},
    "eval_data": None,
    "saes": {
        "retrain_saes": False,
        "pretrained_sae_paths": None,
        "sae_positions": ["blocks.6.hook_resid_pre"],
        "dict_size_to_input_ratio": 60.0,
    },
}


def one(site, seed=0, **changes):
    """The tensors of one site; decoder directions are of any length."""
    made = {
        "encoder.0.weight": torch.from_numpy(0.3 * draw(M, D, seed=seed)),
        "encoder.0.bias": torch.from_numpy(0.3 * draw(M, seed=seed + 1)),
        "decoder.weight": torch.from_numpy(3 * draw(D, M, seed=seed + 2)),
        "decoder.bias": torch.from_numpy(draw(D, seed=seed + 3)),
    } | changes
    return {f"{site}.{name}": tensor for name, tensor in made.items() if tensor is not None}


def several(*sites):
    return {name: tensor for i, site in enumerate(sites) for name, tensor in one(site, seed=10 * i).items()}


def saved(folder, content, config=CONFIG, name="samples_400000.pt"):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / name)
    if config is not None:
        (folder / "final_config.yaml").write_text(yaml.safe_dump(config))
    return folder / name


def configured(**changes):
    """CONFIG with fields changed; a double underscore goes one level down."""
    made = copy.deepcopy(CONFIG)
    for name, value in changes.items():
        outer, _, inner = name.partition("__")
        if inner:
            made[outer][inner] = value
        else:
            made[outer] = value
    return made


def reference(content, site, x):
    """Codes and reconstructions, densely, in float64."""
    t = {name.removeprefix(f"{site}."): v.double().numpy() for name, v in content.items() if name.startswith(site)}
    f = relu(x.astype(np.float64) @ t["encoder.0.weight"].T + t["encoder.0.bias"])
    norms = np.linalg.norm(t["decoder.weight"], axis=0, keepdims=True)
    return f, f @ (t["decoder.weight"] / np.maximum(norms, 1e-12)).T + t["decoder.bias"]


def test_codes_and_reconstructions_are_those_of_the_formula(tmp_path):
    content = several(SITES[1])
    dictionary = dictlab.load(saved(tmp_path, content))
    x = draw(50, D, seed=99)
    agrees(dictionary, x, *reference(content, SITES[1], x))
    raw = content[f"{SITES[1]}.decoder.weight"].T
    assert (dictionary.W_dec - raw).abs().max() > 1, "the decoder as it is stored is another function"


def test_a_zero_or_tiny_decoder_direction_is_divided_by_no_less_than_1e_minus_12(tmp_path):
    decoder = torch.from_numpy(draw(D, M))
    decoder[:, 0] = 0
    decoder[:, 1] *= 1e-14
    dictionary = dictlab.load(saved(tmp_path, one(SITES[1], **{"decoder.weight": decoder})))
    assert torch.equal(dictionary.W_dec[0], torch.zeros(D))
    torch.testing.assert_close(dictionary.W_dec[1], decoder[:, 1] / 1e-12, rtol=1e-6, atol=0)
    assert not dictionary.alive[0]


@pytest.mark.parametrize("spell", [str, lambda site: site.replace("-", ".")], ids=["hyphens", "dots"])
@pytest.mark.parametrize("site", SITES)
def test_each_dictionary_of_a_checkpoint_is_read_by_its_site(tmp_path, site, spell):
    content = several(*SITES)
    path = saved(tmp_path, content)
    dictionary = dictlab.load(f"{path}#{spell(site)}")
    assert dictionary.metadata.site == site.replace("-", ".")
    assert dictionary.name == f"samples_400000#{spell(site)}"
    x = draw(20, D, seed=99)
    agrees(dictionary, x, *reference(content, site, x))


def test_among_several_dictionaries_one_has_to_be_named(tmp_path):
    path = saved(tmp_path, several(*SITES))
    offered = [f"samples_400000.pt#{site.replace('-', '.')}" for site in SITES]
    with refused(path, "3 dictionaries", *offered):
        dictlab.load(path)
    with refused(path, "blocks.9.hook_resid_pre", *offered):
        dictlab.load(f"{path}#blocks.9.hook_resid_pre")


def test_among_several_checkpoints_of_a_run_one_has_to_be_named(tmp_path):
    saved(tmp_path, several(SITES[0]), name="samples_1000.pt")
    saved(tmp_path, several(SITES[0]), name="samples_2000.pt")
    with refused(tmp_path, "samples_1000.pt", "samples_2000.pt", "name one"):
        dictlab.load(tmp_path)
    assert dictlab.load(tmp_path / "samples_2000.pt").metadata.tokens == 2000 * 1024


def test_a_folder_with_one_checkpoint_is_read(tmp_path):
    saved(tmp_path, several(SITES[0]))
    assert dictlab.load(tmp_path).metadata.site == "blocks.2.hook_resid_pre"


def test_metadata_comes_from_the_run(tmp_path):
    about = dictlab.load(saved(tmp_path, several(SITES[1]))).metadata
    assert (about.model, about.site, about.seed) == ("gpt2", "blocks.6.hook_resid_pre", 3)
    assert (about.objective, about.convention, about.library) == ("e2e+ds", "transformer_lens", "e2e_sae")
    assert about.tokens == 400_000 * 1024
    assert about.training == {"l1": 1.5, "p_norm": 1.0, "context": 1024}
    assert about.foreign == CONFIG
    assert json.loads(json.dumps(about.foreign)) == CONFIG


LOSSES = {
    "local": ({"out_to_in": {"coeff": 1.0}, "logits_kl": None, "in_to_orig": None}, "local"),
    "e2e": ({"out_to_in": {"coeff": 0.0}, "logits_kl": {"coeff": 1.0}, "in_to_orig": None}, "e2e"),
    "downstream": ({}, "e2e+ds"),
    "a weight of 0 is none": ({"in_to_orig": {"hook_positions": [], "total_coeff": 0.0}}, "e2e"),
    "e2e and local": ({"out_to_in": {"coeff": 0.1}, "in_to_orig": None}, "e2e+local"),
    "all": ({"out_to_in": {"coeff": 0.1}}, "e2e+ds+local"),
    "none": ({"logits_kl": None, "in_to_orig": None}, None),
}


@pytest.mark.parametrize(("terms", "objective"), LOSSES.values(), ids=LOSSES)
def test_the_objective_is_told_from_the_terms_that_have_a_weight(tmp_path, terms, objective):
    path = saved(tmp_path, several(SITES[1]), configured(loss=CONFIG["loss"] | terms))
    assert dictlab.load(path).metadata.objective == objective


def test_a_model_of_their_own_was_not_processed(tmp_path):
    own = configured(tlens_model_name=None, tlens_model_path="/models/tiny/epoch_1.pt")
    about = dictlab.load(saved(tmp_path, several(SITES[1]), own)).metadata
    assert (about.model, about.convention) == ("/models/tiny/epoch_1.pt", None)


def test_without_its_configuration_a_checkpoint_is_read_and_says_what_is_unknown(tmp_path):
    loaded = dictlab.load(saved(tmp_path, several(SITES[1]), None))
    about = loaded.metadata
    assert (about.site, about.model, about.objective) == ("blocks.6.hook_resid_pre", None, None)
    assert "no configuration" in about.notes[0]


def test_a_published_dictionary_is_read_as_it_is(tmp_path):
    """One dictionary under plain names, its decoder normalised before, several of them in a folder."""
    decoder = torch.nn.functional.normalize(torch.from_numpy(draw(D, M)), dim=0)
    for name, seed in (("local_layer_6", 1), ("downstream_layer_6", 2)):
        tensors = one("x", seed=seed, **{"decoder.weight": decoder})
        content = {key.removeprefix("x.").replace(".0.", "."): tensor for key, tensor in tensors.items()}
        torch.save(content, tmp_path / f"{name}.pt")
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(configured(seed=seed)))
    path = tmp_path / "downstream_layer_6.pt"
    assert recognised(Source.open(path)) == ["e2e_sae"]
    dictionary = dictlab.load(path)
    assert torch.equal(dictionary.W_dec, decoder.T)
    assert (dictionary.metadata.seed, dictionary.metadata.site) == (2, "blocks.6.hook_resid_pre")
    x = draw(20, D, seed=99)
    f = relu(x.astype(np.float64) @ content["encoder.weight"].T.double().numpy() + content["encoder.bias"].numpy())
    agrees(dictionary, x, f, f @ decoder.T.double().numpy() + content["decoder.bias"].numpy())
    with refused("downstream_layer_6.pt", "one dictionary", "blocks.6"):
        dictlab.load(f"{path}#blocks.6")


def test_the_same_names_without_a_run_beside_them_are_nobodys(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({key.removeprefix("x.").replace(".0.", "."): t for key, t in one("x").items()}, path)
    assert recognised(Source.open(path)) == []


def test_the_encoder_stays_in_the_file_and_the_decoder_is_normalised_in_float32(tmp_path):
    halves = {name: tensor.half() for name, tensor in several(SITES[1]).items()}
    path = saved(tmp_path, halves)
    seen = mapped(path)
    assert seen.W_enc.dtype == torch.float16
    assert seen.W_dec.dtype == torch.float32
    torch.testing.assert_close(seen.W_dec.norm(dim=1), torch.ones(M), atol=1e-6, rtol=0)
    assert recognised(Source.open(path)) == ["e2e_sae"]


REFUSED = {
    "another kind": ({"saes__type_of_sparsifier": "codebook"}, ["type_of_sparsifier", "codebook"]),
    "unknown field": ({"normalize_inputs": True}, ["normalize_inputs", "unknown"]),
    "unknown field of the dictionaries": ({"saes__tied": True}, ["saes", "tied", "unknown"]),
    "seed is true": ({"seed": True}, ["seed", "True"]),
    "context is a text": ({"train_data__n_ctx": "1024"}, ["n_ctx", "1024"]),
    "coefficient is a text": ({"loss__logits_kl": {"coeff": "1"}}, ["coeff", "1"]),
    "a term is a number": ({"loss__logits_kl": 1.0}, ["logits_kl", "1.0"]),
}


@pytest.mark.parametrize(("changes", "needles"), REFUSED.values(), ids=REFUSED)
def test_a_configuration_that_is_not_understood_is_refused_by_field(tmp_path, changes, needles):
    path = saved(tmp_path, several(SITES[1]), configured(**changes))
    with refused(path, *needles):
        dictlab.load(path)


def test_a_field_that_the_user_knows_to_be_harmless_is_passed_over(tmp_path):
    path = saved(tmp_path, several(SITES[1]), configured(normalize_inputs=True))
    assert dictlab.load(path, ignore=["normalize_inputs"]).n_latents == M


WRONG = {
    "missing decoder": ({"decoder.weight": None}, ["decoder.weight", "missing"]),
    "turned decoder": ({"decoder.weight": torch.zeros(M, D)}, ["decoder.weight", f"[{M}, {D}]", f"[{D}, {M}]"]),
    "short bias": ({"encoder.0.bias": torch.zeros(1)}, ["encoder.0.bias", "[1]"]),
    "another tensor": ({"codebook": torch.zeros(M, D)}, ["codebook", "unknown"]),
    "infinite": ({"encoder.0.bias": torch.full((M,), float("inf"))}, ["b_enc", "infinite"]),
}


@pytest.mark.parametrize(("changes", "needles"), WRONG.values(), ids=WRONG)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, changes, needles):
    content = several(SITES[0]) | one(SITES[1], **changes)
    path = saved(tmp_path, content)
    with refused(path, *needles):
        dictlab.load(f"{path}#{SITES[1]}")


def test_a_scale_that_would_be_passed_over_is_refused(tmp_path):
    path = saved(tmp_path, several(SITES[1]))
    with refused(path, "scale", "2.0"):
        dictlab.load(path, scale=2.0)
