"""The explorer's folder against brute force over the same tokens: contexts, activations, text, twins, effects."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses.composition.insertion.direct_logits import leaving, logit_effects
from analyses.composition.insertion.insertion_effects import insertion_effects
from analyses.explorer.data_files import read_data, unpacked
from analyses.explorer.explore import explore
from dictlab import DictlabError, Metadata
from tests.analyses.explorer.conftest import CONTEXT, SIZES
from tests.planted import SITE


def records(explorer, d):
    n = -(-SIZES[d] // read_data(explorer.folder / "data", "meta")["latents_a_file"])
    return [record for part in range(n) for record in read_data(explorer.folder / "data", f"latents-{d}-{part}")]


@pytest.mark.parametrize("d", [0, 1])
def test_every_latent_is_there_with_its_activations(explorer, dense, d):
    sequences, _, codes = dense
    everything = records(explorer, d)
    assert len(everything) == SIZES[d]
    for latent, record in enumerate(everything):
        values = codes[d][:, latent].reshape(sequences.shape)
        assert sum(record["hist"]) == (values != 0).sum()
        top = [e for e in record["examples"] if e[0] == 0]
        strongest = np.sort(np.abs(values).max(axis=1))[::-1]
        assert [abs(values[s, p]) for _, s, p in top] == pytest.approx(strongest[: len(top)].tolist())
        assert len(top) == min(10, (values != 0).any(axis=1).sum())
        for (_, sequence, position), row in zip(record["examples"], record["acts"], strict=True):
            assert values[sequence, position] != 0
            shown = np.zeros(CONTEXT)
            shown[row[0::2]] = np.array(row[1::2]) * record["unit"]
            assert shown == pytest.approx(values[sequence], abs=6e-4 * float(np.abs(values).max()))


@pytest.mark.parametrize("d", [0, 1])
def test_twins_are_measured_on_the_same_tokens(explorer, dense, dictionaries, d):
    sequences, _, codes = dense
    e = 1 - d
    both = codes[d], codes[e]
    for latent, record in enumerate(records(explorer, d)):
        for twin in record["twins"][str(e)]:
            f, g = both[0][:, latent].astype(np.float64), both[1][:, twin["latent"]].astype(np.float64)
            assert twin["both"] == ((f != 0) & (g != 0)).sum()
            assert twin["active"] == (g != 0).sum()
            if f.std() > 0 and g.std() > 0:
                assert twin["correlation"] == pytest.approx(np.corrcoef(f, g)[0, 1], abs=1e-4)
            cosine = dictionaries[d].directions[latent] @ dictionaries[e].directions[twin["latent"]]
            assert twin["cosine"] == pytest.approx(float(cosine), abs=1e-4)
            for (_, sequence, _), row in zip(record["examples"], twin["acts"], strict=True):
                shown = np.zeros(CONTEXT)
                shown[row[0::2]] = np.array(row[1::2]) * twin["unit"]
                assert shown == pytest.approx(g.reshape(sequences.shape)[sequence], abs=6e-4 * float(np.abs(g).max()))


@pytest.mark.parametrize("d", [0, 1])
def test_pairs_and_what_is_absorbed(explorer, dense, dictionaries, d):
    """Absorbed: tokens at which both are active and the nearest alive latent of the other dictionary is silent."""
    _, _, codes = dense
    e = 1 - d
    active, other = codes[d] != 0, codes[e] != 0
    cosine = (dictionaries[d].directions @ dictionaries[e].directions.T).numpy()
    cosine[:, ~other.any(axis=0)] = -2
    nearest = cosine.argmax(axis=1)
    frame = explorer.pairs(f"d{SIZES[d]}", f"d{SIZES[e]}")
    assert frame["absorbed"].sum() > 0 and not frame.duplicated(["latent", "other latent"]).any()
    for row in frame.itertuples():
        i, j = row.latent, row._2
        both = active[:, i] & other[:, j]
        assert (row.active, row._7, row.both) == (active[:, i].sum(), other[:, j].sum(), both.sum())
        assert row.absorbed == (both & ~other[:, nearest[i]]).sum()
        assert row.cosine == pytest.approx(cosine[i, j], abs=1e-5) or not row._7
        either = (active[:, i] | other[:, j]).sum()
        assert row.Jaccard == pytest.approx(both.sum() / either) if either else np.isnan(row.Jaccard)
    with pytest.raises(DictlabError, match="there is no dictionary 'x'"):
        explorer.pairs("x", "d24")
    with pytest.raises(DictlabError, match="not compared with itself"):
        explorer.pairs("d24", "d24")


def test_contexts_of_a_latent(explorer, dense):
    sequences, _, codes = dense
    latent = int((codes[1] != 0).sum(axis=0).argmax())
    frame = explorer.contexts("d40", latent)
    values = codes[1][:, latent].reshape(sequences.shape)
    assert frame["activation"].to_numpy() == pytest.approx(
        values[frame["sequence"], frame["position"]], abs=6e-4 * float(np.abs(values).max())
    )
    assert set(frame["group"]) == {"top", "random", *(f"band {k} of 5" for k in range(1, 6))}
    strongest = explorer.latents.query("dictionary == 'd40' and latent == @latent")["contexts"].item().split("\n")
    assert len(strongest) == 3 and all("«" in context and "»" in context for context in strongest)
    with pytest.raises(DictlabError, match="latents 0 to 39"):
        explorer.contexts("d40", 40)


@pytest.mark.parametrize("d", [0, 1])
def test_the_nearest_and_the_most_correlated_are_those_of_all(explorer, dense, dictionaries, d):
    _, _, codes = dense
    e = 1 - d
    index = {k: unpacked(v) for k, v in read_data(explorer.folder / "data", f"index-{d}").items()}
    alive = np.flatnonzero((codes[e] != 0).any(axis=0))
    cosine = (dictionaries[d].directions @ dictionaries[e].directions.T).numpy()[:, alive]
    assert index[f"cos{e}"] == pytest.approx(cosine.max(axis=1), abs=3e-5)
    assert (alive[cosine.argmax(axis=1)] == index[f"near{e}"]).all()
    with np.errstate(invalid="ignore"):
        correlation = np.corrcoef(codes[d].T.astype(np.float64), codes[e].T.astype(np.float64))[: SIZES[d], SIZES[d] :]
    frame = explorer.latents[explorer.latents["dictionary"] == f"d{SIZES[d]}"]
    correlated = frame[f"most correlated in d{SIZES[e]}"].fillna(-1).astype(int).to_numpy()
    assert (correlated >= 0).any()
    for latent in np.flatnonzero(correlated >= 0):
        assert correlation[latent, correlated[latent]] == pytest.approx(np.nanmax(correlation[latent]), abs=1e-6)
        assert index[f"corr{e}"][latent] == pytest.approx(np.nanmax(correlation[latent]), abs=3e-5)
        both = (codes[d][:, latent] != 0) & (codes[e][:, index[f"near{e}"][latent]] != 0)
        either = (codes[d][:, latent] != 0) | (codes[e][:, index[f"near{e}"][latent]] != 0)
        assert index[f"jac{e}"][latent] == pytest.approx(both.sum() / either.sum(), abs=3e-5)


def test_effects_are_those_of_novelty(explorer, dense, dictionaries):
    _, x, _ = dense
    effects = insertion_effects(dictionaries[0], dictionaries[1], [x])
    index = {k: unpacked(v) for k, v in read_data(explorer.folder / "data", "index-1").items()}
    assert index["effect0"] == pytest.approx(effects.change.numpy(), rel=1e-4, abs=1e-7)
    meta = read_data(explorer.folder / "data", "meta")
    assert [meta["classes"][c] for c in index["class0"]] == [
        "dead" if dead else "novel" if novel else "reconstruction"
        for dead, novel in zip(effects.dead.tolist(), effects.novel.tolist(), strict=True)
    ]
    assert meta["dictionaries"][0]["mse"] == pytest.approx(effects.mse, rel=1e-5)
    assert not any(name.startswith("effect") for name in read_data(explorer.folder / "data", "index-0"))


def test_the_banner_says_l0_and_variance_unexplained_of_this_sample(explorer, dense, dictionaries):
    _, x, codes = dense
    x = x.flatten(0, 1).double()
    for about, dictionary, code in zip(
        read_data(explorer.folder / "data", "meta")["dictionaries"], dictionaries, codes, strict=True
    ):
        assert about["l0"] == pytest.approx((code != 0).sum(axis=1).mean())
        error = (x - dictionary.reconstruct(x.float()).double()).square().sum()
        assert about["unexplained"] == pytest.approx(float(error / (x - x.mean(dim=0)).square().sum()), rel=1e-5)


def test_texts_are_those_of_the_tokens(explorer, dense, model):
    sequences, _, _ = dense
    meta = read_data(explorer.folder / "data", "meta")
    parts = range(-(-meta["sequences"] // meta["sequences_a_file"]))
    texts = [one for part in parts for one in read_data(explorer.folder / "data", f"text-{part}")]
    assert len(texts) == len(sequences) == meta["sequences"]
    for ids, one in zip(sequences.tolist(), texts, strict=True):
        assert one["text"] == model.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert sum(one["lengths"]) == len(one["text"]) and len(one["lengths"]) == CONTEXT


def test_promoted_tokens_are_those_of_the_largest_logits(explorer, dense, model, dictionaries):
    sequences, _, codes = dense
    streams = leaving(model, sequences, seed=0)
    for d, dictionary in enumerate(dictionaries):
        mean = torch.tensor([c[c != 0].mean() if (c != 0).any() else 0.0 for c in codes[d].T])
        effects = logit_effects(model, dictionary.W_dec, mean, streams)
        for effect, record in zip(effects, records(explorer, d), strict=True):
            for key, order in (("up", effect.sort(descending=True)), ("down", effect.sort())):
                assert [v for _, v in record[key]] == pytest.approx(order.values[:8].tolist(), abs=1e-4)
                assert all(effect[t] == pytest.approx(v, abs=1e-4) for t, v in record[key])


def test_only_tokens_that_count_are_shown(model, dictionaries, text, tmp_path):
    """Without the first position of each context: no example there, and rates are over the others."""
    explorer = explore(
        dictionaries, model=model, text=text, tokens=32 * CONTEXT, token_selection="without-first", out=tmp_path / "x"
    )
    sequences = text.as_split("train").sample(model.tokenizer, CONTEXT, 32, seed=0)
    x = model.capture(sequences, SITE)[SITE]
    meta = read_data(explorer.folder / "data", "meta")
    assert meta["counted"] == 32 * (CONTEXT - 1)
    for d, dictionary in enumerate(dictionaries):
        codes = dictionary.encode(x).dense().numpy().reshape(32, CONTEXT, -1)[:, 1:]
        index = unpacked(read_data(explorer.folder / "data", f"index-{d}")["rate"])
        assert index == pytest.approx((codes != 0).mean(axis=(0, 1)), abs=1e-6)
        for record in records(explorer, d):
            assert all(position > 0 for _, _, position in record["examples"])


def test_the_frame_and_the_record(explorer, dictionaries):
    frame = explorer.latents
    assert len(frame) == sum(SIZES)
    assert frame.groupby("dictionary").size().to_dict() == {"d24": 24, "d40": 40}
    assert {"class to d24", "change in MSE of d24"} <= set(frame.columns)
    record = json.loads((explorer.folder / "report.json").read_text())
    assert set(record["files"]) == {path.name for path in explorer.folder.iterdir()}


def test_a_folder_is_replaced_only_when_asked_and_whole(model, dictionaries, text, tmp_path):
    arguments = {"model": model, "text": text, "tokens": 8 * CONTEXT, "out": tmp_path / "page"}
    explore(dictionaries, **arguments)
    (tmp_path / "page" / "mine.txt").write_text("kept")
    with pytest.raises(DictlabError, match="already holds a report"):
        explore(dictionaries, **arguments)
    explorer = explore(dictionaries[:1], **arguments, force=True)
    assert (tmp_path / "page" / "mine.txt").read_text() == "kept"
    assert not (explorer.folder / "data" / "index-1.js").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_dictionaries_of_other_sites_are_refused(model, dictionaries, text, tmp_path):
    other = replace(dictionaries[1], metadata=Metadata(site="blocks.2.hook_resid_pre"))
    with pytest.raises(DictlabError, match="cannot be compared"):
        explore([dictionaries[0], other], model=model, text=text, out=tmp_path / "page")


def test_one_dictionary_and_a_folder_that_is_served_again(model, dictionaries, text, tmp_path, monkeypatch):
    """Served again the folder is not made again, unless something that decides its content is another."""
    served = []
    monkeypatch.setattr("analyses.explorer.explore.serve_explorer", lambda folder, live, port: served.append(folder))
    arguments = {"model": model, "text": text, "tokens": 8 * CONTEXT, "out": tmp_path / "page", "serve": True}
    explore(dictionaries[:1], **arguments)
    made = (tmp_path / "page" / "report.json").stat().st_mtime_ns
    explore(dictionaries[:1], **arguments)
    assert (tmp_path / "page" / "report.json").stat().st_mtime_ns == made and len(served) == 2
    with pytest.raises(DictlabError, match="already holds a report"):
        explore(dictionaries[:1], **arguments, seed=1)
