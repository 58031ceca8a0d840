"""Codes and activation functions against their dense definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dictlab.dictionary.activation_functions import AbsTopK, BatchTopK, Gated, GroupMax, JumpReLU, ReLU, TopK
from dictlab.dictionary.activation_records import from_record
from dictlab.dictionary.codes import Codes, concatenate
from dictlab.dictionary.union import Union, side_by_side
from dictlab.errors import DictlabError

shapes = st.tuples(st.integers(0, 6), st.integers(1, 12), st.integers(0, 10_000))


def random(shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randn(shape[0], shape[1], generator=torch.Generator().manual_seed(shape[2]))


def vectors(count: int, n: int, seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [0.5 * torch.randn(n, generator=generator, dtype=dtype) for _ in range(count)]


def jumprelu(n: int, seed: int = 0) -> JumpReLU:
    """Thresholds of either sign."""
    return JumpReLU(*vectors(1, n, seed))


def gated(n: int, seed: int = 0) -> Gated:
    return Gated(*vectors(3, n, seed))


def groups(n: int) -> int:
    """A number of groups that n latents divide into."""
    return next(k for k in (3, 2, 1) if n % k == 0)


# Each rule, written out on Python floats.


def dense_topk(z: torch.Tensor, k: int) -> torch.Tensor:
    """By sorting each row in Python."""
    out = torch.zeros_like(z)
    for row in range(len(z)):
        for j in sorted(range(z.shape[1]), key=lambda j: -float(z[row, j]))[:k]:
            out[row, j] = max(float(z[row, j]), 0.0)
    return out


def dense_abstopk(z: torch.Tensor, k: int) -> torch.Tensor:
    out = torch.zeros_like(z)
    for row in range(len(z)):
        for j in sorted(range(z.shape[1]), key=lambda j: -abs(float(z[row, j])))[:k]:
            out[row, j] = z[row, j]
    return out


def dense_batchtopk(z: torch.Tensor, k: int) -> torch.Tensor:
    out = torch.zeros_like(z)
    entries = [(row, j) for row in range(len(z)) for j in range(z.shape[1])]
    for row, j in sorted(entries, key=lambda at: -float(z[at]))[: k * len(z)]:
        out[row, j] = max(float(z[row, j]), 0.0)
    return out


def dense_groupmax(z: torch.Tensor, k: int) -> torch.Tensor:
    out, size = torch.zeros_like(z), z.shape[1] // k
    for row in range(len(z)):
        for group in range(k):
            j = max(range(group * size, (group + 1) * size), key=lambda j: float(z[row, j]))
            out[row, j] = max(float(z[row, j]), 0.0)
    return out


def dense_jumprelu(z: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    return torch.relu(z) * (z > threshold)


def dense_gated(z: torch.Tensor, b_gate: torch.Tensor, r_mag: torch.Tensor, b_mag: torch.Tensor) -> torch.Tensor:
    return (z + b_gate > 0) * torch.relu(z * r_mag.exp() + b_mag)


def dense(activation, z: torch.Tensor) -> torch.Tensor:
    """What an activation function is by definition."""
    if isinstance(activation, Union):
        parts = z.split([width for width, _ in activation.parts], dim=1)
        made = [dense(own, part) for (_, own), part in zip(activation.parts, parts, strict=True)]
        return torch.cat(made, dim=1) * activation.emits
    if isinstance(activation, JumpReLU):
        return dense_jumprelu(z, activation.threshold.to(z))
    if isinstance(activation, Gated):
        return dense_gated(z, *(t.to(z) for t in activation.tensors().values()))
    if isinstance(activation, ReLU):
        return z.clamp_min(0)
    by_k = {TopK: dense_topk, AbsTopK: dense_abstopk, BatchTopK: dense_batchtopk, GroupMax: dense_groupmax}
    return by_k[type(activation)](z, activation.k)


def every(n: int, k: int, seed: int) -> list:
    """One activation function of each kind for n latents."""
    emits = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.7
    return [
        ReLU(), TopK(k), AbsTopK(k), BatchTopK(k), GroupMax(groups(n)), jumprelu(n, seed), gated(n, seed),
        *([Union(((1, gated(1, seed)), (n - 1, TopK(k))), emits)] if n > 1 else []),
        *([Union(((1, BatchTopK(k)), (n - 2, jumprelu(n - 2, seed)), (1, AbsTopK(k))), emits)] if n > 2 else []),
    ]  # fmt: skip


@given(shapes, st.integers(1, 15))
def test_codes_follow_the_definition_for_no_token_or_many_and_more_latents_asked_for_than_there_are(shape, k):
    z = random(shape)
    for activation in every(shape[1], k, shape[2]):
        codes = activation(z)
        assert torch.equal(codes.dense(), dense(activation, z)), activation.kind
        assert codes.n_tokens == shape[0] and codes.n_latents == shape[1]
        assert len(codes.offsets) == shape[0] + 1 and codes.offsets[-1] == len(codes.values) == len(codes.indices)


@given(shapes, st.integers(1, 15))
def test_no_latent_stands_twice_in_a_row(shape, k):
    """Ties too: rounding to halves makes many."""
    z = (2 * random(shape)).round() / 2
    for activation in every(shape[1], k, shape[2]):
        codes = activation(z)
        entries = codes.rows * shape[1] + codes.indices
        assert len(entries.unique()) == len(entries), activation.kind


@given(shapes, st.integers(1, 15))
def test_ties_cost_no_latent_and_add_none(shape, k):
    z = (2 * random(shape)).round() / 2
    for activation in (TopK(k), AbsTopK(k), BatchTopK(k)):
        codes, expected = activation(z), dense(activation, z)
        assert torch.equal(codes.l0().sum(), (expected != 0).sum()), activation.kind
        torch.testing.assert_close(codes.values.abs().sum(), expected.abs().sum())


@given(shapes, st.integers(1, 15), st.floats(0.01, 100))
def test_a_scaled_function_of_scaled_pre_activations_is_the_scaled_function(shape, k, factor):
    """g(factor z) = factor f(z). Powers of two: exact in floating point, so also at a threshold."""
    z, factor = random(shape), 2.0 ** round(factor / 20)
    for activation in every(shape[1], k, shape[2]):
        found = activation.scaled(factor)(factor * z).dense()
        torch.testing.assert_close(found, factor * activation(z).dense(), msg=activation.kind)


@given(shapes, st.integers(0, 1000))
def test_an_element_wise_function_of_some_latents_is_the_same_function(shape, seed):
    z = random(shape)
    kept = (torch.rand(shape[1], generator=torch.Generator().manual_seed(seed)) < 0.5).nonzero().squeeze(1)
    for activation in (a for a in every(shape[1], 3, seed) if a.elementwise):
        assert torch.equal(activation.at(kept)(z[:, kept]).dense(), activation(z).dense()[:, kept]), activation.kind


@given(shapes, st.integers(1, 15))
def test_a_function_that_is_not_batchwise_treats_each_token_by_itself(shape, k):
    z = random(shape)
    for activation in every(shape[1], k, shape[2]):
        alone = [activation(row).dense() for row in z.split(1)] if len(z) else [z]
        if not activation.batchwise:
            assert torch.equal(torch.cat(alone), activation(z).dense()), activation.kind


def test_the_batch_decides_what_is_active_under_batchtopk():
    z = torch.tensor([[1.0, 2.0, 3.0], [0.1, 0.2, 0.3]])
    assert BatchTopK(1).batchwise and Union(((3, BatchTopK(1)),), torch.ones(3).bool()).batchwise
    assert BatchTopK(1)(z).dense().tolist() == [[0, 2, 3], [0, 0, 0]]
    assert BatchTopK(1)(z[1:]).l0().tolist() == [1]


def test_a_threshold_is_exclusive_and_one_below_zero_is_as_good_as_zero():
    z = torch.tensor([[0.5, 0.5, -0.1, 0.0, 0.1]])
    threshold = torch.tensor([0.5, 0.4999, -1.0, -1.0, -1.0])
    assert JumpReLU(threshold)(z).indices.tolist() == [1, 4]


def test_an_open_gate_with_a_negative_magnitude_emits_nothing_and_a_shut_one_hides_a_positive_one():
    z = torch.tensor([[1.0, 1.0, -1.0]])
    codes = Gated(torch.tensor([0.0, -2.0, 2.0]), torch.zeros(3), torch.tensor([-2.0, 0.0, 3.0]))(z)
    assert codes.indices.tolist() == [2] and codes.values.tolist() == [2.0]


@given(shapes)
def test_counts_agree_with_the_dense_matrix(shape):
    z = random(shape)
    for codes in (activation(z) for activation in every(shape[1], 3, shape[2])):
        assert torch.equal(codes.l0(), (codes.dense() != 0).sum(dim=1))
        assert torch.equal(codes.active_counts(), (codes.dense() != 0).sum(dim=0))


@given(shapes, shapes)
def test_concatenated_codes_are_the_rows_one_after_the_other(one, other):
    a, b = random(one), random((other[0], one[1], other[2]))
    for activation in (ReLU(), jumprelu(one[1]), gated(one[1])):
        both = concatenate([activation(a), activation(b)])
        assert torch.equal(both.dense(), activation(torch.cat([a, b])).dense())


@given(shapes, shapes, st.integers(1, 4), st.integers(0, 1000))
def test_a_union_is_each_donors_own_codes_at_the_latents_that_emit(one, other, k, seed):
    a, b = random(one), random((one[0], other[1], other[2]))
    emits = torch.rand(a.shape[1] + b.shape[1], generator=torch.Generator().manual_seed(seed)) < 0.7
    for first, second in ((TopK(k), ReLU()), (gated(one[1]), BatchTopK(k)), (jumprelu(one[1]), AbsTopK(k))):
        union = Union(((a.shape[1], first), (b.shape[1], second)), emits)
        expected = torch.cat([dense(first, a), dense(second, b)], dim=1) * emits
        codes = union(torch.cat([a, b], dim=1))
        assert torch.equal(codes.dense(), expected)
        assert emits[codes.indices].all()
        assert (codes.rows.diff() >= 0).all()


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (ReLU(), ReLU(), "relu"),
        (ReLU(), jumprelu(4), "jumprelu"),
        (jumprelu(5, 1), jumprelu(4), "jumprelu"),
        (gated(5), gated(4, 1), "gated"),
        (gated(5), ReLU(), "union"),
        (TopK(2), jumprelu(4), "union"),
        (TopK(2), TopK(2), "union"),
    ],
)
def test_donors_go_under_one_rule_only_where_that_is_the_same_function(first, second, kind):
    parts, z = ((5, first), (4, second)), random((20, 9, 0))
    whole, some = torch.ones(9).bool(), torch.arange(9) != 3
    assert side_by_side(parts, whole).kind == kind
    assert side_by_side(parts, some).kind == "union"
    for emits in (whole, some):
        assert torch.equal(side_by_side(parts, emits)(z).dense(), Union(parts, emits)(z).dense())


# Records


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 1000))
def test_a_record_and_tensors_say_all_there_is(n, k, seed):
    z = random((5, n, seed))
    for activation in every(n, k, seed):
        back = from_record(activation.record(), activation.tensors(), n)
        assert back.record() == activation.record() and back.tensors().keys() == activation.tensors().keys()
        assert torch.equal(back(z).dense(), activation(z).dense()), activation.kind
    assert from_record(TopK(k).record(), {}, n) == TopK(k)


def test_a_union_comes_back_from_its_record():
    union = Union(
        ((2, TopK(1)), (3, Union(((3, ReLU()),), torch.ones(3, dtype=torch.bool)))),
        torch.tensor([1, 0, 1, 1, 0]).bool(),
    )
    with pytest.raises(DictlabError, match="a union itself"):
        from_record(union.record(), union.tensors(), 5)
    flat = Union(((2, TopK(1)), (3, ReLU())), union.emits)
    back = from_record(flat.record(), flat.tensors(), 5)
    assert back.parts == flat.parts and torch.equal(back.emits, flat.emits)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"kind": "sigmoid"},
        *({"kind": kind, **k} for kind in ("topk", "abstopk", "batchtopk", "groupmax") for k in ({}, {"k": 0}, {"k": "8"})),
        {"kind": "groupmax", "k": 4},
        {"kind": "jumprelu"},
        {"kind": "gated"},
    ],
)  # fmt: skip
def test_a_record_that_says_too_little_is_refused(record):
    with pytest.raises(DictlabError, match="activation function"):
        from_record(record, {}, 9)


@pytest.mark.parametrize(
    "activation", [jumprelu(9), gated(9), Union(((4, gated(4)), (5, jumprelu(5))), torch.ones(9) > 0)]
)
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(activation):  # fmt: skip
    for name, tensor in activation.tensors().items():
        others = {other: t for other, t in activation.tensors().items() if other != name}
        for given_tensors, needle in ((others, "missing"), (others | {name: tensor[1:]}, "shape")):
            with pytest.raises(DictlabError, match=rf"activation function.*{name.split('.')[-1]}.*{needle}"):
                from_record(activation.record(), given_tensors, 9)


@pytest.mark.parametrize(
    ("record", "tensors", "what"),
    [
        ({"kind": "relu", "k": 3}, {}, "'k'"),
        ({"kind": "topk", "k": 3, "signed": True}, {}, "'signed'"),
        ({"kind": "relu"}, {"threshold": torch.zeros(9)}, "'threshold'"),
        ({"kind": "jumprelu"}, {"threshold": torch.zeros(9), "bandwidth": torch.zeros(9)}, "'bandwidth'"),
        (
            {"kind": "union", "parts": [[9, {"kind": "relu"}]]},
            {"emits": torch.ones(9) > 0, "1.threshold": torch.zeros(9)},
            r"'1\.threshold'",
        ),
    ],
)
def test_what_nobody_understands_may_change_the_function_and_is_refused_by_name(record, tensors, what):
    with pytest.raises(DictlabError, match=rf"{what} is unknown"):
        from_record(record, tensors, 9)


def test_codes_know_the_token_of_each_entry():
    codes = Codes(torch.ones(3), torch.tensor([4, 0, 2]), torch.tensor([0, 2, 2, 3]), 5)
    assert codes.rows.tolist() == [0, 0, 2]
