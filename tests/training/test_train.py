"""Training: losses against their formulas, planted dictionaries recovered, runs that repeat, stop and go on record."""

import math
import signal
import tomllib
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import mse_loss

from analyses.common.neighbours import nearest
from dictlab import DictlabError, Metadata, ReLU, TopK, load
from dictlab.data.activations import moments
from dictlab.dictionary.kernels import sparse
from dictlab.training import OBJECTIVES, Objective, TrainConfig, train, trainer
from dictlab.training import objectives as terms
from dictlab.training.learner.initialisation import geometric_median
from dictlab.training.learner.learner import Learner
from dictlab.training.objectives import Batch, Splice
from dictlab.training.recipes import Recipe
from dictlab.training.variants import aux_k, topk
from tests.planted import SITE, random_dictionary, sparse_data, tiny_model

LATER = ["blocks.2.hook_resid_pre"]


def config(**changes) -> TrainConfig:
    settings = {"width": (24,), "k": (4,), "tokens": 2048, "batch": 128, "context": 16} | changes
    return TrainConfig("tiny", SITE, **settings)


def splice_and_batch(text):
    model = tiny_model()
    tokens = next(text.batches(model.tokenizer, 16, 4))
    splice = Splice(model, SITE, SITE, LATER)
    clean = model.capture(tokens, splice.sites)
    return splice, Batch(clean[SITE], clean), tokens


def learner_for(data: torch.Tensor, **changes) -> Learner:
    settings = config(**changes)
    return Learner(next(settings.members()), settings, moments([data]), geometric_median(data))


# The losses


def test_model_terms_are_their_formulas(text):
    """KL(original || spliced), mean over tokens; squared error at later sites, mean over tokens and coordinates."""
    splice, batch, tokens = splice_and_batch(text)
    x_hat = batch.x + 0.3 * torch.randn_like(batch.x)
    found = terms.model_terms(Objective(kl=1, downstream=1), x_hat, batch, splice)
    spliced = splice.model.splice(tokens, SITE, x_hat, LATER)
    p, q = splice.model.logits(tokens).softmax(-1), spliced.logits.softmax(-1)
    kl = (p * (p.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(found["kl"], kl, rtol=1e-4, atol=1e-6)
    downstream = (spliced.activations[LATER[0]] - batch.clean[LATER[0]]).square().mean()
    torch.testing.assert_close(found["downstream"], downstream, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("objective", ["local", "e2e", "e2e+ds"])
def test_the_loss_of_an_l1_dictionary_and_its_gradient_are_those_of_the_formula(text, objective):
    """Against the formula on dense matrices in the model's units, by autograd; 1e-3 relative, float32 throughout."""
    splice, batch, tokens = splice_and_batch(text)
    learner = learner_for(
        batch.x.flatten(0, 1), activation="relu", l1=(0.7,), objective=(objective,), clip=10.0, downstream=2.5
    )
    encoder, b_enc, decoder, bias = (p.detach().clone().requires_grad_() for p in learner.parameters)
    x, s = batch.x.flatten(0, 1), learner.normalisation.factor
    codes = torch.relu((s * x - bias) @ encoder.T + b_enc) / s
    x_hat = (codes @ decoder + bias / s).reshape(batch.x.shape)
    spliced = splice.model.splice(tokens, SITE, x_hat, LATER)
    log_p, log_q = splice.model.logits(tokens).log_softmax(-1), spliced.logits.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    later = mse_loss(spliced.activations[LATER[0]], batch.clean[LATER[0]])
    l1 = 0.7 / 16 * codes.abs().sum(dim=1).mean()
    expected = {"local": mse_loss(x_hat, batch.x), "e2e": kl, "e2e+ds": 0.5 * kl + 2.5 * later}[objective] + l1
    gradients = torch.autograd.grad(expected, [encoder, b_enc, decoder, bias])
    log = learner.step(batch, splice)
    torch.testing.assert_close(log["loss"], expected.detach(), rtol=1e-4, atol=1e-6)
    # The step projected and clipped the gradients that it left behind.
    gradients[2].sub_((gradients[2] * decoder).sum(dim=1, keepdim=True) * decoder)
    norm = float(torch.stack([g.norm() for g in gradients]).norm().detach())
    for found, wanted in zip(learner.parameters, gradients, strict=True):
        torch.testing.assert_close(found.grad, wanted * min(1.0, 10 / norm), rtol=1e-3, atol=1e-4 * norm)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_aux_k_is_its_formula_and_teaches_only_dead_latents(monkeypatch, share):
    """By dense products (few are dead) and by sparse ones (many are), values and gradients."""
    monkeypatch.setattr(sparse, "DENSE", share)
    dictionary = random_dictionary(20, 8)
    weights = {name: t.clone().requires_grad_() for name, t in dictionary._weights()}
    dictionary = replace(dictionary, **weights)
    x = torch.randn(30, 8)
    dead = torch.arange(15, 20)
    x_hat = dictionary.reconstruct(x)
    found = aux_k.aux_k(dictionary, x, x_hat, dead, k=3)
    z = ((x - dictionary.b_pre) @ dictionary.W_enc + dictionary.b_enc)[:, 15:]
    chosen = torch.zeros_like(z).scatter(1, z.topk(3, dim=1).indices, 1.0)
    error = (x - x_hat).detach()
    expected = (
        mse_loss((z.relu() * chosen) @ dictionary.W_dec[15:], error) / (error - error.mean(dim=0)).square().mean()
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    own = [weights[name] for name in ("W_enc", "b_enc", "W_dec", "b_pre")]
    for one, other in zip(*(torch.autograd.grad(t, own, retain_graph=True) for t in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    found.backward()
    assert dictionary.W_dec.grad[15:].any() and not dictionary.W_dec.grad[:15].any()
    assert not dictionary.W_enc.grad[:, :15].any() and dictionary.b_out.grad is None


def test_aux_k_without_dead_latents_or_with_fewer_than_k():
    dictionary, x = random_dictionary(20, 8), torch.randn(30, 8)
    x_hat = dictionary.reconstruct(x)
    assert aux_k.aux_k(dictionary, x, x_hat, torch.empty(0).long(), 4) == 0
    assert aux_k.aux_k(dictionary, x, x_hat, torch.tensor([3]), 4) > 0
    assert aux_k.aux_k(dictionary, x, x, torch.tensor([3]), 4) == 0  # nothing is left to explain


# The learner


def test_training_begins_tied_at_the_geometric_median_with_outputs_as_long_as_inputs():
    x, _ = sparse_data(2000)
    learner = learner_for(x, width=(64,))
    d = learner.dictionary
    torch.testing.assert_close(torch.nn.functional.normalize(d.W_enc.T, dim=1), d.W_dec)
    centred = x - learner.finished().b_out
    assert (learner.finished().reconstruct(x) - learner.finished().b_out).norm() == pytest.approx(
        float(centred.norm()), rel=0.35
    )
    centre = geometric_median(x)

    def distance(point):
        return (x - point).norm(dim=1).sum()

    assert all(distance(centre) <= distance(centre + 0.01 * torch.randn(16)) for _ in range(20))


def test_decoder_rows_keep_unit_length_and_their_gradient_is_tangent():
    x, _ = sparse_data(512)
    learner = learner_for(x)
    for _ in range(5):
        learner.step(Batch(x), None)
        torch.testing.assert_close(learner.decoder.norm(dim=1), torch.ones(24), atol=1e-6, rtol=0)
    before = learner.decoder.detach().clone()
    learner.step(Batch(x), None)
    overlap = (learner.decoder.grad * before).sum(dim=1)
    assert overlap.abs().max() <= 1e-5 * learner.decoder.grad.norm()


def test_gradients_do_not_add_up_over_steps():
    x, _ = sparse_data(512)
    learner = learner_for(x, lr=0.0, clip=1e9)
    learner.step(Batch(x), None)
    first = learner.encoder.grad.clone()
    learner.step(Batch(x), None)
    torch.testing.assert_close(learner.encoder.grad, first)


def test_the_average_is_the_bias_corrected_one():
    x, _ = sparse_data(512)
    learner, decay, history = learner_for(x, ema=0.9), 0.9, []
    for _ in range(6):
        learner.step(Batch(x), None)
        history.append(learner.encoder.detach().clone())
    zero_start = sum((1 - decay) * decay ** (5 - t) * p for t, p in enumerate(history))
    torch.testing.assert_close(learner.average[0], zero_start / (1 - decay**6), rtol=1e-5, atol=1e-6)


def test_every_step_has_the_learning_rate_of_the_schedule():
    x, _ = sparse_data(512)
    learner, rates = learner_for(x, tokens=128 * 20, lr=0.01, warmup=0.1, decay=0.25), []
    for _ in range(20):
        rates.append(learner.optimizer.param_groups[0]["lr"])
        learner.step(Batch(x[:128]), None)
    assert rates == pytest.approx([0.005, 0.01, *[0.01] * 14, 0.008, 0.006, 0.004, 0.002])


def test_gradients_of_norm_one_make_training_blind_to_the_units_of_the_loss():
    """An L1 dictionary's loss is in the model's units: of activations 1,000 times as large it is 10^6 times as large."""
    x, _ = sparse_data(512)
    unit = math.sqrt(float((x - x.mean(dim=0)).square().mean()))
    finished = []
    for scale in (1.0, 1000.0):
        learner = learner_for(scale * x / unit, activation="relu", l1=(0.5 * scale,), lr=1e-2, clip=0.0)
        for step in range(8):
            learner.step(Batch(scale * x[64 * step : 64 * step + 64] / unit), None)
        norm = torch.stack([p.grad.norm() for p in learner.parameters]).norm()
        assert norm == pytest.approx(1.0, rel=1e-4)
        finished.append(learner.finished())
    torch.testing.assert_close(finished[1].W_enc, finished[0].W_enc, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(finished[1].b_enc, 1000 * finished[0].b_enc, rtol=1e-3, atol=0.1)


@pytest.mark.parametrize(("x", "power"), [(384, 512), (64, 64), (0.4, 1), (3, 4), (22, 16)])
def test_the_nearest_power_of_two(x, power):
    assert aux_k.nearest_power_of_two(x) == power


def test_aux_k_revives_latents_that_plain_topk_leaves_dead(monkeypatch):
    """As many latents as directions, half of them started so that they cannot fire."""

    def dead_share(weight: float) -> float:
        monkeypatch.setattr(topk, "AUX_WEIGHT", weight)
        x, _ = sparse_data(20_000, n=64, active=3)
        learner = learner_for(x, width=(64,), k=(3,), lr=3e-3, tokens=512 * 300, batch=512, dead_after=4096, aux_k=16)
        with torch.no_grad():
            learner.b_enc[:32] = -3.0
        for step in range(300):
            at = step * 512 % 19_968
            log = learner.step(Batch(x[at : at + 512]), None)
        return float(log["dead"])

    without, with_aux = dead_share(0.0), dead_share(1 / 32)
    assert without > 0.4 and with_aux < 0.15


# Planted truth


@pytest.mark.parametrize(
    "settings",
    [{"activation": "topk", "k": (2,), "width": (32,)}, {"activation": "relu", "l1": (0.3,), "width": (48,)}],
)
def test_planted_directions_are_recovered(settings):
    """32 directions in 16 dimensions, two active: mean max cosine above 0.95 after 1,500 steps of 256."""
    x, directions = sparse_data(40_000)
    learner = learner_for(x, lr=1e-2, tokens=1500 * 256, batch=256, **settings)
    generator = torch.Generator().manual_seed(0)
    for _ in range(1500):
        learner.step(Batch(x[torch.randint(len(x), (256,), generator=generator)]), None)
    found = learner.finished()
    assert nearest(directions, found.W_dec).cosine.mean() > 0.95
    assert (found.reconstruct(x) - x).square().sum() < 0.1 * (x - x.mean(dim=0)).square().sum()


# Runs


def test_a_run_leaves_config_metrics_and_dictionaries_with_their_history(tmp_path, text):
    model = tiny_model()
    run = train(config(width=(24, 40), seed=(0, 1)), out=tmp_path / "run", model=model, text=text)
    names = ["local-topk4-24-s0", "local-topk4-24-s1", "local-topk4-40-s0", "local-topk4-40-s1"]
    assert [d.name for d in run.dictionaries] == names and not run.interrupted
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["width"] == [24, 40]
    metrics = run.metrics()
    assert {m["member"] for m in metrics} == set(names)
    assert {"loss", "reconstruction", "aux", "l0", "explained_variance", "dead", "tokens_per_second"} <= set(
        metrics[-1]
    )
    loaded = load(tmp_path / "run" / f"{names[2]}.safetensors")
    about = loaded.metadata
    assert (about.site, about.seed, about.tokens, about.objective) == (SITE, 0, 2048, "local")
    assert about.model_fingerprint == model.fingerprint
    assert {"l0", "mse", "explained_variance", "ce_increase", "dead"} <= set(about.metrics)
    assert loaded.firing_rate is not None and int((loaded.firing_rate == 0).sum()) == about.metrics["dead"]
    torch.testing.assert_close(loaded.W_dec.norm(dim=1), torch.ones(40))
    assert torch.equal(loaded.W_enc, run.dictionaries[2].W_enc)


@pytest.mark.parametrize("objective", ["local", "e2e", "e2e+ds"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_another_dictionary(tmp_path, text, objective):
    settings = config(objective=(objective,), activation="relu", l1=(0.01,), seed=(0, 1))
    one, two = (train(settings, out=tmp_path / name, model=tiny_model(), text=text) for name in "ab")
    for a, b in zip(one.dictionaries, two.dictionaries, strict=True):
        assert all(torch.equal(t, u) for (_, t), (_, u) in zip(a._weights(), b._weights(), strict=True))
        assert a.metadata.metrics == b.metadata.metrics
    assert not torch.equal(one.dictionaries[0].W_dec, one.dictionaries[1].W_dec)


def test_a_member_of_a_family_is_what_it_would_be_alone(tmp_path, text):
    together = train(config(width=(24, 40)), out=tmp_path / "a", model=tiny_model(), text=text)
    alone = train(config(width=(40,)), out=tmp_path / "b", model=tiny_model(), text=text)
    assert torch.equal(together.dictionaries[1].W_dec, alone.dictionaries[0].W_dec)


def test_training_end_to_end_brings_the_output_nearer_to_the_models(tmp_path, text):
    """The KL at the end of training is below that at its start, for both objectives that look at it."""
    settings = config(objective=("e2e", "e2e+ds"), activation="relu", l1=(0.001,), tokens=12_800, lr=1e-2, width=(48,))
    run = train(settings, out=tmp_path / "run", model=tiny_model(), text=text)
    for name in ("e2e", "e2e+ds"):
        kl = [m["kl"] for m in run.metrics() if m["member"].startswith(f"{name}-")]
        assert kl[-1] < 0.8 * kl[0]


def test_an_interrupt_finishes_the_step_and_keeps_a_usable_dictionary(tmp_path, text, monkeypatch):
    steps = []
    original = Learner.step

    def step(self, *arguments, **options):
        steps.append(1)
        if len(steps) == 5:
            signal.raise_signal(signal.SIGINT)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Learner, "step", step)
    before = signal.getsignal(signal.SIGINT)
    run = train(config(), out=tmp_path / "run", model=tiny_model(), text=text)
    assert run.interrupted and len(steps) == 5
    kept = load(tmp_path / "run" / "local-topk4-24-s0.safetensors")
    assert kept.metadata.tokens == 5 * 128 and kept.metadata.training["interrupted"]
    assert torch.isfinite(kept.reconstruct(torch.randn(3, 16))).all()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_diverges_says_so_and_keeps_its_log(tmp_path, text, monkeypatch):
    monkeypatch.setattr(Recipe, "share_of_peak", lambda *_: 1e38)
    with pytest.raises(DictlabError, match=r"loss of local-relu1-24-s0 is no finite number at step 2.*Lower `lr=...`"):
        train(config(activation="relu", lr=1.0, tokens=128 * 50), out=tmp_path / "run", model=tiny_model(), text=text)
    assert (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_folder_that_holds_a_run_is_not_overwritten_without_force(tmp_path, text):
    train(config(), out=tmp_path / "run", model=tiny_model(), text=text)
    before = (tmp_path / "run" / "local-topk4-24-s0.safetensors").read_bytes()
    with pytest.raises(DictlabError, match="force=True"):
        train(config(seed=(3,)), out=tmp_path / "run", model=tiny_model(), text=text)
    assert (tmp_path / "run" / "local-topk4-24-s0.safetensors").read_bytes() == before
    train(config(seed=(3,)), out=tmp_path / "run", model=tiny_model(), text=text, force=True)


def test_a_dictionary_that_no_run_of_this_folder_made_is_not_overwritten(tmp_path, text):
    path = tmp_path / "local-topk4-24-s0.safetensors"
    path.write_text("somebody's work")
    with pytest.raises(DictlabError, match=r"already holds local-topk4-24-s0\.safetensors"):
        train(config(), out=tmp_path, model=tiny_model(), text=text)
    assert path.read_text() == "somebody's work"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": (99,)}, "k 99 exceeds width 24"),
        ({"l1": ()}, r"l1 is \[\]"),
        ({"seed": (0, 0)}, r"seed is \[0, 0\].*different"),
        ({"lr": -1.0}, "lr is -1"),
        ({"clip": -1.0}, "clip"),
        ({"aux_k": 0}, "aux_k"),
        ({"dead_after": -1}, "dead_after"),
        ({"l1": (-1.0,)}, "l1"),
        ({"width": (0,)}, "width is 0"),
        ({"tokens": 5}, "less than one batch"),
        ({"ema": 1.5}, "ema"),
        ({"warmup": 2.0}, "warmup"),
        ({"precision": "half"}, "precision is 'half'; expected float32 or bfloat16"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(DictlabError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda"}, "no CUDA"),
        ({"objective": ("e2e",), "batch": 8}, "batch is 8; spliced training takes whole contexts: a multiple of 16"),
        ({"context": 64}, "context is 64; tiny takes 2 to 32"),
        ({"device": "gpu"}, "device 'gpu' is unknown"),
    ],
)
def test_what_is_missing_is_said_before_any_training(tmp_path, text, changes, message):
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(DictlabError, match=message):
        train(config(**changes), out=tmp_path / "run", model=tiny_model(), text=text)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("device", "there", "given", "found"),
    [
        ("cuda", True, None, "bfloat16"),
        ("cuda:1", False, None, "float32"),
        ("cpu", True, None, "float32"),
        ("cuda", True, "float32", "float32"),
        ("cpu", True, "bfloat16", "bfloat16"),
    ],
)
def test_the_device_decides_the_precision_where_nobody_does(monkeypatch, device, there, given, found):
    monkeypatch.setattr(trainer, "check_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: there)
    assert trainer._spelt_out(config(device=device, precision=given)).precision == found


def test_the_precision_of_a_run_is_in_its_folder_and_its_files(tmp_path, text):
    run = train(config(precision="bfloat16"), out=tmp_path / "half", model=tiny_model(), text=text)
    assert run.dictionaries[0].metadata.training["precision"] == "bfloat16"
    run = train(config(), out=tmp_path / "run", model=tiny_model(), text=text)
    assert 'precision = "float32"' in (tmp_path / "run" / "config.toml").read_text()


def test_downstream_training_needs_a_block_after_the_site(tmp_path, text):
    settings = replace(config(objective=("e2e+ds",)), site="blocks.2.hook_resid_pre")
    with pytest.raises(DictlabError, match="no block comes after"):
        train(settings, out=tmp_path / "run", model=tiny_model(), text=text)


def test_the_objectives_are_those_of_the_paper():
    assert OBJECTIVES["local"] == Objective(1.0, 0.0, 0.0)
    assert OBJECTIVES["e2e"] == Objective(0.0, 1.0, 0.0)
    assert OBJECTIVES["e2e+ds"].kl == 0.5
    assert tiny_model().later_sites(SITE) == LATER
    assert Metadata().objective is None and ReLU() != TopK(1)
