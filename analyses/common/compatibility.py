"""Do dictionaries belong together, and to this model? What does not is refused, with both names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from analyses.common.opening import ModelLike, open_model
from dictlab.dictionary import Dictionary
from dictlab.errors import DictlabError
from dictlab.evaluation.sites import site_of
from dictlab.model.language_model import LanguageModel
from dictlab.site_names import canonical_model, canonical_site, may_be_one_site


def sites_of(dictionaries: Sequence[Dictionary], model: LanguageModel) -> list[str]:
    """Their sites, each once, after a look at whether the model has them and they are as wide as their dictionaries.

    Raises:
        DictlabError: A dictionary names no site, or one that is not the model's, or has another width than the site.
    """
    sites = list(dict.fromkeys(site_of(dictionary) for dictionary in dictionaries))
    found = model.capture(torch.zeros(1, 1, dtype=torch.long), sites)
    for dictionary in dictionaries:
        width = found[site_of(dictionary)].shape[-1]
        if width != dictionary.d_in:
            raise DictlabError(
                f"{dictionary.name} reads activations of width {dictionary.d_in}, and {site_of(dictionary)} of "
                f"{model.name} is {width} wide: is it a dictionary of another model or site?"
            )
    return sites


def check_same_place(dictionaries: Sequence[Dictionary], model: ModelLike | None = None) -> None:
    """Refuse dictionaries that do not read, or do not write, the same activations. What a file does not say is taken on
    trust.

    Args:
        dictionaries: The dictionaries.
        model: Their model. It is asked where one names a module and another what that half of a block adds, which are
            one tensor in some models and two in others; by default it is the one that they name.

    Raises:
        DictlabError: Two differ in width, site or model; or whether they do depends on a model that is not within
            reach.
    """
    first = dictionaries[0]
    for other in dictionaries[1:]:
        for what, a, b in (
            ("kind", *("a transcoder" if d.transcodes else "an autoencoder" for d in (first, other))),
            ("width d_in", first.d_in, other.d_in),
            ("width d_out", first.d_out, other.d_out),
            ("site", *_sites(first, other, model, "site")),
            ("written site", *_sites(first, other, model, "writes")),
            ("model", *_models(first, other)),
        ):
            if a is not None and b is not None and a != b:
                raise DictlabError(f"{first.name} and {other.name} cannot be compared: {what} is {a} and {b}.")


def _sites(
    a: Dictionary, b: Dictionary, model: ModelLike | None, which: Literal["site", "writes"]
) -> tuple[str | None, str | None]:
    """What to compare of two sites: nothing where they are two spellings of one tensor."""
    one, other = (getattr(d.metadata, which) for d in (a, b))
    different = _if_different(one, other, canonical_site)
    if one is None or other is None or different == (None, None) or not may_be_one_site(one, other):
        return different
    try:
        same = open_model(model, [a, b]).same_site(one, other)
    except DictlabError as error:
        raise DictlabError(
            f"{a.name} and {b.name} cannot be compared: whether {one} and {other} are one tensor depends on the model, "
            f"which could not be asked ({error})"
        ) from error
    return (None, None) if same else different


def _if_different(a: str | None, b: str | None, canonical: Callable[[str], str]) -> tuple[str | None, str | None]:
    """Both names, unless they are two spellings of one thing."""
    same = a is not None and b is not None and canonical(a) == canonical(b)
    return (None, None) if same else (a, b)


def _models(a: Dictionary, b: Dictionary) -> tuple[str | None, str | None]:
    """What to compare: fingerprints where both are known, since one model can have several names; else the names."""
    prints = [d.metadata.model_fingerprint for d in (a, b)]
    if None in prints:
        return _if_different(a.metadata.model, b.metadata.model, canonical_model)
    if prints[0] == prints[1]:
        return None, None
    one, other = (f"{d.metadata.model} ({d.metadata.model_fingerprint})" for d in (a, b))
    return one, other
