"""Many small non-negative least-squares problems at once, against scipy's one at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls as one_at_a_time

from analyses.quality.shrinkage.nnls import nnls
from dictlab.errors import DictlabError


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 9), d=st.integers(1, 12))
def test_every_problem_has_the_error_of_scipys_solution(seed, k, d):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(20, k, d, generator=generator, dtype=torch.double)
    y = torch.randn(20, d, generator=generator, dtype=torch.double)
    allowed = torch.rand(20, k, generator=generator) < 0.8
    found = nnls(directions @ directions.mT, (directions @ y[..., None])[..., 0], allowed)
    assert (found >= 0).all() and (found[~allowed] == 0).all()
    for i in range(20):
        some = directions[i][allowed[i]].numpy().T
        error = one_at_a_time(some, y[i].numpy())[1] if some.size else float(y[i].norm())
        assert float((y[i] - found[i] @ directions[i]).norm()) == pytest.approx(error, abs=1e-4)


def test_of_two_equal_directions_any_share_is_right():
    direction = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    found = nnls(direction @ direction.mT, torch.tensor([[3.0, 3.0]]), torch.ones(1, 2, dtype=torch.bool))
    assert float(found.sum()) == pytest.approx(3, rel=1e-6)


def test_numbers_that_are_not_finite_are_refused():
    broken = torch.full((1, 2, 2), np.nan)
    with pytest.raises(DictlabError, match="not finite"):
        nnls(broken, torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))


def test_more_variables_than_dimensions_have_an_answer_too():
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(30, 60, 16, generator=generator, dtype=torch.double), dim=2)
    y = directions.sum(dim=1) + 0.1 * torch.randn(30, 16, generator=generator, dtype=torch.double)
    found = nnls(directions @ directions.mT, (directions @ y[..., None])[..., 0], torch.ones(30, 60, dtype=torch.bool))
    for i in range(30):
        error = one_at_a_time(directions[i].numpy().T, y[i].numpy())[1]
        assert float((y[i] - found[i] @ directions[i]).norm()) == pytest.approx(error, abs=1e-3)
