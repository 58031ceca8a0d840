"""One library trains one dictionary on given vectors in a given order; run by quality_at_equal_tokens.py.

PYTHON -m benchmarks.results.training.equal_tokens_training JOB.json RESULT.json

PYTHON has the library: dictlab, dictionary_learning, saelens or sparsify. Each is driven through its own training step,
at its own defaults but for what the job gives: the learning rate, and the width, k or coefficient of the dictionary.

    dictlab                Learner.step, as `dictlab train` calls it
    dictionary_learning    Trainer.update, as trainSAE calls it for each batch; warm-up over 5 % of the steps and linear
                           decay over the last 20 %: its defaults are steps (1,000, none) and refuse shorter runs
    saelens                SAETrainer.step, as SAETrainer.fit calls it; activations scaled (expected_average_only_in)
    sparsify               Trainer.fit on a stand-in model that looks activations up; its default optimizer, signum

Seconds are those of CPU time that the process has spent in training, so that other work on the machine counts little.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(WANDB_MODE="disabled", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import torch
from torch import Tensor

Job = dict[str, Any]
Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]  # x to x_hat, and which latents are active
WARMUP, DECAY = 0.05, 0.2  # of dictionary_learning, shares of the steps
PREFIXES = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # groups of Matryoshka, shares of the width
BLOCK = 4096  # vectors evaluated at once


def order(job: Job, n: int) -> Tensor:
    """Rows of the batches, `[steps, batch]`: each pass in an order of its own, the same for all libraries."""
    generator = torch.Generator().manual_seed(1000 + job["seed"])
    per_pass = n // job["batch"]
    rows = [
        torch.randperm(n, generator=generator)[: per_pass * job["batch"]] for _ in range(-(-job["steps"] // per_pass))
    ]
    return torch.cat(rows).view(-1, job["batch"])[: job["steps"]]


class Observer:
    """Held-out explained variance as training goes on, and what it has cost by then.

    Args:
        job: The run.
        held_out: Vectors; the first half is to choose settings on, the second to report.
    """

    def __init__(self, job: Job, held_out: Tensor) -> None:
        steps, points = job["steps"], job["points"]
        self.held_out = held_out
        self.marks = {round(steps * number / points) for number in range(1, points + 1)}
        self.curve: list[dict[str, float]] = []
        self.result: dict[str, Any] = {}
        self._began, self._spent = time.process_time(), 0.0

    def __call__(self, step: int, reconstruct: Reconstruct) -> None:
        """Measure, where it is time, after so many steps."""
        if step not in self.marks:
            return
        began = time.process_time()
        seconds = began - self._began - self._spent
        measured = self._measured(reconstruct)
        self.curve.append({"step": step, "seconds": seconds, "explained_variance": measured["explained_variance"]})
        self.result = measured | {"seconds": seconds, "curve": self.curve}
        self._spent += time.process_time() - began

    @torch.no_grad()
    def _measured(self, reconstruct: Reconstruct) -> dict[str, float]:
        parts = [reconstruct(x) for x in self.held_out.split(BLOCK)]
        x_hat, active = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        half = len(self.held_out) // 2
        choosing, reported = (
            explained_variance(self.held_out[rows], x_hat[rows]) for rows in (slice(0, half), slice(half, None))
        )
        return {
            "choosing": choosing,
            "explained_variance": reported,
            "l0": float(active[half:].float().sum(dim=1).mean()),
            "dead": int((~active.any(dim=0)).sum()),
        }


def explained_variance(x: Tensor, x_hat: Tensor) -> float:
    """1 - sum |x - x_hat|^2 / sum |x - mean x|^2."""
    return 1 - float((x - x_hat).square().sum() / (x - x.mean(dim=0)).square().sum())


def train_dictlab(job: Job, vectors: Tensor, rows: Tensor, observe: Observer) -> None:
    """dictlab."""
    from dictlab.data.activations import moments
    from dictlab.training import TrainConfig
    from dictlab.training.learner.initialisation import geometric_median
    from dictlab.training.learner.learner import Learner
    from dictlab.training.objectives import Batch

    activation = job["activation"]
    own: dict[str, Any] = {"k": job["k"]} if "topk" in activation else {}
    if job["lr"] is not None:
        own["lr"] = job["lr"]
    if job["coefficient"] is not None:
        own["l0" if activation == "jumprelu" else "l1"] = job["coefficient"]
    config = TrainConfig(
        data="vectors",
        width=job["width"],
        activation=activation,
        seed=job["seed"],
        batch=job["batch"],
        tokens=job["batch"] * job["steps"],
        **(own | json.loads(job["settings"])),
    )
    sample = vectors[rows.flatten()[:32768]]
    learner = Learner(next(config.members()), config, moments([sample]), geometric_median(sample))

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        dictionary = learner.finished()
        codes = dictionary.encode(x)
        return dictionary.decode(codes), codes.dense() != 0

    for step, batch in enumerate(rows, 1):
        learner.step(Batch(vectors[batch]), None, logged=False)
        observe(step, reconstruct)


def train_dictionary_learning(job: Job, vectors: Tensor, rows: Tensor, observe: Observer) -> None:
    """dictionary_learning."""
    from benchmarks.speed.peers import without_nnsight

    without_nnsight()
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    steps, activation = job["steps"], job["activation"]
    warmup = max(1, round(WARMUP * steps))
    by_k = {"k": job["k"], "threshold_start_step": steps // 2}  # its 1,000 leaves short runs without a threshold
    penalised = {"sparsity_warmup_steps": warmup}
    make, own = {
        "topk": (TopKTrainer, by_k),
        "batchtopk": (BatchTopKTrainer, by_k),
        "matryoshka-batchtopk": (MatryoshkaBatchTopKTrainer, by_k | {"group_fractions": list(PREFIXES)}),
        "relu": (StandardTrainer, penalised | {"l1_penalty": job["coefficient"]}),
        "jumprelu": (JumpReluTrainer, penalised | {"target_l0": job["coefficient"]}),
    }[activation]
    rate = {} if job["lr"] is None else {"lr": job["lr"]}
    trainer = make(
        steps=steps,
        activation_dim=vectors.shape[1],
        dict_size=job["width"],
        layer=0,
        lm_name="none",
        device="cpu",
        seed=job["seed"],
        warmup_steps=warmup,
        decay_start=steps - round(DECAY * steps),
        **own,
        **rate,
    )

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = trainer.ae.encode(x)
        return trainer.ae.decode(codes), codes != 0

    for step, batch in enumerate(rows):
        trainer.update(step, vectors[batch])
        observe(step + 1, reconstruct)


def train_saelens(job: Job, vectors: Tensor, rows: Tensor, observe: Observer) -> None:
    """SAELens."""
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    width, activation = job["width"], job["activation"]
    ends = [round(width * share) for share in np.cumsum(PREFIXES)]
    name, own = {
        # the sparse option of TopK fails in its backward on the CPU
        "topk": ("TopKTrainingSAE", {"k": job["k"], "use_sparse_activations": False}),
        "batchtopk": ("BatchTopKTrainingSAE", {"k": job["k"], "use_sparse_activations": False}),
        "matryoshka-batchtopk": (
            "MatryoshkaBatchTopKTrainingSAE",
            {"k": job["k"], "use_sparse_activations": False, "matryoshka_widths": ends},
        ),
        "relu": ("StandardTrainingSAE", {"l1_coefficient": job["coefficient"]}),
        "jumprelu": ("JumpReLUTrainingSAE", {"l0_coefficient": job["coefficient"]}),
    }[activation]
    settings = getattr(sae_lens, f"{name}Config")
    sae = getattr(sae_lens, name)(
        settings(
            d_in=vectors.shape[1],
            d_sae=width,
            dtype="float32",
            device="cpu",
            normalize_activations="expected_average_only_in",
            **own,
        )
    )
    rate = {} if job["lr"] is None else {"lr": job["lr"]}
    trainer = sae_lens.SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=job["batch"] * job["steps"],
            train_batch_size_samples=job["batch"],
            lr_end=(job["lr"] or 3e-4) / 10,  # of schedules that it does not have by default
            logger=LoggingConfig(log_to_wandb=False),
            **rate,
        ),
        sae=sae,
        data_provider=iter(()),
    )
    scaler, first = trainer.activation_scaler, rows[:16]
    scaler.estimate_scaling_factor(vectors.shape[1], (vectors[batch] for batch in first), len(first))

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        codes, z = sae.encode_with_hidden_pre(scaler(x))
        if "batchtopk" in activation:  # in use it is a JumpReLU with this threshold
            codes = torch.where(z > sae.topk_threshold, z, 0).float()
        return scaler.unscale(sae.decode(codes)), codes != 0

    for step, batch in enumerate(rows, 1):
        trainer.maybe_reset_sparsity()
        trainer.step(vectors[batch])
        trainer.n_training_steps += 1
        observe(step, reconstruct)


def train_sparsify(job: Job, vectors: Tensor, rows: Tensor, observe: Observer) -> None:
    """sparsify, which has TopK alone. Its loop runs by itself: a step lies between two forwards of the model."""
    from sparsify import SparseCoderConfig

    from benchmarks.speed.peers import fit_sparsify

    if job["activation"] != "topk":
        raise SystemExit(f"sparsify has no {job['activation']}")
    steps: Iterator[int] = iter(range(job["steps"] + 1))

    def between_steps(trainer: Any) -> None:
        step = next(steps)
        [coder] = trainer.saes.values()

        def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
            found = coder.encode(x)
            active = torch.zeros(len(x), coder.num_latents, dtype=torch.bool)
            return coder.decode(found.top_acts, found.top_indices), active.scatter_(
                1, found.top_indices, found.top_acts > 0
            )

        [optimizer] = trainer.optimizers
        optimizer.eval()  # a schedule-free optimizer's average is what is used
        observe(step, reconstruct)
        optimizer.train()

    fit_sparsify(
        SparseCoderConfig(activation="topk", num_latents=job["width"], k=job["k"]),
        vectors,
        rows,
        between_steps,
        lr=job["lr"],
        init_seeds=[job["seed"]],
    )


TRAIN = {
    "dictlab": train_dictlab,
    "dictionary_learning": train_dictionary_learning,
    "saelens": train_saelens,
    "sparsify": train_sparsify,
}


def main(job_path: str, result_path: str) -> None:
    job = json.loads(Path(job_path).read_text())
    vectors, held_out = (torch.from_numpy(np.load(job[name])) for name in ("vectors", "held_out"))
    rows = order(job, len(vectors))
    torch.manual_seed(job["seed"])
    observe = Observer(job, held_out)
    TRAIN[job["library"]](job, vectors, rows, observe)
    if not observe.curve or observe.curve[-1]["step"] != job["steps"]:
        raise SystemExit(f"{job['library']}: ended before the last of {job['steps']} steps")
    if not math.isfinite(observe.result["explained_variance"]):
        observe.result |= {"explained_variance": -math.inf, "choosing": -math.inf}
    Path(result_path).write_text(json.dumps({"job": job, "result": observe.result}))


if __name__ == "__main__":
    main(*sys.argv[1:])
