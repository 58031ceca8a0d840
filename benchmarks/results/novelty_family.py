"""What does a doubling of the width bring, beside another seed? All shipped TopK dictionaries, on the same text.

python -m benchmarks.results.novelty_family [--tokens N] [--figure docs/images/novelty.png]

For each doubling and both seeds: the latents of the larger dictionary that are novel to the smaller one, by measured
effect and by the cosine rule, beside the latents of the other seed that are novel at the smaller width (the floor).
Intervals are 95 % bootstrap intervals over latents. Then the cosine as a predictor, by architecture.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from analyses.common import plotting
from analyses.composition.insertion.cosine_predictor import ALL, groups, kinds_of, prediction_areas, threshold_rules
from analyses.composition.insertion.single_insertions import SingleInsertions, insert_each
from benchmarks._common import CHECKPOINTS, shipped_model
from dictlab import Dictionary, Text, load
from dictlab.data import activations
from dictlab.evaluation.sites import site_of
from dictlab.numerics.statistics import interval

WIDTHS, SEEDS, THRESHOLD, SEED = (256, 512, 1024, 2048, 4096), (0, 1), 0.7, 0
ARCHITECTURES = (
    ("local-topk16-512-s0", "local-topk16-1024-s0"),
    ("local-relu5-1024-s0", "local-topk16-2048-s0"),
    ("local-topk16-512-s0", "local-relu5-1024-s0"),
    ("local-topk16-1024-s0", "local-relu5-1024-s0"),
    ("local-relu5-1024-s0", "local-relu5-1024-s1"),
    ("local-relu5-1024-s0", "e2e-relu0.2-1024-s0"),
    ("e2e-relu0.2-1024-s0", "local-relu5-1024-s0"),
)
PAPER = {"doubling": 0.35, "another seed": 0.06}  # GPT-2 small, cosine below 0.7 (Bussmann et al. 2024)

Pairs = dict[tuple[str, str], SingleInsertions]


def name(width: int, seed: int) -> str:
    return f"local-topk16-{width}-s{seed}"


def doublings() -> list[tuple[str, str]]:
    return [(name(w, s), name(2 * w, s)) for w in WIDTHS[:-1] for s in SEEDS]


def controls() -> list[tuple[str, str]]:
    return [(name(w, s), name(w, 1 - s)) for w in WIDTHS for s in SEEDS]


def measured(names: list[tuple[str, str]], tokens: int) -> Pairs:
    """Every pair, on the same activations."""
    known: dict[str, Dictionary] = {n: load(CHECKPOINTS / f"{n}.safetensors") for pair in names for n in pair}
    first = next(iter(known.values()))
    model = shipped_model()
    sampled = activations.sample_site(
        model, Text.builtin("train"), site_of(first), context=model.context, tokens=tokens, seed=SEED
    )
    batches = list(sampled)
    return {(small, large): insert_each(known[small], known[large], batches, THRESHOLD) for small, large in names}


def share(pairs: list[SingleInsertions], by_cosine: bool) -> tuple[float, np.ndarray]:
    """Mean share of novel latents over some pairs, and its bootstrap draws over latents."""
    masks = [pair.alive.novel_by_cosine if by_cosine else pair.alive.novel for pair in pairs]
    draws = np.mean([pair.share_draws(novel, SEED) for pair, novel in zip(pairs, masks, strict=True)], axis=0)
    return float(np.mean([novel.mean() for novel in masks])), draws


def shown(value: float, draws: np.ndarray, sign: str = "") -> str:
    low, high = interval(draws)
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def shares(found: Pairs) -> dict[str, dict[int, tuple[float, np.ndarray]]]:
    """By what is compared and by width of the smaller one: shares of novel latents, mean over both seeds."""
    result: dict[str, dict[int, tuple[float, np.ndarray]]] = {}
    for label in ("by effect", "by cosine"):
        for what, pairs in (("doubling", doublings()), ("another seed", controls())):
            own: dict[int, list[SingleInsertions]] = {}
            for pair in pairs:
                own.setdefault(found[pair].small.n_latents, []).append(found[pair])
            result[f"{what}, {label}"] = {width: share(some, label == "by cosine") for width, some in own.items()}
    return result


def print_shares(result: dict[str, dict[int, tuple[float, np.ndarray]]]) -> None:
    """The table of shares, in percent."""
    print(
        "| width | novel by effect, doubling | another seed | points above | by cosine 0.7, doubling | another seed |"
    )
    print("|---|---|---|---|---|---|")
    for width in WIDTHS:
        cells = []
        for label in ("by effect", "by cosine"):
            floor = result[f"another seed, {label}"][width]
            own = result[f"doubling, {label}"].get(width)
            cells += ["" if own is None else shown(*own), shown(*floor)]
            if label == "by effect":
                cells.append("" if own is None else shown(own[0] - floor[0], own[1] - floor[1], "+"))
        print(f"| {width:,}{f' → {2 * width:,}' if width < WIDTHS[-1] else ''} | {' | '.join(cells)} |")


def print_worth(found: Pairs) -> None:
    """How much single latents are worth, and how certain their class is; seed 0."""
    print("\n| inserted | certainly novel | certainly not | carries something | best decrease of the MSE |")
    print("|---|---|---|---|---|")
    for small, large in (pair for pair in (*doublings(), *controls()) if pair[0].endswith("s0")):
        pair = found[small, large]
        change, error = pair.alive.change, pair.alive.error
        numbers = [(change < -2 * error).mean(), (change > 2 * error).mean(), (pair.alive.scale > 0).mean()]
        what = "another seed" if pair.small.n_latents == pair.large.n_latents else f"{pair.large.n_latents:,}"
        cells = [*(f"{n:.1%}" for n in numbers), f"{-change.min() / pair.effects.mse:.2%}"]
        print(f"| {what} into {pair.small.n_latents:,} | {' | '.join(cells)} |")


def print_prediction(found: Pairs, pairs: list[tuple[str, str]]) -> None:
    """The cosine as a predictor of the measured class."""
    columns = ("LARGE into SMALL", "best length", "novel", "ROC AUC", "weighted", "PR AUC (novel)")
    print(f"\n| {' | '.join((*columns, 'best t', 'right there', 'right at 0.7'))} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for key in pairs:
        pair = found[key]
        alive = groups(pair.alive, kinds_of(pair.large.activation, pair.large.n_latents))[ALL]
        plain, weighted = prediction_areas({ALL: alive}, SEED)
        given, best = threshold_rules({ALL: alive}, THRESHOLD, SEED)[:2]
        cells = [f"{pair.effects.stretch:.2f}", f"{pair.alive.novel.mean():.1%}"]
        cells += [f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for e in (plain.roc, weighted.roc, plain.novel)]
        cells += [f"{best.threshold:.2f} [{best.low:.2f}, {best.high:.2f}]"]
        cells += [f"{best.rates['accuracy']:.0%}", f"{given.rates['accuracy']:.0%}"]
        print(f"| {pair.name} | {' | '.join(cells)} |")


@plotting.applied
def draw(result: dict[str, dict[int, tuple[float, np.ndarray]]], tokens: int, path: Path) -> None:
    """Shares against the width, with the paper's as marks at 768."""
    figure, axes = plotting.axes(2, width=5.2, height=4.2)
    for ax, label in zip(axes, ("by effect", "by cosine"), strict=True):
        for number, what in enumerate(("doubling", "another seed")):
            own = result[f"{what}, {label}"]
            ends = np.array([interval(draws) for _, draws in own.values()]).T
            value = np.array([value for value, _ in own.values()])
            look = {"color": plotting.colour(number), "marker": plotting.marker(number), "ls": plotting.line(number)}
            ax.errorbar(list(own), 100 * value, yerr=100 * np.abs(ends - value), ms=5, capsize=2, label=what, **look)
            if label == "by cosine":
                ax.axhline(100 * PAPER[what], color=plotting.colour(number), ls=":", label=f"{what}, GPT-2 (paper)")
        ax.set_xscale("log", base=2)
        ax.set_xticks(WIDTHS, [f"{w:,}" for w in WIDTHS])
        ax.set(xlabel="latents of the smaller one", ylabel="novel latents (% of active)", ylim=(0, 105))
        ax.set_title("By measured effect" if label == "by effect" else f"By cosine below {THRESHOLD:g}")
        ax.legend(loc="upper left" if label == "by effect" else "upper right")
    figure.suptitle(f"Mean over two seeds, {tokens:,} tokens; bars: 95 % intervals over latents", fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens of the training split to measure on")
    parser.add_argument("--figure", type=Path, help="where to write the figure")
    given = parser.parse_args()
    began = time.perf_counter()
    names = list(dict.fromkeys([*doublings(), *controls(), *ARCHITECTURES]))
    found = measured(names, given.tokens)
    print(f"{given.tokens:,} training tokens, {torch.get_num_threads()} threads; shares in percent of active latents\n")
    result = shares(found)
    print_shares(result)
    print_worth(found)
    print_prediction(found, [*(pair for pair in doublings() if pair[0].endswith("s0")), *ARCHITECTURES[1:]])
    if given.figure:
        draw(result, given.tokens, given.figure)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
