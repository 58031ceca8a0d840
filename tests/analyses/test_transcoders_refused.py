"""An analysis that is not made for transcoders, or for a linear skip, refuses them by its name: none is silently wrong."""

from dataclasses import replace
from importlib.metadata import entry_points

import pytest
import torch

from dictlab import DictlabError, TrainConfig, save, train
from dictlab.data.arrays import open_array
from dictlab.evaluation.reconstruction import evaluate_reconstruction
from dictlab.evaluation.transformer_lens import adapted
from tests.planted import random_dictionary, random_transcoder, tiny_model

TREATED = {"pareto", "verification"}  # analyses that are right for transcoders
WITHOUT = {"training", "export"}  # take folders of runs, or of an explorer
SEVERAL_ARGUMENTS = {"novelty", "stitching", "path", "meta"}
ANALYSES = {
    entry.name: entry
    for group in ("dictlab.analyses", "dictlab.commands")
    for entry in entry_points(group=group)
    if entry.value.startswith("analyses.")
}


def with_skip(d=16):
    return replace(random_dictionary(d=d), W_skip=torch.eye(d), name="skip")


@pytest.mark.parametrize("name", sorted(ANALYSES.keys() - TREATED - WITHOUT))
@pytest.mark.parametrize("kind", ["transcoder", "skip"])
def test_the_analysis_refuses_it_by_name(name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = random_transcoder(d_in=16, d_out=16) if kind == "transcoder" else with_skip()
    analysis, plain = ANALYSES[name].load(), random_dictionary(d=16)
    given = [plain, odd] if name in SEVERAL_ARGUMENTS else [[plain, odd]]
    if name in ("stitching", "path"):
        given = [plain, [odd]]
    if name == "latent":
        given = [odd, 0]
    if name == "meta":
        given = [plain, odd, [random_dictionary(d=16, seed=2, name="third")]]
    words = "is a transcoder .reads blocks.1.ln2.hook_out" if kind == "transcoder" else "has a linear skip"
    with pytest.raises(DictlabError, match=f"^{name} takes dictionaries .*{words}"):
        analysis(*given)


def test_training_does_not_start_from_it(tmp_path):
    rows = torch.randn(4096, 16)
    for odd in (random_transcoder(d_in=16, d_out=16), with_skip()):
        file = save(odd, tmp_path / "odd.safetensors")
        with pytest.raises(DictlabError, match=r"^training from `start=...` takes dictionaries"):
            train(TrainConfig(data="rows", start=(str(file),), tokens=4096), data=rows)


def test_an_array_has_no_second_site():
    with pytest.raises(DictlabError, match="array of activations takes dictionaries that write the site they read"):
        evaluate_reconstruction([random_transcoder()], open_array(torch.randn(64, 8)), tokens=32)


def test_a_transcoder_of_a_processed_model_is_not_adapted():
    odd = random_transcoder(d_in=16, d_out=16)
    with pytest.raises(DictlabError, match="is a transcoder of a model that TransformerLens has processed"):
        adapted(replace(odd, metadata=replace(odd.metadata, convention="transformer_lens")), tiny_model())
