"""SAELens: a folder of cfg.json, sae_weights.safetensors and perhaps sparsity.safetensors.

    u = N(x) - (b_dec if apply_b_dec_to_input else 0);   z = u W_enc + b_enc;   y = f W_dec + b_dec

    standard                 f = max(z, 0)
    jumprelu                 f = max(z, 0) [z > threshold]
    gated                    f = [u W_enc + b_gate > 0] max(u W_enc exp(r_mag) + b_mag, 0)
    topk, abstopk            the k largest z, then max(., 0); or the k largest |z|
    batchtopk, matryoshka    checkpoints only: as jumprelu with the one threshold `topk_threshold`

    transcoder               u = N(x), y = max(u W_enc + b_enc, 0) W_dec + b_dec: N is not undone, y is another site's
    jumprelu_transcoder      the same with f as jumprelu; with `skip_` before it, y + x W_skip^T

N is the input normalisation (`normalisation`). With `rescale_acts_by_decoder_norm`, z is multiplied by the length of
its decoder row, and y made of rows of length 1.
`sparsity` is log10 of the share of tokens at which a latent fires, plus 1e-10. Source: sae_lens 6.54.12, `saes/*.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import AbsTopK, Activation, Gated, JumpReLU, ReLU, TopK
from dictlab.errors import DictlabError
from dictlab.formats.libraries.fields import refuse_part, refuse_unknown, shaped, short
from dictlab.formats.libraries.saelens.config import BATCHTOPK, BY_K, Meaning, meaning
from dictlab.formats.libraries.saelens.normalisation import read_normalisation
from dictlab.formats.libraries.saelens.origin import read_metadata
from dictlab.formats.libraries.saelens.writing import CONFIG, NEVER, SPARSITY
from dictlab.formats.reading.source import Source

FINETUNED = ("scaling_factor", "finetuning_scaling_factor")
SHORTEST = 1e-8  # decoder rows are divided by no less, as SAELens does


def recognise(source: Source) -> bool:
    """Whether a configuration gives d_in and d_sae beside a decoder of SAELens' names."""
    return source.has("W_dec", "b_dec") and _configuration(source) is not None


def read(source: Source) -> Dictionary:
    """The dictionary in a folder of SAELens', of any version.

    Raises:
        DictlabError: Fields or tensors are missing, not understood, contradict each other, or mean something that a
            dictionary cannot express.
    """
    refuse_part(source)
    raw = _configuration(source)
    if raw is None:
        damage = f" ({source.damaged[CONFIG]})" if CONFIG in source.damaged else ""
        raise DictlabError(f"no configuration with d_in and d_sae lies beside it{damage}; expected SAELens' {CONFIG}.")
    means = meaning(raw, source.ignore)
    refuse_unknown(source.entries, (), "the entry", source.ignore)
    tensors = _fitting(dict(source.tensors), means)
    normalisation = read_normalisation(means, source)
    W_enc, W_dec, b_dec = (tensors[name] for name in ("W_enc", "W_dec", "b_dec"))
    b_enc = tensors.get("b_enc", torch.zeros(means.n_latents, dtype=W_enc.dtype))
    activation, notes = _activation(means, tensors)
    factor = _finetuned(means, tensors)
    if factor is not None:
        W_dec = W_dec.to(_precise(W_dec)) * factor[:, None]
    if means.rescaled:
        W_enc, b_enc, W_dec = _with_unit_rows(W_enc, b_enc, W_dec)
    rate, more = _firing_rate(source, means.n_latents)
    return Dictionary(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_pre=b_dec if means.pre_bias else torch.zeros(means.d_in, dtype=b_dec.dtype),
        b_out=b_dec,
        activation=activation,
        normalisation=normalisation,
        W_skip=tensors["W_skip"].T if means.skip else None,
        transcodes=means.transcodes,
        firing_rate=rate,
        metadata=read_metadata(raw, source, notes + more),
    )


def _configuration(source: Source) -> dict[str, Any] | None:
    beside = source.configs.get(CONFIG, {})
    return beside if "d_in" in beside and "d_sae" in beside else source.config("d_in", "d_sae")


def _fitting(tensors: dict[str, Tensor], means: Meaning) -> dict[str, Tensor]:
    """The tensors, if they are those of the architecture."""
    d, n = means.d_in, means.n_latents
    own: dict[str, list[int]] = {"b_enc": [n]}
    if means.architecture == "gated":
        own = {"b_gate": [n], "r_mag": [n], "b_mag": [n]}
    elif means.jumps:
        own["log_threshold" if "log_threshold" in tensors else "threshold"] = [n]
    elif means.architecture in BATCHTOPK:
        own["topk_threshold"] = []
    shapes = {"W_enc": [d, n], "W_dec": [n, means.d_out], "b_dec": [means.d_out], **own}
    if means.skip:
        shapes["W_skip"] = [means.d_out, d]
    strange = sorted(tensors.keys() - shapes.keys() - set(FINETUNED))
    if strange:
        raise DictlabError(
            f"the tensor {short(strange[0])!r} does not belong to the architecture {means.architecture!r}; expected "
            f"{', '.join(shapes)}."
        )
    for name in dict.fromkeys((*shapes, *tensors)):
        shaped(tensors, name, *shapes.get(name, [n]))
    return tensors


def _activation(means: Meaning, tensors: dict[str, Tensor]) -> tuple[Activation, tuple[str, ...]]:
    if means.architecture in BY_K:
        k = means.k or 0
        return (TopK(k) if means.architecture == "topk" else AbsTopK(k)), ()
    if means.architecture == "gated":
        return Gated(tensors["b_gate"], tensors["r_mag"], tensors["b_mag"]), ()
    if means.architecture in BATCHTOPK:
        threshold = tensors["topk_threshold"].float()
        never = "topk_threshold is 0: none was estimated yet, so every latent with a positive pre-activation is active."
        return JumpReLU(threshold.expand(means.n_latents)), () if float(threshold) > 0 else (never,)
    if "log_threshold" in tensors:
        return JumpReLU(tensors["log_threshold"].to(_precise(tensors["log_threshold"])).exp()), ()
    return (JumpReLU(tensors["threshold"]) if means.jumps else ReLU()), ()


def _finetuned(means: Meaning, tensors: dict[str, Tensor]) -> Tensor | None:
    """What codes are multiplied by before they are decoded, if it is not 1."""
    factor = next((tensors[name] for name in FINETUNED if name in tensors), None)
    if factor is None or bool((factor == 1).all()):
        return None
    if not means.finetuned:
        raise DictlabError(
            "the tensor scaling_factor is not 1 everywhere, but finetuning_scaling_factor is not true; expected true."
        )
    return factor.to(_precise(factor))


def _with_unit_rows(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes in units of decoder rows of length 1: z' = z |row|."""
    precise = _precise(W_dec)
    length = W_dec.to(precise).norm(dim=1).clamp(min=SHORTEST)
    return W_enc.to(precise) * length, b_enc.to(precise) * length, W_dec.to(precise) / length[:, None]


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _firing_rate(source: Source, n_latents: int) -> tuple[Tensor | None, tuple[str, ...]]:
    beside = source.beside(SPARSITY)
    logarithm = beside.tensors.get("sparsity") if beside else None
    if logarithm is None:
        return None, ()
    if list(logarithm.shape) != [n_latents] or not logarithm.is_floating_point():
        raise DictlabError(f"{SPARSITY} beside it has shape {list(logarithm.shape)}; expected {[n_latents]}.")
    rate = 10 ** logarithm.double() - NEVER
    if not bool((rate <= 1 + 1e-6).all()):
        return None, (f"{SPARSITY} was passed over: it holds no logarithms of shares.",)
    rate[rate < NEVER / 10] = 0  # what rounding leaves of a latent that never fired
    return rate.clamp(max=1).float(), ()
