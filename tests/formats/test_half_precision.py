"""A file in half precision is the dictionary of the same numbers in single precision, in every format."""

from random import Random

import pytest
import torch

from dictlab import load
from tests.fuzzing.mutations import _read, _write
from tests.fuzzing.seeds import SEEDS

READ = [seed for seed in SEEDS if not seed.weights.endswith(".npz")]  # numpy has no bfloat16


def cast(value, *dtypes):
    """Floating-point matrices and vectors through some precisions, within dictionaries too."""
    if isinstance(value, dict):
        return {name: cast(inner, *dtypes) for name, inner in value.items()}
    if torch.is_tensor(value) and value.is_floating_point() and value.ndim:
        for dtype in dtypes:
            value = value.to(dtype)
    return value


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", READ, ids=[f"{n}-{seed.format}" for n, seed in enumerate(READ)])
def test_half_precision_is_the_same_function(tmp_path, seed, dtype):
    loaded = []
    for name, dtypes in (("half", (dtype,)), ("single", (dtype, torch.float32))):
        folder = tmp_path / name
        folder.mkdir()
        seed.write(folder)
        tensors, entries, header = _read(folder / seed.weights)
        _write(folder / seed.weights, cast(tensors, *dtypes), cast(entries, *dtypes), header, Random(0))
        path = folder / seed.weights
        loaded.append(load(f"{path}#{seed.part}" if seed.part else path))
    half, single = loaded
    x = torch.randn(40, half.d_in, generator=torch.Generator().manual_seed(0))
    (codes, x_hat), (same_codes, same_x_hat) = half(x), single(x)
    assert torch.equal(codes.dense() != 0, same_codes.dense() != 0) and len(codes.values)
    torch.testing.assert_close(codes.dense(), same_codes.dense(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x_hat, same_x_hat, atol=1e-5, rtol=1e-5)
