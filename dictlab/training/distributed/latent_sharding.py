"""Latent sharding: each process holds some latents of each dictionary, and they exchange what a step needs.

Of R x S processes, those in a row of the mesh have the same tokens and a part of the latents each; those in a column
have the same latents and a part of each batch (`data_parallel`). With own latents s, for the tokens of a row:

    z_s       = (x - b) W_s + b_s                    own latents' pre-activations: nothing is sent
    f_s       = own ones among the k largest of all  k values of each process are sent (`distributed_top_k`)
    x_hat     = b + sum_s f_s D_s                    partial reconstructions are summed: d values are sent
    dL/dW_s, dL/db_s, dL/dD_s                        x_hat is the same everywhere, so that nothing is sent
    dL/db     = dL/dx_hat + sum_s ...                one vector is summed: each process counts 1 / S of the first part

(After the code of Gao et al. 2024.) So each process takes the optimizer's step for its own latents, and the same step
for the bias. Every term of the loss is the whole one in each process: what it lacks of a sum over latents is summed on
the way forward, and its gradient goes back to its own latents alone.

Tensors are plain ones, and what is sent is sent by name: the sparse products are no operations of DTensor's. DTensors
are made of them where they are saved and loaded (`latent_rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dictlab.dictionary.activation_functions import Activation, BatchTopK, TopK
from dictlab.dictionary.codes import Codes
from dictlab.dictionary.kernels import sparse
from dictlab.dictionary.normalisation import Undo
from dictlab.errors import DictlabError
from dictlab.training.distributed.data_parallel import DataParallelRanks, add_up, connected, gathered, reduced
from dictlab.training.distributed.distributed_top_k import WholeBatchTopK, among_all

TOKENS, LATENTS = "tokens", "latents"  # dimensions of the mesh


class LatentShardedRanks(DataParallelRanks):
    """One of R x S processes: one of S that have parts of each dictionary, R times.

    Args:
        shards: S.
        device: The kind of device that tensors are on.

    Attributes:
        mesh: R x S processes.
        shard: Which part of the latents is this process's.
    """

    def __init__(self, shards: int, device: str) -> None:
        self.shards = shards
        self.mesh: DeviceMesh = init_device_mesh(
            device, (dist.get_world_size() // shards, shards), mesh_dim_names=(TOKENS, LATENTS)
        )
        super().__init__(self.mesh.get_group(TOKENS))
        self._latents = self.mesh.get_group(LATENTS)
        self.shard: int = self.mesh.get_local_rank(LATENTS)

    @cached_property
    def cpu_mesh(self) -> DeviceMesh:
        """The same processes, for tensors of the CPU."""
        if self.mesh.device_type == "cpu":
            return self.mesh
        return init_device_mesh("cpu", (self.count, self.shards), mesh_dim_names=(TOKENS, LATENTS))

    def average_gradients_(self, own: Sequence[Tensor | None], common: Sequence[bool]) -> None:
        pairs = [(g, whole) for g, whole in zip(own, common, strict=True) if g is not None]
        if self.count > 1:
            add_up([g for g, whole in pairs if not whole], self._tokens)
        add_up([g for g, whole in pairs if whole], None)
        torch._foreach_div_([g for g, _ in pairs], self.count)

    def latent_slice(self, width: int, shard: int | None = None) -> slice:
        size, which = -(-width // self.shards), self.shard if shard is None else shard
        return slice(min(which * size, width), min((which + 1) * size, width))  # as torch.chunk and DTensor cut

    def encode(
        self,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        activation: Activation,
        centre: Tensor | None = None,
        factor: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> Codes:
        if isinstance(activation, TopK):
            choose = partial(
                among_all, k=activation.k, shard=self.shard, shards=self.shards, gather=self._of_all_latents
            )
            return sparse.encode(x, W_enc, b_enc, activation, centre, factor, choose, dtype)
        return sparse.encode(x, W_enc, b_enc, self._rule(activation, b_enc), centre, factor, dtype=dtype)

    def reconstruct(self, codes: Codes, W_dec: Tensor, bias: Tensor, undo: Undo) -> Tensor:
        return undo(self.decode(codes, W_dec) + bias)

    def sum_over_latents(self, own: Tensor) -> Tensor:
        total: Tensor = _Summed.apply(own, self._latents)
        return total

    def share_gradient(self, common: Tensor) -> Tensor:
        return common.detach() + (common - common.detach()) / self.shards

    def gather_latents(self, own: Tensor) -> Tensor:
        sizes = gathered(torch.tensor([len(own)], device=own.device), self._latents).tolist()
        padded = own.new_zeros(max(sizes), dtype=torch.uint8)
        padded[: len(own)] = own
        parts = self._of_all_latents(padded).split(max(sizes))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]) > 0

    def any_rank(self, own: bool) -> bool:
        return self.any_flags(own)[0]

    def gradient_norm(self, norms: Tensor, common: Sequence[bool]) -> Tensor:
        parts: tuple[list[Tensor], list[Tensor]] = ([norms.new_zeros(())], [norms.new_zeros(())])
        for square, whole in zip(norms.square().unbind(), common, strict=True):
            parts[whole].append(square)
        own, shared = (torch.stack(part).sum() for part in parts)
        return (reduced(own, dist.ReduceOp.SUM, self._latents) + shared).sqrt()

    def broadcast_weights(self, own: Sequence[Tensor], common: Sequence[bool]) -> None:
        with connected():
            for tensor, whole in zip(own, common, strict=True):
                if whole:
                    dist.broadcast(tensor.detach(), src=0)
                else:
                    dist.broadcast(tensor.detach(), group=self._tokens, group_src=0)

    def _rule(self, activation: Activation, b_enc: Tensor) -> Activation:
        if isinstance(activation, BatchTopK):
            width = int(reduced(torch.tensor(len(b_enc)), dist.ReduceOp.MAX, self._latents))
            return WholeBatchTopK(activation.k, width, self.count, self.count * self.shards, gathered)
        if activation.elementwise:
            return activation
        raise DictlabError(
            f"activation function {activation.kind}: which latents it chooses cannot be told across shards; "
            "train it without `shards=...`."
        )

    def _of_all_latents(self, own: Tensor) -> Tensor:
        return gathered(own, self._latents)


class _Summed(torch.autograd.Function):
    """A sum over processes whose losses are the same: the gradient of each one's part is that of the sum."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup) -> Tensor:
        return reduced(own, dist.ReduceOp.SUM, group)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g, None
