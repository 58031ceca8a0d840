"""What readers of other libraries' files check alike: a tensor's shape, a configuration's fields.

What is not understood is refused by its name, for it may change the function.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from dictlab.dictionary.tensor_checks import PRECISIONS
from dictlab.errors import DictlabError
from dictlab.formats.reading.source import Source

LISTED = 12  # tensors named in an error


def listed(tensors: Mapping[str, Tensor]) -> str:
    """Names and shapes of tensors, for a message."""
    names = [f"{short(name)} {list(tensor.shape)}" for name, tensor in list(tensors.items())[:LISTED]]
    more = f" and {len(tensors) - LISTED} more" if len(tensors) > LISTED else ""
    return (", ".join(names) or "none") + more


def short(value: Any) -> str:
    """A value out of a file, on one line of a message."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= 60 else f"{text[:60]}..."


def shaped(tensors: Mapping[str, Tensor], name: str, *shape: int | None) -> Tensor:
    """The tensor of a name, with as many dimensions as given and of these lengths, None standing for any.

    Raises:
        DictlabError: It is missing, of another shape, empty, or holds no floating-point numbers.
    """
    if name not in tensors:
        raise DictlabError(f"the tensor {short(name)!r} is missing; found {listed(tensors)}.")
    tensor = tensors[name]
    fits = tensor.ndim == len(shape) and all(
        found == wanted or (wanted is None and found) for found, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise DictlabError(f"{short(name)} has shape {list(tensor.shape)}; expected [{wanted}].")
    if tensor.dtype not in PRECISIONS:
        raise DictlabError(
            f"{short(name)} holds {str(tensor.dtype).removeprefix('torch.')}; expected floating-point numbers."
        )
    return tensor


def refuse_unknown(found: Iterable[str], known: Iterable[str], what: str, ignore: Iterable[str] = ()) -> None:
    """Refuse a name that nobody here knows.

    Args:
        found: Names in the file.
        known: Those that are understood, or are known to leave the function as it is.
        what: What they are names of.
        ignore: Those that the user wants passed over.

    Raises:
        DictlabError: There is another one.
    """
    passed = {*known, *ignore}
    unknown = [name for name in found if name not in passed]
    if unknown:
        raise DictlabError(
            f"{what} {short(unknown[0])!r} is unknown here and may change the function. "
            "If you know that it does not, pass it over with ignore."
        )


def refuse_scale(source: Source) -> None:
    """Refuse a scale for a format whose configurations leave none open.

    Raises:
        DictlabError: There is one.
    """
    if source.scale is not None:
        raise DictlabError(f"a scale of {source.scale} is given, and files of this format say all about their input.")


def refuse_part(source: Source) -> None:
    """Refuse `#part` behind the name of a file that holds one dictionary.

    Raises:
        DictlabError: There is one.
    """
    if source.part is not None:
        raise DictlabError(
            f"it holds one dictionary, and none called {short(source.part)!r}; leave out what follows #."
        )


def refuse_extras(source: Source) -> None:
    """Refuse both of these.

    Raises:
        DictlabError: There is one.
    """
    refuse_part(source)
    refuse_scale(source)


def flag(config: Mapping[str, Any], name: str, default: bool) -> bool:
    """A field that is true or false.

    Raises:
        DictlabError: It is neither.
    """
    value = config.get(name, default)
    if type(value) is not bool:
        raise DictlabError(f"configuration: {name} is {short(value)}; expected true or false.")
    return value


def number(config: Mapping[str, Any], name: str, kind: type = float) -> Any:
    """A number in a field, or None where it is absent or null.

    Raises:
        DictlabError: It is no number, or no whole one where `kind` is int.
    """
    value = config.get(name)
    if value is None or type(value) is int:
        return value
    if type(value) is not kind:
        raise DictlabError(f"configuration: {name} is {short(value)}; expected a {'whole ' * (kind is int)}number.")
    return value


def text(config: Mapping[str, Any], name: str) -> str | None:
    """A text in a field, or None where it is absent or null.

    Raises:
        DictlabError: It is no text.
    """
    value = config.get(name)
    if value is not None and not isinstance(value, str):
        raise DictlabError(f"configuration: {name} is {short(value)}; expected a text.")
    return value


def without_none(**entries: Any) -> dict[str, Any]:
    """Those that are there."""
    return {name: value for name, value in entries.items() if value is not None}
