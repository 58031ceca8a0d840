"""Settings of all tests."""

import os

# Before the libraries that read it are imported: a test that waits for a network waits for half a minute.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings

from dictlab import Text

torch.set_num_threads(1)  # the tensors here are small: more threads only wait for each other

# No deadlines: tests measure no speed, and a shared machine is slow at times. The same examples on every machine.
settings.register_profile("dictlab", deadline=None, derandomize=True)
settings.load_profile("dictlab")


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Text:
    """A hundred and twenty documents of random letters."""
    folder = tmp_path_factory.mktemp("text")
    generator = torch.Generator().manual_seed(0)
    for number in range(120):
        letters = torch.randint(33, 127, (120,), generator=generator)
        (folder / f"{number}.txt").write_text("".join(map(chr, letters.tolist())))
    return Text.files(folder)
