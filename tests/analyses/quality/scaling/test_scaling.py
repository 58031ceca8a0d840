"""The scaling analysis: what files and runs say, fits of planted losses, and too few runs."""

import json
from dataclasses import replace

import pytest
import torch

from analyses import scaling
from dictlab import Metadata, ReLU, TopK, save
from dictlab.errors import DictlabError
from dictlab.numerics.flops import training_flops
from tests.planted import SITE, many_documents, random_dictionary, tiny_model


def run(width, k=4, seed=0, loss=None, objective="local"):
    """A dictionary whose file says that its normalised MSE follows 2 width^-0.3."""
    value = loss if loss is not None else 2 * width**-0.3 * (1 + 0.002 * (seed - 0.5))
    metrics = {"explained_variance": 1 - value, "ce_increase": 3 * value, "l0": float(k), "evaluation_sample": "same"}
    metadata = Metadata(
        site=SITE, objective=objective, seed=seed, tokens=10_000, training={"batch": 100}, metrics=metrics
    )
    made = random_dictionary(width, 16, activation=TopK(k), metadata=metadata, name=f"w{width}-k{k}-s{seed}")
    return replace(made, firing_rate=(torch.arange(width) >= width // 8).float())


FAMILY = [run(width, seed=seed) for width in (32, 64, 128, 256, 512) for seed in (0, 1)]


def test_operations_are_counted_by_hand():
    # 3 latents of width 2, 1 active, 10 tokens in batches of 5
    encoder, rest, adam = 2 * 2 * 3, 8 * 2 * 1, 24 * 2 * 3 / 5
    assert training_flops(3, 2, 10, 1, batch=5) == pytest.approx(10 * (encoder + rest + adam))
    assert training_flops(3, 2, 10, 1, batch=5, parameters_behind=7) == pytest.approx(10 * (encoder + rest + adam + 28))


def test_the_law_in_the_files_is_found():
    report = scaling(FAMILY)
    fits = report.tables["fits"].frame
    row = fits[(fits["loss"] == "normalised MSE") & (fits["law"] == "L(N)")].iloc[0]
    assert row["alpha"] == pytest.approx(0.3, abs=0.002) and row["alpha low"] <= 0.3 <= row["alpha high"]
    predictions = report.tables["predictions"].frame
    own = predictions[(predictions["law"] == "L(N)") & (predictions["loss"] == "normalised MSE")]
    assert own["ratio"].tolist() == pytest.approx([1, 1], abs=0.01) and set(own["dictionary"]) == {
        "w512-k4-s0",
        "w512-k4-s1",
    }
    assert report.tables["runs"].frame["dead"].tolist() == pytest.approx([1 / 8] * 10)
    assert report.tables["not_fitted"].frame["law"].str.startswith("L(N, K)").any()


def test_too_few_runs_are_refused_with_what_is_needed():
    with pytest.raises(DictlabError, match="too few runs for a fit: 2 given"):
        scaling([run(32), run(64)])
    with pytest.raises(DictlabError, match="1 of width"):
        scaling([run(32, seed=seed) for seed in range(6)])


def test_runs_that_differ_in_sparsity_and_not_in_width_alone_are_in_no_fit():
    penalised = [replace(run(width), activation=ReLU(), name=f"relu{width}") for width in (32, 64, 128, 256)]
    report = scaling([*FAMILY, *penalised])
    assert not report.tables["fits"].frame["runs of"].str.contains("relu").any()
    assert report.tables["not_fitted"].frame["why"].str.contains("no k").any()


def test_a_file_without_losses_is_named_and_measuring_is_offered():
    with pytest.raises(DictlabError, match=r"random: its file holds no explained_variance. Give `remeasure=True`"):
        scaling([*FAMILY, random_dictionary()])


def test_losses_are_measured_where_that_is_asked_for(tmp_path):
    several = [replace(run(width), metadata=Metadata(site=SITE, objective="local")) for width in (32, 64, 128, 256)]
    report = scaling(several, remeasure=True, model=tiny_model(), text=many_documents(tmp_path), contexts=4)
    assert (report.tables["runs"].frame["normalised MSE"] > 0).all()
    assert report.tables["runs"].frame["FLOPs"].isna().all() and "No FLOPs" in report.warnings[0]


def test_a_folder_of_a_run_stands_for_its_dictionaries_and_its_log(tmp_path):
    for dictionary in FAMILY:
        save(dictionary, tmp_path / f"{dictionary.name}.safetensors")
    lines = [json.dumps({"member": "m", "tokens": t, "dead": 0.1}) for t in (100, 200)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert len(scaling([tmp_path]).tables["runs"].frame) == len(FAMILY)
    (tmp_path / "metrics.jsonl").write_text("{broken\n")
    with pytest.raises(DictlabError, match="line 1 is damaged"):
        scaling([tmp_path])


def test_a_run_without_dictionaries_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(DictlabError, match="holds no dictionaries"):
        scaling([tmp_path])
