"""Feature files against the explorer's own numbers, field by field as circuit-tracer and Neuronpedia name them."""

import gzip
import json
import shutil

import numpy as np
import pytest

from analyses.explorer.circuit_tracer_files import cantor
from analyses.explorer.data_files import read_data, write_data
from analyses.explorer.export import export
from analyses.explorer.neuronpedia_files import TOP_BIN
from dictlab import DictlabError
from tests.analyses.explorer.conftest import CONTEXT, SIZES

LAYER = 1  # of the planted site, blocks.1.hook_resid_pre


@pytest.fixture(scope="module")
def circuit_tracer(explorer, tmp_path_factory):
    return export(explorer.folder, to="circuit-tracer", out=tmp_path_factory.mktemp("features") / "out").folder


@pytest.fixture(scope="module")
def neuronpedia(explorer, tmp_path_factory):
    out = tmp_path_factory.mktemp("upload") / "out"
    return export(explorer.folder, to="neuronpedia", model_id="tiny", out=out).folder


def test_cantor_numbers_are_those_of_the_formula_and_all_different():
    assert [cantor(0, 0), cantor(1, 0), cantor(0, 1), cantor(2, 3)] == [0, 1, 2, 18]
    assert len({cantor(layer, latent) for layer in range(40) for latent in range(40)}) == 1600


@pytest.mark.parametrize("d", [0, 1])
def test_circuit_tracers_files(circuit_tracer, dense, model, d):
    sequences, _, codes = dense
    folder = circuit_tracer / f"d{SIZES[d]}"
    assert len(list(folder.iterdir())) == SIZES[d]
    for latent in range(SIZES[d]):
        feature = json.loads((folder / f"{cantor(LAYER, latent)}.json").read_text())
        values = codes[d][:, latent].reshape(sequences.shape)
        assert feature["index"] == latent and feature["transcoder_id"] == f"d{SIZES[d]}"
        assert feature["activation_frequency"] == pytest.approx((values != 0).mean(), abs=1e-6)
        assert sum(feature["histogram"]) == (values != 0).sum()
        assert len(feature["top_logits"]) == len(feature["bottom_logits"]) == 8
        if not (values != 0).any():
            assert feature["examples_quantiles"] == [] and "act_max" not in feature
            continue
        assert feature["act_max"] == pytest.approx(np.abs(values).max(), rel=1e-4)
        assert feature["act_min"] == pytest.approx(np.abs(values[values != 0]).min(), rel=1e-4)
        top, *_ = feature["examples_quantiles"]
        assert top["quantile_name"] == "Top activations"
        strongest = np.argsort(-np.abs(values).max(axis=1), kind="stable")
        for number, example in zip(strongest.tolist(), top["examples"], strict=False):
            assert example["tokens_acts_list"] == pytest.approx(values[number], abs=6e-4 * float(np.abs(values).max()))
            assert (
                example["train_token_ind"] == np.abs(values[number]).argmax() and not example["is_repeated_datapoint"]
            )
            assert "".join(example["tokens"]) == model.tokenizer.decode(sequences[number].tolist())
        for group in feature["examples_quantiles"]:
            for example in group["examples"]:
                assert set(example) == {"tokens", "tokens_acts_list", "train_token_ind", "is_repeated_datapoint"}
                assert len(example["tokens"]) == len(example["tokens_acts_list"]) == CONTEXT


def rows(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_neuronpedias_rows(neuronpedia, dense):
    _, _, codes = dense
    source = f"{LAYER}-d{SIZES[1]}"
    folder = neuronpedia / f"d{SIZES[1]}"
    features = rows(folder / "features" / "batch-0.jsonl.gz")
    assert [row["index"] for row in features] == [str(i) for i in range(SIZES[1])]
    for latent, row in enumerate(features):
        values = codes[1][:, latent]
        assert (row["modelId"], row["layer"], row["hasVector"]) == ("tiny", source, False)
        assert row["frac_nonzero"] == pytest.approx((values != 0).mean(), abs=1e-6)
        assert row["maxActApprox"] == pytest.approx(np.abs(values).max(), rel=1e-5)
        assert len(row["pos_str"]) == len(row["pos_values"]) and row["pos_values"] == sorted(row["pos_values"])[::-1]
        assert row["neg_values"] == sorted(row["neg_values"])
        assert len(row["freq_hist_data_bar_heights"]) == len(row["freq_hist_data_bar_values"])
        assert latent not in row["topkCosSimIndices"]
    activations = rows(folder / "activations" / "batch-0.jsonl.gz")
    assert len({row["id"] for row in activations}) == len(activations)
    for row in activations:
        assert (row["modelId"], row["layer"]) == ("tiny", source)
        assert row["maxValue"] == max(row["values"]) == row["values"][row["maxValueTokenIndex"]]
        assert row["minValue"] == min(row["values"]) and len(row["tokens"]) == len(row["values"])
        peak = row["values"][row["qualifyingTokenIndex"]]
        if row["binContains"] == TOP_BIN:
            assert row["binMin"] == TOP_BIN and row["maxValueTokenIndex"] == row["qualifyingTokenIndex"]
        else:
            assert row["binContains"] == pytest.approx(0.2)
            step = 6e-4 * features[int(row["index"])]["maxActApprox"]  # activations are whole thousandths of it
            assert row["binMin"] - step <= peak <= row["binMax"] + step


def test_neuronpedias_uploads_keep_its_limits(neuronpedia, dense):
    _, _, codes = dense
    (path,) = (neuronpedia / f"d{SIZES[0]}" / "upload").iterdir()
    body = json.loads(path.read_text())
    assert set(body) == {"modelId", "source", "features"} and body["source"] == f"{LAYER}-d{SIZES[0]}"
    alive = np.flatnonzero((codes[0] != 0).any(axis=0)).tolist()
    assert [feature["index"] for feature in body["features"]] == alive
    for feature in body["features"]:
        assert set(feature) == {"index", "density", "topLogits", "bottomLogits", "explanations", "activations"}
        assert 0 <= feature["density"] <= 1 and 1 <= len(feature["topLogits"]) <= 20
        assert all(set(one) == {"token", "value"} for one in feature["topLogits"] + feature["bottomLogits"])
        assert len(feature["activations"]) >= 1
        for one in feature["activations"]:
            assert set(one) == {"tokens", "values", "quantileMin", "quantileMax", "quantileFraction"}
            assert 1 <= len(one["tokens"]) == len(one["values"]) <= 1024


def test_words_of_reports_and_bytes_that_are_no_text(explorer, tmp_path):
    shutil.copytree(explorer.folder, tmp_path / "page")
    data = tmp_path / "page" / "data"
    meta = read_data(data, "meta")
    write_data(data, "meta", meta | {"labels": 1})
    write_data(data, "labels", [[0, 3, "A report", "x" * 600]])
    texts = read_data(data, "text-0")
    for one in texts:
        one["text"] = "\udc80\x00" + one["text"][2:]
    write_data(data, "text-0", texts)
    out = export(tmp_path / "page", to="neuronpedia", out=tmp_path / "out").folder / f"d{SIZES[0]}"
    (row,) = rows(out / "explanations" / "batch-0.jsonl.gz")
    assert (row["index"], row["typeName"], row["description"]) == ("3", "A report", "x" * 600)
    body = json.loads((out / "upload" / "batch-0.json").read_text())
    told = [feature["explanations"] for feature in body["features"] if feature["index"] == 3]
    assert all(len(one["text"]) == 512 for one in told[0])
    written = (out / "upload" / "batch-0.json").read_text()
    assert "\\u0000" not in written and "\\udc80" not in written and "\\ufffd" in written


def test_folders_that_cannot_be_exported_are_refused(explorer, tmp_path):
    with pytest.raises(DictlabError, match="no explorer's folder"):
        export(tmp_path, to="neuronpedia", out=tmp_path / "out")
    data = tmp_path / "page" / "data"
    data.mkdir(parents=True)
    meta = read_data(explorer.folder / "data", "meta")
    write_data(data, "vocabulary", {"ids": [], "texts": []})
    write_data(data, "meta", meta | {"schema": 0})
    with pytest.raises(DictlabError, match="version 0"):
        export(tmp_path / "page", to="neuronpedia", out=tmp_path / "out")
    meta["dictionaries"][0]["site"] = "ln_f:out"
    write_data(data, "meta", meta)
    with pytest.raises(DictlabError, match="no layer's number"):
        export(tmp_path / "page", to="circuit-tracer", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
