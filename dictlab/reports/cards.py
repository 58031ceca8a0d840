"""Cards: what single things are, such as latents. A title, fields, and passages of text whose pieces are marked.

On a page and in a notebook a card is a box; what stands in it is text, whatever it looks like. A piece is shaded by its
weight, and the peak of a passage is printed in bold and underlined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from dictlab.reports.safe_text import safe


class Piece(NamedTuple):
    """A piece of a text, such as a token, with a weight between 0 (not shaded) and 1 (the darkest)."""

    text: str
    weight: float = 0.0


@dataclass(frozen=True)
class Passage:
    """Text in pieces.

    Attributes:
        pieces: In their order.
        peak: The piece that it is about; None for none.
    """

    pieces: tuple[Piece, ...]
    peak: int | None = None

    def __str__(self) -> str:
        """The text, with the peak between « and »."""
        return "".join(f"«{piece.text}»" if i == self.peak else piece.text for i, piece in enumerate(self.pieces))


@dataclass(frozen=True)
class Card:
    """What one thing is.

    Attributes:
        title: Its name.
        fields: What is known of it, by name.
        passages: Passages of text, by heading.
        latent: Name of the dictionary and number of the latent that it is about; None where it is about another thing.
    """

    title: str
    fields: Mapping[str, str] = field(default_factory=dict)
    passages: Mapping[str, tuple[Passage, ...]] = field(default_factory=dict)
    latent: tuple[str, int] | None = None


@dataclass(frozen=True)
class Cards:
    """Several cards and what they are about."""

    cards: tuple[Card, ...]
    caption: str

    def html(self, prefix: str | None = None) -> Markup:
        """The cards as boxes, all of their text escaped.

        Args:
            prefix: Of the identifiers of cards that are of a latent, PREFIX-CARD-LATENT; None for no identifiers.
        """
        return Markup(template("cards.html").render(deck=self, prefix=prefix))

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Cards:
        """The cards that `data` describes."""
        return cls(tuple(_card(**card) for card in data["cards"]), data["caption"])

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.html()

    def data(self) -> dict[str, Any]:
        """The same as JSON knows it."""
        cards = [
            {
                "title": card.title,
                "fields": dict(card.fields),
                "passages": {
                    heading: [
                        {"text": str(p), "pieces": [[piece.text, piece.weight] for piece in p.pieces], "peak": p.peak}
                        for p in passages
                    ]
                    for heading, passages in card.passages.items()
                },
                **({} if card.latent is None else {"latent": list(card.latent)}),
            }
            for card in self.cards
        ]
        return {"caption": self.caption, "cards": cards}


def _card(
    title: str, fields: Mapping[str, str], passages: Mapping[str, Any], latent: Sequence[Any] | None = None
) -> Card:
    read = {
        heading: tuple(Passage(tuple(Piece(*piece) for piece in one["pieces"]), one["peak"]) for one in some)
        for heading, some in passages.items()
    }
    return Card(title, fields, read, None if latent is None else (str(latent[0]), int(latent[1])))


def _safe(value: Any) -> Any:
    """Text that is put into a page, without what could pass for something else; markup is the package's own."""
    return safe(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def template(name: str) -> jinja2.Template:
    """One of the package's templates. What is put into it is escaped."""
    loader = jinja2.PackageLoader("dictlab.reports", "templates")
    return jinja2.Environment(
        loader=loader, autoescape=True, finalize=_safe, trim_blocks=True, lstrip_blocks=True
    ).get_template(name)
