"""Plain arrays: every form gives the same rows, splits do not overlap, and what is no activation is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dictlab import DictlabError, load
from dictlab.data.activations import moments
from dictlab.data.arrays import RowStream, open_array
from dictlab.evaluation.metrics import METRICS
from dictlab.evaluation.reconstruction import evaluate_reconstruction
from dictlab.training import TrainConfig, train
from tests.planted import identity_dictionary, random_dictionary, sparse_data


def rows_of(data) -> torch.Tensor:
    return data.rows(np.arange(data.n_rows))


@pytest.mark.parametrize("form", ["tensor", "numpy", "npy", "fortran", "safetensors", "half"])
@pytest.mark.parametrize("shape", [(640, 6), (20, 32, 6)])
def test_every_form_of_an_array_gives_the_same_rows(tmp_path, form, shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).half().float()
    given = x
    if form == "numpy":
        given = x.numpy()
    if form == "half":
        given = x.half()
    if form in ("npy", "fortran"):
        given = tmp_path / "x.npy"
        np.save(given, np.asfortranarray(x.numpy()) if form == "fortran" else x.numpy())
    if form == "safetensors":
        given = f"{tmp_path / 'x.safetensors'}#acts"
        save_file({"acts": x, "other": torch.zeros(3)}, tmp_path / "x.safetensors")
    data = open_array(given)
    assert torch.equal(rows_of(data), x.reshape(-1, 6)) and data.d_in == 6
    assert data.in_blocks == (len(shape) == 2) and data.context == (10 if len(shape) == 2 else 32)
    assert data.fingerprint == open_array(given).fingerprint
    assert torch.cat(list(data.sample(10**6))).shape == (data.n_rows // data.context, data.context, 6)


def test_a_file_is_mapped_and_not_read(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1000, 8), dtype=np.float32))
    assert isinstance(open_array(tmp_path / "x.npy").values, np.memmap)


@pytest.mark.parametrize("shape", [(1280, 4), (70, 16, 4)])
def test_splits_share_no_row_and_leave_none_out(shape):
    x = torch.arange(int(np.prod(shape))).reshape(shape).float()
    data = open_array(x)
    train_rows, held = rows_of(data.as_split("train")), rows_of(data.as_split("heldout"))
    assert len(train_rows) + len(held) == data.n_rows and 0 < len(held) < 0.25 * data.n_rows
    together = torch.cat([train_rows, held])[:, 0].sort().values
    assert torch.equal(together, x.reshape(-1, 4)[:, 0])
    sampled = torch.cat([b.flatten(0, 1) for b in data.as_split("heldout").sample(10**6)])
    assert torch.equal(sampled[:, 0].sort().values, held[:, 0].sort().values)


def test_the_stream_gives_every_row_once_a_turn_and_goes_on_from_anywhere():
    data = open_array(torch.arange(100).float()[:, None].repeat(1, 3), whole=True)
    stream = RowStream(data, batch=30, seed=0)
    batches = [batch for batch, _ in zip(stream, range(10), strict=False)]
    order = torch.cat(batches)[:, 0]
    for turn in range(3):
        assert torch.equal(order[100 * turn : 100 * (turn + 1)].sort().values, torch.arange(100).float())
    assert not torch.equal(order[:100], order[100:200])
    stream = RowStream(data, batch=30, seed=0)
    for batch, _ in zip(stream, range(4), strict=False):
        assert torch.equal(batch, batches[_])
    again = RowStream(data, batch=30, seed=0, start={"rows": 120})
    assert all(torch.equal(a, b) for a, b in zip(again, batches[4:], strict=False))
    assert len(list(RowStream(data, batch=30, seed=0, turns=1))) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "x.npy", r"x\.npy: no such file"),
        (lambda d: torch.zeros(4), r"shape \(4,\); expected \[n, d\]"),
        (lambda d: torch.zeros(0, 4), r"nothing in it"),
        (lambda d: np.zeros((4, 4), dtype=np.int64), r"numbers of type int64; expected one of bfloat16"),
        (lambda d: _written(d / "x.npy", b"no array"), r"no \.npy array, or damaged"),
        (lambda d: _saved(d / "x.npy", np.array([{}, 3], dtype=object)), r"no \.npy array, or damaged"),
        (lambda d: f"{_saved(d / 'x.npy', np.zeros((4, 4)))}#part", r"holds one array; leave out #part"),
        (lambda d: _written(d / "x.safetensors", b"x"), r"no safetensors file, or damaged"),
        (lambda d: _tensors(d / "x.safetensors"), r"holds a, b; say which: .*#TENSOR"),
        (lambda d: f"{_tensors(d / 'x.safetensors')}#c", r"no tensor 'c'; it holds a, b"),
        (lambda d: _written(d / "x.csv", b"1,2"), r"x\.csv: expected a \.npy or \.safetensors file"),
    ],
)
def test_what_is_no_array_of_activations_is_refused(tmp_path, make, message):
    with pytest.raises(DictlabError, match=message):
        open_array(make(tmp_path))


def _written(path, content):
    path.write_bytes(content)
    return path


def _saved(path, array):
    np.save(path, array, allow_pickle=True)
    return path


def _tensors(path):
    save_file({"a": torch.zeros(4, 4), "b": torch.zeros(4, 4)}, path)
    return path


def test_a_row_that_is_no_number_is_named_when_it_is_read():
    x = torch.zeros(640, 3)
    x[123, 1] = torch.nan
    data = open_array(x, "mine")
    with pytest.raises(DictlabError, match="data mine: row 123 holds NaN"):
        rows_of(data)


def test_a_single_sequence_cannot_be_split():
    with pytest.raises(DictlabError, match="too few to hold one in ten out"):
        open_array(torch.zeros(1, 8, 3)).as_split("heldout")


# Measurement without a model


def test_metrics_without_a_model_are_their_formulas():
    x = torch.randn(40, 16, 8, generator=torch.Generator().manual_seed(0)) + 3
    dictionary = random_dictionary(24, 8)
    (found,) = evaluate_reconstruction([dictionary], open_array(x), tokens=10**6)
    codes, x_hat = dictionary(x.flatten(0, 1))
    flat = x.flatten(0, 1)
    assert found.value("mse") == pytest.approx(float((flat - x_hat).square().mean()), rel=1e-5)
    assert found.value("l0") == pytest.approx(float(codes.l0().float().mean()))
    variance = moments([flat]).variance * len(flat)
    assert found.value("explained_variance") == pytest.approx(
        float(1 - (flat - x_hat).square().sum() / variance), rel=1e-4
    )
    assert set(found.table()["metric"]) == {"L0", "MSE", "explained variance", "alive latents"}
    assert "ce_increase" in METRICS and "ce_increase" not in found.record()
    low, high = found.interval("mse")
    assert low < found.value("mse") < high


def test_a_perfect_dictionary_explains_all():
    (found,) = evaluate_reconstruction([identity_dictionary(8)], open_array(torch.randn(256, 8)), tokens=10**6)
    assert found.value("explained_variance") == pytest.approx(1)


# Training


def test_planted_directions_are_recovered_from_a_file_alone(tmp_path):
    """No model anywhere: 32 directions in 16 dimensions, two active."""

    from analyses.common.neighbours import nearest

    x, directions = sparse_data(20_000)
    np.save(tmp_path / "x.npy", x.numpy())
    config = TrainConfig(data=str(tmp_path / "x.npy"), width=(32,), k=(2,), lr=1e-2, batch=256, tokens=256 * 1500)
    run = train(config, out=tmp_path / "run")
    d = load(tmp_path / "run" / "local-topk2-32-s0.safetensors")
    assert nearest(directions, d.W_dec).cosine.mean() > 0.95
    about = d.metadata
    assert about.model is None and about.site is None and about.training["data"] == str(tmp_path / "x.npy")
    assert about.training["data_unit"] == "blocks of 128 rows" and about.training["rows"] < 20_000
    assert about.metrics["explained_variance"] > 0.9 and "ce_increase" not in about.metrics
    assert run.config.tokens == 256 * 1500 and d.firing_rate is not None


def test_epochs_of_an_array_are_passes_over_its_training_rows(tmp_path):
    x, _ = sparse_data(1280)
    run = train(TrainConfig(data="x", width=(32,), k=(2,), batch=64, epochs=3), out=tmp_path / "run", data=x)
    rows = open_array(x).as_split("train").n_rows
    assert run.config.tokens == 3 * rows and run.dictionaries[0].metadata.tokens == 3 * rows // 64 * 64


def test_a_meta_dictionary_is_trained_on_the_alive_decoder_rows_of_another(tmp_path):
    """Planted: every row is a mixture of two of 24 directions. Its explained variance is about the mean of the rows."""
    from dictlab import save

    rows, _ = sparse_data(600, n=24, d=16)
    large = random_dictionary(600, 16)
    rate = torch.ones(600)
    rate[500:] = 0
    large = replace(large, W_dec=3 * torch.nn.functional.normalize(rows - 0.7, dim=1), firing_rate=rate)
    save(large, tmp_path / "large.safetensors")
    config = TrainConfig(
        on=("decoder", str(tmp_path / "large.safetensors")), width=(24,), k=(2,), batch=128, epochs=80, lr=1e-2
    )
    run = train(config, out=tmp_path / "meta")
    d = run.dictionaries[0]
    about = d.metadata
    assert about.sources == ("large",) and about.training["on"] == ["decoder", str(tmp_path / "large.safetensors")]
    assert about.training["rows"] == 500 and about.training["data"] == "decoder of large"
    unit = torch.nn.functional.normalize(large.W_dec[:500], dim=1)
    left = (unit - d.reconstruct(unit)).square().sum() / (unit - unit.mean(dim=0)).square().sum()
    assert about.metrics["explained_variance"] == pytest.approx(1 - float(left), abs=1e-4)
    assert about.metrics["explained_variance"] > 0.8 and about.metrics["firing_tokens"] == about.tokens
