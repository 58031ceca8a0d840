"""What can be told of a dictionary from its weights alone: numbers, directions, biases, duplicates, the rule."""

from __future__ import annotations

import torch

from analyses.common.neighbours import nearest
from analyses.quality.verification.checks import Check, outcome
from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import Gated, JumpReLU
from dictlab.dictionary.union import emitting
from dictlab.numerics import seeds

SAME = 0.99  # cosine of decoder directions, and of encoder directions, above which two latents are one
SEARCHED = 8192  # latents whose double is looked for; the others are candidates all the same


def weight_checks(dictionary: Dictionary, *, seed: int = 0) -> list[Check]:
    """What can be told from the weights alone."""
    finite = _finite(dictionary)
    if finite.result == "fail":
        return [finite]
    whole = dictionary.to("cpu", torch.float32)
    return [finite, _decoder(whole), _encoder(whole), _biases(whole), _doubles(whole, seed), _rule(whole)]


def _finite(dictionary: Dictionary) -> Check:
    tensors = {**dict(dictionary._weights()), **dictionary.activation.tensors()}
    bad = {name: int((~torch.isfinite(t.float())).sum()) for name, t in tensors.items()}
    found = ", ".join(f"{count} in {name}" for name, count in bad.items() if count)
    return Check("numbers are finite", outcome(not found), found or "all finite", "no NaN, no infinity")


def _decoder(dictionary: Dictionary) -> Check:
    norms = dictionary.W_dec.norm(dim=1)[emitting(dictionary.activation, dictionary.n_latents)]
    low, middle, high = (float(q) for q in norms.quantile(torch.tensor([0.0, 0.5, 1.0])))
    zero = int((norms == 0).sum())
    found = f"{zero} zero rows; norms {low:.3g} to {high:.3g}, median {middle:.3g}"
    return Check("decoder directions", outcome(zero == 0), found, "no zero row")


def _encoder(dictionary: Dictionary) -> Check:
    """A latent whose encoder is zero emits the same for every input."""
    zero = ~dictionary.W_enc.any(dim=0) & emitting(dictionary.activation, dictionary.n_latents)
    return Check("encoder directions", outcome(not zero.any()), f"{int(zero.sum())} zero columns", "none")


def _biases(dictionary: Dictionary) -> Check:
    """A bias far larger than all else is mostly a factor that was folded twice, or not at all."""
    reach = float(dictionary.W_enc.norm(dim=0).median())
    sizes = {
        "|b_pre|": float(dictionary.b_pre.norm()),
        "|b_out|": float(dictionary.b_out.norm()),
        "median |b_enc| / |encoder|": float(dictionary.b_enc.abs().median()) / max(reach, 1e-12),
    }
    biases = [size for name, size in sizes.items() if name.startswith("|") and size > 0]
    found = ", ".join(f"{name} {size:.3g}" for name, size in sizes.items())
    if dictionary.transcodes:  # they are of two sites
        return Check("bias sizes", "not done", found, "one site, whose biases can be compared")
    ratio = max(biases) / min(biases) if len(biases) == 2 else 1.0
    return Check("bias sizes", outcome(ratio <= 10), found, "b_pre and b_out within a factor of 10, or one zero")


def _doubles(dictionary: Dictionary, seed: int) -> Check:
    """Latents with the same direction in decoder and encoder."""
    alive = dictionary.alive.nonzero().squeeze(1)
    order = torch.randperm(len(alive), generator=seeds.generator(seed, "doubles"))[:SEARCHED]
    rows = dictionary.W_dec[alive]
    encoders = torch.nn.functional.normalize(dictionary.W_enc.T[alive], dim=1)
    if len(alive) < 2:
        return Check("duplicated latents", "not done", f"{len(alive)} latents alive", "two or more")
    signed = dictionary.signed[alive]
    found = nearest(rows[order], rows, top=2, signed_a=signed[order], signed_b=signed)
    # The nearest row is itself, or its double.
    other = torch.where(found.rows[:, 0] == order, found.rows[:, 1], found.rows[:, 0])
    encoder_cosine = (encoders[order] * encoders[other]).sum(dim=1)
    encoder_cosine = torch.where(signed[order], encoder_cosine.abs(), encoder_cosine)
    alike = (found.cosine[:, 1] > SAME) & (encoder_cosine > SAME)
    count = int(alike.sum())
    searched = "" if len(order) == len(alive) else f" of {len(order):,} looked at"
    return Check(
        "duplicated latents", outcome(count == 0), f"{count}{searched}", f"none with cosines above {SAME} in both"
    )


def _rule(dictionary: Dictionary) -> Check:
    activation, found = dictionary.activation, dictionary.activation.kind
    if activation.batchwise:
        return Check("rule at run time", "fail", f"{found}: codes depend on the batch", "codes of a token by itself")
    if isinstance(activation, JumpReLU):
        negative = int((activation.threshold < 0).sum())
        found += f", {negative} negative thresholds"
        return Check("rule at run time", outcome(negative == 0), found, "thresholds of 0 or more")
    if isinstance(activation, Gated):
        found += f", magnitudes times {float(activation.r_mag.exp().median()):.3g} (median)"
    return Check("rule at run time", "pass", found, "codes of a token by itself")
