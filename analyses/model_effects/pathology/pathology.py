"""Does a dictionary's error do more damage than an error of its size has to?

The activation x is replaced by its reconstruction, and by other points at the same distance epsilon; the damage is

    KL_t = sum_v P_t(v) (log P_t(v) - log Q_t(v))      P original, Q altered; nats
    CE increase                                        of the true next token; nats

and the ratio of mean damages, reconstruction over baseline, says how pathological the error is (Gurnee 2024). Which
baseline is fair is the question: isotropic noise is unlike any activation, and better baselines share the covariance of
activations, or are made of real ones (Lee and Heimersheim 2024). All interventions are in `replacements`; only tokens
that count are replaced.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from analyses.common.inputs import ModelInputs, open_inputs
from analyses.common.opening import DictionaryLike, ModelLike, TextLike
from analyses.common.patching import counted_mask
from analyses.common.token_texts import token_text
from analyses.model_effects.pathology.dictionary_damage import DictionaryDamage
from analyses.model_effects.pathology.replacement_damage import DamageSettings, measure_damage, measure_sites
from analyses.model_effects.pathology.report import TokensMeasured, pathology_report
from dictlab.data.hf_datasets import Split
from dictlab.data.packing import leading_tokens
from dictlab.errors import DictlabError, check_at_least
from dictlab.evaluation.sites import site_of
from dictlab.model.language_model import LanguageModel
from dictlab.reports.report import Report

PER_COORDINATE = 50  # tokens that a covariance is estimated from, for each coordinate of the activation
POSITION = 32  # the token replaced alone, where contexts are long enough


def pathology(
    dictionaries: Sequence[DictionaryLike],
    *,
    model: ModelLike | None = None,
    text: TextLike = "builtin",
    contexts: int = 64,
    context_length: int | None = None,
    prepend_bos: bool = False,
    draws: int = 2,
    position: int | None = None,
    positions_after: int = 16,
    random_points: int = 500,
    sweep_contexts: int = 8,
    min_occurrences: int = 10,
    seed: int = 0,
    device: str = "cpu",
    token_selection: str | None = None,
) -> Report:
    """Does a dictionary's error do more damage to the model than other errors of its size?

    Args:
        dictionaries: One or more, at one site or at several.
        model: The language model; by default the one that the dictionaries name.
        text: Where tokens come from. Its held-out split to measure on, its training split for covariances.
        contexts: Held-out sequences to measure on.
        context_length: Tokens a sequence; by default what the dictionaries were trained on.
        prepend_bos: Begin each sequence with the tokenizer's beginning-of-text token.
        draws: Draws of each random intervention at every token.
        position: The token that is replaced alone; by default 32, or the middle of a shorter sequence, or
            the nearest that counts.
        positions_after: Positions after it at which the damage is measured; 0 leaves single-token interventions out.
        random_points: Random points at the same distance, to rank the KL of that token's reconstruction against; 0
            leaves this out.
        sweep_contexts: Sequences on which steps of many lengths are taken; 0 leaves these out.
        min_occurrences: How often a token has to occur for a row of its own.
        seed: Seed of everything that is drawn at random.
        device: Where to run: cpu, cuda, ...
        token_selection: Which tokens count: all, without-first, without-special, without-outliers, positions=A:B; by
            default those that the dictionaries were trained on.

    Returns:
        A report with these tables; in brackets what is there only where there is such a thing.

        comparison: dictionary; L0; KL; over ε-random; over covariance mixture; error norm; CE increase; over θ-random,
            SAE norm; over real mixture; over shuffled error; over shuffled error, same position; over parallel kept,
            covariance; activation norm; reconstruction norm; cosine; [median z]; [share beyond z = 3]; site; objective;
            KL low; KL high; over ε-random low; over ε-random high; over covariance mixture low; over covariance mixture
            high; error norm low; error norm high; CE increase low; CE increase high; over θ-random, SAE norm low; over
            θ-random, SAE norm high; over real mixture low; over real mixture high; over shuffled error low; over
            shuffled error high; over shuffled error, same position low; over shuffled error, same position high; over
            parallel kept, covariance low; over parallel kept, covariance high
        interventions: dictionary; tokens; intervention; KL; KL low; KL high; KL median; KL 99.9 %; CE increase; CE
            increase low; CE increase high; KL ratio; KL ratio low; KL ratio high; CE ratio; CE ratio low; CE ratio high
        positions: dictionary; intervention; from; to; KL; KL low; KL high
        when: dictionary; of; with; Spearman; Spearman low; Spearman high
        tokens: dictionary; token; id; count; gap; gap low; gap high; KL; KL ε-random
        [single_token]: dictionary; intervention; positions after; KL; KL low; KL high; KL ratio; KL ratio low; KL ratio
            high
        [far_out]: dictionary; sequence; position; token; KL; ε-random mean; ε-random standard deviation; ε-random z;
            ε-random percentile; covariance mixture mean; covariance mixture standard deviation; covariance mixture z;
            covariance mixture percentile
        [equal_damage]: dictionary; direction; KL to reach; effective length; effective length low; effective length
            high; outside
        [lengths]: dictionary; direction; multiple of error norm; KL; KL low; KL high
        [sensitivity]: dictionary; direction; length; length / spread; KL; KL low; KL high
        [parents]: dictionary; made from; KL difference; KL difference low; KL difference high; over ε-random, quotient;
            over ε-random, quotient low; over ε-random, quotient high; over covariance mixture, quotient; over
            covariance mixture, quotient low; over covariance mixture, quotient high

    Example:
        dictlab report pathology local.safetensors e2e.safetensors stitched.safetensors --contexts 64
        dictlab report pathology gpt2-layer6.safetensors --contexts 1600 --context-length 128 --prepend-bos
    """
    check_at_least(0, positions_after=positions_after, sweep_contexts=sweep_contexts, seed=seed)
    check_at_least(1, draws=draws, min_occurrences=min_occurrences)
    check_at_least(2, contexts=contexts)
    if random_points == 1 or random_points < 0:
        raise DictlabError(
            f"random_points is {random_points}; expected 2 or more points to be among, or 0 to leave this out."
        )
    inputs = open_inputs(
        dictionaries,
        analysis="pathology",
        model=model,
        text=text,
        device=device,
        resumable=True,
        context=context_length or None,
        token_selection=token_selection,
    )
    size, selection, opened = inputs.context, inputs.selection, inputs.model
    elsewhere, tokens = _tokens(inputs, prepend_bos, contexts, seed)
    place = _position(position, counted_mask(opened, tokens, inputs.sites, selection))
    damage = DamageSettings(draws, place, min(positions_after, size - 1 - place), random_points, sweep_contexts, seed)
    site_statistics = measure_sites(opened, elsewhere, inputs.sites, selection)
    arrays, completion = measure_damage(inputs.adapted, opened, tokens, site_statistics, damage, selection)
    damages = [
        DictionaryDamage(dictionary, own, site_statistics[site_of(adapted)].spread, seed)
        for dictionary, adapted, own in zip(inputs.dictionaries, inputs.adapted, arrays, strict=True)
    ]
    frequency = _frequencies(opened, torch.cat([elsewhere, tokens]))
    settings = inputs.record() | {
        "prepend_bos": prepend_bos, "contexts": completion.done, "tokens_of_covariance": elsewhere[:, 1:].numel(),
        "min_occurrences": min_occurrences, "device": str(opened.device),
    }  # fmt: skip
    notes = [*completion.warnings, *_few_covariance_tokens(inputs, elsewhere)]
    if len(tokens) < contexts:
        notes.append(f"The text holds {len(tokens)} contexts, {contexts} were asked for.")
    return pathology_report(
        damages,
        inputs.dictionaries,
        damage,
        TokensMeasured(_words(opened, tokens), frequency, min_occurrences),
        settings | damage._asdict(),
        (*notes, *inputs.warnings),
    )


def _position(asked: int | None, counted: Bool[Tensor, "contexts context"]) -> int:
    """The token to replace alone: by default the usual one, or the nearest of those that count most often.

    Raises:
        DictlabError: There is none, it has no next token, or it counts in no sequence.
    """
    size, often = counted.shape[1], counted[:, :-1].sum(dim=0)
    if asked is None:
        usual, candidates = min(POSITION, size // 2), (often == often.max()).nonzero().flatten()
        return int(candidates[(candidates - usual).abs().argmin()])
    if not 0 <= asked <= size - 2:
        raise DictlabError(f"position is {asked}; in sequences of {size} tokens, 0 to {size - 2} have a next token.")
    if not often[asked]:
        raise DictlabError(
            f"position is {asked}, which counts in no sequence by the token selection; expected one that counts."
        )
    return asked


def _tokens(
    inputs: ModelInputs, prepend_bos: bool, contexts: int, seed: int
) -> tuple[Int[Tensor, "contexts context"], Int[Tensor, "contexts context"]]:
    """Sequences of the training split, for covariances, and of the held-out split, to measure on.

    Raises:
        DictlabError: The tokenizer has nothing to begin with, or there is fewer than two sequences to measure on.
    """
    tokenizer, text, size = inputs.model.tokenizer, inputs.text, inputs.context
    start: list[int] = []
    if prepend_bos and not leading_tokens(tokenizer):
        if tokenizer.bos_token_id is None:
            raise DictlabError(
                f"{inputs.model.name}: its tokenizer has no beginning-of-text token; leave out `prepend_bos=True`."
            )
        start = [tokenizer.bos_token_id]

    def drawn(split: Split, count: int) -> Int[Tensor, "contexts context"]:
        tokens = text.as_split(split).sample(tokenizer, size - len(start), count, seed=seed)
        return torch.cat([torch.tensor(start, dtype=tokens.dtype).expand(len(tokens), -1), tokens], dim=1)

    widest = max(dictionary.d_in for dictionary in inputs.dictionaries)
    elsewhere = drawn("train", max(8, -(-PER_COORDINATE * widest // (size - 1))))
    tokens = drawn("heldout", contexts)
    if len(tokens) < 2:
        raise DictlabError(
            f"text {text.name}: its held-out split holds {len(tokens)} sequence of {size} tokens; intervals need 2. "
            "Give more text, or a shorter `context_length=...`."
        )
    return elsewhere, tokens


def _few_covariance_tokens(inputs: ModelInputs, elsewhere: Int[Tensor, "contexts context"]) -> list[str]:
    """A warning where the covariance rests on little text."""
    width, seen = max(d.d_in for d in inputs.dictionaries), elsewhere[:, 1:].numel()
    if seen >= PER_COORDINATE * width:
        return []
    return [
        f"The covariance was estimated from {seen} tokens; {PER_COORDINATE * width} are advisable for {width} "
        "coordinates. Give more text."
    ]


def _words(model: LanguageModel, tokens: Tensor) -> dict[int, str]:
    """How each token that occurs is shown, in quotes so that spaces can be seen."""
    return {token: f"'{token_text(model.tokenizer, token)}'" for token in tokens.unique().tolist()}


def _frequencies(model: LanguageModel, tokens: Tensor) -> np.ndarray:
    """Share of each token in the text that was looked at, `[vocabulary]`."""
    counts = np.bincount(tokens.flatten().numpy(), minlength=model.vocabulary)
    return np.asarray(counts / counts.sum())
