"""Dictionaries of sparsify's own class, trained and saved by its own code, are the same functions here."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from dictlab import DictlabError, LanguageModel, TopK, load
from dictlab.dictionary.activation_functions import GroupMax
from dictlab.dictionary.normalisation import NoNormalisation, Scale
from dictlab.formats.libraries.sparsify import write
from dictlab.formats.loading import mapped
from tests.planted import random_dictionary, sparse_data, tiny_tokenizer

pytestmark = pytest.mark.interop

D, M, K = 16, 48, 4
CLOSE = {"atol": 1e-5, "rtol": 0}  # values of order 1, sums of 16 or 48 terms in float32
BF16 = {"atol": 1e-2, "rtol": 1e-2}  # the library computes in bfloat16, which has 8 bits: the last is 1/256
KINDS = [
    {"activation": "topk", "num_latents": M},
    {"activation": "topk", "num_latents": 0, "expansion_factor": 3},
    {"activation": "topk", "num_latents": M, "multi_topk": True, "normalize_decoder": False},
    {"activation": "groupmax", "num_latents": M},
]
POINTS = {
    "layers.0": "blocks.0.hook_resid_post",
    "layers.1.mlp": "layers.1.mlp",
    "layers.1.attention": "layers.1.attention",
}


def own(dtype=torch.float32, **fields):
    """The library's class with nothing left at 0."""
    torch.manual_seed(0)
    made = SparseCoder(D, SparseCoderConfig(k=K, **fields), dtype=dtype)
    with torch.no_grad():
        made.encoder.bias.copy_(0.3 * torch.randn(M))
        made.b_dec.copy_(0.3 * torch.randn(D))
        made.W_dec.add_(0.1 * torch.randn(M, D))
    return made


def data(n=128):
    return sparse_data(n, d=D, n=40, seed=99)[0]


@torch.no_grad()
def dense(theirs, x):
    """The library's codes and reconstruction. Its forward is not asked: with multi_topk that returns 4 k latents."""
    values, indices, _ = theirs.encode(x)
    codes = torch.zeros(len(x), M, dtype=values.dtype).scatter(1, indices, values)
    return codes, theirs.decode(values, indices)


def assert_same(ours, theirs, x):
    f, x_hat = dense(theirs, x)
    codes, made = ours(x)
    assert (f != 0).any()
    assert torch.equal(codes.dense() != 0, f != 0)
    torch.testing.assert_close(codes.dense(), f, **CLOSE)
    torch.testing.assert_close(made, x_hat, **CLOSE)


def tiny():
    torch.manual_seed(0)
    config = GPTNeoXConfig(vocab_size=97, hidden_size=D, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32, initializer_range=0.3)  # fmt: skip
    return GPTNeoXForCausalLM(config).eval()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of two runs of the library's trainer: with one seed, and with two."""
    folder, model = tmp_path_factory.mktemp("runs"), tiny()
    rows = torch.randint(0, 97, (64, 16), generator=torch.Generator().manual_seed(1)).tolist()
    text = Dataset.from_dict({"input_ids": rows}).with_format("torch")
    for name, seeds in (("one", [5]), ("two", [0, 3])):
        config = TrainConfig(
            SparseCoderConfig(num_latents=M, k=K), batch_size=8, hookpoints=list(POINTS), init_seeds=seeds,
            save_dir=str(folder), run_name=name, log_to_wandb=False, save_best=len(seeds) == 1, save_every=4,
        )  # fmt: skip
        Trainer(config, text, model).fit()
    return folder


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_random_dictionaries_are_the_same_function(fields, tmp_path):
    made = own(**fields)
    made.save_to_disk(tmp_path / "layers.1")
    ours, x = load(tmp_path / "layers.1"), data()
    assert_same(ours, made, x)
    assert_same(ours, SparseCoder.load_from_disk(tmp_path / "layers.1"), x)
    assert ours.metadata.site == "blocks.1.hook_resid_post"


@pytest.mark.parametrize("place", [*POINTS, "best/layers.0/layers.0"])
def test_trained_dictionaries_are_the_same_function(place, runs):
    folder = runs / "one" / place
    ours = load(folder)
    assert_same(ours, SparseCoder.load_from_disk(folder), data())
    assert ours.metadata.site == POINTS[folder.name]
    assert (ours.metadata.seed, ours.metadata.objective, ours.metadata.convention) == (5, "local", "huggingface")


@pytest.mark.parametrize("seed", [0, 3])
def test_each_of_several_seeds_is_the_same_function(seed, runs):
    folder = runs / "two" / "layers.1.mlp" / f"seed{seed}"
    ours = load(folder)
    assert_same(ours, SparseCoder.load_from_disk(folder), data())
    assert (ours.metadata.seed, ours.metadata.site) == (seed, "layers.1.mlp")


def test_a_folder_of_several_names_what_is_in_it(runs):
    with pytest.raises(DictlabError, match=r"layers\.0, layers\.1\.attention, layers\.1\.mlp\); name one of them"):
        load(runs / "two")
    with pytest.raises(DictlabError, match=r"seed0, seed3\); name one of them"):
        load(runs / "two" / "layers.0")


@torch.no_grad()
@pytest.mark.parametrize("point", POINTS)
def test_the_site_is_where_the_library_reads(point, runs):
    """The library hooks a module of the base model and takes what it puts out."""
    model, caught = tiny(), []
    module = model.base_model.get_submodule(point)
    handle = module.register_forward_hook(lambda _, __, out: caught.append(out[0] if isinstance(out, tuple) else out))
    tokens = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(3))
    model(tokens)
    handle.remove()
    site = load(runs / "one" / point).metadata.site
    ours = LanguageModel(model, tiny_tokenizer(), "tiny").capture(tokens, site)[site]
    torch.testing.assert_close(ours, caught[0], **CLOSE)


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_half_precision_files_are_computed_with_in_single_precision(fields, tmp_path):
    own(torch.bfloat16, **fields).save_to_disk(tmp_path)
    theirs = SparseCoder.load_from_disk(tmp_path)
    assert mapped(tmp_path).W_dec.dtype == theirs.dtype == torch.bfloat16
    assert_same(load(tmp_path), theirs.float(), data())


def test_half_precision_is_close(tmp_path):
    """All latents are kept: where they compete, a rounding to 8 bits can change which are active."""
    made = own(torch.bfloat16, num_latents=M)
    made.cfg.k = M
    made.save_to_disk(tmp_path)
    x = (0.1 * data()).to(torch.bfloat16)
    f, x_hat = dense(made, x)
    ours = load(tmp_path)
    torch.testing.assert_close(ours.encode(x.float()).dense(), f.float(), **BF16)
    torch.testing.assert_close(ours.reconstruct(x.float()), x_hat.float(), **BF16)


BOTH = {"transcode": True, "skip_connection": True}


@pytest.mark.parametrize("fields", [{"transcode": True}, {"skip_connection": True}, BOTH], ids=str)
def test_transcoders_and_skips_are_the_same_function_both_ways(fields, tmp_path):
    theirs = own(num_latents=M, **fields)
    if theirs.W_skip is not None:
        with torch.no_grad():
            theirs.W_skip.copy_(torch.randn(D, D))
    theirs.save_to_disk(tmp_path / "layers.1.mlp")
    ours, x = load(tmp_path / "layers.1.mlp"), data()
    f, _ = dense(theirs, x)
    codes, predicted = ours(x)
    torch.testing.assert_close(codes.dense(), f, **CLOSE)
    torch.testing.assert_close(predicted, theirs(x, y=x).sae_out.detach(), atol=1e-5, rtol=1e-5)
    write(ours, tmp_path / "again" / "layers.1.mlp")
    back = SparseCoder.load_from_disk(tmp_path / "again" / "layers.1.mlp")
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())
    assert (back.cfg.transcode, back.cfg.skip_connection) == (theirs.cfg.transcode, theirs.cfg.skip_connection)


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_what_is_written_loads_back_in_the_library(fields, tmp_path):
    made = own(**fields)
    made.save_to_disk(tmp_path / "layers.1")
    write(load(tmp_path / "layers.1"), tmp_path / "again")
    back = SparseCoder.load_from_disk(tmp_path / "again")
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in made.state_dict().items())
    assert replace(back.cfg, num_latents=M, expansion_factor=3) == replace(made.cfg, num_latents=M, expansion_factor=3)


@pytest.mark.parametrize("normalisation", [NoNormalisation(), Scale(0.5)])
@pytest.mark.parametrize("activation", [TopK(K), GroupMax(K)], ids=lambda activation: activation.kind)
def test_any_expressible_dictionary_loads_in_the_library(activation, normalisation, tmp_path):
    ours = random_dictionary(M, D, activation=activation, normalisation=normalisation)
    ours = replace(ours, W_enc=0.3 * ours.W_enc)
    assert_same(ours, SparseCoder.load_from_disk(write(ours, tmp_path / "out")), data())
