"""The recipes of the documents, pasted whole, on small stand-ins for the dictionaries, models and texts that they name."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dictlab import Metadata, TopK
from dictlab.formats import conversion
from tests.planted import random_dictionary, tiny_model

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"
RECIPES = dict(re.findall(r"^## (.+?)$.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE))
D, SITE = 32, "blocks.1.hook_resid_post"


def dictionary(n: int, seed: int):
    made = random_dictionary(n, D, activation=TopK(4), seed=seed, metadata=Metadata(site=SITE))
    return replace(made, b_pre=made.b_out)  # as SAELens and sparsify have it


def saelens(folder: Path, n: int, seed: int) -> str:
    return str(conversion.write(dictionary(n, seed), folder, "saelens"))


def sparsify(folder: Path, n: int, seed: int) -> str:
    return str(conversion.write(dictionary(n, seed), folder, "sparsify"))


def gemma_scope(folder: Path, n: int, seed: int) -> str:
    made = dictionary(n, seed)
    folder.mkdir(parents=True)
    arrays = {"W_enc": made.W_enc, "b_enc": made.b_enc, "W_dec": made.W_dec, "b_dec": made.b_out}
    np.savez(folder / "params.npz", threshold=np.full(n, 1.0, "float32"), **{k: t.numpy() for k, t in arrays.items()})
    return str(folder)


SAELENS = "saelens://gpt2-small-res-jb-feature-splitting/blocks.8.hook_resid_pre_"
GEMMA = "hf://google/gemma-scope-2b-pt-res/layer_20/"
MINE = '"mine.safetensors"'
STANDINS = {  # what a recipe names: how the stand-in is written, where, latents, seed
    f"{SAELENS}768": (saelens, "a", 16, 0),
    f"{SAELENS}1536": (saelens, "b", 32, 1),
    f"{GEMMA}width_16k/average_l0_71": (gemma_scope, "gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_71", 16, 0),
    f"{GEMMA}width_65k/average_l0_61": (gemma_scope, "gemma-scope-2b-pt-res/layer_1/width_65k/average_l0_61", 32, 1),
    "runs/first/layers.1": (sparsify, "first/layers.1", 16, 0),
    "runs/second/layers.1": (sparsify, "second/layers.1", 32, 1),
}


@pytest.fixture(scope="module")
def model():
    return tiny_model(d=D, blocks=8)


def prepared(code: str, folder: Path) -> str:
    """The code with local names in place of those on a hub, and the model and text of the test in place of others."""
    for name, (write, where, n, seed) in STANDINS.items():
        if f'"{name}"' in code:
            code = code.replace(f'"{name}"', repr(write(folder / "standins" / where, n, seed)))
    code = re.sub(r'model="[^"]+", text="my/texts"', "model=MODEL, text=TEXT", code)
    loaded = 'AutoModelForCausalLM.from_pretrained("gpt2"), AutoTokenizer.from_pretrained("gpt2")'
    return code.replace(loaded, "(MODEL.model, MODEL.tokenizer)")


@pytest.mark.parametrize("title", RECIPES)
def test_the_recipe_runs(title, model, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"MODEL": model, "TEXT": text}
    if MINE in RECIPES[title] and "from_tensors" not in RECIPES[title]:  # the recipe before it has saved this one
        exec(RECIPES["Tensors of your own"], {})
    exec(prepared(RECIPES[title], tmp_path), names)
    assert capsys.readouterr().out.strip()


def test_no_recipe_is_left_out():
    assert len(RECIPES) == PAGE.read_text().count("\n## ") == 6
