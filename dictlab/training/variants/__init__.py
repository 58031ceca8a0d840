"""Activation functions while they are learnt, one file each. A new one is a file, and a line in `BY_NAME`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, get_args

from dictlab.dictionary import activation_functions
from dictlab.training.variants.base import ForwardPass, Term, Variant
from dictlab.training.variants.batchtopk import BatchTopK
from dictlab.training.variants.gated import Gated
from dictlab.training.variants.jumprelu import JumpReLU
from dictlab.training.variants.matryoshka import Matryoshka
from dictlab.training.variants.prolu import ProLU
from dictlab.training.variants.relu import ReLU
from dictlab.training.variants.selection import MultiTopK, Selection

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
    return [Selection(config.aux_k, activation_functions.TopK(k)) for k in ks]


def _batchtopk(config: VariantSettings, ks: Sequence[int]) -> list[Variant]:
    return [BatchTopK(config.aux_k, k) for k in ks]


def _penalised(cls: type[ReLU] | type[Gated] | type[ProLU]) -> VariantFactory:
    return lambda config, _: [cls(l1, config.p_norm, config.sparsity_warmup) for l1 in config.l1]


def _nested(base: VariantFactory) -> VariantFactory:
    return lambda config, ks: [Matryoshka(variant, config.prefixes) for variant in base(config, ks)]


VariantFactory = Callable[[VariantSettings, Sequence[int]], list[Variant]]
BY_NAME: dict[str, VariantFactory] = {
    "topk": _topk,
    "relu": _penalised(ReLU),
    "batchtopk": _batchtopk,
    "jumprelu": lambda config, _: [JumpReLU(l0, config.bandwidth, config.sparsity_warmup) for l0 in config.l0],
    "gated": _penalised(Gated),
    "prolu": _penalised(ProLU),
    "multitopk": lambda config, ks: [MultiTopK(config.aux_k, k) for k in ks],
    "matryoshka-topk": _nested(_topk),
    "matryoshka-batchtopk": _nested(_batchtopk),
}
assert set(BY_NAME) == set(get_args(ActivationName))

__all__ = ["BY_NAME", "ActivationName", "ForwardPass", "Selection", "Term", "Variant", "VariantSettings"]
