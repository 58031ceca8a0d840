"""Operations of a run: in its record and in every file, as the formula counts them."""

import json

import pytest
import torch

from analyses import scaling
from dictlab import load
from dictlab.numerics.flops import training_flops
from dictlab.training import TrainConfig, train
from tests.planted import SITE, many_documents, sparse_data, tiny_model

X = sparse_data(2000, n=16, d=16)[0]


def test_operations_of_a_run_on_an_array_are_in_its_files(tmp_path):
    config = TrainConfig(data="planted", width=(20, 40), activation=("topk", "batchtopk", "relu"), k=3, l1=0.1,
                         tokens=1280, batch=64)  # fmt: skip
    run = train(config, data=X, out=tmp_path / "run")
    told = json.loads((tmp_path / "run" / "run.json").read_text())["flops"]
    for made in run.dictionaries:
        about = load(tmp_path / "run" / f"{made.name}.safetensors").metadata
        active = about.metrics["l0"] if "relu" in made.name else 3
        assert about.training["flops"] == pytest.approx(training_flops(made.n_latents, 16, 1280, active, batch=64))
        assert told[made.name] == about.training["flops"]


def test_objectives_with_a_model_in_the_loop_count_what_lies_behind_the_site(tmp_path):
    model, text = tiny_model(), many_documents(tmp_path)
    how = {"model": "tiny", "site": SITE, "width": 20, "k": 3, "tokens": 640, "batch": 64, "context": 32}
    train(TrainConfig(**how, objective=("local", "e2e")), model=model, text=text, out=tmp_path / "a")
    train(TrainConfig(**how, finetune="e2e", finetune_tokens=64), model=model, text=text, out=tmp_path / "b")
    flops = [load(next((tmp_path / run).glob(name))).metadata.training["flops"]
             for run, name in (("a", "local*.safetensors"), ("a", "e2e*.safetensors"), ("b", "*.safetensors"))]  # fmt: skip
    blocks, last = model.model.transformer.h[1:], model.model.transformer.ln_f
    behind = sum(p.numel() for module in (*blocks, last, model.model.lm_head) for p in module.parameters())
    assert flops[0] == pytest.approx(training_flops(20, 16, 640, 3, batch=64))
    assert flops[1] - flops[0] == pytest.approx(640 * 4 * behind)
    assert flops[2] - flops[0] == pytest.approx(64 * 4 * behind)


def test_scaling_fits_runs_on_arrays_by_the_operations_in_their_files(tmp_path):
    config = TrainConfig(data="planted", width=(4, 8, 16, 32), k=2, tokens=6400, batch=64, lr=1e-2, seed=(0, 1))
    run = train(config, data=X, out=tmp_path / "run")
    report = scaling([tmp_path / "run"])
    frame = report.tables["runs"].frame.set_index("dictionary")
    assert report.settings["losses"] == ["normalised MSE"] and "CE increase" not in frame
    assert {"laws", "dead"} == set(report.plots)
    for made in run.dictionaries:
        assert frame.loc[made.name, "FLOPs"] == made.metadata.training["flops"]
        assert frame.loc[made.name, "normalised MSE"] == 1 - made.metadata.metrics["explained_variance"]
    report.save(tmp_path / "out")


def test_training_goes_on_from_a_dictionary_on_an_array(tmp_path):
    torch.manual_seed(0)
    how = {"data": "planted", "tokens": 6400, "batch": 64, "lr": 1e-2}
    (before,) = train(TrainConfig(**how, width=16, k=2), data=X, out=tmp_path / "a").dictionaries
    path = str(tmp_path / "a" / f"{before.name}.safetensors")
    (after,) = train(TrainConfig(**how, start=(path,)), data=X, out=tmp_path / "b").dictionaries
    assert after.metadata.sources == (before.name,) and after.metadata.training["start"]["tokens"] == 6400
    assert after.metadata.metrics["explained_variance"] > before.metadata.metrics["explained_variance"]
    assert after.metadata.training["k"] == 2 and after.n_latents == 16
