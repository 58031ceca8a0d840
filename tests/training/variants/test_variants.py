"""Activation functions in training: each loss and gradient against its formula, planted truth, and the file it leaves."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import mse_loss, normalize

from analyses.common.neighbours import nearest
from dictlab import DictlabError, load, save
from dictlab.data.activations import moments
from dictlab.dictionary.codes import Codes
from dictlab.dictionary.kernels import sparse
from dictlab.training import TrainConfig
from dictlab.training.learner.initialisation import geometric_median
from dictlab.training.learner.learner import Learner
from dictlab.training.objectives import Batch, Splice
from dictlab.training.variants import BY_NAME, topk
from dictlab.training.variants.matryoshka import by_prefix
from dictlab.training.variants.penalties import l1
from tests.planted import SITE, planted_model, sparse_data

NAMES = list(BY_NAME)


def learner_for(x: torch.Tensor, name: str = "topk", **changes) -> Learner:
    settings = {"width": 24, "k": 4, "tokens": 2560, "batch": 128, "lr": 1e-3, "prefixes": (0.25, 0.5)} | changes
    config = TrainConfig("tiny", SITE, activation=name, **settings)
    return Learner(next(config.members()), config, moments([x]), geometric_median(x))


def shaken(learner: Learner, seed: int = 0) -> Learner:
    """The learner with all of its weights moved, so that none is at a special place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in learner.weights.items():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
            if name == "decoder":
                weight.copy_(normalize(weight, dim=1))
    return learner


# The formulas, on dense matrices in units in which coordinates have variance 1. w holds the weights; sigma is the unit.


def dense_z(w, h):
    return (h - w["bias"]) @ w["encoder"].T + w["b_enc"]


def largest(z, k):
    """z cut off at 0, where it is among the k largest of its row."""
    return z.relu() * torch.zeros_like(z).scatter(1, z.topk(k, dim=1).indices, 1.0)


def largest_of_batch(z, k):
    mask = torch.zeros_like(z).flatten()
    mask[z.flatten().topk(k * len(z)).indices] = 1.0
    return z.relu() * mask.view(z.shape)


def error(w, codes, h, sigma, upto=None, frozen=False):
    """Mean squared error in the model's units."""
    decoder, bias = (w[name].detach() if frozen else w[name] for name in ("decoder", "bias"))
    return mse_loss((codes[:, :upto] @ decoder[:upto] + bias) * sigma, h * sigma)


def dense_relu(w, h, sigma, d):
    codes = dense_z(w, h).relu()
    return error(w, codes, h, sigma) + 0.7 / d * sigma * codes.sum(dim=1).mean()


def dense_gated(w, h, sigma, d):
    gate = dense_z(w, h)
    magnitude = ((h - w["bias"]) @ w["encoder"].T * w["r_mag"].exp() + w["b_mag"]).relu()
    penalty = 0.7 / d * sigma * gate.relu().sum(dim=1).mean()
    return error(w, (gate > 0) * magnitude, h, sigma) + penalty + error(w, gate.relu(), h, sigma, frozen=True)


def dense_prolu(w, h, sigma, d):
    """The pseudo-derivatives 1 + m and m are those of a function that has the same value here."""
    m, b = (h - w["bias"]) @ w["encoder"].T, w["b_enc"]
    ramp = (m + b) - (m + b).detach()
    codes = ((m > 0) & (m + b > 0)) * (m + m.detach() * ramp)
    return error(w, codes, h, sigma) + 0.7 / d * sigma * codes.sum(dim=1).mean()


def dense_jumprelu(w, h, sigma, d):
    z, threshold, eps = dense_z(w, h), w["log_threshold"].exp(), 0.1 * d**0.5
    near = ((z - threshold).abs() < eps / 2) & (z > 0)
    moved = threshold - threshold.detach()
    codes = z * (z > threshold) - near * threshold.detach() / eps * moved
    count = (z > threshold) * 1.0 - near / eps * moved
    return error(w, codes, h, sigma) / sigma**2 + 0.01 * count.sum(dim=1).mean()


def dense_topk(w, h, sigma, d):
    return error(w, largest(dense_z(w, h), 4), h, sigma) / sigma**2


def dense_multitopk(w, h, sigma, d):
    z = dense_z(w, h)
    return (error(w, largest(z, 4), h, sigma) + error(w, largest(z, 16), h, sigma) / 8) / sigma**2


def dense_batchtopk(w, h, sigma, d):
    return error(w, largest_of_batch(dense_z(w, h), 4), h, sigma) / sigma**2


def nested(codes, w, h, sigma):
    return sum(error(w, codes, h, sigma, upto=upto) for upto in (6, 12, 24)) / sigma**2


DENSE = {
    "relu": dense_relu,
    "gated": dense_gated,
    "prolu": dense_prolu,
    "jumprelu": dense_jumprelu,
    "topk": dense_topk,
    "multitopk": dense_multitopk,
    "batchtopk": dense_batchtopk,
    "matryoshka-topk": lambda w, h, sigma, d: nested(largest(dense_z(w, h), 4), w, h, sigma),
    "matryoshka-batchtopk": lambda w, h, sigma, d: nested(largest_of_batch(dense_z(w, h), 4), w, h, sigma),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_and_its_gradient_are_those_of_the_formula(name):
    """By autograd of the formula on dense matrices; no latent is dead yet. 1e-3 relative, float32 throughout."""
    x, _ = sparse_data(512)
    x = 3 * x  # other units than those of training
    learner = shaken(learner_for(x, name, l1=0.7, l0=0.01, clip=1e9, lr=0.0))
    weights = {key: t.detach().clone().requires_grad_() for key, t in learner.weights.items()}
    expected = DENSE[name](weights, x / learner.unit, learner.unit, 16)
    gradients = dict(zip(weights, torch.autograd.grad(expected, list(weights.values())), strict=True))
    log = learner.step(Batch(x), None)
    torch.testing.assert_close(log["loss"], expected.detach(), rtol=1e-4, atol=1e-6)
    decoder = weights["decoder"]
    gradients["decoder"] -= (gradients["decoder"] * decoder).sum(dim=1, keepdim=True) * decoder  # the step projects
    for key, gradient in gradients.items():
        assert gradient.abs().sum() > 0, key
        scale = gradient.detach().abs().max().item()
        torch.testing.assert_close(learner.weights[key].grad, gradient.detach(), rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("name", ["gated", "multitopk", "topk", "batchtopk", "relu"])
def test_what_is_emitted_passes_gradcheck(name):
    """In float64, in every weight. (The others have pseudo-derivatives; they are compared with their formulas.)"""
    x, _ = sparse_data(6, n=8, d=5)
    learner = shaken(learner_for(x, name, width=9, k=3))
    weights = {key: t.detach().double().requires_grad_() for key, t in learner.weights.items()}

    def reconstruct(*values):
        w = dict(zip(weights, values, strict=True))
        entries = sparse.encode(x.double() - w["bias"], w["encoder"].T, w["b_enc"], learner.variant.choose(w))
        return sparse.decode(learner.variant.emit(entries, w), w["decoder"])

    assert torch.autograd.gradcheck(reconstruct, list(weights.values()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["k is the width", "nothing is active", "one token"])
def test_edges_leave_finite_weights(name, case):
    x, _ = sparse_data(256)
    changes = {"k": 24} if case == "k is the width" else {}
    learner = learner_for(x, name, dead_after=128, **changes)
    if case == "nothing is active":
        with torch.no_grad():
            learner.b_enc.sub_(100.0)
    batch = x[:1] if case == "one token" else x
    for _ in range(4):
        log = learner.step(Batch(batch), None)
    assert learner.finite and torch.isfinite(log["loss"])
    if case == "nothing is active" and name != "prolu":
        assert log["l0"] == 0 or learner.variant.revived


@pytest.mark.parametrize("p", [0.5, 2.0])
def test_the_p_norm_is_that_of_each_token(p):
    dense = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    codes = Codes(torch.tensor([3.0, 4.0, 0.0, 2.0]), torch.tensor([0, 2, 1, 1]), torch.tensor([0, 2, 3, 4]), 3)
    codes = codes._replace(values=codes.values.requires_grad_())
    found = l1(codes, 7, p)
    expected = sum(float((row**p).sum()) ** (1 / p) for row in dense) / 3 / 7
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert torch.isfinite(codes.values.grad).all()


def test_a_sparsity_coefficient_rises_over_its_share_of_the_run():
    x, _ = sparse_data(128)
    learner = learner_for(x, "relu", l1=2.0, sparsity_warmup=0.5, tokens=1280)
    weights = []
    for _ in range(10):
        weights.append(learner._terms(learner._forward(Batch(x)), Batch(x), None)["l1"].weight)
        learner.step(Batch(x), None)
    assert weights == pytest.approx([0.0, 0.4, 0.8, 1.2, 1.6, 2, 2, 2, 2, 2])


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("sizes", [[1, 4], [4], [-2, 0, 3], [2, 9]], ids=str)
def test_codes_by_prefix_are_the_columns_of_each_prefix(sizes, counted):
    """Of a shard in the middle of the latents, prefixes may end before it begins, or go on behind it."""
    codes = Codes(torch.arange(1.0, 6.0), torch.tensor([0, 3, 2, 5, 1]), torch.tensor([0, 2, 2, 5]), 6)
    found, ends = (
        by_prefix(codes, sizes, counted=counted).dense().view(len(sizes), 3, 6),
        [max(0, size) for size in sizes],
    )
    for part, begin, end in zip(found, [0, *ends], ends, strict=False):
        wanted = torch.zeros(3, 6)
        wanted[:, begin:end] = codes.dense()[:, begin:end]
        assert torch.equal(part, wanted)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_is_that_of_the_products_that_choose_and_of_no_other(monkeypatch, precision):
    """Of the encoder, and of AuxK among the dead; with gradients in float32."""
    x, _ = sparse_data(128)
    learner = learner_for(x, "topk", width=64, precision=precision)
    learner.since_fired[:8] = 10**9
    seen, product = [], sparse.affine
    monkeypatch.setattr(sparse, "affine", lambda h, W, b: seen.append((h.dtype, W.shape[1])) or product(h, W, b))
    learner.step(Batch(x), None)
    assert seen == [(getattr(torch, precision), 64), (getattr(torch, precision), 8)]
    assert all(p.grad.dtype == torch.float32 for p in learner.parameters)


# What is left in a file


@pytest.mark.parametrize("name", NAMES)
def test_the_saved_dictionary_encodes_as_the_trained_one(name, tmp_path):
    """The codes of training, in the units of the activations, to 1e-5; of BatchTopK, see below."""
    x, _ = sparse_data(512)
    x = 3 * x
    learner = shaken(learner_for(x, name))
    for _ in range(5):
        learner.step(Batch(x), None)
    found = learner.finished()
    save(found, tmp_path / "a.safetensors")
    loaded = load(tmp_path / "a.safetensors")
    assert torch.equal(loaded.encode(x).dense(), found.encode(x).dense())
    if "batchtopk" not in name:
        now = learner._forward(Batch(x))
        torch.testing.assert_close(
            found.encode(x).dense(), now.codes.dense().detach() * learner.unit, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(found.reconstruct(x), now.x_hat.detach(), rtol=1e-4, atol=1e-4)


def test_a_batchtopk_file_has_the_threshold_that_keeps_k_latents_on_average():
    """The mean over the last batches of the smallest activation kept; L0 on all data within 5 % of k."""
    x, _ = sparse_data(20_000)
    learner, smallest = learner_for(x, "batchtopk", width=32, k=3, tokens=256 * 300, batch=256, lr=1e-2), []
    for step in range(300):
        batch = Batch(x[step % 78 * 256 : step % 78 * 256 + 256])
        z = learner.dictionary.pre_activations(batch.x).detach()
        kept = largest_of_batch(z, 3)
        smallest.append(float(kept[kept > 0].min()))
        learner.step(batch, None)
    shares = [0.05 * 0.95 ** (299 - step) for step in range(300)]
    average = sum(s * share for s, share in zip(smallest, shares, strict=True)) / sum(shares)
    found = learner.finished()
    assert found.activation.kind == "jumprelu" and not found.activation.batchwise
    assert float(found.activation.threshold[0]) == pytest.approx(average * learner.unit, rel=1e-4)
    assert found.encode(x).l0().float().mean() == pytest.approx(3, rel=0.05)


# Planted truth

PLANTED = {
    "relu": {"l1": 0.3, "width": 48},
    "gated": {"l1": 2.0, "width": 48},
    "prolu": {"l1": 0.3, "width": 48},
    "jumprelu": {"l0": 0.03, "width": 48},
    "batchtopk": {"width": 48},
    "multitopk": {"width": 48},
    "matryoshka-topk": {"width": 64},
    "matryoshka-batchtopk": {"width": 64, "recipe": "dictlab-0.1"},  # the default is below 0.95 at this rate
}


HALF = [("topk", "bfloat16"), ("batchtopk", "bfloat16"), ("jumprelu", "bfloat16")]


@pytest.mark.parametrize(
    ("name", "precision"), [(name, "float32") for name in NAMES if name not in ("relu", "topk")] + HALF
)
def test_planted_directions_are_recovered(name, precision):
    """32 directions in 16 dimensions, two active: mean max cosine above 0.95 after 1,000 steps of 256."""
    x, directions = sparse_data(40_000)
    learner = learner_for(
        x,
        name,
        precision=precision,
        **{"k": 2, "width": 32, "lr": 1e-2, "tokens": 1000 * 256, "batch": 256, "prefixes": (0.5,)}
        | PLANTED.get(name, {}),
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        learner.step(Batch(x[torch.randint(len(x), (256,), generator=generator)]), None)
    assert nearest(directions, learner.finished().W_dec).cosine.mean() > 0.95


@pytest.mark.parametrize("objective", ["e2e", "e2e+ds", "weighted"])
def test_planted_directions_are_recovered_through_the_model(objective):
    """Logits are a linear map of the activations, so the output minds each of 16 directions; no error at the site is
    looked at (but for a tenth in weighted). Mean max cosine above 0.95 after 400 steps of 256."""
    x, directions = sparse_data(20_000, n=16)
    model = planted_model()
    splice = Splice(model, SITE, SITE, ["blocks.2.hook_resid_pre"])
    weights = {"kl": 0.5, "ce": 0.5, "reconstruction": 0.1} if objective == "weighted" else {}
    settings = {"width": 32, "k": 2, "lr": 1e-2, "tokens": 400 * 256, "batch": 256, "objective": objective}
    learner = learner_for(x, "topk", **settings, **weights)
    generator = torch.Generator().manual_seed(0)
    probabilities = model.unembed(x).softmax(dim=-1)
    for _ in range(400):
        drawn = torch.randint(len(x), (256,), generator=generator)
        said = torch.multinomial(probabilities[drawn], 1, generator=generator).view(8, 32)
        batch = x[drawn].view(8, 32, 16)
        learner.step(Batch(batch, dict.fromkeys(splice.sites, batch), said.roll(1, dims=1)), splice)
    assert nearest(directions, learner.finished().W_dec).cosine.mean() > 0.95


# Dead latents


def test_aux_k_ends_dead_latents_where_plain_topk_leaves_a_fifth_dead(monkeypatch):
    """64 sparse directions beside one that is much stronger: latents that begin away from it never win at first."""
    x, _ = sparse_data(20_000, n=64, d=32, active=3)
    generator = torch.Generator().manual_seed(0)
    strong = normalize(torch.randn(32, generator=generator), dim=0)
    x = x + 12 * torch.randn(len(x), 1, generator=generator) * strong

    def dead_share(weight: float) -> float:
        monkeypatch.setattr(topk, "AUX_WEIGHT", weight)
        learner = learner_for(x, width=96, lr=1e-2, tokens=512 * 200, batch=512, dead_after=4096, aux_k=32)
        for step in range(200):
            at = step * 512 % 19_456
            log = learner.step(Batch(x[at : at + 512]), None)
        return float(log["dead"])

    without, with_aux = dead_share(0.0), dead_share(1 / 32)
    assert without > 0.2 and with_aux < 0.05, (without, with_aux)


def test_resampled_latents_begin_at_tokens_that_are_badly_reconstructed():
    x, _ = sparse_data(2048)
    learner = learner_for(x, "relu", tokens=2048 * 100, batch=2048, resample=1, dead_after=2048, l1=0.1)
    assert learner.resampling_steps == {50}
    with torch.no_grad():
        learner.b_enc[:6] = -100.0
    for _ in range(49):
        learner.step(Batch(x), None)
    before = learner.decoder.detach().clone()
    assert learner.dead[:6].all() and not learner.dead[6:].any()
    reconstruct = learner.dictionary.reconstruct(x)
    learner.step(Batch(x), None)
    new = learner.decoder[:6].detach()
    cosine = normalize(x / learner.unit - learner.bias.detach(), dim=1) @ new.T
    best = cosine.max(dim=0)
    assert (best.values > 0.999).all() and len(set(best.indices.tolist())) == 6
    loss = (reconstruct - x).square().sum(dim=1)
    assert loss[best.indices].mean() > loss.mean()
    length = learner.encoder[6:].norm(dim=1).mean().detach()
    torch.testing.assert_close(learner.encoder[:6].norm(dim=1), (0.2 * length).expand(6), rtol=1e-3, atol=0)
    assert not learner.b_enc[:6].any() and not learner.dead[:6].any()
    assert not learner.optimizer.state[learner.encoder]["exp_avg"][:6].any()
    assert torch.allclose(before[6:], learner.decoder[6:], atol=0.05)


def test_resampling_is_repeatable_and_revives():
    x, _ = sparse_data(2048)

    def run(resample: int) -> Learner:
        learner = learner_for(
            x, "relu", tokens=256 * 200, batch=256, resample=resample, dead_after=1024, l1=0.1, lr=3e-3
        )
        with torch.no_grad():
            learner.b_enc[:12] = -100.0
        for step in range(200):
            learner.step(Batch(x[step % 8 * 256 : step % 8 * 256 + 256]), None)
        return learner

    one, two, none = run(3), run(3), run(0)
    assert torch.equal(one.decoder, two.decoder)
    assert none.dead.float().mean() >= 0.5 and one.dead.float().mean() < 0.1


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 25}, "k 25 exceeds width 24"),
        ({"name": "batchtopk", "k": 25}, "k 25 exceeds width 24"),
        ({"name": "matryoshka-topk", "prefixes": (0.5, 0.25)}, "prefixes"),
        ({"name": "matryoshka-topk", "prefixes": (0.01, 0.5)}, "different numbers above 0"),
        ({"name": "nope"}, "activation 'nope' is unknown; known are topk, relu"),
        ({"bandwidth": 0.0}, "bandwidth"),
        ({"p_norm": 0.0}, "p_norm"),
        ({"kl": 1.0}, "kl is a weight of the objective weighted; add `objective='weighted'`"),
        ({"objective": "weighted"}, "give one of the weights reconstruction, kl, ce, downstream"),
        ({"finetune": "local", "finetune_tokens": 5}, "finetune_tokens is 5"),
        ({"finetune_tokens": 512}, "finetune is not"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(DictlabError, match=message):
        learner_for(sparse_data(64)[0], **changes)


def test_a_family_goes_through_activation_functions_and_their_sparsities():
    config = TrainConfig("m", SITE, activation=NAMES, k=(16, 32), l1=(1.0, 2.0), l0=(0.1,), width=(64, 128))
    names = [member.name for member in config.members()]
    assert len(names) == len(set(names)) == 2 * (5 * 2 + 3 * 2 + 1)
    assert {"local-topk16-64-s0", "local-relu2-128-s0", "local-matryoshka-batchtopk32-64-s0"} <= set(names)
    assert replace(config, k=(8,)).k == (8,)
