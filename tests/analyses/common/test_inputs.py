"""Dictionaries of several libraries, given to an analysis by name."""

from dataclasses import replace

import pytest
import torch

from analyses.common.compatibility import check_same_place
from analyses.common.inputs import open_inputs
from analyses.common.opening import in_model, open_dictionaries, open_model
from dictlab import DictlabError, Metadata, ReLU, save
from dictlab.dictionary.normalisation import Centred
from tests.model.test_hooked_transformer import Hooked
from tests.planted import SITE, many_documents, random_dictionary, tiny_model, tiny_tokenizer


def files(tmp_path, *names):
    return [save(random_dictionary(), tmp_path / name) for name in names]


def test_files_of_one_name_are_told_apart_by_the_folder_that_differs(tmp_path):
    opened = open_dictionaries(files(tmp_path, "run1/site/a.safetensors", "run2/site/a.safetensors", "b.safetensors"))
    assert [d.name for d in opened] == ["run1/a", "run2/a", "b"]


def test_one_file_given_twice_is_refused(tmp_path):
    (path,) = files(tmp_path, "a.safetensors")
    with pytest.raises(DictlabError, match="two dictionaries are called 'a'"):
        open_dictionaries([path, path])


def at(site, model="gpt2", name="one"):
    return replace(random_dictionary(metadata=Metadata(site=site, model=model)), name=name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (at("blocks.6.hook_resid_pre"), at("h.5")),
        (at("blocks.5.hook_resid_post"), at("transformer.h.6:in", "openai-community/gpt2")),
        (at("layers.4", "EleutherAI/pythia-70m"), at("blocks.5.hook_resid_pre", "pythia-70m")),
        (at("blocks.6.hook_resid_pre"), at(None, None)),
    ],
)
def test_other_spellings_of_a_place_are_the_same_place(one, other):
    check_same_place([one, other])


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        (at("blocks.6.hook_resid_pre"), at("h.6", name="two"), "blocks.6.hook_resid_pre and h.6"),
        (at("blocks.6.hook_resid_pre"), at("blocks.6.hook_mlp_out", name="two"), "hook_mlp_out"),
        (at("h.3", "gpt2"), at("h.3", "gpt2-medium", name="two"), "gpt2 and gpt2-medium"),
        (
            at("blocks.3.hook_mlp_out", "google/gemma-2-2b"),
            at("layers.3.mlp", "gemma-2-2b", name="two"),
            "layers.3.mlp",
        ),
    ],
)
def test_different_places_are_refused_with_both_names(one, other, named):
    with pytest.raises(DictlabError, match=f"one and two cannot be compared.*{named}"):
        check_same_place([one, other])


# Dictionaries, model and text together


@pytest.fixture
def family(tmp_path) -> tuple[str, list[str]]:
    """A model in a folder beside two dictionaries of it, which name it by that folder's name."""
    model = tiny_model()
    model.model.save_pretrained(tmp_path / "runs" / "tiny")
    model.tokenizer.save_pretrained(tmp_path / "runs" / "tiny")
    about = Metadata(site=SITE, model="tiny", model_fingerprint=model.fingerprint, training={"context": 16})
    files = [
        str(save(random_dictionary(d=16, seed=seed, metadata=about), tmp_path / "runs" / f"{seed}.safetensors"))
        for seed in (0, 1)
    ]
    return model.fingerprint, files


def test_all_of_it_is_opened_and_found_to_belong_together(family, tmp_path):
    inputs = open_inputs(family[1], text=many_documents(tmp_path), same_place=True, resumable=True)
    assert [d.name for d in inputs.dictionaries] == ["0", "1"]
    assert inputs.model.fingerprint == family[0]
    assert inputs.sites == [SITE] and inputs.context == 16
    sample = inputs.sample(3, seed=1)
    expected = inputs.text.as_split("heldout").sample(inputs.model.tokenizer, 16, 3, seed=1)
    assert torch.equal(sample.tokens, expected)
    assert sample.size == "3 held-out sequences (48 tokens)" and sample.warnings == ()


def test_a_text_that_is_too_short_is_said(family, tmp_path):
    sample = open_inputs(family[1], text=many_documents(tmp_path)).sample(10_000, "train")
    assert sample.warnings == (f"The text's training split holds {len(sample.tokens)} contexts, 10000 were asked for.",)


def test_a_dictionary_made_in_memory_finds_the_model_of_its_parents(family):
    parents = open_dictionaries(family[1])
    open_model(None, parents)
    child = replace(parents[0], name="child", path=None)
    assert open_model(None, [child]).fingerprint == family[0]
    assert open_model(None, [child, parents[1]]).fingerprint == family[0]


def test_a_dictionary_of_other_weights_does_not(family):
    parents = open_dictionaries(family[1])
    open_model(None, parents)
    other = replace(parents[0], path=None, metadata=replace(parents[0].metadata, model_fingerprint="0" * 16))
    with pytest.raises(DictlabError, match="tiny"):
        open_model(None, [other])


def test_the_model_lies_beside_any_of_the_dictionaries(family):
    parents = open_dictionaries(family[1])
    nowhere = replace(parents[0], path=None, metadata=replace(parents[0].metadata, model_fingerprint=None))
    assert open_model(None, [nowhere, parents[1]]).fingerprint == family[0]


# Live objects wherever a name will do


def test_models_of_other_libraries(family):
    ours = tiny_model()
    parents = open_dictionaries(family[1])
    assert open_model((ours.model, ours.tokenizer), parents).fingerprint == family[0]
    with pytest.raises(DictlabError, match="without its tokenizer"):
        open_model(ours.model, parents)
    with pytest.raises(DictlabError, match=r"builtins\.int will not do"):
        open_model((3, ours.tokenizer), parents)
    with pytest.raises(DictlabError, match="other weights"):
        open_model((tiny_model(seed=1).model, ours.tokenizer), parents)


def test_a_hooked_transformer_must_have_the_name_of_the_dictionaries_model(family):
    model = (Hooked(), tiny_tokenizer())
    parents = open_dictionaries(family[1])
    with pytest.raises(DictlabError, match="0 was trained on tiny; the HookedTransformer is gpt2-small"):
        open_model(model, parents)
    named = [replace(d, metadata=replace(d.metadata, model="openai-community/gpt2")) for d in parents]
    inputs = open_inputs(named, model=model, text=["some words"] * 30)
    assert "only the model's name" in inputs.warnings[0]


def test_a_processed_hooked_transformer_is_none_of_a_hugging_face_dictionarys():
    d = random_dictionary(d=16, metadata=Metadata(site=SITE, convention="huggingface"))
    lens = replace(d, metadata=replace(d.metadata, convention="transformer_lens"))
    processed = open_model((Hooked(centred=True), tiny_tokenizer()), [d])
    assert in_model([lens], processed)[0].normalisation == lens.normalisation
    with pytest.raises(DictlabError, match="from_pretrained_no_processing"):
        in_model([d], processed)
    assert in_model([lens], open_model((Hooked(), tiny_tokenizer()), [d]))[0].normalisation == Centred(
        lens.normalisation
    )


def test_token_ids_and_documents_in_place_of_a_text(family):
    ids = torch.randint(0, 97, (30, 12), generator=torch.Generator().manual_seed(0))
    inputs = open_inputs(family[1], text=ids)
    assert inputs.context == 12
    assert {tuple(row) for row in inputs.sample(9).tokens.tolist()} == {tuple(ids[i].tolist()) for i in (9, 19, 29)}
    with pytest.raises(DictlabError, match="ids from 0 to 97; tiny knows 0 to 96"):
        open_inputs(family[1], text=torch.full((20, 12), 97).fill_diagonal_(0))


def test_weights_of_one_name_are_numbered(family):
    d = random_dictionary(d=16, activation=ReLU())
    weights = {"W_enc": d.W_enc, "b_enc": d.b_enc, "W_dec": d.W_dec, "b_dec": d.b_out, "activation": "relu"}
    opened = open_dictionaries([weights | {"normalisation": "none"}, weights | {"normalisation": "layer_norm"}])
    assert [o.name for o in opened] == ["tensors in memory 1", "tensors in memory 2"]
