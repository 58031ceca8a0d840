"""The shipped checkpoints are what their README says, and nothing else."""

from pathlib import Path

import pytest
import torch

from dictlab import LanguageModel, Text, load
from dictlab.evaluation.evaluate import evaluate

FOLDER = Path(__file__).parent.parent / "checkpoints"
MODEL = "gpt2-python-2m"
FILES = sorted(FOLDER.glob("*.safetensors"))
OTHERS = {"README.md", "build.py", "language_model.py", "pack_demo.py", MODEL}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel.load(MODEL, beside=FOLDER)


def test_the_family_is_complete():
    topk = [d for d in map(load, FILES) if d.activation.kind == "topk"]
    widths = {(d.n_latents, d.metadata.seed) for d in topk if d.activation.k == 16}
    assert widths == {(width, seed) for width in (256, 512, 1024, 2048, 4096) for seed in (0, 1)}
    grid = {(d.n_latents, d.activation.k) for d in topk if d.metadata.seed == 0 and d.n_latents <= 2048}
    assert grid == {(width, k) for width in (256, 512, 1024, 2048) for k in (4, 8, 16, 32, 64)}
    for objective in ("local", "e2e", "e2e+ds"):
        sparsities = {
            d.metadata.training["l1"]
            for d in map(load, FILES)
            if d.activation.kind == "relu" and d.metadata.objective == objective
        }
        assert len(sparsities) >= 4


def test_the_folder_holds_what_the_build_made_in_under_40_megabytes():
    shipped = {path.name for path in FOLDER.iterdir() if path.name not in (".state", "__pycache__")}
    assert shipped == OTHERS | {path.name for path in FILES}
    size = sum(p.stat().st_size for p in [*FILES, *(FOLDER / MODEL).iterdir()])
    assert size < 40e6


def test_the_readme_lists_every_file_with_the_figures_in_it():
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    assert set(rows) == {path.name for path in FILES}
    for path in FILES:
        metrics = load(path).metadata.metrics
        for name, digits in (("l0", 1), ("explained_variance", 3), ("ce_increase", 3)):
            assert f" {metrics[name]:.{digits}f} [" in rows[path.name]


def test_every_dictionary_names_the_shipped_model(model):
    for dictionary in map(load, FILES):
        about = dictionary.metadata
        assert (about.model, about.model_fingerprint, about.site) == (
            MODEL,
            model.fingerprint,
            "blocks.3.hook_resid_pre",
        )


def test_measuring_again_gives_the_figures_in_the_files(model):
    """On fewer sequences, so within a few times the stated interval."""
    dictionaries = [load(FOLDER / f"{name}.safetensors") for name in ("local-topk16-512-s0", "e2e-relu0.2-1024-s0")]
    for dictionary, found in zip(
        dictionaries, evaluate(dictionaries, model, Text.builtin("heldout"), contexts=16), strict=True
    ):
        for name in ("l0", "explained_variance", "ce_increase"):
            low, high = dictionary.metadata.metrics[f"{name}_interval"]
            assert low - 3 * (high - low) - 1e-6 <= found.value(name) <= high + 3 * (high - low) + 1e-6


def test_the_language_model_has_learnt_the_built_in_text(model):
    """Far better than guessing (ln 4096 = 8.3 nats), on text that it never saw."""
    tokens = next(Text.builtin("heldout").batches(model.tokenizer, 256, 16))
    logits = model.forward(tokens).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert loss < 3.5


def test_the_tokenizer_gives_back_every_character(model):
    documents = [document[:2000] for document, _ in zip(Text.builtin("heldout").documents(), range(10), strict=False)]
    for document in documents:
        assert model.tokenizer.decode(model.tokenizer(document, verbose=False)["input_ids"]) == document
