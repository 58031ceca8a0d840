"""The page's colours against WCAG 2.2, level AA: 4.5 to 1 for text, 3 to 1 for what is no text, in light and dark."""

import colorsys
import re

import pytest

from analyses.explorer.page import STYLE, _asset

CSS = _asset(STYLE)
HUES = range(6)
TEXT, NO_TEXT = 4.5, 3.0


def colours(dark: bool) -> dict[str, tuple[float, float, float]]:
    """The variables of a scheme as (r, g, b) from 0 to 1."""
    light_block = re.search(r":root \{(.*?)\}", CSS, re.DOTALL)[1]
    dark_block = re.search(r"prefers-color-scheme: dark\) \{ :root \{(.*?)\}", CSS, re.DOTALL)[1]
    values = dict(re.findall(r"--([\w-]+): ([^;]+);", light_block))
    values |= dict(re.findall(r"--([\w-]+): ([^;]+);", dark_block)) if dark else {}
    return {name: parsed(value.strip()) for name, value in values.items()}


def parsed(value: str) -> tuple[float, float, float]:
    if value.startswith("#"):
        digits = value[1:] if len(value) == 7 else "".join(2 * c for c in value[1:])
        return tuple(int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4))
    h, s, lightness = (float(part.rstrip("%")) for part in value.split())
    return colorsys.hls_to_rgb(h / 360, lightness / 100, s / 100)


def over(colour, below, alpha):
    return tuple(alpha * c + (1 - alpha) * b for c, b in zip(colour, below, strict=True))


def contrast(one, other) -> float:
    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_formula_is_wcags():
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast(parsed("#767676"), (1, 1, 1)) == pytest.approx(4.54, abs=0.01)  # WCAG's own example of just enough
    assert parsed("0 100% 50%") == pytest.approx((1, 0, 0))


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read(dark):
    of = colours(dark)
    on_paper = ["ink", "faint", "link", *(f"h{k}" for k in HUES)]
    pairs = [(text, ground) for ground in ("paper", "panel") for text in on_paper]
    pairs += [("ink", "warn"), ("paper", "ink")]  # a warning; the value at the pointer
    low = {pair: contrast(of[pair[0]], of[pair[1]]) for pair in pairs}
    assert {pair: round(value, 2) for pair, value in low.items() if value < TEXT} == {}


@pytest.mark.parametrize("dark", [False, True])
def test_shaded_tokens_can_be_read(dark):
    of = colours(dark)
    levels = {
        name: float(alpha) for name, alpha in re.findall(r"\.(s\d) \{ background: hsl\(var\(--hue\) / (\.\d+)\)", CSS)
    }
    assert len(levels) == 9 and sorted(levels.values()) == list(levels.values())
    assert not re.search(r"\.t(\.\w+)*( \.\w+)* \{[^}]*[^-]color:", CSS)  # tokens are ink, special ones too
    for k in HUES:
        for alpha in levels.values():
            assert contrast(of["ink"], over(of[f"h{k}"], of["paper"], alpha)) >= TEXT


@pytest.mark.parametrize("dark", [False, True])
def test_focus_and_borders_of_fields_can_be_seen(dark):
    of = colours(dark)
    assert re.search(r":focus-visible \{ outline: 2px solid var\(--link\)", CSS)
    assert all(contrast(of["link"], of[ground]) >= NO_TEXT for ground in ("paper", "panel"))
    border = re.search(r"input, select, button, textarea \{[^}]*border: 1px solid var\(--(\w+)\)", CSS)[1]
    assert contrast(of[border], of["paper"]) >= NO_TEXT
