"""What latents are active on a text of one's own, and what the model predicts when a latent is changed.

With x the activations at the dictionaries' site, f_i and d_i the activation and direction of latent i (in the
activations' units), and x_hat a dictionary's reconstruction:

    spliced    x' = x_hat                        the dictionary in the place of the activations
    scaled     x' = x + (s - 1) f_i d_i          s = 0 switches the latent off; what the dictionary misses stays
    added      x' = x + a d_i                    at every token that counts, or at one

Tokens that do not count are left as they are. Logits are in nats, less nothing; probabilities by softmax.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.common.inputs import ModelInputs
from analyses.common.token_texts import token_pieces
from analyses.explorer.latents.latent_records import rounded
from analyses.explorer.sample_texts import sequence_text
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.evaluation.sites import site_of

SHOWN_LATENTS = 12  # of a token, of each dictionary
PREDICTED = 8  # tokens that are predicted, of each position
MOVED = 10  # tokens whose probability changes most


class _Read(NamedTuple):
    tokens: Int[Tensor, "1 context"]
    counted: Bool[Tensor, "1 context"]
    x: dict[str, Float[Tensor, "1 context d_in"]]


class LiveModel:
    """The model behind the page.

    Args:
        inputs: Dictionaries, the model, and which tokens count.
    """

    def __init__(self, inputs: ModelInputs) -> None:
        self.inputs, self.model = inputs, inputs.model
        self.dictionaries = [d.to(dtype=torch.float32) for d in inputs.adapted]

    @torch.no_grad()
    def run(self, text: str) -> dict[str, Any]:
        """Latents active on each token of a text, and next tokens as predicted without and with each dictionary.

        Raises:
            DictlabError: The text has no token.
        """
        read = self._read(text)
        clean = self._logits(read.tokens)
        dictionaries = []
        for dictionary in self.dictionaries:
            site = site_of(dictionary)
            x = read.x[site]
            spliced = x.clone()
            spliced[read.counted] = dictionary(x[read.counted].float())[1].to(x.dtype)
            altered = self.model.splice(read.tokens, site, spliced).logits[0].float().log_softmax(dim=-1)
            active = self._active(dictionary, x, read.counted)
            dictionaries.append({"latents": active, **self._predicted(altered), "kl": _kl(clean, altered)})
        ids = read.tokens[0].tolist()
        special = set(getattr(self.model.tokenizer, "all_special_ids", ()))
        return {
            "sequence": sequence_text(self.model.tokenizer, ids, special),
            "counted": read.counted[0].tolist(),
            "clean": self._predicted(clean),
            "dictionaries": dictionaries,
            "context": self.inputs.model.context,
        }

    @torch.no_grad()
    def change(
        self, text: str, dictionary: int, latent: int, *, scale: float | None, add: float | None, position: int | None
    ) -> dict[str, Any]:
        """What the model predicts when a latent is scaled, or its direction is added.

        Args:
            text: The text.
            dictionary: Number of the dictionary.
            latent: Of the dictionary.
            scale: What its activation is multiplied by; None to add.
            add: What is added, in multiples of the decoder direction; None to scale.
            position: The token at which, or None for all that count.

        Raises:
            DictlabError: There is no such dictionary, latent or token, or not one of scale and add.
        """
        if not 0 <= dictionary < len(self.dictionaries) or not 0 <= latent < self.dictionaries[dictionary].n_latents:
            raise DictlabError(f"there is no latent {latent} of dictionary {dictionary}.")
        if (scale is None) == (add is None):
            raise DictlabError("give one of scale and add.")
        read, one = self._read(text), self.dictionaries[dictionary]
        site = site_of(one)
        changed = read.counted.clone()
        if position is not None:
            if not 0 <= position < read.tokens.shape[1]:
                raise DictlabError(f"the text has tokens 0 to {read.tokens.shape[1] - 1}, and no token {position}.")
            changed[0, torch.arange(changed.shape[1]) != position] = False
        x = read.x[site]
        amount = self._activation(one, latent, x, read.counted) * (scale - 1) if scale is not None else None
        step = torch.full(changed.shape, float(add or 0.0), device=x.device) if amount is None else amount
        direction = one.W_dec[latent].to(x)
        altered_x = x + torch.where(changed, step, 0.0)[..., None].to(x) * direction
        clean = self._logits(read.tokens)
        altered = self.model.splice(read.tokens, site, altered_x).logits[0].float().log_softmax(dim=-1)
        return {**self._predicted(altered), "kl": _kl(clean, altered), "moved": self._moved(clean, altered)}

    def _read(self, text: str) -> _Read:
        ids = self.model.tokenizer(text)["input_ids"][: self.model.context]
        if not ids:
            raise DictlabError("the text has no token.")
        tokens = torch.tensor([ids])
        x = self.model.capture(tokens, self.inputs.sites)
        counted = self.inputs.selection.mask(x.values(), tokens, self.model.tokenizer)
        return _Read(tokens, counted, x)

    def _logits(self, tokens: Int[Tensor, "1 context"]) -> Float[Tensor, "context vocabulary"]:
        """Clean log-probabilities."""
        return self.model.forward(tokens).logits[0].float().log_softmax(dim=-1)

    def _active(
        self, dictionary: Dictionary, x: Float[Tensor, "1 context d_in"], counted: Bool[Tensor, "1 context"]
    ) -> list[list[list[float | None]]]:
        """Of each token the latents with the largest activations: [latent, activation]."""
        codes = dictionary.encode(x)
        found: list[list[list[float | None]]] = []
        for t, counts in enumerate(counted[0].tolist()):
            part = slice(int(codes.offsets[t]), int(codes.offsets[t + 1]))
            values, latents = codes.values[part], codes.indices[part]
            order = values.abs().argsort(descending=True, stable=True)[: SHOWN_LATENTS if counts else 0]
            found.append([[int(latents[k]), rounded(float(values[k]))] for k in order if values[k] != 0])
        return found

    def _activation(
        self,
        dictionary: Dictionary,
        latent: int,
        x: Float[Tensor, "1 context d_in"],
        counted: Bool[Tensor, "1 context"],
    ) -> Float[Tensor, "1 context"]:
        """One latent's activation on each token, in the activations' units; 0 where tokens do not count."""
        codes = dictionary.codes_in_input_units(dictionary.encode(x), x)
        own = codes.indices == latent
        values = torch.zeros(codes.n_tokens, device=x.device)
        values[codes.rows[own]] = codes.values[own].float()
        return torch.where(counted, values.view(counted.shape), 0.0)

    def _predicted(self, log_p: Float[Tensor, "context vocabulary"]) -> dict[str, Any]:
        best = log_p[:, : self._known].topk(min(PREDICTED, self._known))
        return {
            "next": [
                [[self._text(t), rounded(p)] for t, p in zip(tokens, chances, strict=True)]
                for tokens, chances in zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
            ]
        }

    def _moved(self, clean: Tensor, altered: Tensor) -> list[list[list[Any]]]:
        """Of each token the next tokens whose probability changes most: [token, before, after]."""
        before, after = clean[:, : self._known].exp(), altered[:, : self._known].exp()
        order = (after - before).abs().topk(min(MOVED, self._known)).indices
        return [
            [[self._text(t), rounded(float(p[t])), rounded(float(q[t]))] for t in tokens]
            for tokens, p, q in zip(order.tolist(), before, after, strict=True)
        ]

    @property
    def _known(self) -> int:
        return min(self.model.vocabulary, len(self.model.tokenizer))

    def _text(self, token: int) -> str:
        return token_pieces(self.model.tokenizer, [token])[0]


def _kl(clean: Float[Tensor, "context vocabulary"], altered: Float[Tensor, "context vocabulary"]) -> list[float | None]:
    """KL(clean || altered) of each next token, in nats."""
    return [rounded(value) for value in (clean.exp() * (clean - altered)).sum(dim=-1).clamp_min(0).tolist()]
