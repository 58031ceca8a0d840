"""What explanations by a language model add to a report, or what they would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from analyses.autointerp import plots as plots
from analyses.autointerp import tables as tables
from analyses.autointerp.conversation import Cost
from analyses.autointerp.questions import ATTEMPTS
from analyses.autointerp.scores import Outcome, said_cost
from analyses.autointerp.settings import Interpreter
from dictlab.dictionary import Dictionary
from dictlab.reports.report import Plot, Report, Table
from dictlab.statistics import interval_words

INTERVAL = interval_words("latents")
COST = (
    "Requests and tokens. Expected ones: each question asked once, less what was answered before; a token for 3 bytes "
    "of UTF-8 and 4 for each message, answers as long as they may be. Sent ones: as the endpoint counted them."
)


def costs(
    outcome: Outcome, interpreter: Interpreter, settings: Mapping[str, Any], inputs: Sequence[Dictionary]
) -> Report:
    """What it would cost."""
    return Report(
        title="What would explanations by a language model cost?",
        summary=said_cost(outcome.expected, sum(len(one.sheets) for one in outcome.subjects), interpreter)
        + " Nothing was sent.",
        tables={"interpretation_cost": Table(tables.cost(outcome, interpreter), COST)},
        settings={**settings, **interpreter.settings()},
        inputs=tuple(inputs),
        warnings=tuple(_left_out(outcome, interpreter)),
    )


def added(report: Report, outcome: Outcome, interpreter: Interpreter, seed: int) -> Report:
    """The report with what a language model says of the same latents."""
    overview, latents = tables.overview(outcome, seed), tables.latents(outcome)
    on = f"balanced accuracy on {interpreter.judged} held-out contexts of {interpreter.window} tokens; chance 0.5"
    made = {
        "interpretation": Table(
            overview,
            f"Means over latents with {INTERVAL}; {on}. detection: is the latent active anywhere in a context? "
            "fuzzing: are the marked tokens those at which it is? left out: latents with too few active or silent "
            f"contexts. unread questions: asked {ATTEMPTS} times without an answer that can be read; their contexts "
            "are in no score.",
        ),
        "interpretation_differences": Table(
            tables.differences(outcome, seed),
            "First less second, means over latents; 95 % BCa bootstrap intervals. p: share of resamples of the pooled "
            "latents whose difference is as large, two-sided; not corrected for the number of pairs.",
        ),
        "interpretation_latents": Table(latents, f"One row a latent; {on}. Explanations are a language model's words."),
        "interpretation_judgements": Table(
            tables.judgements(outcome),
            "Every context that was judged: marked tokens between « and »; truth and answer are 1 for right.",
        ),
        "interpretation_cost": Table(
            tables.cost(outcome, interpreter), f"{COST} {outcome.found} answers were there already."
        ),
    }
    plot = Plot(
        plots.scores(latents, overview),
        f"Shapes and strokes are latents, bars are means with {INTERVAL}; {on}.",
    )
    return replace(
        report,
        title="Can strings of tokens, or a language model, say when a latent is active?",
        summary=f"{report.summary} {tables.summary(overview, interpreter)}",
        tables={**report.tables, **made},
        plots={**report.plots, "interpretation": plot},
        cards={**report.cards, "interpretation": tables.cards(outcome)},
        settings={**report.settings, **interpreter.settings()},
        warnings=(*report.warnings, *_warnings(outcome, interpreter)),
    )


def _warnings(outcome: Outcome, interpreter: Interpreter) -> list[str]:
    said = _left_out(outcome, interpreter)
    for subject, found in zip(outcome.subjects, outcome.latents or [], strict=True):
        unread, asked = sum(one.unread for one in found), sum(one.questions for one in found)
        if unread:
            said.append(
                f"{subject.dictionary.name}: {unread} of {asked} questions got no answer that can be read; their "
                "contexts are in no score."
            )
    if outcome.reckoned:
        said.append(
            f"The endpoint did not count the tokens of {outcome.reckoned} of {outcome.sent.requests} requests; they "
            "are reckoned as a third of the bytes."
        )
    expected = sum(outcome.expected.values(), Cost())
    if outcome.sent.tokens_in + outcome.sent.tokens_out > expected.tokens_in + expected.tokens_out:
        said.append("More tokens were sent than expected: answers were asked for again, or the tokenizer's are short.")
    if (exposed := interpreter.exposed()) is not None:
        said.append(exposed)
    return said


def _left_out(outcome: Outcome, interpreter: Interpreter) -> list[str]:
    return [
        f"{one.dictionary.name}: {len(one.left_out)} of {len(one.left_out) + len(one.sheets)} latents are active in "
        f"fewer than {interpreter.judged} held-out windows of {interpreter.window} tokens or in nearly all of "
        f"them, or in fewer than {interpreter.shown} training sequences, and were not interpreted. More --tokens help."
        for one in outcome.subjects
        if one.left_out
    ]
