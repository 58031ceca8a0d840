"""Going on from a dictionary, fine-tuning inside a run, weighted objectives, mixed families."""

from dataclasses import replace

import pytest
import torch

from dictlab import Dictionary, DictlabError, Metadata, ReLU, TopK, save
from dictlab.data.activations import moments
from dictlab.dictionary.activation_functions import AbsTopK, Gated, GroupMax, JumpReLU
from dictlab.dictionary.normalisation import Centred, ConstantNorm, LayerNorm, NoNormalisation, Scale
from dictlab.dictionary.union import Union
from dictlab.training import TrainConfig, train
from dictlab.training.learner.initialisation import geometric_median
from dictlab.training.learner.learner import Learner
from dictlab.training.learner.warm_start import load_for_model
from dictlab.training.objectives import Batch
from tests.planted import SITE, random_dictionary, sparse_data, tiny_model

N = 24
LATER = "blocks.2.hook_resid_pre"


def config(**changes) -> TrainConfig:
    settings = {"tokens": 2048, "batch": 128, "context": 16} | changes
    return TrainConfig("tiny", SITE, **settings)


def vector(seed: int) -> torch.Tensor:
    return 0.5 * torch.randn(N, generator=torch.Generator().manual_seed(seed))


FUNCTIONS = [
    ReLU(),
    TopK(4),
    AbsTopK(4),
    GroupMax(4),
    JumpReLU(vector(0).abs()),
    Gated(vector(1), vector(2), vector(3)),
    Union(((8, TopK(2)), (16, ReLU())), torch.arange(N) % 3 > 0),
]
NORMALISATIONS = [NoNormalisation(), Scale(0.3), LayerNorm(), ConstantNorm(), Centred(), Centred(Scale(2.0))]


def started(dictionary: Dictionary, x: torch.Tensor, **changes) -> Learner:
    settings = config(start=("some.safetensors",), **changes)
    [member] = settings.members([dictionary.in_input_units()])
    return Learner(member, settings, moments([x]), geometric_median(x))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.kind)
@pytest.mark.parametrize("normalisation", NORMALISATIONS, ids=lambda n: n.kind)
def test_going_on_begins_with_the_function_of_the_file(function, normalisation):
    """Two different biases, rows of any length, any normalisation: the same reconstruction, to 1e-4."""
    x = 5 * sparse_data(200)[0]
    made = random_dictionary(N, 16, activation=function, normalisation=normalisation)
    made = replace(made, W_dec=made.W_dec * (0.5 + torch.rand(N, 1, generator=torch.Generator().manual_seed(5))))
    learner = started(made, x)
    torch.testing.assert_close(learner.finished().reconstruct(x), made.reconstruct(x), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(learner._forward(Batch(x)).x_hat.detach(), made.reconstruct(x), rtol=1e-4, atol=1e-3)
    before = learner.decoder.norm(dim=1).detach()
    for _ in range(3):
        learner.step(Batch(x), None)
    torch.testing.assert_close(learner.decoder.norm(dim=1).detach(), before, rtol=1e-5, atol=1e-6)
    assert learner.finite and not torch.equal(learner.finished().W_dec, made.W_dec)


@pytest.mark.parametrize(
    "name", ["topk", "relu", "batchtopk", "jumprelu", "gated", "prolu", "multitopk", "matryoshka-topk"]
)
def test_what_was_trained_here_goes_on_as_the_same_variant(name, tmp_path, text):
    model = tiny_model()
    run = train(config(width=N, k=4, activation=name), out=tmp_path / "a", model=model, text=text)
    path = tmp_path / "a" / f"{run.dictionaries[0].name}.safetensors"
    more = train(config(start=(str(path),), l1=1.0), out=tmp_path / "b", model=model, text=text)
    [one] = more.dictionaries
    assert one.name == f"local-{run.dictionaries[0].name.split('-', 1)[1].rsplit('-24', 1)[0]}-from-{path.stem}"
    about = one.metadata
    assert about.training["activation"] == name and about.objective == "local-then-local"
    assert about.sources == (path.stem,) and about.training["start"]["tokens"] == 2048
    assert about.training["relative_cost"] > 0
    assert one.activation.kind == run.dictionaries[0].activation.kind


def test_fine_tuning_under_kl_brings_the_output_nearer_and_says_what_it_cost(tmp_path, text):
    """A file trained locally, then a few steps under KL; and both in one run."""
    model, settings = tiny_model(), {"width": 48, "k": 2, "lr": 1e-2}
    local = train(config(tokens=6400, **settings), out=tmp_path / "a", model=model, text=text)
    path = tmp_path / "a" / "local-topk2-48-s0.safetensors"
    tuned = train(
        config(tokens=6400, lr=1e-2, start=(str(path),), objective="e2e"), out=tmp_path / "b", model=model, text=text
    )
    once = train(
        config(tokens=12_800, finetune="e2e", finetune_tokens=6400, finetune_lr=1.0, **settings),
        out=tmp_path / "c",
        model=model,
        text=text,
    )
    before = local.dictionaries[0].metadata.metrics["kl"]
    for run, name in ((tuned, "e2e-topk2-from-local-topk2-48-s0"), (once, "local-then-e2e-topk2-48-s0")):
        [one] = run.dictionaries
        assert one.name == name and one.metadata.objective == "local-then-e2e"
        assert one.metadata.metrics["kl"] < 0.9 * before
        assert one.metadata.training["relative_cost"] > 0
    assert (
        0
        < once.dictionaries[0].metadata.training["finetune_seconds"]
        < once.dictionaries[0].metadata.training["seconds"]
    )
    seen = once.metrics()
    assert {"reconstruction"} == {"reconstruction", "kl"} & set(seen[0]) and {"kl"} == {"reconstruction", "kl"} & set(
        seen[-1]
    )


def test_fine_tuning_has_an_optimizer_a_schedule_and_a_penalty_of_its_own():
    x, _ = sparse_data(128)
    settings = config(
        width=N, activation="relu", l1=3.0, tokens=1280, finetune="weighted", reconstruction=2.0, finetune_tokens=512,
        finetune_lr=0.5, finetune_penalty=0.1, warmup=0.25, schedule="cosine", final_lr=0.1, lr=1e-2,
    )  # fmt: skip
    learner = Learner(next(settings.members()), settings, moments([x]), geometric_median(x))
    rates, weights = [], []
    for _ in range(10):
        learner.step(Batch(x), None)
        rates.append(learner.optimizer.param_groups[0]["lr"])
        weights.append(
            {name: term.weight for name, term in learner._terms(learner._forward(Batch(x)), Batch(x), None).items()}
        )
    assert settings.finetune_steps == 4
    assert weights[5] == pytest.approx({"reconstruction": 1.0, "l1": 3.0})
    assert weights[6] == pytest.approx({"reconstruction": 2.0, "l1": 0.3})
    assert max(rates[6:]) == pytest.approx(5e-3, rel=0.1) and rates[9] == pytest.approx(5e-4)
    assert learner.optimizer.state[learner.encoder]["step"] == 4


def test_weighted_terms_add_up_and_are_logged_by_themselves(tmp_path, text):
    weights = {"reconstruction": 0.3, "kl": 0.5, "ce": 0.1, "downstream": 2.0}
    settings = config(width=N, k=4, objective=("weighted", "e2e+ds"), later=(LATER,), tokens=128 * 25, **weights)
    run = train(settings, out=tmp_path / "a", model=tiny_model(), text=text)
    log = run.metrics()[0]
    variance = log["reconstruction"] / 1.0
    assert log["member"].startswith("weighted-") and variance > 0
    about = run.dictionaries[0].metadata.training
    assert about["weights"] == weights and about["later"] == [LATER]
    rest = log["loss"] - sum(weights[name] * log[name] for name in ("kl", "ce", "downstream")) - log["aux"] / 32
    assert rest == pytest.approx(0.3 * (1 - log["explained_variance"]), rel=0.2)  # over the variance, for TopK
    assert run.dictionaries[1].metadata.training["weights"]["downstream"] == 2.0


def test_cross_entropy_is_that_of_the_next_token(text):
    from dictlab.training import Objective
    from dictlab.training.objectives import Splice, model_terms

    model = tiny_model()
    tokens = next(text.batches(model.tokenizer, 16, 4))
    splice = Splice(model, SITE, SITE, [LATER])
    clean = model.capture(tokens, splice.sites)
    x_hat = clean[SITE] + 0.3 * torch.randn(clean[SITE].shape, generator=torch.Generator().manual_seed(0))
    found = model_terms(Objective(ce=1.0), x_hat, Batch(clean[SITE], clean, tokens), splice)
    logits = model.splice(tokens, SITE, x_hat).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert set(found) == {"ce"}
    torch.testing.assert_close(found["ce"], expected, rtol=1e-5, atol=1e-6)


def test_a_member_that_diverges_is_given_up_and_the_others_go_on(tmp_path, text, monkeypatch, capsys):
    original = Learner.step

    def step(self, *arguments, **options):
        if self.steps == 20 and self.member.name.startswith("local-relu"):
            with torch.no_grad():
                self.bias.fill_(torch.nan)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Learner, "step", step)
    settings = config(width=N, k=4, activation=("topk", "relu"), tokens=128 * 60)
    run = train(settings, out=tmp_path / "a", model=tiny_model(), text=text)
    assert [d.name for d in run.dictionaries] == ["local-topk4-24-s0"]
    assert list(run.diverged) == ["local-relu1-24-s0"] and not run.interrupted
    assert [path.name for path in (tmp_path / "a").glob("*.safetensors")] == ["local-topk4-24-s0.safetensors"]
    assert "local-relu1-24-s0" in capsys.readouterr().err
    assert [m["step"] for m in run.metrics() if m["member"] == "local-relu1-24-s0"] == [25]
    assert [m["step"] for m in run.metrics() if m["member"] == "local-topk4-24-s0"] == [25, 50, 60]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 24}, "width is .24., and start brings its own"),
        ({"k": 4}, "k is .4., and start brings its own"),
        ({"activation": "relu"}, "activation is .'relu'., and start brings its own"),
        ({"seed": (0, 1)}, "with start it orders the data and nothing else"),
    ],
)
def test_what_a_started_dictionary_brings_is_not_given(changes, message):
    with pytest.raises(DictlabError, match=message):
        config(start=("a.safetensors",), **changes)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (Metadata(site="blocks.2.hook_resid_pre"), r"trained at blocks\.2\.hook_resid_pre; this run is at blocks\.1"),
        (Metadata(site=SITE, model="x", model_fingerprint="abc"), "with fingerprint abc"),
    ],
)
def test_a_dictionary_of_another_model_or_site_is_not_gone_on_from(tmp_path, text, metadata, message):
    save(random_dictionary(N, 16, metadata=metadata), tmp_path / "a.safetensors")
    with pytest.raises(DictlabError, match=message):
        train(config(start=(str(tmp_path / "a.safetensors"),)), out=tmp_path / "run", model=tiny_model(), text=text)
    assert not (tmp_path / "run").exists()


def test_a_dictionary_of_other_weights_is_gone_on_from_where_that_is_allowed(tmp_path):
    save(random_dictionary(N, 16, metadata=Metadata(site=SITE, model_fingerprint="abc")), tmp_path / "a.safetensors")
    model = tiny_model()
    model.allow_other_weights = True
    (started,) = load_for_model([str(tmp_path / "a.safetensors")], model, SITE)
    assert started.metadata.model_fingerprint == "abc"


def test_later_sites_come_after_the_site(tmp_path, text):
    settings = config(width=N, k=4, objective="e2e+ds", later=("blocks.0.hook_resid_pre",))
    with pytest.raises(DictlabError, match=r"later: blocks\.0\.hook_resid_pre does not come after"):
        train(settings, out=tmp_path / "run", model=tiny_model(), text=text)


def test_several_starts_and_coefficients_are_a_family(tmp_path):
    one, two = (random_dictionary(N, 16, activation=f, name=n) for f, n in ((ReLU(), "one"), (TopK(4), "two")))
    settings = config(start=("one", "two"), l1=(0.1, 0.2), objective=("e2e", "local"))
    names = [member.name for member in settings.members([one, two])]
    assert names == [
        f"{goal}-{rest}"
        for goal in ("e2e", "local")
        for rest in ("relu0.1-from-one", "relu0.2-from-one", "topk4-from-two")
    ]


def test_a_dictionary_of_another_width_is_no_start_for_an_array(tmp_path):
    save(random_dictionary(20, 8, name="other"), tmp_path / "other.safetensors")
    settings = TrainConfig(data="x", start=(str(tmp_path / "other.safetensors"),), tokens=640, batch=64)
    with pytest.raises(DictlabError, match=r"reads activations of width 8; those of x have 16"):
        train(settings, data=torch.randn(640, 16), out=tmp_path / "run")
