"""Messages speak to who calls a function; on the command line they speak of options."""

import pytest

from dictlab import DictlabError, cli, save
from dictlab.cli.printing import as_options
from tests.planted import random_dictionary


@pytest.mark.parametrize(
    ("message", "typed"),
    [
        ("Give it with `model=...`.", "Give it with --model."),
        ("`allow_other_weights=True` or `umap=False`", "--allow-other-weights or --no-umap"),
        ("`tokens=0`, `select='best'`", "--tokens 0, --select best"),
        ("`dictlab train --resume runs/a` goes on; map activation=relu", None),
    ],
)
def test_arguments_become_options(message, typed):
    assert as_options(message) == (typed or message)


def test_the_same_mistake_in_python_and_on_the_command_line(tmp_path, capsys):
    path = save(random_dictionary(), tmp_path / "nameless.safetensors")
    from analyses.explorer.latent import latent

    with pytest.raises(DictlabError, match="names no model; give one with `model="):
        latent(path, 0)
    assert cli.main(["latent", str(path), "0"]) == 2
    assert "names no model; give one with --model." in " ".join(capsys.readouterr().err.split())
