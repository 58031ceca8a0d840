"""A run that is stopped goes on where it was, with the same files bit by bit, and leaves nothing half-written."""

import json

import pytest

from analyses.explorer import collection, collection_state, explorer_folder
from analyses.explorer.collection_state import STATE
from analyses.explorer.explore import explore
from analyses.explorer.latents import promoted_tokens
from tests.analyses.explorer.conftest import CONTEXT


class Stop(Exception):
    """In place of whatever ends a process."""


@pytest.fixture
def arguments(model, text, monkeypatch):
    """Many small batches, a state after each."""
    monkeypatch.setattr(collection, "FORWARD_TOKENS", 4 * CONTEXT)
    monkeypatch.setattr(collection, "SAVED_EVERY", 0.0)
    return {"model": model, "text": text, "tokens": 24 * CONTEXT, "umap": False}


@pytest.fixture
def stop_after(monkeypatch):
    """Have a function of a module raise after so many calls, before or after its work."""

    def at(module, name, calls, *, complete):
        before, made = getattr(module, name), []

        def stopping(*args, **kwargs):
            if len(made) == calls and not complete:
                raise Stop
            result = before(*args, **kwargs)
            made.append(name)
            if len(made) > calls:
                raise Stop
            return result

        monkeypatch.setattr(module, name, stopping)
        return made, lambda: monkeypatch.setattr(module, name, before)

    return at


def content(folder):
    """Every file but the record, which holds the time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "report.json"
    }


@pytest.fixture(scope="package")
def whole(dictionaries, model, text, tmp_path_factory):
    """What an explorer is that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "page"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collection, "FORWARD_TOKENS", 4 * CONTEXT)
        explore(dictionaries, model=model, text=text, tokens=24 * CONTEXT, umap=False, out=out)
    return content(out)


@pytest.mark.parametrize(
    ("module", "name", "calls", "complete"),
    [
        (collection, "_add", 0, True),  # codes of the first batch are on disk, no state speaks of them
        (collection, "save_state", 2, True),
        (collection_state, "save_tensors", 2, True),  # the new state is written and has not its place yet
        (promoted_tokens, "save_tensors", 0, True),
        (explorer_folder, "write_token_firings", 1, False),
    ],
)
def test_a_stopped_run_goes_on_bit_by_bit(
    dictionaries, arguments, stop_after, whole, tmp_path, module, name, calls, complete
):
    out = tmp_path / "page"
    _, let_go = stop_after(module, name, calls, complete=complete)
    with pytest.raises(Stop):
        explore(dictionaries, out=out, **arguments)
    assert not out.exists() and [path.name for path in tmp_path.iterdir()] == [".page.unfinished"]
    let_go()
    explore(dictionaries, out=out, **arguments)
    assert content(out) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_what_was_complete_is_not_run_again(dictionaries, arguments, stop_after, tmp_path):
    made, let_go = stop_after(collection, "save_state", 3, complete=True)
    with pytest.raises(Stop):
        explore(dictionaries, out=tmp_path / "page", **arguments)
    let_go()
    made, _ = stop_after(collection, "_add", 100, complete=True)
    explore(dictionaries, out=tmp_path / "page", **arguments)
    assert len(made) == 6 - 4  # batches


def test_another_run_does_not_go_on_from_it(dictionaries, arguments, stop_after, tmp_path):
    _, let_go = stop_after(collection, "save_state", 1, complete=True)
    with pytest.raises(Stop):
        explore(dictionaries, out=tmp_path / "page", **arguments)
    let_go()
    assert (tmp_path / ".page.unfinished" / STATE).exists()
    made, let_go = stop_after(collection, "_add", 100, complete=True)
    explorer = explore(dictionaries, out=tmp_path / "page", **arguments, seed=1)
    assert len(made) == 6
    assert json.loads((explorer.folder / "report.json").read_text())["key"]["seed"] == 1


def test_ctrl_c_says_how_to_go_on(dictionaries, arguments, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(collection, "_add", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        explore(dictionaries, out=tmp_path / "page", **arguments)
