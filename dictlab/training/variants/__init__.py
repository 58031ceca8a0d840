"""Activation functions while they are learnt, one file each. A new one is a file, and a line in `BY_NAME`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, get_args

from dictlab.dictionary import activation_functions
from dictlab.training.variants.base import ForwardPass, Term, Variant
from dictlab.training.variants.batchtopk import BatchTopKVariant
from dictlab.training.variants.gated import GatedVariant
from dictlab.training.variants.jumprelu import JumpReLUVariant
from dictlab.training.variants.matryoshka import MatryoshkaVariant
from dictlab.training.variants.prolu import ProLUVariant
from dictlab.training.variants.relu import ReLUVariant
from dictlab.training.variants.topk import MultiTopKVariant, PerTokenVariant

ActivationName = Literal[
    "topk", "relu", "batchtopk", "jumprelu", "gated", "prolu", "multitopk", "matryoshka-topk", "matryoshka-batchtopk"
]


class VariantSettings(Protocol):
    """The settings of a run that activation functions are made from; `TrainConfig` documents each."""

    @property
    def aux_k(self) -> int | None: ...

    @property
    def l1(self) -> tuple[float, ...]: ...

    @property
    def l0(self) -> tuple[float, ...]: ...

    @property
    def p_norm(self) -> float: ...

    @property
    def bandwidth(self) -> float: ...

    @property
    def sparsity_warmup(self) -> float: ...

    @property
    def prefixes(self) -> tuple[float, ...]: ...


def _topk(config: VariantSettings, ks: Sequence[int]) -> list[Variant]:
    return [PerTokenVariant(config.aux_k, activation_functions.TopK(k)) for k in ks]


def _batchtopk(config: VariantSettings, ks: Sequence[int]) -> list[Variant]:
    return [BatchTopKVariant(config.aux_k, k) for k in ks]


def _penalised(cls: type[ReLUVariant] | type[GatedVariant] | type[ProLUVariant]) -> VariantFactory:
    return lambda config, _: [cls(l1, config.p_norm, config.sparsity_warmup) for l1 in config.l1]


def _nested(base: VariantFactory) -> VariantFactory:
    return lambda config, ks: [MatryoshkaVariant(variant, config.prefixes) for variant in base(config, ks)]


VariantFactory = Callable[[VariantSettings, Sequence[int]], list[Variant]]
BY_NAME: dict[str, VariantFactory] = {
    "topk": _topk,
    "relu": _penalised(ReLUVariant),
    "batchtopk": _batchtopk,
    "jumprelu": lambda config, _: [JumpReLUVariant(l0, config.bandwidth, config.sparsity_warmup) for l0 in config.l0],
    "gated": _penalised(GatedVariant),
    "prolu": _penalised(ProLUVariant),
    "multitopk": lambda config, ks: [MultiTopKVariant(config.aux_k, k) for k in ks],
    "matryoshka-topk": _nested(_topk),
    "matryoshka-batchtopk": _nested(_batchtopk),
}
assert set(BY_NAME) == set(get_args(ActivationName))

__all__ = ["BY_NAME", "ActivationName", "ForwardPass", "PerTokenVariant", "Term", "Variant", "VariantSettings"]
