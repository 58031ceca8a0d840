"""How does the host learn a number that the device has counted, without letting the device wait?

How many latents are dead decides how large AuxK's matrices are. Asked for where it is needed, in the middle of a step,
it would empty the device's queue. It is settled before the step, and its copy is queued first: the host waits for that
alone, while the device is busy with the forward queued behind it.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


class Told:
    """A whole number that is on its way from the device.

    Args:
        number: As the device has it.
    """

    def __init__(self, number: Int[Tensor, ""]) -> None:
        self._number, self._there = number, None
        if number.is_cuda:
            self._number = torch.empty((), dtype=number.dtype, pin_memory=True)
            self._number.copy_(number, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    def __int__(self) -> int:
        """The number, once the copy is there."""
        if self._there is not None:
            self._there.synchronize()
        return int(self._number)
