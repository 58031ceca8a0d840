"""An interrupt ends a measurement quietly once enough of it is complete, and never hides how much is missing."""

import pytest

from dictlab.runtime.interruption import Completion


def measured(completion: Completion, until: int, error: type[BaseException] = KeyboardInterrupt) -> int:
    with completion:
        for number in range(completion.asked):
            if number == until:
                raise error
            completion.add()
    return completion.done


def test_complete():
    completion = Completion(3)
    assert measured(completion, 99) == 3
    assert not completion.partial and completion.warnings == ()


def test_enough_is_kept_and_said():
    completion = Completion(5, "tokens")
    assert measured(completion, 2) == 2
    assert completion.warnings == ("PARTIAL: interrupted after 2 of 5 tokens.",)


@pytest.mark.parametrize(("least", "until"), [(2, 1), (1, 0), (None, 4)])
def test_too_little_is_an_interrupt(least, until):
    with pytest.raises(KeyboardInterrupt):
        measured(Completion(5, least=least), until)


def test_other_errors_are_raised():
    with pytest.raises(ValueError):
        measured(Completion(5), 4, ValueError)
