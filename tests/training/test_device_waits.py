"""A training step never waits for the device. On the device `meta` no value can be read, and no shape depends on one:
whatever would make the host wait for a GPU is an error there. Code takes the same branches as for a GPU.
"""

from types import SimpleNamespace

import pytest
import torch

from dictlab.data.activations import moments
from dictlab.dictionary.codes import Codes
from dictlab.dictionary.kernels import sparse
from dictlab.model import output_divergence
from dictlab.training import TrainConfig
from dictlab.training.learner.initialisation import geometric_median
from dictlab.training.learner.learner import Learner
from dictlab.training.objectives import Batch
from dictlab.training.variants.async_scalar import AsyncScalar
from dictlab.training.variants.penalties import l1
from tests.planted import SITE, sparse_data

DEAD = 5
FIXED = ["topk", "multitopk", "batchtopk", "matryoshka-topk", "matryoshka-batchtopk"]
COUNTED = ["relu", "jumprelu", "gated", "prolu"]  # how many latents are active is known to the device alone


class Recorded(torch.optim.Adam):
    """Adam, but for the kernel that only real devices have."""

    def __init__(self, *args, fused, **kwargs):
        super().__init__(*args, **kwargs)

    def step(self, closure=None):
        assert self.grad_scale.device.type == "meta"


@pytest.fixture
def on_meta(monkeypatch):
    """Learners whose tensors have no values. Triton's kernels, which take real ones alone, give their shapes."""
    kernels = SimpleNamespace(
        combined=lambda codes, rows: rows.new_empty(codes.n_tokens, rows.shape[1]),
        transposed=lambda codes, rows: rows.new_empty(len(codes.columns.starts) - 1, rows.shape[1]),
        products_at=lambda codes, left, right: left.new_empty(len(codes.indices)),
    )
    monkeypatch.setattr(sparse, "by_triton", lambda tensor: tensor.is_meta)
    monkeypatch.setattr(sparse, "_triton", lambda: kernels)
    monkeypatch.setattr(torch.optim, "Adam", Recorded)
    monkeypatch.setattr(AsyncScalar, "__int__", lambda self: DEAD)

    def made(name: str, **changes) -> Learner:
        x, _ = sparse_data(512)
        settings = {"width": 128, "k": 4, "tokens": 2560, "batch": 128, "lr": 1e-3, "ema": 0.9} | changes
        config = TrainConfig("tiny", SITE, activation=name, **settings)
        learner = Learner(next(config.members()), config, moments([x]), geometric_median(x))
        for own in (learner.weights, learner.counters):
            own.update({key: t.detach().to("meta").requires_grad_(t.requires_grad) for key, t in own.items()})
        learner.since_fired, learner.emits = learner.since_fired.to("meta"), learner.emits.to("meta")
        counts = learner.firing_counts
        counts.present, counts.before = counts.present.to("meta"), counts.before.to("meta")
        counts.window_tokens = counts.window_tokens.to("meta")
        learner.average = [t.to("meta") for t in learner.average]
        learner.begin(finetune=False)
        return learner

    return made


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FIXED)
def test_a_step_that_chooses_a_number_of_latents_never_waits(name, precision, on_meta):
    learner = on_meta(name, precision=precision)
    batch = Batch(torch.empty(128, learner.d_in, device="meta"))
    for _ in range(2):
        log = learner.step(batch, None)
    assert log["loss"].is_meta and log["aux"].is_meta and log["dead"].is_meta
    assert learner.encoder.grad.shape == learner.encoder.shape


@pytest.mark.parametrize("name", COUNTED)
def test_where_the_number_of_active_latents_is_not_known_the_host_asks_for_it(name, on_meta):
    """So that the test above is one that can fail."""
    learner = on_meta(name)
    with pytest.raises((NotImplementedError, RuntimeError), match=r"(?i)meta"):
        learner.step(Batch(torch.empty(128, learner.d_in, device="meta")), None)


def test_a_penalty_with_another_norm_never_waits():
    values = torch.empty(6, device="meta")
    codes = Codes(values, values.long(), torch.tensor([0, 2, 6]).to("meta"), 8)
    assert l1(codes, 4, p=0.5).is_meta


def test_losses_of_the_models_output_never_wait():
    """What transformers' own forward, around the unembedding, waits for is not ours: here it is a product."""
    clean, W = torch.empty(12, 16, device="meta"), torch.empty(16, 40, device="meta")
    model = SimpleNamespace(vocabulary=40, unembed=lambda streams: streams @ W)
    altered = clean.clone().requires_grad_()
    found = output_divergence.kl_and_ce_losses(model, altered, clean=clean, targets=torch.arange(-1, 11).to("meta"))
    (found.kl + found.ce).backward()
    assert altered.grad.shape == altered.shape


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", FIXED)
def test_no_step_on_a_gpu_waits(name):
    """Torch itself raises an error at whatever makes the host wait."""
    x = sparse_data(512)[0].cuda()
    config = TrainConfig("tiny", SITE, activation=name, width=128, k=4, tokens=25600, batch=128, device="cuda")
    learner = Learner(next(config.members()), config, moments([x]), geometric_median(x))
    learner.step(Batch(x[:128]), None)  # kernels are compiled
    learner.since_fired += 10 * config.dead_tokens
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.step(Batch(x[128:256]), None)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_was_told_is_the_number():
    assert int(AsyncScalar(torch.tensor(7))) == 7
