"""Explanations by a language model as tables, cards, a plot and words; or what they would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analyses.autointerp.answer_cache import ApiCost
from analyses.autointerp.examples import Trial, Window
from analyses.autointerp.prompts import KINDS, marked
from analyses.autointerp.questions import ATTEMPTS
from analyses.autointerp.scores import Interpretation, InterpretedLatent, cost_in_words
from analyses.autointerp.settings import Interpreter
from analyses.common import plotting
from dictlab.dictionary import Dictionary
from dictlab.numerics.significance import difference_of_means
from dictlab.numerics.statistics import NAN, Estimate, estimate_columns, interval_words, mean_interval
from dictlab.reports.cards import Card, Cards, Passage, Piece
from dictlab.reports.report import Plot, Report, Table

CARDS = 8  # latents of a dictionary that get one
MISTAKES = 3  # of each score, on a card
CHANCE = 0.5
INTERVAL = interval_words("latents")
TITLES = {"detection": "Is the latent found in a text?", "fuzzing": "Are its tokens found in a text?"}
COST = (
    "Requests and tokens. Expected ones: each question asked once, less what was answered before; a token for 3 bytes "
    "of UTF-8 and 4 for each message, answers as long as they may be. Sent ones: as the endpoint counted them."
)


def cost_report(
    estimate: Interpretation, interpreter: Interpreter, settings: Mapping[str, Any], inputs: Sequence[Dictionary]
) -> Report:
    """What explanations would cost."""
    return Report(
        title="What would explanations by a language model cost?",
        summary=cost_in_words(estimate, interpreter) + " Nothing was sent.",
        tables={"interpretation_cost": Table(cost_table(estimate, interpreter), COST)},
        settings={**settings, **interpreter.settings()},
        inputs=tuple(inputs),
        warnings=tuple(_left_out(estimate, interpreter)),
    )


def with_interpretation(report: Report, interpretation: Interpretation, interpreter: Interpreter, seed: int) -> Report:
    """A report on the same latents, with what a language model says of them."""
    means = {one.name: mean_scores(one.latents, seed) for one in interpretation.dictionaries}
    overview = overview_table(interpretation, means)
    on = f"balanced accuracy on {interpreter.judged} held-out contexts of {interpreter.window} tokens; chance 0.5"
    tables = {
        "interpretation": Table(
            overview,
            f"Means over latents with {INTERVAL}; {on}. detection: is the latent active anywhere in a context? "
            "fuzzing: are the marked tokens those at which it is? left out: latents with too few active or silent "
            f"contexts. unread questions: asked {ATTEMPTS} times without an answer that can be read; their contexts "
            "are in no score.",
        ),
        "interpretation_differences": Table(
            differences_table(interpretation, seed),
            "First less second, means over latents; 95 % BCa bootstrap intervals. p: share of resamples of the pooled "
            "latents whose difference is as large, two-sided; not corrected for the number of pairs.",
        ),
        "interpretation_latents": Table(
            latents_table(interpretation),
            f"One row a latent; {on}. Explanations are a language model's words.",
            named_in={"latent": "dictionary"},
        ),
        "interpretation_judgements": Table(
            judgements_table(interpretation),
            "Every context that was judged: marked tokens between « and »; truth and answer are 1 for right.",
            named_in={"latent": "dictionary"},
        ),
        "interpretation_cost": Table(
            cost_table(interpretation, interpreter), f"{COST} {interpretation.n_cached} answers were there already."
        ),
    }
    plot = Plot(
        scores_plot(interpretation, overview), f"Shapes and strokes are latents, bars are means with {INTERVAL}; {on}."
    )
    return replace(
        report,
        title="Can strings of tokens, or a language model, say when a latent is active?",
        summary=f"{report.summary} {_summary(interpretation, means, interpreter)}",
        tables={**report.tables, **tables},
        plots={**report.plots, "interpretation": plot},
        cards={**report.cards, "interpretation": latent_cards(interpretation)},
        settings={**report.settings, **interpreter.settings()},
        warnings=(*report.warnings, *_warnings(interpretation, interpreter)),
    )


def known_scores(latents: Sequence[InterpretedLatent], kind: str) -> np.ndarray:
    """The scores of the latents that have one."""
    values = np.array([latent.score(kind) for latent in latents], dtype=float)
    known: np.ndarray = values[~np.isnan(values)]
    return known


def mean_scores(latents: Sequence[InterpretedLatent], seed: int) -> dict[str, Estimate]:
    """The mean of each kind of score over the latents that have one."""
    values = {kind: known_scores(latents, kind) for kind in KINDS}
    return {
        kind: Estimate(float(own.mean()), *mean_interval(own, seed)) if len(own) else Estimate(NAN)
        for kind, own in values.items()
    }


def overview_table(interpretation: Interpretation, means: Mapping[str, Mapping[str, Estimate]]) -> pd.DataFrame:
    """One row a dictionary: mean scores over latents."""
    rows = []
    for one in interpretation.dictionaries:
        row: dict[str, Any] = {"dictionary": one.name, "latents": len(one.latents)}
        for kind in KINDS:
            row |= estimate_columns(kind, means[one.name][kind])
            row[f"{kind} latents"] = len(known_scores(one.latents, kind))
        row["chance"] = CHANCE
        row["unexplained"] = sum(latent.explanation is None for latent in one.latents)
        row["questions"] = sum(latent.n_questions for latent in one.latents)
        row["unread questions"] = sum(latent.n_unread for latent in one.latents)
        rows.append(row | {"left out": len(one.left_out)})
    return pd.DataFrame(rows)


def differences_table(interpretation: Interpretation, seed: int) -> pd.DataFrame:
    """One row a pair of dictionaries and score."""
    rows = []
    for first, second in combinations(interpretation.dictionaries, 2):
        for kind in KINDS:
            x, y = known_scores(first.latents, kind), known_scores(second.latents, kind)
            difference = difference_of_means(x, y, seed)
            row: dict[str, Any] = {"first": first.name, "second": second.name, "score": kind}
            row |= {"first latents": len(x), "second latents": len(y)}
            rows.append(row | estimate_columns("difference", Estimate(*difference[:3])) | {"p": difference.p})
    names = ["first", "second", "score", "first latents", "second latents"]
    return pd.DataFrame(rows, columns=[*names, *estimate_columns("difference", Estimate(NAN)), "p"])


def latents_table(interpretation: Interpretation) -> pd.DataFrame:
    """One row a latent: explanation, scores, and the counts behind them."""
    rows = []
    for one in interpretation.dictionaries:
        for latent in one.latents:
            row: dict[str, Any] = {"dictionary": one.name, "latent": latent.latent, "explanation": latent.explanation}
            row |= {kind: latent.score(kind) for kind in KINDS}
            for kind in KINDS:
                for truth, word in ((True, "right"), (False, "wrong")):
                    answers = [t.answer for t in latent.trials[kind] if t.truth == truth and t.answer is not None]
                    row |= {f"{kind} {word} contexts": len(answers), f"{kind} {word} taken for right": sum(answers)}
            rows.append(row | {"unread questions": latent.n_unread})
    return pd.DataFrame(rows)


def judgements_table(interpretation: Interpretation) -> pd.DataFrame:
    """One row a context that was judged."""
    names = ["dictionary", "latent", "score", "context", "truth", "answer"]
    rows = [
        (one.name, latent.latent, kind, _text(trial), int(trial.truth), trial.answer)
        for one in interpretation.dictionaries
        for latent in one.latents
        for kind in KINDS
        for trial in latent.trials[kind]
    ]
    return pd.DataFrame(rows, columns=names).astype({"answer": "Int64"})


def cost_table(interpretation: Interpretation, interpreter: Interpreter) -> pd.DataFrame:
    """What was expected, by kind of question, and what was sent."""
    rows: list[tuple[str, ApiCost]] = [*interpretation.expected.items(), ("expected", interpretation.total_expected)]
    if interpretation.sent is not None:
        rows.append(("sent", interpretation.sent))
    return pd.DataFrame(
        [(what, one.requests, one.tokens_in, one.tokens_out, one.money(interpreter.price)) for what, one in rows],
        columns=["what", "requests", "tokens in", "tokens out", "money"],
    ).astype({"money": float})


@plotting.applied
def scores_plot(interpretation: Interpretation, overview: pd.DataFrame) -> Figure:
    """One panel a score, one row a dictionary: the distribution over latents, every latent, and the mean."""
    figure, panels = plotting.axes(len(KINDS), width=5.2, height=max(2.7, 0.6 * len(overview) + 1.4))
    places = np.arange(len(overview))[::-1]
    for ax, kind in zip(panels, KINDS, strict=True):
        for place, one in zip(places, interpretation.dictionaries, strict=True):
            values = known_scores(one.latents, kind)
            if len(values) > 1 and np.ptp(values) > 0:
                shapes: Any = ax.violinplot(values, [place], orientation="horizontal", widths=0.8, showextrema=False)
                shapes["bodies"][0].set(facecolor="0.8", alpha=1, zorder=1)
            ax.plot(values, np.full(len(values), place - 0.3), ls="none", marker="|", ms=5, color="0.5", zorder=2)
        plotting.points(ax, overview, kind, places, 0, elinewidth=2, zorder=3, label="mean over latents")
        ax.axvline(CHANCE, color=plotting.colour(1), ls="--", lw=1.2, label="chance")
        ax.set(xlabel=f"{kind} score (balanced accuracy)", title=TITLES[kind], xlim=(-0.03, 1.03))
        ax.set_ylim(-0.7, len(overview) - 0.3)
        plotting.named_rows(ax, places, [one.name if ax is panels[0] else "" for one in interpretation.dictionaries])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def latent_cards(interpretation: Interpretation) -> Cards:
    """The first latents of each dictionary: contexts, explanation, scores, mistakes."""
    cards = []
    for one in interpretation.dictionaries:
        for latent in one.latents[:CARDS]:
            fields = {"explanation": latent.explanation or "none: no answer could be read"}
            fields |= {kind: _score_in_words(latent, kind) for kind in KINDS}
            for kind in KINDS:
                wrong = [t for t in latent.trials[kind] if t.answer is not None and bool(t.answer) != t.truth]
                for i, trial in enumerate(wrong[:MISTAKES], 1):
                    fields[f"{kind}, {'missed' if trial.truth else 'taken for right'} ({i})"] = _text(trial)
            shown = tuple(_passage(window) for window in latent.shown)
            cards.append(
                Card(
                    f"Latent {latent.latent} of {one.name}",
                    fields,
                    {"Explained from": shown},
                    (one.name, latent.latent),
                )
            )
    return Cards(
        tuple(cards),
        "Explanations are a language model's words. Contexts that a latent is explained from are shaded by activation. "
        "Those under missed and taken for right were judged wrongly, with the marked tokens between « and ». First "
        f"{CARDS} latents of each dictionary.",
    )


def _summary(
    interpretation: Interpretation, means: Mapping[str, Mapping[str, Estimate]], interpreter: Interpreter
) -> str:
    """The best and the worst explained dictionary."""
    order = pd.Series([means[one.name]["detection"].value for one in interpretation.dictionaries])
    order = order.sort_values(ascending=False).index
    sentences = []
    for i in dict.fromkeys([order[0], order[-1]]):
        one = interpretation.dictionaries[i]
        parts = [f"{kind} {m.value:.2f} [{m.low:.2f}, {m.high:.2f}]" for kind, m in means[one.name].items()]
        sentences.append(
            f"{one.name}: what {interpreter.explainer} says of a latent reaches {' and '.join(parts)} "
            f"(chance {CHANCE}; n = {len(one.latents)} latents; judged by {interpreter.scores_with})."
        )
    return " ".join(sentences)


def _warnings(interpretation: Interpretation, interpreter: Interpreter) -> list[str]:
    warnings = _left_out(interpretation, interpreter)
    for one in interpretation.dictionaries:
        if n_unread := sum(latent.n_unread for latent in one.latents):
            warnings.append(
                f"{one.name}: {n_unread} of {sum(latent.n_questions for latent in one.latents)} questions got no "
                "answer that can be read; their contexts are in no score."
            )
    sent, expected = interpretation.sent or ApiCost(), interpretation.total_expected
    if interpretation.n_uncounted:
        warnings.append(
            f"The endpoint did not count the tokens of {interpretation.n_uncounted} of {sent.requests} requests; they "
            "are reckoned as a third of the bytes."
        )
    if sent.tokens_in + sent.tokens_out > expected.tokens_in + expected.tokens_out:
        warnings.append(
            "More tokens were sent than expected: answers were asked for again, or the tokenizer's are short."
        )
    if (exposed := interpreter.exposed()) is not None:
        warnings.append(exposed)
    return warnings


def _left_out(interpretation: Interpretation, interpreter: Interpreter) -> list[str]:
    return [
        f"{one.name}: {len(one.left_out)} of {len(one.left_out) + len(one.latents)} latents are active in "
        f"fewer than {interpreter.judged} held-out windows of {interpreter.window} tokens or in nearly all of "
        f"them, or in fewer than {interpreter.shown} training sequences, and were not interpreted. More "
        f"`tokens=...` help."
        for one in interpretation.dictionaries
        if one.left_out
    ]


def _score_in_words(latent: InterpretedLatent, kind: str) -> str:
    n_answers = sum(trial.answer is not None for trial in latent.trials[kind])
    return (
        f"{latent.score(kind):.2f} on {n_answers} contexts" if n_answers else "not measured: no context, or no answer"
    )


def _text(trial: Trial) -> str:
    return marked(trial.window.pieces, trial.marks)


def _passage(window: Window) -> Passage:
    weights = window.strength / window.strength.max()
    pieces = (Piece(text, round(float(w), 3)) for text, w in zip(window.pieces, weights, strict=True))
    return Passage(tuple(pieces), int(window.strength.argmax()))
