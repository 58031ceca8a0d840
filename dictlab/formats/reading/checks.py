"""Do the parts of a dictionary out of a file fit each other, and are they numbers?"""

from __future__ import annotations

from dictlab.dictionary import Dictionary
from dictlab.dictionary.tensor_checks import check_finite, check_shapes


def check(dictionary: Dictionary) -> None:
    """Refuse a dictionary whose parts do not fit together, or that holds values that are no finite float32.

    Raises:
        DictlabError: The first tensor at fault is named.
    """
    tensors = dictionary.named_tensors()
    check_shapes(tensors, transcodes=dictionary.transcodes)
    check_finite(tensors)
