"""Each planted fault is found by the check that is meant for it, and by no other; a good dictionary passes."""

from dataclasses import replace

import pytest
import torch

from analyses.quality.verification.verification import verification
from analyses.quality.verification.weight_checks import weight_checks
from dictlab import DictlabError, Metadata, ReLU, TopK, cli, load, save
from dictlab.dictionary.activation_functions import BatchTopK, Gated, JumpReLU
from dictlab.dictionary.normalisation import Scale
from dictlab.dictionary.union import Union
from dictlab.evaluation.evaluate import evaluate
from tests.planted import SITE, identity_dictionary, random_dictionary, tiny_model

CONTEXTS = 16


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def good(model, text):
    """One latent for each sign of each coordinate, with the figures that it reaches."""
    dictionary = identity_dictionary(16, metadata=Metadata(model="tiny", site=SITE), name="good")
    return stating(dictionary, model, text)


def stating(dictionary, model, text):
    (found,) = evaluate([dictionary], model, text.as_split("heldout"), contexts=CONTEXTS)
    metrics = {name: found.value(name) for name in ("l0", "explained_variance", "ce_increase")}
    return replace(dictionary, metadata=replace(dictionary.metadata, metrics=metrics))


def failures(dictionary, model, text) -> list[str]:
    report = verification(dictionary, model=model, text=text, contexts=CONTEXTS)
    frame = report.tables["checks"].frame
    failed = list(frame["check"][frame["result"] == "fail"])
    assert report.passed == (not failed) and len(report.warnings) == len(failed)
    assert all(name in report.summary for name in failed)
    return failed


def test_a_good_dictionary_passes_every_check(good, model, text):
    frame = verification(good, model=model, text=text, contexts=CONTEXTS).tables["checks"].frame
    assert failures(good, model, text) == []
    assert set(frame["result"]) == {"pass"} and len(frame) == 11


def with_row(weights, index, value):
    changed = weights.clone()
    changed[index] = value
    return changed


def broken(good) -> dict[str, object]:
    """A dictionary with one fault, by the name of the check that has to find it."""
    twice = torch.tensor([*range(32), 0])
    halved = torch.ones(33, 1)
    halved[[0, 32]] = 0.5
    metrics = good.metadata.metrics
    return {
        "numbers are finite": replace(good, W_enc=with_row(good.W_enc, (0, 0), float("nan"))),
        "decoder directions": replace(good, W_dec=with_row(good.W_dec, 3, 0.0)),
        "encoder directions": replace(good, W_enc=with_row(good.W_enc.T, 3, 0.0).T),
        "duplicated latents": replace(
            good, W_enc=good.W_enc[:, twice], b_enc=good.b_enc[twice], W_dec=halved * good.W_dec[twice]
        ),
        "bias sizes": replace(good, b_pre=torch.full((16,), 1e-3), b_out=torch.full((16,), 2e-2)),
        "rule at run time": replace(good, activation=BatchTopK(20)),
        "scale of the reconstruction": replace(good, W_dec=1.5 * good.W_dec),
        "stated L0": replace(good, metadata=replace(good.metadata, metrics=metrics | {"l0": 1.4 * metrics["l0"]})),
        "stated explained variance": replace(
            good, metadata=replace(good.metadata, metrics=metrics | {"explained_variance": 0.6})
        ),
        "stated CE increase": replace(good, metadata=replace(good.metadata, metrics=metrics | {"ce_increase": 0.3})),
    }


FAULTS = [
    "numbers are finite", "decoder directions", "encoder directions", "duplicated latents", "bias sizes",
    "rule at run time", "scale of the reconstruction", "stated L0", "stated explained variance", "stated CE increase",
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_the_check_for_it_and_no_other(fault, good, model, text):
    dictionary = broken(good)[fault]
    if not fault.startswith("stated"):  # figures of the dictionary as it is
        dictionary = replace(dictionary, metadata=replace(dictionary.metadata, metrics={}))
    assert failures(dictionary, model, text) == [fault]


def test_the_faults_are_all_that_is_tried(good):
    assert list(broken(good)) == FAULTS


def test_a_forgotten_normalisation_shows_in_the_stated_figures(model, text):
    """Trained on inputs a tenth as large, where a threshold silences much; read as they are, nearly all is active."""
    right = replace(
        identity_dictionary(16, metadata=Metadata(site=SITE)),
        activation=JumpReLU(torch.full((32,), 0.1)),
        normalisation=Scale(0.1),
    )
    right = stating(right, model, text)
    assert failures(right, model, text) == []
    forgotten = replace(right, normalisation=Scale(1.0))
    assert "stated L0" in failures(forgotten, model, text)


def test_an_encoder_that_was_folded_twice_shows_in_the_scale(good, model, text):
    plain = replace(good, metadata=replace(good.metadata, metrics={}))
    for factor in (0.6, 1.5):
        assert failures(replace(plain, W_enc=factor * good.W_enc), model, text) == ["scale of the reconstruction"]


def test_a_dictionary_of_something_else_explains_nothing(model, text):
    stranger = random_dictionary(24, 16, metadata=Metadata(site=SITE))
    assert "explains more than the mean does" in failures(stranger, model, text)


def test_three_copies_of_a_latent_are_three_duplicates():
    dictionary = random_dictionary(24, 8, activation=ReLU())
    index = torch.tensor([*range(24), 5, 5])
    tripled = replace(
        dictionary, W_enc=dictionary.W_enc[:, index], b_enc=dictionary.b_enc[index], W_dec=dictionary.W_dec[index]
    )
    (found,) = [check for check in weight_checks(tripled) if check.check == "duplicated latents"]
    assert found.result == "fail" and found.found == "3"
    same_decoder = replace(tripled, W_enc=torch.randn(8, 26, generator=torch.Generator().manual_seed(0)))
    (found,) = [check for check in weight_checks(same_decoder) if check.check == "duplicated latents"]
    assert found.result == "pass", "two latents may write alike and read differently"


def test_latents_that_only_compete_need_no_direction():
    """Rivals in a stitched dictionary have a zero row on purpose."""
    emits = torch.arange(24) % 3 > 0
    dictionary = random_dictionary(24, 8, activation=Union(((24, TopK(3)),), emits))
    dictionary = replace(dictionary, W_dec=torch.where(emits[:, None], dictionary.W_dec, 0.0))
    assert {check.result for check in weight_checks(dictionary)} == {"pass"}


@pytest.mark.parametrize(
    ("activation", "result"),
    [
        (ReLU(), "pass"),
        (TopK(3), "pass"),
        (JumpReLU(torch.zeros(24)), "pass"),
        (JumpReLU(torch.linspace(-1, 1, 24)), "fail"),
        (Gated(*torch.zeros(3, 24)), "pass"),
        (BatchTopK(3), "fail"),
        (Union(((12, ReLU()), (12, BatchTopK(2))), torch.ones(24) > 0), "fail"),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_the_rule_at_run_time_is_one_for_each_token_by_itself(activation, result):
    (found,) = [
        check for check in weight_checks(random_dictionary(activation=activation)) if check.check == "rule at run time"
    ]
    assert found.result == result


def test_weights_alone_are_checked_where_there_is_no_model_and_the_reason_is_given(text):
    nowhere = random_dictionary(metadata=Metadata(model="no-such-folder/model", site=SITE))
    unplaced = random_dictionary(metadata=Metadata())
    for dictionary, reason in ((nowhere, "no-such-folder/model"), (unplaced, "names no site")):
        report = verification(dictionary, text=text)
        frame = report.tables["checks"].frame.set_index("check")
        assert report.passed and frame["result"]["behaviour on text"] == "not done"
        assert reason in frame["found"]["behaviour on text"] and "1 could not be done" in report.summary


def test_a_model_that_was_asked_for_has_to_be_there():
    with pytest.raises(DictlabError, match="no-such-folder"):
        verification(random_dictionary(), model="no-such-folder/model")


def test_a_dictionary_that_was_not_trained_to_reconstruct_is_not_held_to_it(good, model, text):
    other = replace(good, W_dec=3 * good.W_dec, metadata=Metadata(site=SITE, objective="e2e"))
    frame = verification(other, model=model, text=text, contexts=CONTEXTS).tables["checks"].frame.set_index("check")
    assert frame["result"]["reconstruction"] == "not done"


def test_figures_that_are_no_numbers_are_not_compared(good, model, text):
    odd = replace(good, metadata=replace(good.metadata, metrics={"l0": "high", "ce_increase": True}))
    report = verification(odd, model=model, text=text, contexts=CONTEXTS)
    frame = report.tables["checks"].frame.set_index("check")
    assert report.passed and {frame["result"][f"stated {m}"] for m in ("L0", "CE increase")} == {"not done"}


def test_no_gradients_are_kept_and_the_dictionary_may_be_in_half_precision(good, model, text, monkeypatch):
    seen = []
    real = type(good).reconstruct
    monkeypatch.setattr(
        type(good), "reconstruct", lambda self, x: seen.append(torch.is_grad_enabled()) or real(self, x)
    )
    assert failures(good.to(dtype=torch.bfloat16), model, text) == []
    assert seen and not any(seen)


# The command


def verify(capfd, tmp_path, *arguments) -> tuple[int, str, str]:
    capfd.readouterr()
    status = cli.main(["verify", *map(str, arguments), "--out", str(tmp_path / "out"), "--force"])
    return status, *capfd.readouterr()


@pytest.mark.parametrize("fault", [None, *FAULTS[1:4]])
def test_the_command_says_by_its_status_whether_a_file_passed(fault, good, capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    bare = replace(good, metadata=Metadata())
    dictionary = bare if fault is None else replace(broken(good)[fault], metadata=Metadata())
    path = save(dictionary, tmp_path / "mine.safetensors")
    status, out, _ = verify(capfd, tmp_path, path)
    assert status == (0 if fault is None else 1)
    assert "WARNING" in out if fault else "All passed" in out
    assert fault is None or fault in out
    assert (tmp_path / "out" / "report.html").exists()


def test_the_command_finds_the_nan_that_load_refuses(good, capfd, tmp_path):
    """`load` refuses such a file; verify looks at it and counts."""
    from safetensors.torch import save_file

    path = save(replace(good, metadata=Metadata()), tmp_path / "mine.safetensors")
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors, header = {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors["W_dec"][0, :3] = float("nan")
    save_file(tensors, path, metadata=header)
    with pytest.raises(DictlabError, match="NaN"):
        load(path)
    status, out, _ = verify(capfd, tmp_path, path)
    assert status == 1 and "3 in W_dec" in out


def test_a_file_that_is_no_dictionary_is_a_mistake_and_no_failed_check(capfd, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    status, out, err = verify(capfd, tmp_path, tmp_path / "bad.safetensors")
    assert status == 2 and out == "" and "bad.safetensors" in err
