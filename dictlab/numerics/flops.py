"""What does training a dictionary cost, in floating-point operations?

Of one token, a multiplication and an addition counting as two, with d the width of the activation, n latents, L active:

    encoder, forward                           2 d n       the only dense product
    decoder, forward                           2 d L
    gradients of codes, decoder and encoder    6 d L       they touch active latents alone
    a step of Adam                             24 d n / B  some 12 for each of 2 d n weights, once in a batch of B

With an objective that splices the reconstruction into the model, forward and backward through the P parameters behind
the site are added, 4 P (the frozen weights need no gradients). What yields the activations, the model's own forward, is
not the dictionary's cost and is left out, and so are the extra latents of AuxK.
"""

from __future__ import annotations

FORWARD, BACKWARD, ADAM = 2, 6, 24


def training_flops(
    n_latents: int, d_in: int, tokens: int, active: float, *, batch: int, parameters_behind: int = 0
) -> float:
    """Operations of a whole training run.

    Args:
        n_latents: Width of the dictionary.
        d_in: Width of the activation.
        tokens: Tokens trained on.
        active: Mean active latents a token: k, or the L0 measured.
        batch: Tokens a step.
        parameters_behind: Parameters of the model behind the site, where the reconstruction is spliced in; else 0.
    """
    dictionary = FORWARD * d_in * n_latents + (FORWARD + BACKWARD) * d_in * active + ADAM * d_in * n_latents / batch
    return tokens * (dictionary + 4 * parameters_behind)


def state_bytes(n_latents: int, d_in: int, *, ema: bool = False, shards: int = 1) -> int:
    """What a process holds of a dictionary in training: weights, gradients, two moments, the average; float32.

    Pre-activations exist for a block of tokens at a time and are left out, and so are the batch and the model.

    Args:
        n_latents: Width of the dictionary.
        d_in: Width of the activation.
        ema: Whether an average of the weights is kept.
        shards: Parts that the latents are cut into; a process has one, the largest of them here.
    """
    return 4 * (5 if ema else 4) * _weights(n_latents, d_in, shards)


def gradient_bytes(n_latents: int, d_in: int, processes: int, shards: int = 1) -> float:
    """What each process sends in a step: gradients in float32, by a ring, 2 (N - 1) / N times their size.

    Args:
        n_latents: Width of the dictionary.
        d_in: Width of the activation.
        processes: N: those that have the same latents, and different tokens.
        shards: Parts that the latents are cut into.
    """
    return 2 * (processes - 1) / processes * 4 * _weights(n_latents, d_in, shards)


def exchanged_bytes(d_in: int, tokens: int, k: int, shards: int) -> float:
    """What each process sends for tokens of which each of S has some latents, by rings, in float32.

    (S - 1) k values of candidates a token, and partial reconstructions, 2 (S - 1) / S times their size. AuxK sends as
    much again with its own k, in steps in which some latents are dead.

    Args:
        d_in: Width of the activation.
        tokens: Of the part of the batch that these processes share.
        k: Active latents of a token; 0 for activation functions that choose each latent by itself.
        shards: S.
    """
    return 4 * tokens * ((shards - 1) * k + 2 * (shards - 1) / shards * d_in)


def gathered_bytes(d_in: int, batch: int, processes: int) -> float:
    """What each process sends for a batch of activations that all of them have in the end, by a ring, in float32."""
    return (processes - 1) / processes * 4 * d_in * batch


def _weights(n_latents: int, d_in: int, shards: int) -> int:
    """Numbers that a process trains."""
    own = -(-n_latents // shards)
    return 2 * d_in * own + own + d_in
