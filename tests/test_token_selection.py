"""Which tokens count, against the rules applied one position at a time."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from analyses import pareto
from dictlab import DictlabError, Text
from dictlab.data.activations import ModelActivations, moments, sample_sites, select_tokens, shuffled_activations
from dictlab.data.arrays import open_array
from dictlab.data.attention_sinks import find_sinks
from dictlab.data.shuffle_buffer import ShuffledStream
from dictlab.dictionary import Dictionary
from dictlab.dictionary.activation_functions import ReLU
from dictlab.evaluation.recorded_selection import recorded_selection, with_selection
from dictlab.token_selection import ALL, TokenSelection, rectangles
from dictlab.training import TrainConfig, resume, train
from tests.planted import SITE, random_dictionary, sink_model, tiny_model

CONTEXT = 16


@pytest.fixture
def text(tmp_path) -> Text:
    folder = tmp_path / "text"
    folder.mkdir()
    letters = np.random.default_rng(0)
    for number in range(120):
        (folder / f"{number}.txt").write_text("".join(letters.choice(list("abcdefghij klm\n"), size=90)))
    return Text.files(folder)


class Tokenizer:
    bos_token_id, eos_token_id, unk_token_id, pad_token_id = 0, 1, None, 2
    all_special_ids = (0, 1, 2, 9)


@pytest.mark.parametrize(
    "spec",
    [
        "all",
        "without-first=3",
        "positions=:5",
        "positions=2:-1",
        "without-bos,without-special",
        "without-ids=4/17",
        "without-first=1,without-outliers=10",
        "without-outliers=4.5",
    ],
)
def test_a_selection_is_written_as_it_is_read(spec):
    assert str(TokenSelection.parse(spec)) == spec
    assert TokenSelection.parse(str(TokenSelection.parse(spec))) == TokenSelection.parse(spec)


def test_short_forms_are_the_usual_numbers():
    assert TokenSelection.parse("without-first,without-outliers") == TokenSelection(first=1, norm_multiple=10.0)
    assert TokenSelection.parse(None) == TokenSelection.parse("all") == ALL


@pytest.mark.parametrize(
    "spec",
    ["none", "without-outliers=x", "without-outliers=1", "without-outliers=nan", "positions=5:5", "without-bos=3"],
)
def test_what_is_not_understood_is_refused(spec):
    with pytest.raises(DictlabError, match="token selection"):
        TokenSelection.parse(spec)


def test_settings_of_other_libraries():
    """SAELens' and dictionary_learning's own names and defaults."""
    of = TokenSelection.of_library
    assert of(seqpos_slice=(None,), exclude_special_tokens=False, prepend_bos=True) == ALL
    assert of(seqpos_slice=(1, 100, 1)) == TokenSelection(first=1, stop=100)
    assert of(exclude_special_tokens=True) == TokenSelection(without_special=True)
    assert of(exclude_special_tokens=[7, 5], ignore_tokens={3}) == TokenSelection(without_ids=(3, 5, 7))
    assert of(remove_bos=True, max_activation_norm_multiple=10) == TokenSelection(first=1, norm_multiple=10)
    assert of(prepend_bos=False) == TokenSelection(without_bos=True)
    with pytest.raises(DictlabError, match="step"):
        of(seqpos_slice=(0, 100, 2))


@pytest.mark.parametrize(
    "spec",
    [
        "all",
        "without-first=2",
        "positions=1:-3",
        "without-bos",
        "without-special",
        "without-ids=5/6",
        "without-outliers",
    ],
)
def test_a_mask_is_every_rule_at_every_position(spec):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 12, (6, 20), generator=generator)
    x = torch.randn(6, 20, 4, generator=generator)
    x[torch.rand(6, 20, generator=generator) < 0.1] *= 100
    selection = TokenSelection.parse(spec)
    stop = 20 if selection.stop is None else selection.stop % 20
    for i in range(6):
        norms = np.sort(np.linalg.norm(x[i].numpy(), axis=1))
        for j in range(20):
            token = int(tokens[i, j])
            expected = selection.first <= j < stop and token != 2  # padding never counts
            expected &= not (selection.without_bos and token == 0)
            expected &= not (selection.without_special and token in (0, 1, 2, 9))
            expected &= token not in selection.without_ids
            if selection.norm_multiple:
                expected &= bool(np.linalg.norm(x[i, j].numpy()) <= 10 * norms[9])  # torch's median is the lower one
            assert bool(selection.mask([x], tokens, Tokenizer)[i, j]) == expected


def test_an_outlier_at_one_site_does_not_count_at_any():
    x, y = torch.ones(1, 8, 3), torch.ones(1, 8, 3)
    x[0, 2], y[0, 5] = 1000.0, 1000.0
    counted = TokenSelection(norm_multiple=10).mask([x, y])
    assert counted[0].tolist() == [True, True, False, True, True, False, True, True]


def test_what_counts_does_not_depend_on_the_batch():
    x = torch.randn(10, 12, 4) * torch.arange(1, 11)[:, None, None] ** 3
    x[:, 0] *= 100
    selection = TokenSelection(norm_multiple=10)
    alone = torch.cat([selection.mask([part]) for part in x.split(1)])
    assert torch.equal(selection.mask([x]), alone) and not alone[:, 0].any()


def test_rectangles_hold_each_token_that_counts_once_and_keep_sequences_together():
    x = torch.arange(5 * 7 * 2.0).view(5, 7, 2)
    counted = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    counted[3] = False
    parts = list(rectangles(x, counted))
    rows = torch.cat([part.flatten(0, 1) for part in parts])
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, x[counted].tolist()))
    assert sum(map(len, parts)) == 4
    for part in parts:
        assert all(len({int(row[0]) // 14 for row in sequence}) == 1 for sequence in part)
    assert next(rectangles(x, torch.ones(5, 7, dtype=torch.bool))) is x


@pytest.mark.parametrize("spec", ["without-first", "without-outliers", "positions=0:1"])
def test_a_stream_gives_every_token_that_counts_once(text, spec):
    model, selection = sink_model(), TokenSelection.parse(spec)
    options = {"context": CONTEXT, "batch": 5, "buffer": 100, "repeat": False}
    given = torch.cat(list(shuffled_activations(model, text, SITE, selection=selection, **options)))
    expected = []
    for tokens in text.batches(model.tokenizer, CONTEXT, 8, seed=0):
        x = model.capture(tokens, SITE)[SITE]
        expected.append(x[selection.mask([x], tokens, model.tokenizer)])
    everything = torch.cat(expected)
    assert len(everything) - 20 < len(given) <= len(everything)
    direction = torch.linspace(-1, 1, 16)
    rest = iter(sorted((everything @ direction).tolist()))  # each of `given` takes one of these away
    assert all(any(abs(value - other) < 1e-3 for other in rest) for value in sorted((given @ direction).tolist()))


def test_a_selected_stream_goes_on_where_it_was_left(text):
    model, selection = sink_model(), TokenSelection(norm_multiple=10)

    def stream(start=None):
        return ShuffledStream(
            select_tokens(model, selection, lambda tokens: model.capture(tokens, SITE)),
            lambda at: text.contexts(model.tokenizer, CONTEXT, seed=0, repeat=True, start=at),
            context=CONTEXT, batch=7, buffer=200, seed=0, start=start,
        )  # fmt: skip

    whole, positions = stream(), []
    batches = []
    for _, batch in zip(range(150), whole, strict=False):
        batches.append(batch[SITE])
        positions.append(whole.position())
    for at in (0, 20, 77):
        again = next(iter(stream(positions[at])))
        assert torch.equal(again[SITE], batches[at + 1])


def test_a_selection_without_a_single_token_is_refused_and_does_not_go_round_for_ever(text):
    model = tiny_model()
    every = TokenSelection(without_ids=tuple(range(model.model.config.vocab_size)))
    with pytest.raises(DictlabError, match="token selection"):
        next(shuffled_activations(model, text, SITE, context=CONTEXT, batch=5, buffer=100, selection=every))


def test_samples_at_several_sites_are_of_the_same_tokens(text):
    model, later = sink_model(), "blocks.2.hook_resid_pre"
    (batch,) = sample_sites(
        model, text, [SITE, later], context=CONTEXT, tokens=64, selection=TokenSelection(norm_multiple=10)
    )
    assert len(batch[SITE]) == len(batch[later]) == 64 - 4
    tokens = text.sample(model.tokenizer, CONTEXT, 4)
    assert torch.allclose(batch[later], model.capture(tokens, later)[later][:, 1:].flatten(0, 1), atol=1e-5)


def test_activations_without_sinks_vary_a_thousandth_as_much(text):
    model = sink_model()
    variance = {
        spec: moments(ModelActivations(model, text, SITE, CONTEXT, TokenSelection.parse(spec)).sample(800)).variance
        for spec in ("all", "without-first", "without-outliers")
    }
    assert variance["without-first"] == variance["without-outliers"] < variance["all"] / 100


def test_rows_of_an_array_are_selected_by_position_or_norm():
    x = torch.randn(20, 8, 3)
    x[:, 0] *= 1000
    for spec in ("without-first", "without-outliers"):
        data = replace(open_array(x), selection=TokenSelection.parse(spec))
        sample = torch.cat(list(data.sample(10**6)))
        assert sample.shape == (20, 7, 3) and float(sample.abs().max()) < 50
    for refused in (lambda: replace(open_array(x), selection=TokenSelection(without_bos=True)),
                    lambda: replace(open_array(x.flatten(0, 1)), selection=TokenSelection(first=1))):  # fmt: skip
        with pytest.raises(DictlabError, match="which tokens its rows are of"):
            refused()


def test_sinks_are_found_where_they_are(text):
    sinks = find_sinks(sink_model(), text, [SITE], context=CONTEXT)
    assert sinks is not None and sinks.positions == (0,) and sinks.share > 0.9
    assert find_sinks(tiny_model(), text, [SITE], context=CONTEXT) is None
    assert find_sinks(sink_model(), text, [SITE], context=CONTEXT, selection=TokenSelection(first=1)) is None


def test_training_leaves_sinks_out_says_so_once_and_writes_it_down(text, tmp_path, capsys):
    model = sink_model()
    config = TrainConfig("tiny", SITE, width=8, k=2, tokens=1280, batch=64, context=CONTEXT)
    run = train(config, model=model, text=text, out=tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("attention sinks") == 1 and "position 0" in said and "`token_selection='all'`" in said
    assert run.config.token_selection == "without-outliers=10"
    assert 'token_selection = "without-outliers=10"' in (tmp_path / "run" / "config.toml").read_text()
    (dictionary,) = run.dictionaries
    assert str(recorded_selection([dictionary])) == "without-outliers=10"
    with safe_open(next((tmp_path / "run").glob("*.safetensors")), "pt") as file:
        assert "without-outliers=10" in str(file.metadata())
    # The bias begins at the median of the tokens that count, and what is measured is of them.
    assert float(dictionary.b_out.norm()) < 20
    assert dictionary.metadata.metrics["evaluation_tokens"] % (CONTEXT - 1) == 0


def test_training_on_all_tokens_warns_of_the_share_of_sinks(text, tmp_path, capsys):
    config = TrainConfig(
        "tiny", SITE, width=8, k=2, tokens=640, batch=64, context=CONTEXT, token_selection="all"
    )  # fmt: skip
    run = train(config, model=sink_model(), text=text, out=tmp_path / "run")
    assert "of the variance" in capsys.readouterr().err and run.config.token_selection == "all"


def test_models_without_sinks_are_trained_on_all_tokens(text, tmp_path, capsys):
    config = TrainConfig("tiny", SITE, width=8, k=2, tokens=640, batch=64, context=CONTEXT)
    run = train(config, model=tiny_model(), text=text, out=tmp_path / "run")
    assert run.config.token_selection == "all" and "sinks" not in capsys.readouterr().err


@pytest.mark.parametrize("objective", ["e2e", "e2e+ds"])
def test_spliced_training_leaves_sinks_as_they_are(text, tmp_path, objective):
    """Gradients of the loss by hand: the model run with the sink's own activation, KL over the tokens that count."""
    from dictlab.training.objectives import Batch, Objective, Splice, model_terms

    model = sink_model()
    tokens = text.sample(model.tokenizer, CONTEXT, 2)
    splice = Splice(model, SITE, model.block_input(SITE), ["blocks.2.hook_resid_pre"])
    clean = model.capture(tokens, splice.sites)
    counted = TokenSelection(norm_multiple=10).mask([clean[SITE]])
    x_hat = torch.randn(int(counted.sum()), 16)
    batch = Batch(clean[SITE][counted], clean, tokens, counted)
    terms = model_terms(Objective(kl=1.0, ce=1.0, downstream=1.0), x_hat, batch, splice)
    spliced = clean[SITE].clone()
    spliced[:, 1:] = x_hat.view(2, CONTEXT - 1, 16)
    logits = {}
    for name, value in (("clean", clean[SITE]), ("spliced", spliced)):
        handle = model.blocks[1].register_forward_pre_hook(
            lambda module, args, kwargs, value=value: ((value, *args[1:]), kwargs), with_kwargs=True
        )
        logits[name] = model.model(input_ids=tokens).logits
        handle.remove()
    p, q = (logits[name].log_softmax(-1) for name in ("clean", "spliced"))
    assert float(terms["kl"]) == pytest.approx(float((p.exp() * (p - q)).sum(-1)[:, 1:].mean()), rel=1e-4)
    ce = torch.nn.functional.cross_entropy(logits["spliced"][:, 1:-1].flatten(0, 1), tokens[:, 2:].flatten())
    assert float(terms["ce"]) == pytest.approx(float(ce), rel=1e-4)
    config = TrainConfig("tiny", SITE, width=8, k=2, tokens=640, batch=64, context=CONTEXT, objective=objective)
    run = train(config, model=model, text=text, out=tmp_path / "run")
    assert run.config.token_selection == "without-outliers=10" and not run.diverged


def test_a_run_that_began_before_selections_goes_on_with_all_tokens(text, tmp_path):
    model = sink_model()
    config = TrainConfig("tiny", SITE, width=8, k=2, tokens=640, batch=64, context=CONTEXT, token_selection="all")
    train(config, model=model, text=text, out=tmp_path / "run")
    written = tmp_path / "run" / "config.toml"
    lines = [line for line in written.read_text().splitlines() if not line.startswith("token_selection")]
    written.write_text("\n".join(lines))
    assert resume(tmp_path / "run", model=model, text=text).config.token_selection == "all"


def test_dictionaries_of_different_tokens_are_compared_only_on_tokens_that_are_said():
    plain = random_dictionary(4, 16, name="plain")
    (other,) = with_selection([random_dictionary(4, 16, name="other")], "without-first")
    with pytest.raises(DictlabError, match=r"plain was trained on the tokens 'all', other on .*token_selection="):
        recorded_selection([plain, other])
    assert str(recorded_selection(with_selection([plain, other], "without-outliers"))) == "without-outliers=10"


def test_one_outlier_position_decides_and_the_report_says_so():
    """One position in 64 holds nearly all of the variance: counted, the worse dictionary wins, and the share is said."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 64, 16, generator=generator)
    x[:, :, 0], x[:, 0], x[:, 0, 0] = 0, 0, 300.0

    def only(coordinates, name):
        W = torch.cat([torch.eye(16)[coordinates], -torch.eye(16)[coordinates]])
        return Dictionary(W.T.contiguous(), torch.zeros(len(W)), W, torch.zeros(16), torch.zeros(16), ReLU(), name=name)

    good, sink = only(list(range(1, 15)), "good_elsewhere"), only([0, 1], "knows_the_sink")
    report = pareto([good, sink], data=x, contexts=200)
    explained = report.tables["points"].frame.set_index("dictionary")["explained variance"]
    assert explained["knows_the_sink"] > explained["good_elsewhere"]
    counted, rest = x[:, 0], x.flatten(0, 1)
    share = (counted - rest.mean(0)).square().sum() / (rest - rest.mean(0)).square().sum()
    (said,) = (warning for warning in report.warnings if "ttention sinks" in warning)
    assert float(re.search(r"hold ([\d.]+)%", said)[1]) / 100 == pytest.approx(float(share), abs=2e-3)
    without = with_selection([good, sink], "without-outliers")
    report = pareto(without, data=x, contexts=200)
    explained = report.tables["points"].frame.set_index("dictionary")["explained variance"]
    y = x[:, 1:].flatten(0, 1)
    for dictionary in (good, sink):
        error = (y - dictionary.reconstruct(y)).square().sum() / (y - y.mean(0)).square().sum()
        assert explained[dictionary.name] == pytest.approx(1 - float(error), abs=1e-5)
    assert explained["good_elsewhere"] > explained["knows_the_sink"]
    assert not any("ttention sinks" in caution for caution in report.warnings)
