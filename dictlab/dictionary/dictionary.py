"""A sparse dictionary: what it is, and what it does to activations.

    h = N(x)                      input normalisation (the identity for most)
    z = (h - b_pre) W_enc + b_enc
    f = activation(z)             sparse codes
    y = f W_dec + b_out
    x_hat = N^-1(y)

Every library's dictionary is brought into this form when it is read, so that nothing else asks where one came from.
A `Dictionary` does not know language models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictlab.dictionary.activation_functions import Activation, emitting, signed
from dictlab.dictionary.activation_records import from_record
from dictlab.dictionary.codes import Codes
from dictlab.dictionary.kernels import sparse
from dictlab.dictionary.metadata import Metadata
from dictlab.dictionary.normalisation import Centred, LayerNorm, NoNormalisation, Normalisation, Scale, Undo, unscaled
from dictlab.errors import DictlabError


@dataclass(frozen=True, eq=False)
class Dictionary:
    """An encoder, a decoder, an activation function, an input normalisation, and where they came from.

    Row j of `W_dec` is the decoder direction of latent j.

    Attributes:
        firing_rate: Share of tokens at which each latent is active, measured at the end of training; None if unknown.
        name: What tables and plots call it.
        path: The file it was read from.
    """

    W_enc: Float[Tensor, "d_in n_latents"]
    b_enc: Float[Tensor, " n_latents"]
    W_dec: Float[Tensor, "n_latents d_in"]
    b_pre: Float[Tensor, " d_in"]
    b_out: Float[Tensor, " d_in"]
    activation: Activation
    normalisation: Normalisation = NoNormalisation()
    firing_rate: Float[Tensor, " n_latents"] | None = None
    metadata: Metadata = Metadata()
    name: str = "dictionary"
    path: Path | None = None

    def __repr__(self) -> str:
        """One line: name, shape, activation function, and where in which model."""
        parts = [f"{self.n_latents} latents x {self.d_in}", _in_words(self.activation.record())]
        if self.normalisation.kind != "none":
            parts.append(self.normalisation.kind)
        if self.metadata.site:
            parts.append(f"{self.metadata.site} of {self.metadata.model or 'an unknown model'}")
        return f"<Dictionary {self.name!r}: {', '.join(parts)}, {str(self.W_dec.dtype).removeprefix('torch.')}>"

    @property
    def d_in(self) -> int:
        """Width of the activations it reads."""
        return self.W_dec.shape[1]

    @property
    def n_latents(self) -> int:
        """Number of latents, dead ones included."""
        return self.W_dec.shape[0]

    @property
    def n_emitting(self) -> int:
        """Number of latents that can be active: all but those that only compete (in a stitched dictionary)."""
        return int(emitting(self.activation, self.n_latents).sum())

    @property
    def directions(self) -> Float[Tensor, "n_latents d_in"]:
        """Decoder directions at unit length (a zero row stays zero)."""
        return torch.nn.functional.normalize(self.W_dec, dim=1)

    @property
    def signed(self) -> Bool[Tensor, " n_latents"]:
        """Latents whose activation has either sign. Of these a direction and its opposite are the same latent."""
        return signed(self.activation, self.n_latents).to(self.W_dec.device)

    @property
    def encoder_rows(self) -> Float[Tensor, "n_latents d_in"]:
        """What each latent reads of an activation, in the activation's own coordinates.

        Where tokens are centred first, (x - mean(x)) W_enc = x (W_enc - the mean of each column).
        """
        if not isinstance(self.normalisation, Centred | LayerNorm):
            return self.W_enc.T
        W_enc = self.W_enc.to(torch.promote_types(self.W_enc.dtype, torch.float32))
        return (W_enc - W_enc.mean(dim=0, keepdim=True)).T

    @property
    def alive(self) -> Bool[Tensor, " n_latents"]:
        """Latents that fire. Where no firing rate is known: all that can emit and have a decoder direction."""
        if self.firing_rate is not None:
            return self.firing_rate > 0
        return emitting(self.activation, self.n_latents).to(self.W_dec.device) & (self.W_dec != 0).any(dim=1)

    def encode(self, x: Float[Tensor, "*tokens d_in"]) -> Codes:
        """Sparse codes of activations x, of any float type. Leading dimensions become tokens; differentiable.

        Raises:
            DictlabError: x has another width than `d_in`.
        """
        return self._encode(self._checked(x))[0]

    def decode(self, codes: Codes, x: Float[Tensor, "*tokens d_in"] | None = None) -> Float[Tensor, "tokens d_in"]:
        """The reconstruction x_hat of codes.

        Args:
            codes: What `encode` returned.
            x: The activations they are the codes of; needed where the normalisation keeps something of each token.

        Raises:
            DictlabError: x is needed and was not given.
        """
        if x is None:
            if self.normalisation.per_token:
                raise DictlabError(
                    f"{self.name}: its input normalisation ({self.normalisation.kind}) keeps a scale for each token; "
                    "call decode(codes, x) with the activations, or reconstruct(x)."
                )
            x = self.b_out.new_zeros(1, self.d_in)
        return decoded(codes, self.W_dec, self.b_out, self.normalisation(self._checked(x))[1])

    def reconstruct(self, x: Float[Tensor, "*tokens d_in"]) -> Float[Tensor, "*tokens d_in"]:
        """decode(encode(x)), in the shape of x."""
        return self(x)[1]

    def __call__(self, x: Float[Tensor, "*tokens d_in"]) -> tuple[Codes, Float[Tensor, "*tokens d_in"]]:
        """Codes and reconstruction together."""
        codes, undo = self._encode(self._checked(x))
        return codes, decoded(codes, self.W_dec, self.b_out, undo).reshape(x.shape)

    def codes_in_input_units(self, codes: Codes, x: Float[Tensor, "*tokens d_in"]) -> Codes:
        """Codes times the scale that the input normalisation gives back to each token: what each latent adds to the
        reconstruction of x is that times its row of `W_dec`.

        Args:
            codes: What `encode` returned.
            x: The activations they are the codes of.
        """
        scale = torch.as_tensor(self.normalisation(self._checked(x))[1].scale).to(codes.values)
        return codes._replace(values=codes.values * (scale.reshape(-1)[codes.rows] if scale.numel() > 1 else scale))

    def pre_activations(
        self, x: Float[Tensor, "tokens d_in"], latents: Tensor | slice = slice(None)
    ) -> Float[Tensor, "tokens latents"]:
        """z, before the activation function, for all latents or some."""
        h = self.normalisation(self._checked(x))[0]
        return (h - self.b_pre) @ self.W_enc[:, latents] + self.b_enc[latents]

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Dictionary:
        """This dictionary on another device, or with its weights in another precision."""
        moved: dict[str, Any] = {name: t.to(device=device, dtype=dtype) for name, t in self._weights()}
        rate = None if self.firing_rate is None else self.firing_rate.to(device=device)
        own = {name: t.to(device=device) for name, t in self.activation.tensors().items()}
        activation = from_record(self.activation.record(), own, self.n_latents) if own else self.activation
        return replace(self, firing_rate=rate, activation=activation, **moved)

    def in_input_units(self) -> Dictionary:
        """The same function with a constant input scale folded away; activations come out in the units of x.

        h = s x becomes h = x with every bias (and threshold) divided by s, and f' = f / s.
        """
        centred = isinstance(self.normalisation, Centred)
        inner = self.normalisation.then if isinstance(self.normalisation, Centred) else self.normalisation
        if not isinstance(inner, Scale):
            return self
        s = inner.factor
        return replace(
            self,
            b_enc=self.b_enc / s,
            b_pre=self.b_pre / s,
            b_out=self.b_out / s,
            activation=self.activation.scaled(1 / s),
            normalisation=Centred() if centred else NoNormalisation(),
        )

    def folded(self) -> Dictionary:
        """The same function without pre-bias or constant input scale, so that its latents can be moved elsewhere.

        b_enc' = b_enc - b_pre W_enc. Without it, changing a hybrid's bias would silently change every encoder.
        """
        plain = self.in_input_units()
        return replace(plain, b_enc=plain.b_enc - plain.b_pre @ plain.W_enc, b_pre=torch.zeros_like(plain.b_pre))

    def uncentred(self) -> Dictionary:
        """The same codes with the centring of its input folded into the encoder; a reconstruction then has no mean.

        (x - mean(x)) W_enc = x (W_enc - the mean of each column). Only a latent's own direction moves with it to
        another dictionary, so the mean of each token, which centring gives back, is left to the rest of that one.
        """
        if self.normalisation != Centred():
            return self
        return replace(
            self,
            W_enc=self.W_enc - self.W_enc.mean(dim=0, keepdim=True),
            b_enc=self.b_enc - self.b_pre @ self.W_enc,
            b_pre=torch.zeros_like(self.b_pre),
            normalisation=NoNormalisation(),
        )

    def _encode(self, x: Float[Tensor, "tokens d_in"]) -> tuple[Codes, Undo]:
        h, factor, undo = unscaled(self.normalisation, x)
        return sparse.encode(h, self.W_enc, self.b_enc, self.activation, self.b_pre, factor), undo

    def _checked(self, x: Float[Tensor, "*tokens d_in"]) -> Float[Tensor, "tokens d_in"]:
        if x.shape[-1] != self.d_in:
            raise DictlabError(
                f"{self.name} reads activations of width {self.d_in}, and was given {x.shape[-1]}: "
                "is it a dictionary of another model or site?"
            )
        return x.reshape(-1, self.d_in).to(self.W_enc.dtype)

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        for name in ("W_enc", "b_enc", "W_dec", "b_pre", "b_out"):
            yield name, getattr(self, name)


def decoded(
    codes: Codes, W_dec: Float[Tensor, "n_latents d_in"], bias: Float[Tensor, " d_in"], undo: Undo
) -> Float[Tensor, "tokens d_in"]:
    """`undo(codes.dense() @ W_dec + bias)`, in one matrix where undoing is a factor."""
    if undo.factor is not None:
        return sparse.decode(codes, W_dec, bias, undo.factor)
    return undo(sparse.decode(codes, W_dec, bias))


def _in_words(activation: Mapping[str, Any]) -> str:
    """An activation function's record as a few words, such as "topk, k 16"."""
    if "parts" in activation:
        return "union of " + " and ".join(f"{width} ({_in_words(part)})" for width, part in activation["parts"])
    return ", ".join([activation["kind"], *(f"k {activation[name]}" for name in ("k",) if name in activation)])
