"""Numbers on their way from the device to the host, so that a GPU's queue never runs empty.

AuxK's matrices have a row for each dead latent, so the host must know how many there are. Read in the middle of a step,
that number would empty the device's queue. It is counted before the forward, and its copy is queued first: the host
waits for that copy alone, while the device is busy with the forward queued behind it.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


class AsyncScalar:
    """A device-to-host copy of one integer; `int()` waits for that copy only.

    Args:
        number: On the device.
    """

    def __init__(self, number: Int[Tensor, ""]) -> None:
        self._number, self._copied = number, None
        if number.is_cuda:
            self._number = torch.empty((), dtype=number.dtype, pin_memory=True)
            self._number.copy_(number, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(number.device))

    def __int__(self) -> int:
        """The number, once its copy has arrived."""
        if self._copied is not None:
            self._copied.synchronize()
        return int(self._number)
