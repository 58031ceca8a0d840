"""One logistic probe a latent: all latents of a task together by Newton's method, against a loop of scikit-learn.

python -m benchmarks.speed.probes [--json]     (about a minute on two cores)

A dictionary of 4,096 latents on 32,760 tokens; scikit-learn fits a sample of its latents, scaled to all. Both fit the
same standardised features with the same ridge. scikit-learn is given each latent as a sparse column or as a dense one,
whichever is faster, at its own tolerance; coefficients are compared at a tolerance of 1e-12.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from analyses.features.probes import newton_logistic
from analyses.features.probes.single_latent_probes import captured
from analyses.features.probes.sparse_columns import Sparse
from analyses.features.probes.token_labels import python_tokens
from benchmarks._common import CHECKPOINTS, shipped_model
from dictlab import Text, load
from dictlab.evaluation.sites import site_of

TASKS, LATENTS, CONTEXTS = ("string", "comma", "inside a loop"), 24, 128


def reference(z: np.ndarray, y: np.ndarray, sparse: bool, tolerance: float = 1e-4) -> tuple[float, float]:
    """scikit-learn's weight and bias of one latent, in units of its activation."""
    scaler = StandardScaler(with_mean=False)
    u = scaler.fit_transform(csr_matrix(z) if sparse else z)
    found = LogisticRegression(C=1.0, tol=tolerance, max_iter=1000).fit(u, y)
    return float(found.coef_[0, 0] / scaler.scale_[0]), float(found.intercept_[0])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    as_json = parser.parse_args().json
    dictionary = load(CHECKPOINTS / "local-topk16-4096-s0.safetensors")
    model = shipped_model()
    labelled = python_tokens(Text.builtin(), model.tokenizer, model.context, CONTEXTS)
    codes = dictionary.encode(captured(model, site_of(dictionary), labelled).x)
    fired = codes.active_counts().nonzero().squeeze(1)
    latents = fired[torch.randperm(len(fired), generator=torch.Generator().manual_seed(0))[:LATENTS]].tolist()
    dense = codes.dense()[:, latents].double().numpy()
    together, one_by_one, apart = [], {True: [], False: []}, 0.0
    for task in TASKS:
        y = labelled.labels[:, labelled.tasks.index(task)]
        began = time.perf_counter()
        fit = newton_logistic.fit(Sparse.of(codes), y)
        together.append(time.perf_counter() - began)
        for sparse, seconds in one_by_one.items():
            began = time.perf_counter()
            for i in range(LATENTS):
                reference(dense[:, [i]], y.numpy(), sparse)
            seconds.append((time.perf_counter() - began) / LATENTS * len(fired))
        found = [reference(dense[:, [i]], y.numpy(), False, tolerance=1e-12) for i in range(LATENTS)]
        own = torch.stack([fit.weight[latents], fit.bias[latents]], dim=1)
        apart = max(apart, float(((own - torch.tensor(found)).abs() / own.abs().clamp_min(1)).max()))
    loop = min(sum(seconds) for seconds in one_by_one.values())
    result = {
        "latents": dictionary.n_latents,
        "tokens": len(labelled.labels),
        "together_s": sum(together) / len(TASKS),
        "scikit_learn_s": loop / len(TASKS),
        "largest_difference": apart,
        "gain": loop / sum(together),
    }
    if as_json:
        print(json.dumps(result))
        return
    print(f"{len(fired)} latents that fire, {len(labelled.labels)} tokens, {torch.get_num_threads()} threads, per task")
    print(f"all latents together:   {result['together_s']:.2f} s")
    print(f"scikit-learn in a loop: {result['scikit_learn_s']:.0f} s ({LATENTS} latents measured, scaled to all)")
    print(f"times faster:           {result['gain']:.0f}")
    print(f"largest difference of a coefficient, relative where above 1: {apart:.1e}")


if __name__ == "__main__":
    main()
