"""Dictionaries of dictionary_learning's own classes, trained and saved by its own code, are the same functions here."""

import json
import sys
import types
from contextlib import contextmanager
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import ClassVar

import datasets  # noqa: F401  before the stand-ins: it looks which other packages there are
import pytest
import torch

from dictlab import load
from dictlab.dictionary.activation_functions import BatchTopK, Gated, JumpReLU, ReLU, TopK
from dictlab.dictionary.normalisation import NoNormalisation, Scale
from dictlab.formats.libraries.dictionary_learning import write
from dictlab.formats.loading import mapped
from tests.planted import random_dictionary, sparse_data

pytestmark = pytest.mark.interop


@contextmanager
def stand_ins(**modules):
    """Modules that the package imports when it is imported, and that its classes and its training never call."""
    absent = {name: attributes for name, attributes in modules.items() if find_spec(name) is None}
    for name, attributes in absent.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)
        vars(sys.modules[name]).update(attributes)
    yield
    for name in absent:
        del sys.modules[name]


with stand_ins(nnsight={"LanguageModel": object}, zstandard={}, wandb={}):
    from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE, MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
    from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
    from dictionary_learning.training import trainSAE
    from dictionary_learning.utils import load_dictionary

D, M, K = 16, 48, 4
CLOSE = {"atol": 1e-5, "rtol": 0}  # values of order 1, sums of 16 or 48 terms in float32
BF16 = {"atol": 1e-2, "rtol": 1e-2}  # the library computes in bfloat16, which has 8 bits: the last is 1/256
OWN = {  # name of a case: how the library makes the class, random
    "AutoEncoder": lambda: AutoEncoder(D, M),
    "AutoEncoderNew": lambda: AutoEncoderNew(D, M),
    "GatedAutoEncoder": lambda: GatedAutoEncoder(D, M),
    "AutoEncoderTopK": lambda: AutoEncoderTopK(D, M, K),
    "BatchTopKSAE": lambda: BatchTopKSAE(D, M, K),
    "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D, M, K, [12, 36]),
    "JumpReluAutoEncoder": lambda: JumpReluAutoEncoder(D, M),
}
CLASSES = {cls.__name__: cls for cls in (AutoEncoder, AutoEncoderNew, GatedAutoEncoder, AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE, JumpReluAutoEncoder)}  # fmt: skip
COMMON = {"activation_dim": D, "dict_size": M, "layer": 3, "lm_name": "EleutherAI/pythia-70m", "device": "cpu", "seed": 5, "warmup_steps": 3}  # fmt: skip
SPARSE = {"k": K, "threshold_start_step": 5, "auxk_alpha": 1 / 32}
TRAINERS = {
    "standard": {"trainer": StandardTrainer, "sparsity_warmup_steps": 3, "l1_penalty": 0.05},
    "april": {"trainer": StandardTrainerAprilUpdate, "sparsity_warmup_steps": 3, "l1_penalty": 0.05},
    "gated": {"trainer": GatedSAETrainer, "sparsity_warmup_steps": 3, "lr": 1e-3},
    "topk": {"trainer": TopKTrainer, "lr": 1e-3, **SPARSE},
    "batchtopk": {"trainer": BatchTopKTrainer, "lr": 1e-3, **SPARSE},
    "matryoshka": {"trainer": MatryoshkaBatchTopKTrainer, "lr": 1e-3, "group_fractions": [0.25, 0.75], **SPARSE},
    "jumprelu": {"trainer": JumpReluTrainer, "sparsity_warmup_steps": 3, "lr": 1e-3, "bandwidth": 0.1},
}
STEPS = 30


class Buffer:
    """What the library's ActivationBuffer is to its training loop: batches, and a configuration."""

    config: ClassVar = {"d_submodule": D, "io": "out", "n_ctxs": 10, "ctx_len": 64, "refresh_batch_size": 8, "out_batch_size": 256, "device": "cpu"}  # fmt: skip

    def __iter__(self):
        return (sparse_data(256, d=D, n=40, seed=step)[0] for step in range(10_000))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder for each trainer, as the library's training loop leaves them."""
    found = {}
    for normalised in (False, True):
        folder = tmp_path_factory.mktemp(f"runs{normalised}")
        configs = [{**COMMON, "submodule_name": "resid_post_layer_3", "steps": STEPS, **c} for c in TRAINERS.values()]
        trainSAE(
            Buffer(),
            configs,
            STEPS,
            save_dir=str(folder),
            device="cpu",
            normalize_activations=normalised,
            save_steps=[9],
        )
        found |= {(name, normalised): folder / f"trainer_{index}" for index, name in enumerate(TRAINERS)}
    return found


def own_state(name, threshold=0.3):
    """One of the library's classes with nothing left at 0 or 1."""
    torch.manual_seed(0)
    made = OWN[name]()
    with torch.no_grad():
        for label, parameter in made.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.3 * torch.randn_like(parameter))
            elif "dec" in label:
                parameter.mul_(0.5 + torch.rand_like(parameter))
            else:
                parameter.copy_(0.4 * torch.randn_like(parameter))
        if name in ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            made.threshold.fill_(threshold)
    return made


def saved(made, folder):
    """In the two files of the library's training loop."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(made.state_dict(), folder / "ae.pt")
    trainer = {"dict_class": type(made).__name__, "activation_dim": D, "dict_size": M}
    trainer |= {"k": K} if hasattr(made, "k") else {}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    return folder


def opened(folder):
    """By the library, without the rescaling that it does by default for one of its classes."""
    name = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    more = {"normalize_decoder": False} if name == "AutoEncoder" else {}
    return CLASSES[name].from_pretrained(str(folder / "ae.pt"), **more)


def data(n=128, seed=99):
    return sparse_data(n, d=D, n=40, seed=seed)[0]


@torch.no_grad()
def assert_same(ours, theirs, x, batchwise=False):
    f = theirs.encode(x, use_threshold=False) if batchwise else theirs.encode(x)
    codes, x_hat = ours(x)
    assert torch.equal(codes.dense() != 0, f != 0)
    torch.testing.assert_close(codes.dense(), f, **CLOSE)
    torch.testing.assert_close(x_hat, theirs.decode(f), **CLOSE)


@pytest.mark.parametrize("name", OWN)
def test_random_dictionaries_are_the_same_function(name, tmp_path):
    made = own_state(name)
    ours = load(saved(made, tmp_path))
    x = data()
    assert (made.encode(x) != 0).any()
    assert_same(ours, made, x)
    assert_same(ours, opened(tmp_path), x)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_trained_dictionaries_are_the_same_function(trainer, normalised, runs):
    folder = runs[trainer, normalised]
    ours, theirs = load(folder), opened(folder)
    assert_same(ours, theirs, data())
    assert 0 < int(ours.encode(data()).l0().sum()) < 128 * M
    about = ours.metadata
    assert (about.model, about.site) == ("EleutherAI/pythia-70m", "blocks.3.hook_resid_post")
    assert (about.seed, about.convention) == (5, "huggingface")
    if trainer != "gated":  # whose configuration does not say how many steps
        assert about.tokens == STEPS * 256
    assert bool(about.notes) == (trainer == "april")


@pytest.mark.parametrize("trainer", TRAINERS)
def test_checkpoints_on_the_way_are_the_same_function(trainer, runs):
    folder = runs[trainer, False]
    file = folder / "checkpoints" / "ae_9.pt"
    ours, theirs = load(file), opened(folder)
    theirs.load_state_dict(torch.load(file))
    assert_same(ours, theirs, data(), batchwise=ours.activation.batchwise)
    assert ours.metadata.tokens == 9 * 256


@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_without_a_threshold_the_rule_of_training_is_used(name, tmp_path):
    made = own_state(name, threshold=-1.0)
    ours = load(saved(made, tmp_path))
    assert ours.activation == BatchTopK(K)
    assert_same(ours, made, data(), batchwise=True)


def test_the_librarys_own_rescaling_gives_the_same_reconstructions(tmp_path):
    """Its loader moves decoder norms into the encoder by default: activations differ by them."""
    made = own_state("AutoEncoder")
    ours, theirs = load(saved(made, tmp_path)), AutoEncoder.from_pretrained(str(tmp_path / "ae.pt"))
    x = data()
    torch.testing.assert_close(ours.reconstruct(x), theirs(x).detach(), **CLOSE)
    norms = ours.W_dec.norm(dim=1)
    torch.testing.assert_close(ours.encode(x).dense() * norms, theirs.encode(x).detach(), **CLOSE)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_an_interrupted_normalised_run_is_the_same_function(trainer, runs, tmp_path):
    """As later versions back up a run: the module that is trained reads activations divided by norm_factor."""
    theirs, factor = opened(runs[trainer, False]), 3.0
    configuration = {"dict_class": type(theirs).__name__, **({"k": K} if hasattr(theirs, "k") else {})}
    torch.save(
        {"step": 3, "ae": theirs.state_dict(), "optimizer": {}, "config": configuration, "norm_factor": factor},
        tmp_path / "ae.pt",
    )
    ours, x = load(tmp_path), 3 * data()
    with torch.no_grad():
        f = theirs.encode(x / factor)
        torch.testing.assert_close(ours.encode(x).dense(), f, **CLOSE)
        assert torch.equal(ours.encode(x).dense() != 0, f != 0)
        torch.testing.assert_close(ours.reconstruct(x), theirs.decode(f) * factor, atol=3e-5, rtol=0)
        theirs.scale_biases(factor)  # what the library does before it saves the end of a run
        torch.testing.assert_close(ours.reconstruct(x), theirs.decode(theirs.encode(x)), atol=3e-5, rtol=0)


@pytest.mark.parametrize("name", ["AutoEncoder", "AutoEncoderNew", "JumpReluAutoEncoder"])
def test_half_precision_is_close(name, tmp_path):
    """Classes that do not compare latents: in those a rounding to 8 bits can change which latents are active."""
    made = own_state(name)
    if name == "JumpReluAutoEncoder":
        made.threshold.data.fill_(-1.0)
    made = made.to(torch.bfloat16)
    folder = saved(made, tmp_path)
    assert mapped(folder).W_enc.dtype == torch.bfloat16
    x = (0.1 * data()).to(torch.bfloat16)
    with torch.no_grad():
        f = made.encode(x)
        torch.testing.assert_close(load(folder).encode(x.float()).dense(), f.float(), **BF16)
        torch.testing.assert_close(load(folder).reconstruct(x.float()), made.decode(f).float(), **BF16)


@pytest.mark.parametrize("name", OWN)
def test_half_precision_files_are_computed_with_in_single_precision(name, tmp_path):
    made = own_state(name).to(torch.bfloat16)
    assert_same(load(saved(made, tmp_path)), opened(tmp_path).float(), data())


@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_is_written_loads_back_in_the_library(trainer, runs, tmp_path):
    folder = runs[trainer, False]
    before = opened(folder)
    path = write(load(folder), tmp_path / "again")
    after = opened(path)
    assert type(after) is type(before)
    for key, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[key], tensor), key
    by_the_library, config = load_dictionary(str(path), device="cpu")
    assert type(by_the_library) is type(before)
    assert config["trainer"]["lm_name"] == "EleutherAI/pythia-70m"


@pytest.mark.parametrize("normalisation", [NoNormalisation(), Scale(0.5)])
@pytest.mark.parametrize(
    "activation",
    [
        ReLU(),
        TopK(K),
        BatchTopK(K),
        JumpReLU(0.5 * torch.linspace(-0.1, 1, M)),
        Gated(*(0.3 * torch.randn(3, M, generator=torch.Generator().manual_seed(1)))),
    ],
    ids=lambda activation: activation.kind,
)
def test_any_expressible_dictionary_loads_in_the_library(activation, normalisation, tmp_path):
    ours = random_dictionary(M, D, activation=activation, normalisation=normalisation)
    ours = replace(ours, W_enc=0.3 * ours.W_enc)
    theirs, _ = load_dictionary(str(write(ours, tmp_path / "out")), device="cpu")
    assert_same(ours, theirs, data(), batchwise=activation.batchwise)
