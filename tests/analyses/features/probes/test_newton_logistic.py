"""Probes of single features: against scikit-learn, and the bound by which columns are passed over."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from analyses.features.probes import newton_logistic, sparse_columns
from analyses.features.probes.sparse_columns import Dense, Sparse
from dictlab.dictionary.codes import Codes, offsets_of


def codes(tokens=600, n=40, seed=0, rate=0.08):
    """Random codes in which some latents never fire, and one fires everywhere."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.rand(tokens, n, generator=generator) * (torch.rand(tokens, n, generator=generator) < rate)
    z[:, 3] = 0
    z[:, 4] = 1 + torch.rand(tokens, generator=generator)
    rows, indices = z.nonzero(as_tuple=True)
    return z, Codes(z[rows, indices], indices, offsets_of(torch.bincount(rows, minlength=tokens)), n)


def reference(z, y, ridge):
    """scikit-learn's answer in units of z."""
    scaler = StandardScaler(with_mean=False).fit(z)
    model = LogisticRegression(C=ridge, tol=1e-12, max_iter=10_000).fit(scaler.transform(z), y)
    return model.coef_[0, 0] / scaler.scale_[0], model.intercept_[0], model.predict_log_proba(scaler.transform(z))


@pytest.mark.parametrize("ridge", [0.1, 1.0, 100.0])
def test_probes_equal_scikit_learns_logistic_regression(ridge):
    z, sparse = codes()
    y = (z[:, 5] > 0.5) | (z[:, 7] > 0) & (torch.arange(len(z)) % 3 == 0)
    fit = newton_logistic.fit(Sparse.of(sparse), y, ridge=ridge)
    for latent in (0, 4, 5, 7, 11):
        weight, bias, log_p = reference(z[:, [latent]].double().numpy(), y.numpy(), ridge)
        assert fit.weight[latent] == pytest.approx(weight, rel=1e-4, abs=1e-4)
        assert fit.bias[latent] == pytest.approx(bias, rel=1e-4, abs=1e-4)
        assert fit.loss[latent] == pytest.approx(-log_p[np.arange(len(y)), y.numpy().astype(int)].mean(), rel=1e-5)


def test_a_latent_that_never_fires_knows_the_share_of_true_labels_only():
    z, sparse = codes()
    y = z[:, 5] > 0
    fit = newton_logistic.fit(Sparse.of(sparse), y)
    assert fit.weight[3] == 0
    assert fit.loss[3] == pytest.approx(float(newton_logistic.entropy(y.double().mean())))


def test_a_perfect_latent_has_a_finite_probe_because_of_the_ridge():
    z, sparse = codes()
    fit = newton_logistic.fit(Sparse.of(sparse), z[:, 5] > 0)
    assert torch.isfinite(fit.weight).all() and torch.isfinite(fit.bias).all()
    assert fit.loss[5] < 0.2 * fit.loss[3] and int(fit.loss.argmin()) == 5


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), rate=st.sampled_from([0.01, 0.1, 0.5]))
def test_passing_over_columns_by_their_bound_finds_the_same_best_column(seed, rate):
    z, sparse = codes(tokens=200, n=30, seed=seed, rate=rate)
    y = torch.rand(len(z), generator=torch.Generator().manual_seed(seed)) < 0.2 + 0.6 * (z[:, 6] > 0)
    columns = Sparse.of(sparse)
    fit = newton_logistic.fit(columns, y)
    assert float(fit.loss[newton_logistic.best(columns, y)]) == pytest.approx(float(fit.loss.min()), abs=1e-9)
    assert (newton_logistic.silent_entropy(columns, y) <= fit.loss + 1e-9).all()


def test_sparse_and_dense_columns_have_the_same_probes():
    z, sparse = codes(rate=0.3)
    y = z[:, 5] > 0.4
    a, b = newton_logistic.fit(Sparse.of(sparse), y), newton_logistic.fit(Dense(z.double().T), y)
    torch.testing.assert_close(a.loss, b.loss, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(a.weight, b.weight, rtol=1e-4, atol=1e-4)


def test_blocks_change_nothing(monkeypatch):
    z, sparse = codes()
    y = z[:, 5] > 0.4
    whole = newton_logistic.fit(Sparse.of(sparse), y)
    monkeypatch.setattr(sparse_columns, "ENTRIES", 70)
    torch.testing.assert_close(newton_logistic.fit(Sparse.of(sparse), y).weight, whole.weight)


def test_the_dense_probe_equals_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(800, 6, generator=generator, dtype=torch.double)
    y = torch.stack([x[:, 0] + 0.5 * torch.randn(800, generator=generator) > 0, x[:, 1] - x[:, 2] > 1.5], dim=1)
    weight, bias = newton_logistic.dense(x, y, ridge=2.0, steps=300)
    for task in range(2):
        model = LogisticRegression(C=2.0, tol=1e-10, max_iter=10_000).fit(x.numpy(), y[:, task].numpy())
        np.testing.assert_allclose(weight[:, task].numpy(), model.coef_[0], atol=2e-3)
        assert float(bias[task]) == pytest.approx(model.intercept_[0], abs=2e-3)
