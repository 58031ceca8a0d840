"""Every command does what its help says, and a user's mistake is one line, status 2, and nothing written."""

import importlib
import inspect
import json
import os
import tomllib
from dataclasses import fields, replace
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import get_args

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from analyses.autointerp.settings import Interpreter
from dictlab import Dictionary, LanguageModel, Metadata, Report, TopK, __version__, cli, load, save
from dictlab.dictionary.activation_functions import JumpReLU
from dictlab.dictionary.normalisation import Centred, Scale
from dictlab.dictionary.union import Union
from dictlab.reports.report import Table
from dictlab.runtime import progress

SITE = "blocks.1.hook_resid_pre"
D_MODEL = 8
WORDS = [f"w{i}" for i in range(30)]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """A wide terminal, no lines of progress on a slow machine, and a folder of one's own to stand in."""
    monkeypatch.setattr(progress, "HEARTBEAT", 1e9)
    monkeypatch.setattr(progress, "WORTH_A_LINE", 1e9)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LanguageModel:
    """A tiny GPT-2 with random weights, and a tokenizer of one token a word, saved to a folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    config = GPT2Config(
        vocab_size=32, n_positions=16, n_embd=D_MODEL, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<eos>", "<unk>", *WORDS])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    return LanguageModel.load(folder)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> str:
    """Sixty documents of random words."""
    folder = tmp_path_factory.mktemp("texts")
    generator = torch.Generator().manual_seed(1)
    for number in range(60):
        words = torch.randint(len(WORDS), (80,), generator=generator)
        (folder / f"{number}.txt").write_text(" ".join(WORDS[i] for i in words))
    return str(folder)


def build(name: str, n_latents: int = 12, d_in: int = D_MODEL, seed: int = 0, **about) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(n_latents, d_in, generator=generator), dim=1)
    return Dictionary(
        W_enc=W_dec.T.clone(),
        b_enc=torch.zeros(n_latents),
        W_dec=W_dec,
        b_pre=torch.zeros(d_in),
        b_out=torch.zeros(d_in),
        activation=TopK(3),
        firing_rate=torch.full((n_latents,), 0.25),
        metadata=Metadata(**({"site": SITE, "objective": "local", "seed": seed} | about)),
        name=name,
    )


@pytest.fixture
def pair(tmp_path, model) -> list[str]:
    """A small and a large dictionary of the tiny model, as files."""
    about = {"model": model.name, "model_fingerprint": model.fingerprint}
    return [
        str(save(build(name, width, seed=seed, **about), tmp_path / f"{name}.safetensors"))
        for seed, (name, width) in enumerate([("small", 12), ("large", 24)])
    ]


class Ran:
    """What a command did."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def run(capfd):
    def run(*arguments) -> Ran:
        capfd.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        return Ran(status, *capfd.readouterr())

    return run


@pytest.fixture
def refuse(run, tmp_path):
    """Run, and check that it is refused: status 2, one line that says all of `needles`, nothing written."""

    def refuse(*arguments, says: tuple[str, ...]) -> None:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        ran = run(*arguments)
        assert ran.status == 2
        assert ran.out == "" and "Traceback" not in ran.err
        said = ran.err.rpartition("\r")[2]  # what a terminal shows when bars have wiped themselves
        assert said.startswith("dictlab: ") and said.count("\n") == 1 and ran.err.count("\n") == 1, ran.err
        for needle in says:
            assert needle in ran.err
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    return refuse


# Help


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ((), ("train", "stitch", "report", "info", "convert", "verify")),
        (("train",), ("--width", "--objective", "e2e+ds", "The language model")),
        (("stitch",), ("SMALL", "LARGE", "--select", "--refit", "--force", "Latents are added to it")),
        (
            ("report",),
            (
                "downstream",
                "frankenstein",
                "geometry",
                "matching",
                "meta",
                "novelty",
                "pareto",
                "pathology",
                "stitching",
                "verification",
            ),
        ),
        (("report", "geometry"), ("DICTIONARIES", "--umap-points", "--seed", "--out")),
        (("info",), ("FILE", "--format", "--map", "--scale", "--ignore")),
        (("convert",), ("SOURCE", "TARGET", "--to", "--map", "--force")),
        (("verify",), ("DICTIONARY", "--model", "--contexts", "--out")),
    ],
    ids=lambda value: " ".join(value) or "dictlab",
)
def test_help_shows_what_can_be_given_and_examples(run, command, says):
    ran = run(*command, "--help")
    assert ran.status == 0 and ran.err == ""
    for needle in (*says, "Examples:", f"dictlab {' '.join(command)}".strip()):
        assert needle in ran.out


def test_examples_are_not_broken_by_the_terminals_width(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    after = run("--help").out.split("Examples:")[1]
    lines = [line for line in after.splitlines() if line.strip()]
    assert all(
        line.startswith("  dictlab ") or before.endswith("\\")
        for before, line in zip(["", *lines], lines, strict=False)
    )


def test_no_arguments_show_the_help_and_the_version_is_the_packages(run):
    assert "Usage: dictlab" in run().out
    assert run("--version").out.strip() == __version__


def test_every_parameter_of_an_analysis_is_a_flag(run):
    for entry in entry_points(group=cli.GROUP):
        shown = run("report", entry.name, "--help").out
        for name, parameter in inspect.signature(entry.load(), eval_str=True).parameters.items():
            flags = [f.name for f in fields(Interpreter)] if Interpreter in get_args(parameter.annotation) else [name]
            for flag in flags:
                assert f"--{flag.replace('_', '-')}" in shown


# info


def test_info_tells_what_a_dictionary_is(run, tmp_path):
    metrics = {
        "l0": 3.0,
        "l0_interval": [2.5, 3.5],
        "explained_variance": 0.9,
        "dead": 3,
        "firing_tokens": 1000,
        "ce_increase": "high",
    }
    about = {"model": "gpt2", "tokens": 1234567, "metrics": metrics, "sources": ("a", "b")}
    ran = run("info", save(build("x", **about), tmp_path / "mine.safetensors"))
    assert ran.status == 0 and ran.err == ""
    for needle in ("mine", "12 latents x 8", "topk, k 3", "gpt2", SITE, "local", "1,234,567", "3 [2.5, 3.5]", "a, b"):
        assert needle in ran.out
    assert "3 (25.0%) in 1,000 tokens" in ran.out
    rows = {line[:20].strip(): line[20:].strip() for line in ran.out.splitlines()}
    assert rows["explained variance"] == "0.9", "without an interval"
    assert rows["CE increase"] == "high nats/token", "not even a number"


def test_info_of_a_dictionary_of_which_nothing_is_known(run, tmp_path):
    ran = run("info", save(replace(build("x"), metadata=Metadata()), tmp_path / "bare.safetensors"))
    assert ran.status == 0 and ran.out.count("not recorded") >= 6


def test_info_shows_text_from_a_file_as_it_is(run, tmp_path):
    ran = run("info", save(build("x", model="[/red] :smile:", site="[bold]"), tmp_path / "[red]a.safetensors"))
    assert ran.status == 0
    for needle in ("[/red] :smile:", "[bold]", "[red]a"):
        assert needle in ran.out


def test_info_shows_the_new_rules_and_what_a_reader_noted(run, tmp_path):
    about = {"convention": "transformer_lens", "library": "SAELens 6", "notes": ("one thing", "and another")}
    emits = torch.arange(12) % 2 > 0
    union = Union(((4, JumpReLU(torch.zeros(4))), (8, TopK(2))), emits)
    dictionary = replace(build("x", **about), activation=union, normalisation=Centred(Scale(0.5)))
    ran = run("info", save(dictionary, tmp_path / "mine.safetensors", torch.bfloat16))
    assert ran.status == 0
    for needle in (
        "6 only compete", "union: 4 latents jumprelu, 8 latents topk, k 2", "centred, then scale, factor 0.5",
        "the model as TransformerLens processes it", "bfloat16", "SAELens 6", "one thing", "and another",
    ):  # fmt: skip
        assert needle in ran.out


# convert


@pytest.fixture
def state_dict(tmp_path):
    """Weights as somebody's training loop left them, and the dictionary that they are."""
    dictionary = build("x", seed=5)
    tensors = {"enc.weight": dictionary.W_enc.T, "enc.bias": dictionary.b_enc + 0.1, "dec": dictionary.W_dec}
    path = tmp_path / "loop.pt"
    torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path, replace(dictionary, b_enc=dictionary.b_enc + 0.1)


MAPPING = ("W_enc=enc.weight.T", "b_enc=enc.bias", "W_dec=dec", "b_dec=zero", "activation=topk:3", "normalisation=none")


def test_convert_writes_a_file_that_loads_and_tells_where(run, refuse, pair, tmp_path):
    ran = run("convert", pair[0], "made.safetensors", "--site", "blocks.0.hook_resid_pre", "--model", "another")
    assert ran.status == 0 and ran.err == "" and "Dictionary: made.safetensors" in ran.out
    one, other = load(pair[0]), load("made.safetensors")
    assert torch.equal(one.W_enc, other.W_enc)
    assert (other.metadata.site, other.metadata.model) == ("blocks.0.hook_resid_pre", "another")
    refuse("convert", pair[1], "made.safetensors", says=("made.safetensors exists already", "--force"))
    assert run("convert", pair[1], "made.safetensors", "--force").status == 0
    assert load("made.safetensors").n_latents == 24


def test_a_plain_state_dict_is_shown_and_converted_by_saying_which_tensor_is_what(run, state_dict, tmp_path):
    path, dictionary = state_dict
    shown = run("info", path, "--map", *MAPPING)
    assert shown.status == 0 and "12 latents x 8" in shown.out and "topk, k 3" in shown.out
    ran = run("convert", path, "made.safetensors", "--map", *MAPPING, "--site", SITE)
    assert ran.status == 0, ran.err
    made, x = load("made.safetensors"), torch.randn(20, D_MODEL)
    torch.testing.assert_close(made.reconstruct(x), dictionary.reconstruct(x))
    assert made.metadata.site == SITE


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (("W_enc",), ("--map 'W_enc'", "NAME=TENSOR")),
        (("=enc",), ("--map '=enc'", "NAME=TENSOR")),
        (("W_enc=",), ("--map 'W_enc='", "NAME=TENSOR")),
        (("W_enc=a", "W_enc=b"), ("--map 'W_enc=b'", "'a' already")),
        ((*MAPPING, "b_enk=enc.bias"), ("loop.pt", "b_enk", "W_enc")),
        (("W_enc=no_such", *MAPPING[1:]), ("loop.pt", "no_such", "enc.weight")),
    ],
    ids=lambda value: value[-1],
)
def test_a_mapping_that_makes_no_sense_is_refused_and_nothing_written(refuse, state_dict, pairs, says):
    refuse("convert", state_dict[0], "made.safetensors", "--map", *pairs, says=says)
    refuse("info", state_dict[0], "--map", *pairs, says=says)


def test_convert_refuses_what_it_cannot_read_or_write(refuse, pair, state_dict):
    refuse("convert", "gone.safetensors", "made.safetensors", says=("gone.safetensors", "no such file"))
    refuse("convert", pair[0], "made.safetensors", "--to", "nonsense", says=("'nonsense'", "saelens"))
    refuse("convert", pair[0], "made", "--to", "gemma_scope", says=("only read", "dictlab"))
    refuse("convert", pair[0], "made.pt", says=("made.pt: not written", ".safetensors"))
    refuse("convert", state_dict[0], "made.safetensors", says=("loop.pt", "enc.weight", "--map"))
    both = ("--map", *MAPPING, "--format", "saelens")
    refuse("convert", state_dict[0], "made.safetensors", *both, says=("a mapping", "'saelens'"))
    refuse("convert", pair[0], "made.safetensors", "--scale", "2", says=("small.safetensors", "scale of 2.0"))


# verify


def test_verify_checks_a_file_in_its_model_and_leaves_a_report(run, refuse, pair, texts, tmp_path):
    ran = run("verify", pair[0], "--text", texts, "--contexts", "8")
    assert ran.status in (0, 1) and "dictlab:" not in ran.err
    frame = pd.read_csv(tmp_path / "out" / "verification-small" / "checks.csv")
    assert (ran.status == 1) == (frame["result"] == "fail").any()
    assert {"numbers are finite", "scale of the reconstruction", "stated L0"} <= set(frame["check"])
    assert json.loads((tmp_path / "out" / "verification-small" / "report.json").read_text())["provenance"]["command"].startswith("dictlab verify ")  # fmt: skip
    refuse("verify", pair[0], "--text", texts, says=("verification-small", "already holds a report"))
    refuse("verify", pair[0], "--contexts", "1", "--out", "new", says=("contexts is 1",))
    refuse("verify", "gone.safetensors", says=("gone.safetensors", "no such file"))


# train


def train_arguments(model, texts) -> list[str]:
    return [
        *("train", model.name, SITE, "--text", texts, "--width", "8", "12", "--k", "2"),
        *("--tokens", "256", "--batch", "64", "--context", "16"),
    ]


def test_train_makes_a_run_and_does_not_overwrite_it(run, refuse, model, texts, tmp_path):
    arguments = [*train_arguments(model, texts), "--out", "made"]
    ran = run(*arguments)
    assert ran.status == 0, ran.err
    names = {"local-topk2-8-s0", "local-topk2-12-s0"}
    folder = tmp_path / "made"
    assert {path.name for path in folder.iterdir()} == {
        "config.toml",
        "metrics.jsonl",
        "metrics.parquet",
        "run.json",
        *(f"{n}.safetensors" for n in names),
    }
    config = tomllib.loads((folder / "config.toml").read_text())
    assert (config["width"], config["site"], config["tokens"]) == ([8, 12], SITE, 256)
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {record["member"] for record in logged} == names and logged[-1]["tokens"] == 256
    for name in names:
        assert name in ran.out
        dictionary = load(folder / f"{name}.safetensors")
        assert (dictionary.d_in, dictionary.metadata.model_fingerprint) == (D_MODEL, model.fingerprint)
    assert "made" in ran.out
    refuse(*arguments, says=("made", "already holds", "--force"))
    assert run(*arguments, "--force", "--seed", "1").status == 0
    assert (folder / "local-topk2-8-s1.safetensors").exists()


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (("--width", "0"), ("width is 0", "1 or more")),
        (("--width", "two"), ("--width", "two")),
        (("--k", "100"), ("k 100", "width")),
        (("--objective", "global"), ("--objective", "global", "e2e")),
        (("--widht", "8"), ("--widht", "--width")),
    ],
    ids=lambda value: " ".join(value),
)
def test_train_refuses_what_cannot_be_trained(refuse, model, texts, extra, says):
    refuse(*train_arguments(model, texts), *extra, says=says)


def test_train_refuses_a_text_that_is_nowhere(refuse, model):
    refuse(*train_arguments(model, "no/such-text"), says=("no/such-text", "no such file or folder"))


def test_train_refuses_an_unknown_site_and_names_those_that_are_there(refuse, model, texts):
    arguments = train_arguments(model, texts)
    arguments[2] = "blocks.7.hook_resid_pre"
    refuse(*arguments, says=("blocks.7.hook_resid_pre", "blocks 0 to 1"))


# stitch and report


def names_in(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_stitch_leaves_the_folder_that_the_design_describes(run, refuse, pair, texts, tmp_path):
    arguments = ["stitch", *pair, "--text", texts, "--tokens", "400", "--contexts", "8", "--out", "best"]
    ran = run(*arguments)
    assert ran.status == 0, ran.err
    record = json.loads((tmp_path / "best" / "report.json").read_text())
    found = names_in(tmp_path / "best")
    assert found == set(record["files"])
    assert {
        "stitched.safetensors",
        "report.html",
        "report.json",
        "quality.csv",
        "quality.parquet",
        "quality.png",
        "quality.svg",
    } <= found
    stems = {
        ending: {n.split(".")[0] for n in found if n.endswith(ending)}
        for ending in (".csv", ".parquet", ".png", ".svg")
    }
    assert stems[".csv"] == stems[".parquet"] and stems[".png"] == stems[".svg"]
    made = record["provenance"]
    assert made["command"].startswith("dictlab stitch ") and [one["name"] for one in made["inputs"]] == [
        "small",
        "large",
    ]
    assert load(tmp_path / "best" / "stitched.safetensors").metadata.sources == ("small", "large")
    for needle in ("best/report.html", "best/stitched.safetensors"):
        assert needle in ran.out
    refuse(*arguments, says=("best", "already holds a report", "--force"))


def test_a_report_is_written_without_what_was_switched_off(run, pair, tmp_path):
    ran = run("report", "geometry", *pair, "--umap-points", "0", "--seed", "4")
    assert ran.status == 0, ran.err
    folder = tmp_path / "out" / "geometry-small-large"
    settings = json.loads((folder / "report.json").read_text())["provenance"]["settings"]
    assert (settings["umap_points"], settings["seed"]) == (0, 4)
    assert not {"map.csv", "map.png"} & names_in(folder) and "pairs.csv" in names_in(folder)
    assert "out/geometry-small-large/report.html" in ran.out


def test_a_folder_that_holds_a_report_is_refused_before_the_work_and_replaced_by_force(run, refuse, pair, tmp_path):
    arguments = ["report", "geometry", *pair, "--umap-points", "0", "--out", "made"]
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "report.json").write_text("{}")
    (tmp_path / "made" / "notes.txt").write_text("mine")
    refuse(*arguments, says=("made", "already holds a report", "--force"))
    refuse("report", "geometry", "no-such.safetensors", "--out", "made", says=("already holds a report",))
    assert run(*arguments, "--force").status == 0
    assert {"pairs.csv", "notes.txt"} <= names_in(tmp_path / "made")


def changed(path: str, tmp_path, name: str, **about) -> str:
    dictionary = load(path)
    return str(
        save(replace(dictionary, metadata=replace(dictionary.metadata, **about)), tmp_path / f"{name}.safetensors")
    )


COMMANDS = [("stitch",), ("report", "geometry", "--umap-points", "0")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
class TestDictionariesThatDoNotGoTogether:
    def test_different_widths_of_input(self, refuse, pair, tmp_path, command):
        other = save(build("other", d_in=4), tmp_path / "other.safetensors")
        refuse(*command, pair[0], other, says=("small", "other", "d_in", "8 and 4"))

    def test_different_sites(self, refuse, pair, tmp_path, command):
        other = changed(pair[1], tmp_path, "other", site="blocks.0.hook_resid_pre")
        refuse(*command, pair[0], other, says=("small", "other", "site", SITE, "blocks.0.hook_resid_pre"))

    def test_different_models(self, refuse, pair, tmp_path, command):
        other = changed(pair[1], tmp_path, "other", model="another", model_fingerprint="0123456789abcdef")
        refuse(*command, pair[0], other, says=("small", "other", "model", "another (0123456789abcdef)"))

    def test_a_damaged_file(self, refuse, pair, tmp_path, command):
        bad = tmp_path / "bad.safetensors"
        bad.write_bytes(b"\xff" * 64)
        refuse(*command, pair[0], bad, says=("bad.safetensors", "damaged"))

    def test_a_missing_file(self, refuse, pair, command):
        refuse(*command, pair[0], "gone.safetensors", says=("gone.safetensors", "no such file"))

    def test_the_same_file_twice(self, refuse, pair, command):
        said = "given twice" if "stitch" in command else "two dictionaries are called 'small'"
        refuse(*command, pair[0], pair[0], says=("small", said))


# Mistakes


def test_info_of_no_dictionary(refuse, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    refuse("info", "bad.safetensors", says=("bad.safetensors", "damaged"))
    refuse("info", "gone.safetensors", says=("gone.safetensors", "no such file"))
    refuse("info", tmp_path, says=("bad.safetensors", "damaged"))
    (tmp_path / "empty").mkdir()
    refuse("info", tmp_path / "empty", says=("folder", "no file of weights"))
    refuse("info", says=("--file",))
    refuse("info", "bad.safetensors", "another", says=("another", "--help"))


def test_an_unknown_analysis_is_answered_with_the_known_ones(refuse):
    refuse("report", "nonsense", says=("nonsense", "geometry", "matching", "--help lists all"))
    refuse("report", "geomtry", "a.safetensors", says=("geomtry", 'Did you mean "geometry"'))


def test_a_misspelt_option_or_command_is_answered_with_the_right_one(refuse, pair):
    refuse("report", "geometry", *pair, "--sede", "1", says=("--sede", "Did you mean --seed"))
    refuse("stitch", *pair, "--refti", "none", says=("--refti", "Did you mean --refit"))
    refuse("stich", *pair, says=("stich", 'Did you mean "stitch"'))
    refuse("trian", says=("trian", 'Did you mean "train"'))
    refuse("novelty", *pair, says=("novelty", "Did you mean dictlab report novelty?"))
    refuse("matchin", *pair, says=("matchin", "Did you mean dictlab report matching?"))
    refuse("stitch", *pair, "--refit", "all", says=("--refit", "all", "decoder"))
    refuse("stitch", pair[0], says=("--large",))


def test_activations_alone_are_refused_where_the_model_is_needed(refuse, pair):
    for given in (["--data", "x.npy"], ["--data=x.npy"]):
        refuse("report", "ablation", pair[0], *given, says=("ablation needs the language model", "leave out --data"))


def test_an_unknown_model_is_named_with_what_was_tried(refuse, pair, texts, tmp_path):
    refuse("train", "no/such-model", SITE, says=("no/such-model", "the folder no/such-model", "Hugging Face Hub"))
    lost = [changed(path, tmp_path, name, model="lost-model") for path, name in zip(pair, "ab", strict=True)]
    refuse(
        "stitch",
        *lost,
        "--text",
        texts,
        says=("lost-model", f"the folder {tmp_path / 'lost-model'}", "Hugging Face Hub"),
    )
    nameless = [
        changed(path, tmp_path, name, model=None, model_fingerprint=None) for path, name in zip(pair, "cd", strict=True)
    ]
    refuse("stitch", *nameless, "--text", texts, says=("names no model", "--model"))


def test_a_model_with_other_weights_is_refused(refuse, pair, texts, model, tmp_path):
    others = [
        changed(path, tmp_path, name, model_fingerprint="0123456789abcdef")
        for path, name in zip(pair, "ab", strict=True)
    ]
    refuse("stitch", *others, "--text", texts, "--model", model.name, says=("0123456789abcdef", model.fingerprint))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_is_not_quietly_replaced_where_there_is_none(refuse, model, texts):
    refuse(*train_arguments(model, texts), "--device", "cuda", says=("'cuda'", "no CUDA device"))


def test_an_output_that_is_a_file_or_below_one_is_refused_before_the_work(refuse, pair, tmp_path):
    (tmp_path / "taken").write_text("mine")
    for out in ("taken", "taken/below"):
        refuse("report", "geometry", *pair, "--out", out, says=("taken", "file"))


def test_a_train_output_that_is_a_file_is_refused(refuse, model, texts, tmp_path):
    (tmp_path / "taken").write_text("mine")
    refuse(*train_arguments(model, texts), "--out", "taken", says=("taken",))


def test_a_full_disk_is_said_in_one_line(refuse, pair, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    refuse("report", "geometry", *pair, "--umap-points", "0", "--out", "made", says=("No space left on device",))


def test_an_interruption_has_its_own_status(run, pair, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Report, "save", interrupt)
    ran = run("report", "geometry", *pair, "--umap-points", "0")
    assert ran.status == 130 and "interrupted" in ran.err and "Traceback" not in ran.err


def test_an_interrupted_analysis_says_that_nothing_was_written(run, pair, monkeypatch, tmp_path):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        importlib.import_module("analyses.similarity.geometry.geometry"), "open_dictionaries", interrupt
    )
    ran = run("report", "geometry", *pair, "--out", "made")
    assert ran.status == 130 and ran.err.strip() == "dictlab: interrupted; nothing was written to made."
    assert not (tmp_path / "made").exists()


# Somebody else's analyses


def counting(
    dictionaries: list[Dictionary | str], *, deep: bool = True, times: int = 2, model: LanguageModel | str | None = None
) -> Report:
    """How many latents are there?

    Args:
        dictionaries: Any number of them.
        deep: Look closely.
        times: How often to count.
        model: Not needed.

    Example:
        dictlab report counting a.safetensors --times 3
    """
    frame = pd.DataFrame({"dictionary": [str(d) for d in dictionaries], "[red]times": times, "deep": deep})
    return Report(
        "Counting", f"{len(dictionaries)} counted.", {"counts": Table(frame, "Counts.")}, warnings=("[/odd]",)
    )


def returning_nothing() -> None:
    """Forgets its report."""


@pytest.fixture
def plugins(monkeypatch):
    """Three more analyses beside the built-in ones: a good one, one that returns nothing, one that cannot be imported."""
    own = [
        EntryPoint("counting", f"{__name__}:counting", cli.GROUP),
        EntryPoint("forgetful", f"{__name__}:returning_nothing", cli.GROUP),
        EntryPoint("broken", "no_such_package.analysis:main", cli.GROUP),
    ]
    known = EntryPoints([*entry_points(group=cli.GROUP), *own])
    monkeypatch.setattr(cli, "entry_points", known.select)


def test_somebody_elses_analysis_is_a_command_like_any_other(run, plugins, tmp_path):
    listed = run("report", "--help")
    assert "counting" in listed.out and "How many latents are there?" in listed.out and "geometry" in listed.out
    shown = run("report", "counting", "--help").out
    for needle in ("--no-deep", "--times", "How often to count", "dictlab report counting a.safetensors --times 3"):
        assert needle in shown
    ran = run("report", "counting", "a.safetensors", "b.safetensors", "--times", "5", "--no-deep", "--out", "made")
    assert ran.status == 0, ran.err
    for needle in ("2 counted", "[red]times", "WARNING: [/odd]", "made/report.html"):
        assert needle in ran.out
    frame = pd.read_csv(tmp_path / "made" / "counts.csv")
    assert frame["[red]times"].tolist() == [5, 5] and frame["deep"].tolist() == [False, False]


def test_an_analysis_that_cannot_be_imported_takes_no_other_with_it(run, refuse, plugins):
    listed = run("report", "--help")
    assert listed.status == 0 and "broken" in listed.out and "cannot be loaded" in listed.out
    assert run("report", "counting", "--out", "made", "a.safetensors").status == 0
    refuse("report", "broken", "a.safetensors", says=("'broken'", "cannot be loaded", "no_such_package"))


def test_an_analysis_that_returns_no_report_is_named(refuse, plugins):
    refuse("report", "forgetful", says=("returning_nothing", "NoneType", "Report"))


def test_stitch_without_installed_analyses_says_what_to_do(refuse, monkeypatch, pair):
    monkeypatch.setattr(cli, "entry_points", EntryPoints([]).select)
    refuse("stitch", *pair, says=("not installed",))


def test_the_module_runs_as_a_program():
    import subprocess
    import sys

    ran = subprocess.run([sys.executable, "-m", "dictlab", "stich"], capture_output=True, text=True, env=os.environ)
    assert ran.returncode == 2 and "Did you mean" in ran.stderr and "Traceback" not in ran.stderr
