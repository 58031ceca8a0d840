"""Steps of other libraries, one at a time on request, so that they can alternate with dictlab's in one run.

Runs in an environment that holds the libraries. A line on the standard input asks for a step; the answer is how many
seconds it took.

PYTHON benchmarks/speed/peers.py LIBRARY KIND WIDTH [D_IN DEVICE]

LIBRARY: sparsify, saelens, dictionary_learning. KIND: topk, relu, batchtopk, or inference (encode and decode, TopK).
Each is driven through the library's own training step:
    sparsify               Trainer.fit on a stand-in model that looks activations up; a step lies between two forwards
    saelens                SAETrainer.step, as SAETrainer.fit calls it for each batch
    dictionary_learning    Trainer.update, as trainSAE calls it for each batch
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

os.environ.update(WANDB_MODE="disabled", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch

D_IN, BATCH, K, BATCHES = 512, 4096, 32, 4
FOREVER = 100_000  # steps: nothing is scheduled to end within the benchmark

Step = Callable[[int], object]


def synthetic(
    batches: int = BATCHES, d_in: int = D_IN, batch: int = BATCH, seed: int = 0, device: str = "cpu"
) -> list[torch.Tensor]:
    """Batches of activations: 16 of 2,048 random directions each, a constant offset, a little noise."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(2048, d_in, generator=generator), dim=1)
    offset = 0.5 * torch.randn(d_in, generator=generator)
    made = []
    for _ in range(batches):
        chosen = torch.randint(2048, (batch, 16), generator=generator)
        strength = 1 + 4 * torch.rand(batch, 16, generator=generator)
        x = torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=strength, mode="sum")
        made.append((x + offset + 0.05 * torch.randn(batch, d_in, generator=generator)).to(device))
    return made


def saelens(kind: str, width: int, pool: list[torch.Tensor]) -> Step:
    """SAELens."""
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    device = str(pool[0].device)
    shape = {"d_in": pool[0].shape[1], "d_sae": width, "dtype": "float32", "device": device}
    if kind == "inference":
        return _inference(sae_lens.TopKSAE(sae_lens.TopKSAEConfig(k=K, **shape)), pool)
    own, settings, extra = {
        # its sparse option fails in its backward on the CPU, so this is the default path
        "topk": ("TopKTrainingSAE", "TopKTrainingSAEConfig", {"k": K, "use_sparse_activations": False}),
        "batchtopk": ("BatchTopKTrainingSAE", "BatchTopKTrainingSAEConfig", {"k": K}),
        "relu": ("StandardTrainingSAE", "StandardTrainingSAEConfig", {"l1_coefficient": 1.0}),
    }[kind]
    sae = getattr(sae_lens, own)(getattr(sae_lens, settings)(**extra, **shape))
    trainer = sae_lens.SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=BATCH * FOREVER,
            train_batch_size_samples=BATCH,
            lr=3e-4,
            lr_end=3e-5,
            device=device,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae=sae,
        data_provider=iter(()),
    )

    def step(number: int) -> None:
        trainer.maybe_reset_sparsity()
        trainer.step(pool[number % len(pool)])
        trainer.n_training_steps += 1

    return step


def without_nnsight() -> None:
    """A stand-in for what dictionary_learning imports of nnsight, for buffers of activations that are not used here."""
    stand_in = ModuleType("nnsight")
    stand_in.LanguageModel = object  # type: ignore[attr-defined]
    sys.modules.setdefault("nnsight", stand_in)


def dictionary_learning(kind: str, width: int, pool: list[torch.Tensor]) -> Step:
    """dictionary_learning."""
    without_nnsight()
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer

    d_in, device = pool[0].shape[1], str(pool[0].device)
    if kind == "inference":
        return _inference(AutoEncoderTopK(d_in, width, K).to(device), pool)
    make, extra = {
        "topk": (TopKTrainer, {"k": K}),
        "batchtopk": (BatchTopKTrainer, {"k": K}),
        "relu": (StandardTrainer, {"lr": 3e-4, "l1_penalty": 1.0}),
    }[kind]
    trainer = make(
        steps=FOREVER, activation_dim=d_in, dict_size=width, layer=0, lm_name="none", device=device, seed=0, **extra
    )
    return lambda number: trainer.update(number, pool[number % len(pool)])


def sparsify(kind: str, width: int, pool: list[torch.Tensor]) -> Step | None:
    """sparsify: TopK and inference alone. Its training loop asks for steps itself, so it returns nothing."""
    from sparsify import SparseCoder, SparseCoderConfig

    settings = SparseCoderConfig(activation="topk", num_latents=width, k=K)
    if kind == "inference":
        coder = SparseCoder(pool[0].shape[1], settings, device=pool[0].device)

        @torch.no_grad()
        def run(number: int) -> object:
            found = coder.encode(pool[number % len(pool)])
            return coder.decode(found.top_acts, found.top_indices)

        return run
    if kind != "topk":
        raise SystemExit(f"sparsify has no {kind}")
    table, asked = torch.cat(pool), 0.0

    def answer(_: Any) -> None:
        nonlocal asked
        asked = _answered(asked)

    fit_sparsify(settings, table, torch.arange(FOREVER // 100 * BATCH).view(-1, BATCH) % len(table), answer)
    return None


def fit_sparsify(
    settings: Any, table: torch.Tensor, rows: torch.Tensor, between_steps: Callable[[Any], None], **own: Any
) -> None:
    """Train by sparsify's own loop, on a stand-in model that looks activations up.

    Args:
        settings: A SparseCoderConfig.
        table: Activations.
        rows: Which of them each step is on, `[steps, batch]`; batch a multiple of 128.
        between_steps: Called with the trainer before each step, and after the last.
        own: Further settings of its TrainConfig.
    """
    from datasets import Dataset
    from sparsify import Trainer
    from sparsify.config import TrainConfig
    from transformers import PretrainedConfig, PreTrainedModel

    class Config(PretrainedConfig):
        model_type = "table"

        def __init__(self, **given: Any) -> None:
            self.num_hidden_layers, self.hidden_size = 1, table.shape[1]
            super().__init__(**given)

    class Passing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 0.0

    class Table(PreTrainedModel):
        config_class = Config
        base_model_prefix = "base"
        between: Callable[[], None] | None = None

        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.layers = torch.nn.ModuleList([Passing()])
            self.table = torch.nn.Parameter(table, requires_grad=False)

        @property
        def dummy_inputs(self) -> dict[str, torch.Tensor]:
            return {"input_ids": torch.zeros(1, 4, dtype=torch.long)}

        def forward(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
            if self.between is not None:
                self.between()
            return self.layers[0](self.table[input_ids])

    context, model = 128, Table(Config()).to(table.device)
    data = Dataset.from_dict({"input_ids": rows.reshape(-1, context).tolist()}).with_format("torch")
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            sae=settings,
            batch_size=rows.shape[1] // context,
            log_to_wandb=False,
            save_every=10**9,
            save_dir=folder,
            **own,
        )
        trainer = Trainer(config, data, model)
        model.between = lambda: between_steps(trainer)  # the constructor has run a forward of its own
        trainer.fit()
        between_steps(trainer)


def _inference(coder: Any, pool: list[torch.Tensor]) -> Step:
    @torch.no_grad()
    def run(number: int) -> object:
        return coder.decode(coder.encode(pool[number % len(pool)]))

    return run


def _answered(asked: float) -> float:
    """Answer the last request with its seconds, wait for the next, and return when it came."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print("SECONDS", time.perf_counter() - asked if asked else 0.0, flush=True)
    if not sys.stdin.readline():
        raise SystemExit
    return time.perf_counter()


def main(library: str, kind: str, width: str, d_in: str = str(D_IN), device: str = "cpu") -> None:
    torch.manual_seed(0)
    make = {"sparsify": sparsify, "saelens": saelens, "dictionary_learning": dictionary_learning}[library]
    step = make(kind, int(width), synthetic(d_in=int(d_in), device=device))
    if step is None:
        return
    asked, number = _answered(0.0), 0
    while True:
        step(number)
        asked, number = _answered(asked), number + 1


if __name__ == "__main__":
    main(*sys.argv[1:])
