"""Settings of all tests."""

import torch
from hypothesis import settings

torch.set_num_threads(1)  # the tensors here are small: more threads only wait for each other

# No deadlines: tests measure no speed, and a shared machine is slow at times. The same examples on every machine.
settings.register_profile("dictlab", deadline=None, derandomize=True)
settings.load_profile("dictlab")
