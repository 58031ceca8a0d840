"""Analyses of plain activations: planted truths, the numbers of the model that they come from, and no model opened."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from analyses import frankenstein, geometry, matching, novelty, pareto, path, scaling, shrinkage, stitching
from analyses.common.max_activating import find_contexts
from analyses.quality.verification.verification import verification
from dictlab import Dictionary, DictlabError, Metadata, ReLU, TopK
from dictlab.data.activations import ModelActivations
from dictlab.data.arrays import open_array
from tests.planted import SITE, random_dictionary, sparse_data, tiny_model

MODEL_ONLY = ("CE", "KL", "nats")


def planted(tokens: int = 4000, latents: int = 16, active: int = 2) -> tuple[torch.Tensor, list[Dictionary]]:
    """Activations of orthogonal directions; the dictionaries of one half of these, of the other, and of all of them."""
    x, directions = sparse_data(tokens, n=latents, d=latents, active=active)
    mean = torch.full((latents,), 0.7)

    def of(rows: slice, name: str) -> Dictionary:
        own, about = directions[rows], Metadata(objective="local")
        return Dictionary(own.T, torch.full((len(own),), -1e-4), own, mean, mean, ReLU(), metadata=about, name=name)

    return x, [of(slice(0, latents // 2), "first"), of(slice(latents // 2, None), "second"), of(slice(None), "all")]


X, (FIRST, SECOND, ALL) = planted()
FIT = {"tokens": 2000, "data": X}
SIX = tuple(random_dictionary(n, 16, seed=s, activation=TopK(k), name=f"s{n}{k}{s}") for n, k, s in (
    (8, 2, 0), (8, 2, 1), (16, 2, 0), (16, 2, 1), (32, 2, 0), (32, 2, 1)))  # fmt: skip
ANALYSES = {
    "stitching": lambda **o: stitching(FIRST, [SECOND], **{"tokens": 2000, **o}),
    "path": lambda **o: path(FIRST, [ALL], **{"tokens": 2000, "random_orders": 1, **o}),
    "frankenstein": lambda **o: frankenstein([FIRST, SECOND], **{"tokens": 2000, **o}),
    "novelty": lambda **o: novelty(FIRST, ALL, **{"tokens": 2000, **o}),
    "matching": lambda **o: matching([FIRST, ALL], **{"tokens": 2000, "permutations": 20, **o}),
    "geometry": lambda **o: geometry([FIRST, ALL], **{"tokens": 2000, "umap_points": 0, "permutations": 20, **o}),
    "pareto": lambda **o: pareto([FIRST, ALL], **o),
    "shrinkage": lambda **o: shrinkage([FIRST, ALL], **{"l0_levels": (1, 2), **o}),
    "scaling": lambda **o: scaling(SIX, **{"remeasure": True, **o}),
    "verification": lambda **o: verification(ALL, **o),
}


def words_of(report) -> str:
    """Everything that a report says."""
    said = [report.title, report.summary, *report.warnings]
    said += [word for table in report.tables.values() for word in (table.caption, *table.frame.columns)]
    for plot in report.plots.values():
        axes = plot.figure.axes
        said += [plot.caption, *(text for ax in axes for text in (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()))]
    return "\n".join(map(str, said))


@pytest.mark.parametrize("name", ANALYSES)
def test_reports_of_plain_activations_name_the_array_and_nothing_that_takes_a_model(name, tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    report = ANALYSES[name](data=tmp_path / "x.npy")
    said = words_of(report)
    assert not [word for word in MODEL_ONLY if word in said.split() or f"{word} " in said]
    assert "text" not in said and "token)" not in said.replace("latents/token)", "")
    assert report.settings["data"] == str(tmp_path / "x.npy") and "model" not in report.settings
    report.save(tmp_path / "out")
    assert "data_fingerprint" in (tmp_path / "out" / "report.json").read_text()


# Planted truths


def quality_of(report) -> dict[str, float]:
    frame = report.tables["quality"].frame
    return dict(zip(frame["dictionary"], frame["explained variance"], strict=True))


def test_a_stitch_of_two_halves_is_the_whole():
    report = stitching(FIRST, [SECOND], select="effect", **FIT)
    quality = quality_of(report)
    assert quality["first"] < 0.7 and quality["stitched"] > 0.9999
    stitched = report.dictionaries["stitched"]
    assert (stitched.directions @ ALL.directions.T).max(dim=1).values.min() > 0.999
    assert stitched.metadata.training["data_fingerprint"] == report.settings["data_fingerprint"]


def test_a_path_to_the_other_half_inserts_all_of_it():
    report = path(FIRST, [SECOND], **FIT, random_orders=0)
    phases, waypoints = report.tables["phases"].frame, report.tables["waypoints"].frame
    inserted = waypoints[waypoints["phase"] == "insert"].iloc[-1]
    assert phases["phase"].iloc[0] == "insert" and phases["steps"].iloc[0] == 8
    assert inserted["explained variance"] > 0.999 and {"MSE low", "MSE high"} <= set(waypoints)


def test_a_dictionary_put_together_from_two_halves_is_the_whole():
    report = frankenstein([FIRST, SECOND], baselines=[ALL], **FIT, compact="decisions")
    quality = quality_of(report)
    assert quality["cosine, none"] > 0.9999 and quality["first"] < 0.7
    assert set(report.tables["at_equal_size"].frame["error"]) == {"MSE"}
    assert report.dictionaries["frankenstein"].n_latents == 16


def test_planted_shrinkage_is_found():
    shrunk = replace(ALL, W_enc=0.6 * ALL.W_enc, name="shrunk")
    row = shrinkage([shrunk], data=X, l0_levels=(2,)).tables["overview"].frame.iloc[0]
    assert row["size"] == pytest.approx(1 / 0.6, rel=1e-3) and row["normalised MSE refined"] < 1e-3


def test_pareto_compares_errors_where_there_is_no_model():
    lines = [replace(ALL, W_dec=factor * ALL.W_dec, activation=TopK(k), name=f"{name}{k}",
                     metadata=Metadata(objective=name, seed=0, training={"k": k}))
             for name, factor in (("local", 0.9), ("other", 0.8)) for k in (1, 2)]  # fmt: skip
    report = pareto(lines, data=X)
    points = report.tables["points"].frame.set_index("dictionary")
    assert points["MSE"].idxmin() == "local2" and (points["MSE low"] <= points["MSE"]).all()
    assert "MSE at matched L0" in set(report.tables["matched"].frame["what"]) and "similar_mse" in report.tables
    assert "Smallest MSE" in report.summary


def test_the_rows_shown_are_those_where_a_latent_is_strongest():
    direction, x = FIRST.W_enc[:, 0], X[:640]
    row = int(((x - 0.7) @ direction).argmax())
    for data, expected in ((x, f"row {row}"), (x.reshape(20, 32, 16), f"sequence {row // 32}, row {row % 32}")):
        contexts, _ = find_contexts([FIRST], None, "builtin", 10**6, 0, "cpu", data)
        assert contexts is not None
        assert contexts.of("first", [0])[0][0] == expected


# Beside the model that the activations come from


def test_plain_activations_give_the_same_effects_as_the_model_that_they_come_from(tmp_path, text):
    """The activations of the sample, saved as sequences and as rows; no model is opened for them."""
    model = tiny_model()
    small, large = (random_dictionary(n, 16, seed=n, name=f"d{n}") for n in (12, 24))
    with_model = novelty(small, large, model=model, text=text, tokens=640, cards=0)
    x = torch.cat(list(ModelActivations(model, text, SITE, 32).sample(640)))
    np.save(tmp_path / "x.npy", x.numpy())
    for data in (x, str(tmp_path / "x.npy")):
        plain = novelty(small, large, data=data, tokens=10**6)
        a, b = (r.tables["latents"].frame.sort_values("latent", ignore_index=True) for r in (with_model, plain))
        np.testing.assert_allclose(a["change in MSE"], b["change in MSE"], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(a["standard error"], b["standard error"], rtol=1e-3, atol=1e-7)
    assert (
        not plain.cards and plain.settings["data_unit"] == "sequences" and not any("rows" in w for w in plain.warnings)
    )
    rows = novelty(small, large, data=x.flatten(0, 1), tokens=10**6)
    assert any("over blocks of 10 rows of array" in warning for warning in rows.warnings)


def test_what_is_measured_of_an_array_is_what_the_model_that_it_comes_from_gives(text):
    model, how = tiny_model(), {"contexts": 8, "seed": 3}
    some = [random_dictionary(n, 16, seed=n, name=f"d{n}") for n in (12, 24)]
    x = torch.cat(list(ModelActivations(model, text.as_split("heldout"), SITE, 32).sample(8 * 32, seed=3)))
    for analysis, table, columns in (
        (pareto, "points", ["L0", "explained variance"]),
        (pareto, "measures", ["MSE"]),
        (shrinkage, "overview", ["L0", "size", "normalised MSE", "normalised MSE refined", "grown", "silenced"]),
    ):
        known = analysis(some, model=model, text=text, **how).tables[table].frame.set_index("dictionary")
        found = analysis(some, data=x, **how).tables[table].frame.set_index("dictionary")
        for column in columns:
            np.testing.assert_allclose(found.loc[["d12", "d24"], column], known.loc[["d12", "d24"], column], rtol=1e-4)


def test_the_splits_of_a_models_activations_are_drawn_apart(text):
    source = ModelActivations(tiny_model(), text, SITE, 32)
    train = source.sequences(128, seed=1)
    held = source.as_split("heldout").sequences(128, seed=1)
    assert not torch.equal(train, held) and torch.equal(source.as_split("train").sequences(128, seed=1), train)


# Forms and splits


@pytest.mark.parametrize("form", ["tensor", "numpy", "float16", "bfloat16", "npy", "safetensors", "file of halves"])
@pytest.mark.parametrize("shape", [(-1, 16), (100, 40, 16)])
def test_every_form_of_an_array_gives_the_same_dictionary(form, shape, tmp_path):
    exact = X.bfloat16().half() if form in ("float16", "bfloat16", "file of halves") else X
    x = exact.float().reshape(shape)
    given = {
        "tensor": lambda: x,
        "numpy": lambda: x.numpy(),
        "float16": lambda: x.half().numpy(),
        "bfloat16": lambda: x.bfloat16(),
        "npy": lambda: _saved(tmp_path / "x.npy", x),
        "safetensors": lambda: _saved(tmp_path / "x.safetensors", x),
        "file of halves": lambda: _saved(tmp_path / "x.safetensors", x.bfloat16()),
    }[form]()
    found = stitching(FIRST, [SECOND], data=given, tokens=1000, contexts=4)
    expected = stitching(FIRST, [SECOND], data=x, tokens=1000, contexts=4)
    assert torch.equal(found.dictionaries["stitched"].W_dec, expected.dictionaries["stitched"].W_dec)
    assert found.settings["data_unit"] == ("sequences" if x.ndim == 3 else "blocks of 62 rows")
    assert any("no sequences" in warning for warning in found.warnings) == (x.ndim == 2)


def _saved(path, x):
    if path.suffix == ".npy":
        np.save(path, x.numpy())
    else:
        save_file({"acts": x.contiguous()}, path)
    return path


def test_nothing_is_measured_on_rows_that_were_fitted_on(monkeypatch):
    """Each sequence of the array is one number, so that rows tell whose they are."""
    x = torch.arange(100.0)[:, None, None].expand(100, 40, 16) + torch.randn(
        1, 40, 16, generator=torch.Generator().manual_seed(0)
    )
    seen: dict[str, set[float]] = {}
    sample = type(open_array(x)).sample

    def watched(self, tokens, *, seed=0):
        for batch in sample(self, tokens, seed=seed):
            seen.setdefault(self.split, set()).update((batch - x[:1]).mean(dim=(1, 2)).round().tolist())
            yield batch

    monkeypatch.setattr(type(open_array(x)), "sample", watched)
    small, large = (random_dictionary(n, 16, seed=n, name=f"d{n}") for n in (8, 12))
    stitched = stitching(small, [large], data=x, tokens=10**6, contexts=1000).dictionaries["stitched"]
    seen.pop("all", None)  # a few rows, looked at for attention sinks
    assert seen.keys() == {"train", "heldout"} and not seen["train"] & seen["heldout"]
    assert len(seen["train"] | seen["heldout"]) == 100
    held, seen = set(seen["heldout"]), {}
    pareto([stitched], data=x, contexts=1000)  # it has seen the rest
    pareto([small], data=x, contexts=1000)  # it has not
    assert seen["heldout"] == held and len(seen["all"]) == 100


# What does not fit


@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": torch.zeros(640, 5)}, r"activations of width 5; \w+ reads 16"),
        ({"data": torch.zeros(640, 16), "model": "x"}, "a model and data are given"),
        ({"data": "missing.npy"}, "missing.npy: no such file"),
        ({"data": torch.where(torch.arange(640)[:, None] >= 0, torch.nan, X[:640])}, "holds NaN or infinite"),
        ({"data": torch.zeros(640, 16, dtype=torch.long)}, "numbers of type int64; expected one of"),
        ({"data": X[:0]}, "there is nothing in it"),
        ({"data": X[0]}, r"expected \[n, d\]"),
    ],
)
def test_plain_activations_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(DictlabError, match=message):
        ANALYSES[name](**options)


@pytest.mark.parametrize("name", ["stitching", "path", "frankenstein"])
@pytest.mark.parametrize("data", [X[:1], X[None, :50]])
def test_what_is_chosen_on_too_few_rows_is_refused(name, data):
    with pytest.raises(DictlabError, match="too few to hold one in ten out"):
        ANALYSES[name](data=data)


@pytest.mark.parametrize("name", ["stitching", "path", "frankenstein"])
def test_a_few_rows_are_measured_without_intervals_or_refused_in_a_sentence(name):
    report = ANALYSES[name](data=X[:100].reshape(2, 50, 16))
    assert "nan" not in report.summary and any("One sequence: no intervals" in said for said in report.warnings)
    with pytest.raises(DictlabError, match=r"what is measured on \(1 rows\) does not vary"):
        ANALYSES[name](data=X[:12])


@pytest.mark.parametrize("name", ["pareto", "shrinkage", "verification"])
def test_an_array_that_no_dictionary_has_seen_is_measured_on_whole(name):
    report = ANALYSES[name](data=X[:12])
    assert any("12 rows (12 rows" in table.caption for table in report.tables.values())


def test_options_that_need_a_model_are_refused_beside_data():
    with pytest.raises(DictlabError, match="needs a model; data has none"):
        novelty(FIRST, ALL, data=X, ce_latents=3)
    with pytest.raises(DictlabError, match="give `remeasure=True` with it"):
        scaling(SIX, data=X)
    with pytest.raises(DictlabError, match="nothing would be read of the data"):
        geometry([FIRST], data=X, tokens=0)
