"""A sparse dictionary: what it is, and what it does to activations.

    h = N(x)                      input normalisation (the identity for most)
    z = (h - b_pre) W_enc + b_enc
    f = activation(z)             sparse codes
    y = f W_dec + b_out
    x_hat = N^-1(y) + x W_skip    a sparse autoencoder; few have a skip
    y_hat = y + x W_skip          a transcoder, which predicts the activation y at another site from x

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

from dictlab.dictionary.activation_functions import Activation
from dictlab.dictionary.activation_records import from_name, from_record
from dictlab.dictionary.codes import Codes
from dictlab.dictionary.kernels import sparse
from dictlab.dictionary.metadata import Metadata, reads_and_writes
from dictlab.dictionary.normalisation import Centred, LayerNorm, NoNormalisation, Normalisation, Scale, Undo, unscaled
from dictlab.dictionary.tensor_checks import TensorLike, bias, check_finite, check_shapes, tensor_of
from dictlab.dictionary.union import emitting, signed
from dictlab.errors import DictlabError

NOTHING_TO_UNDO = Undo(1.0, 0.0)


@dataclass(frozen=True, eq=False)
class Dictionary:
    """An encoder, a decoder, an activation function, an input normalisation, and where they came from.

    Row j of `W_dec` is the decoder direction of latent j. A transcoder (Dunefsky et al. 2024) reads one site and writes
    another; what `decode` and `reconstruct` give is then its prediction of the activation at the site that it writes,
    in that site's own units: the input normalisation is not undone. All others have `d_out` = `d_in`.

    Attributes:
        W_skip: What the output has of x besides the latents' part, x W_skip with x as it is given (before the input
            normalisation); None for most.
        transcodes: Whether it is a transcoder.
        firing_rate: Share of tokens at which each latent is active, measured at the end of training; None if unknown.
        name: What tables and plots call it.
        path: The file it was read from.
    """

    W_enc: Float[Tensor, "d_in n_latents"]
    b_enc: Float[Tensor, " n_latents"]
    W_dec: Float[Tensor, "n_latents d_out"]
    b_pre: Float[Tensor, " d_in"]
    b_out: Float[Tensor, " d_out"]
    activation: Activation
    normalisation: Normalisation = NoNormalisation()
    W_skip: Float[Tensor, "d_in d_out"] | None = None
    transcodes: bool = False
    firing_rate: Float[Tensor, " n_latents"] | None = None
    metadata: Metadata = Metadata()
    name: str = "dictionary"
    path: Path | None = None

    def __post_init__(self) -> None:
        """Refuse tensors whose shapes or types do not fit together."""
        if isinstance(self.activation, str):
            raise DictlabError(
                f"activation is the text {self.activation!r}; Dictionary.from_tensors takes a name, Dictionary(...) an "
                "activation function such as TopK(32)."
            )
        rate = {} if self.firing_rate is None else {"firing_rate": self.firing_rate}
        check_shapes({**dict(self._weights()), **rate}, transcodes=self.transcodes, may_be_empty=True)

    @classmethod
    def from_tensors(
        cls,
        *,
        W_enc: TensorLike,
        b_enc: TensorLike,
        W_dec: TensorLike,
        activation: Activation | str,
        b_dec: TensorLike | None = None,
        b_pre: TensorLike | None = None,
        b_out: TensorLike | None = None,
        threshold: TensorLike | None = None,
        normalisation: Normalisation | None = None,
        firing_rate: TensorLike | None = None,
        name: str = "dictionary",
        metadata: Metadata | None = None,
        site: str | None = None,
        model: str | None = None,
    ) -> Dictionary:
        """The dictionary of tensors or arrays that are there already, checked, in float32.

        No bias is taken to be absent because it was not given: say 0 where there is none.

        Args:
            W_enc: Encoder, `[d_in, n_latents]`.
            b_enc: Encoder's bias, `[n_latents]`, or 0.
            W_dec: Decoder, `[n_latents, d_in]`.
            activation: An activation function, or its name: "relu", "topk:32", "abstopk:32", "batchtopk:32",
                "groupmax:32", "jumprelu:0.3", or "jumprelu" with `threshold`.
            b_dec: The bias that is subtracted before the encoder and added after the decoder, `[d_in]`, or 0.
            b_pre: In place of `b_dec`, what is subtracted before the encoder, `[d_in]`, or 0.
            b_out: In place of `b_dec`, what is added after the decoder, `[d_in]`, or 0.
            threshold: Of "jumprelu", `[n_latents]`.
            normalisation: Of the input; none by default.
            firing_rate: Share of tokens at which each latent is active, `[n_latents]`.
            name: What tables and plots call it.
            metadata: Where it came from.
            site: Where in the model it belongs, such as "blocks.6.hook_resid_pre"; goes into `metadata`.
            model: The model that it belongs to; goes into `metadata`.

        Raises:
            DictlabError: Something is missing, of another shape or type than it must be, or not finite; it is named.

        Example:
            Dictionary.from_tensors(W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, activation="topk:32")
        """
        decoder, encoder = tensor_of(W_dec, "W_dec"), tensor_of(W_enc, "W_enc")
        check_shapes({"W_enc": encoder, "W_dec": decoder}, complete=False)
        n_latents, d_in = decoder.shape
        if b_dec is not None and (b_pre is not None or b_out is not None):
            raise DictlabError("b_dec stands for both b_pre and b_out; leave it out, or them.")
        before, after = (b_dec, b_dec) if b_dec is not None else (b_pre, b_out)
        own = {} if threshold is None else {"threshold": tensor_of(threshold, "threshold")}
        if own and activation != "jumprelu":
            raise DictlabError(f"threshold is given, and activation is {activation!r}, which takes none from there.")
        about = metadata or Metadata()
        made = cls(
            W_enc=encoder,
            b_enc=bias(b_enc, "b_enc", n_latents, decoder),
            W_dec=decoder,
            b_pre=bias(before, "b_pre" if b_dec is None else "b_dec", d_in, decoder),
            b_out=bias(after, "b_out" if b_dec is None else "b_dec", d_in, decoder),
            activation=from_name(activation, own, n_latents) if isinstance(activation, str) else activation,
            normalisation=normalisation or NoNormalisation(),
            firing_rate=None if firing_rate is None else tensor_of(firing_rate, "firing_rate"),
            metadata=replace(about, site=site or about.site, model=model or about.model),
            name=name,
        )
        check_shapes(made.named_tensors())
        check_finite(made.named_tensors())
        return made.to(dtype=torch.float32)

    def __repr__(self) -> str:
        """One line: name, shape, activation function, and where in which model."""
        width = f"{self.d_in}" if self.d_out == self.d_in else f"{self.d_in} to {self.d_out}"
        parts = [f"{self.n_latents} latents x {width}", _in_words(self.activation.record())]
        if self.normalisation.kind != "none":
            parts.append(self.normalisation.kind)
        if self.W_skip is not None:
            parts.append("linear skip")
        model = self.metadata.model or "an unknown model"
        if self.transcodes:
            parts.append(f"{reads_and_writes(self.metadata)} of {model}")
        elif self.metadata.site:
            parts.append(f"{self.metadata.site} of {model}")
        return f"<Dictionary {self.name!r}: {', '.join(parts)}, {str(self.W_dec.dtype).removeprefix('torch.')}>"

    @property
    def d_in(self) -> int:
        """Width of the activations it reads."""
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        """Width of what it writes: of a reconstruction or, where it is a transcoder, of a prediction."""
        return self.W_dec.shape[1]

    @property
    def plain(self) -> bool:
        """Whether it reconstructs what it reads, and that from its codes alone: no transcoder, and no skip."""
        return not self.transcodes and self.W_skip is None

    @property
    def n_latents(self) -> int:
        """Number of latents, dead ones included."""
        return self.W_dec.shape[0]

    @property
    def n_emitting(self) -> int:
        """Number of latents that can be active: all but those that only compete (in a stitched dictionary)."""
        return int(emitting(self.activation, self.n_latents).sum())

    @property
    def directions(self) -> Float[Tensor, "n_latents d_out"]:
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

    def decode(self, codes: Codes, x: Float[Tensor, "*tokens d_in"] | None = None) -> Float[Tensor, "tokens d_out"]:
        """The reconstruction x_hat of codes; of a transcoder, its prediction at the site that it writes.

        Args:
            codes: What `encode` returned.
            x: The activations they are the codes of; needed where the normalisation keeps something of each token, and
                where there is a skip.

        Raises:
            DictlabError: x is needed and was not given.
        """
        if x is None:
            if self.W_skip is not None:
                raise DictlabError(
                    f"{self.name}: a linear map of its input skips the latents; call decode(codes, x) with the "
                    "activations, or reconstruct(x)."
                )
            if self.normalisation.per_token and not self.transcodes:
                raise DictlabError(
                    f"{self.name}: its input normalisation ({self.normalisation.kind}) keeps a scale for each token; "
                    "call decode(codes, x) with the activations, or reconstruct(x)."
                )
            x = self.b_pre.new_zeros(1, self.d_in)
        x = self._checked(x)
        return self._decoded(codes, self._undo(x), x)

    def reconstruct(self, x: Float[Tensor, "*tokens d_in"]) -> Float[Tensor, "*tokens d_out"]:
        """decode(encode(x), x), a vector for each token of x."""
        return self(x)[1]

    def __call__(self, x: Float[Tensor, "*tokens d_in"]) -> tuple[Codes, Float[Tensor, "*tokens d_out"]]:
        """Codes and reconstruction together."""
        rows = self._checked(x)
        codes, undo = self._encode(rows)
        return codes, self._decoded(codes, undo, rows).reshape(*x.shape[:-1], self.d_out)

    def codes_in_input_units(self, codes: Codes, x: Float[Tensor, "*tokens d_in"]) -> Codes:
        """Codes times the scale that the input normalisation gives back to each token: what each latent adds to the
        reconstruction of x is that times its row of `W_dec`. A transcoder's codes are these already.

        Args:
            codes: What `encode` returned.
            x: The activations they are the codes of.
        """
        scale = torch.as_tensor(self._undo(self._checked(x)).scale).to(codes.values)
        return codes._replace(values=codes.values * (scale.reshape(-1)[codes.rows] if scale.numel() > 1 else scale))

    def contributions(self, codes: Codes, x: Float[Tensor, "*tokens d_in"]) -> Codes:
        """What each latent adds to the reconstruction of x, as its length |d_j| times the activation in the units of x;
        negative where the activation is. It does not depend on how a latent's scale is shared between its encoder and
        its decoder. Of a latent without a direction, which adds nothing, the activation.

        Args:
            codes: What `encode` returned.
            x: The activations they are the codes of.
        """
        lengths = self.W_dec.norm(dim=1)
        lengths = torch.where(lengths > 0, lengths, 1.0)
        in_units = self.codes_in_input_units(codes, x)
        return in_units._replace(values=in_units.values * lengths[codes.indices])

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

        h = s x becomes h = x with every bias (and threshold) divided by s, and f' = f / s. A transcoder's output is not
        in these units: there f W_dec = f' (s W_dec), and b_out stays.
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
            W_dec=self.W_dec * s if self.transcodes else self.W_dec,
            b_out=self.b_out if self.transcodes else self.b_out / s,
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
        """The same codes with the centring of its input folded into the encoder; a reconstruction then has no mean (a
        transcoder's prediction stays as it is).

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
        codes = sparse.encode(h, self.W_enc, self.b_enc, self.activation, self.b_pre, factor)
        return codes, NOTHING_TO_UNDO if self.transcodes else undo

    def _undo(self, x: Float[Tensor, "tokens d_in"]) -> Undo:
        """What brings a decoded vector into the units of the output."""
        return NOTHING_TO_UNDO if self.transcodes else self.normalisation(x)[1]

    def _decoded(self, codes: Codes, undo: Undo, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_out"]:
        y = decoded(codes, self.W_dec, self.b_out, undo)
        return y if self.W_skip is None else y + x @ self.W_skip

    def _checked(self, x: Float[Tensor, "*tokens d_in"]) -> Float[Tensor, "tokens d_in"]:
        if x.shape[-1] != self.d_in:
            raise DictlabError(
                f"{self.name} reads activations of width {self.d_in}, and was given {x.shape[-1]}: "
                "is it a dictionary of another model or site?"
            )
        return x.reshape(-1, self.d_in).to(self.W_enc.dtype)

    def named_tensors(self) -> dict[str, Tensor]:
        """All tensors by name: weights, those of the activation function under `activation.`, firing rates if known."""
        own = {f"activation.{name}": tensor for name, tensor in self.activation.tensors().items()}
        rate = {} if self.firing_rate is None else {"firing_rate": self.firing_rate}
        return {**dict(self._weights()), **own, **rate}

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        for name in ("W_enc", "b_enc", "W_dec", "b_pre", "b_out"):
            yield name, getattr(self, name)
        if self.W_skip is not None:
            yield "W_skip", self.W_skip


def decoded(
    codes: Codes, W_dec: Float[Tensor, "n_latents d_out"], bias: Float[Tensor, " d_out"], undo: Undo
) -> Float[Tensor, "tokens d_out"]:
    """`undo(codes.dense() @ W_dec + bias)`, in one matrix where undoing is a factor."""
    if undo.factor is not None:
        return sparse.decode(codes, W_dec, bias, undo.factor)
    return undo(sparse.decode(codes, W_dec, bias))


def _in_words(activation: Mapping[str, Any]) -> str:
    """An activation function's record as a few words, such as "topk, k 16"."""
    if "parts" in activation:
        return "union of " + " and ".join(f"{width} ({_in_words(part)})" for width, part in activation["parts"])
    return ", ".join([activation["kind"], *(f"k {activation[name]}" for name in ("k",) if name in activation)])
