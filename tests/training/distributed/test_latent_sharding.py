"""Processes that share the latents of a dictionary learn what one process learns."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dictlab import DictlabError, Text, load
from dictlab.dictionary.activation_functions import Gated, TopK
from dictlab.formats.native import native_file as native
from dictlab.formats.native import streamed
from dictlab.numerics.flops import exchanged_bytes
from dictlab.runs import open_run, records
from dictlab.training import TrainConfig, resume, train
from dictlab.training.distributed.distributed_top_k import winning
from dictlab.training.learner.initialisation import ROWS, normal_rows
from dictlab.training.learner.learner import Learner
from dictlab.training.sources import array, model
from tests.planted import SITE, random_dictionary, sparse_data, tiny_model
from tests.processes import spread

CLOCK = {"seconds", "tokens_per_second", "member"}
ARRAY = {"data": "rows", "batch": 128, "tokens": 128 * 30, "width": (25,), "k": (4,), "lr": 5e-3}
AUX = {"dead_after": 128, "k": (1,), "aux_k": 8}
RESAMPLED = {"tokens": 128 * 60, "resample": 2, "dead_after": 128, "lr": 0.01}
TASKS = {  # name: processes, shards, settings
    "TopK, dead, clipped, averaged": (2, 2, ARRAY | AUX | {"width": (25, 64), "clip": 1e-3, "ema": 0.9}),
    "fewer latents than k in a shard": (4, 4, ARRAY | {"width": (13,), "k": (8,), "lr": 3e-3}),
    "ReLU, resampled": (2, 2, ARRAY | RESAMPLED | {"activation": ("relu",), "l1": (100.0,), "width": (64,)}),
    "2 x 2": (4, 2, ARRAY | AUX | {"activation": ("topk", "relu", "batchtopk"), "p_norm": 0.9}),
    "rest": (2, 2, ARRAY | {"activation": ("batchtopk", "jumprelu", "gated", "prolu", "matryoshka-batchtopk")}),
    "spliced": (2, 2, {"model": "tiny", "site": SITE, "context": 16, "batch": 64, "tokens": 64 * 12, "width": (24,),
                       "objective": ("e2e+ds",), "finetune": "local", "finetune_tokens": 64 * 4}),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """A forked process has no pool of threads, and would wait for it for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(model, "BUFFER_TOKENS", 1024)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def trained(settings: dict, out: Path, shards: int = 1, text: Text | None = None):
    config = TrainConfig(**({"save_minutes": 0.001, "shards": shards} | settings))
    if config.model:
        return train(config, out=out, model=tiny_model(), text=text)
    return train(config, out=out, data=sparse_data(4096)[0])


def same(one: Path, two: Path, names: list[str], tolerance: float = 2e-5) -> None:
    """The same log and the same dictionaries.

    Sums over latents and tokens are taken in another order, so that float32 differs in its last digits, and a few dozen
    steps carry that on: below 1e-6 where this was measured, but for |c|^p with p < 1, whose slope has no bound at 0.
    """
    mine, theirs = records(one / "metrics.jsonl"), records(two / "metrics.jsonl")
    assert [(r["member"], r["step"]) for r in mine] == [(r["member"], r["step"]) for r in theirs] and mine
    for a, b in zip(mine, theirs, strict=True):
        for key in a.keys() - CLOCK:
            assert b[key] == pytest.approx(a[key], rel=tolerance, abs=tolerance), (key, a["member"], a["step"])
    for name in names:
        a, b = load_file(one / f"{name}.safetensors"), load_file(two / f"{name}.safetensors")
        assert a.keys() == b.keys()
        for key in a.keys() - {"firing_rate"}:
            torch.testing.assert_close(b[key], a[key], atol=50 * tolerance, rtol=50 * tolerance, msg=f"{name} {key}")


@pytest.mark.parametrize("name", TASKS)
def test_processes_that_share_latents_have_the_loss_curve_and_the_file_of_one(name, tmp_path, text):
    processes, shards, settings = TASKS[name]
    ended = spread(processes, lambda _: trained(settings, tmp_path / "shared", shards, text), tmp_path)
    assert ended == [0] * processes, (tmp_path / "said.0").read_text()[-2000:]
    alone = trained(settings, tmp_path / "alone", text=text)
    same(tmp_path / "alone", tmp_path / "shared", [d.name for d in alone.dictionaries])
    files = {path.name for path in (tmp_path / "shared").iterdir()}
    assert files == {path.name for path in (tmp_path / "alone").iterdir()}
    for mine in alone.dictionaries:
        shared = load(tmp_path / "shared" / f"{mine.name}.safetensors")
        assert shared.metadata.metrics["l0"] == pytest.approx(mine.metadata.metrics["l0"], rel=0.01)
        assert shared.metadata.training.keys() == mine.metadata.training.keys()
    if "dead" in name:  # what is dead in either shard was revived
        assert min(r["aux"] for r in records(tmp_path / "shared" / "metrics.jsonl")) > 0
    if "resampled" in name:
        assert max(r["dead"] for r in records(tmp_path / "shared" / "metrics.jsonl")) > 0
    said = (tmp_path / "said.1").read_text()
    assert "train:" in (tmp_path / "said.0").read_text() and "train:" not in said


def test_a_dictionary_that_is_there_is_gone_on_from_with_its_latents_shared_out(tmp_path, text):
    """One whose latents compete, with rows of any length, and one whose latents do not."""
    settings = {"model": "tiny", "site": SITE, "context": 16, "batch": 64, "tokens": 64 * 8}
    for name, activation in (("competing", TopK(3)), ("each", Gated(*torch.rand(3, 25)))):
        begun = random_dictionary(25, 16, activation=activation)
        native.save(replace(begun, W_dec=2 * begun.W_dec), tmp_path / f"{name}.safetensors")
    settings |= {"start": tuple(str(tmp_path / f"{name}.safetensors") for name in ("competing", "each"))}
    ended = spread(2, lambda _: trained(settings, tmp_path / "shared", 2, text), tmp_path)
    assert ended == [0, 0], (tmp_path / "said.0").read_text()[-2000:]
    alone = trained(settings, tmp_path / "alone", text=text)
    same(tmp_path / "alone", tmp_path / "shared", [d.name for d in alone.dictionaries])


KILLED_AFTER = 11
FAMILY = ARRAY | AUX | {"ema": 0.9, "save_minutes": 0.0, "finetune": "local", "finetune_tokens": 128 * 10}


def killed(settings: dict, out: Path, shards: int, who: int) -> None:
    """A run of which one process dies in the middle of a step."""
    step = Learner.step

    def dying(learner, *args, **options):
        if learner.steps == KILLED_AFTER and (shards == 1 or learner.ranks.shard == who):
            os.kill(os.getpid(), signal.SIGKILL)
        return step(learner, *args, **options)

    Learner.step = dying
    trained(settings, out, shards)


def test_a_sharded_run_that_is_killed_goes_on_to_the_same_bits_or_with_other_processes_to_the_same_digits(tmp_path):
    rows, name = sparse_data(4096)[0], "local-then-local-topk1-25-s0"
    ended = spread(2, lambda _: killed(FAMILY, tmp_path / "two", 2, who=1), tmp_path)
    assert ended[1] == -signal.SIGKILL and ended[0] == 1
    assert "another process of this run is gone" in (tmp_path / "said.0").read_text()
    folders = [path.name for path in (tmp_path / "two").iterdir() if path.is_dir()]
    assert len(folders) == 1 and folders[0].startswith("state.rows.")
    for copy in ("one", "three"):
        os.system(f"cp -r {tmp_path / 'two'} {tmp_path / copy}")
    (tmp_path / "two" / "state.rows.left").mkdir()  # of a save that a kill broke off
    assert spread(2, lambda _: resume(tmp_path / "two", data=rows), tmp_path) == [0, 0]
    assert spread(2, lambda _: trained(FAMILY, tmp_path / "whole", 2), tmp_path) == [0, 0]
    two, whole = (load_file(tmp_path / out / f"{name}.safetensors") for out in ("two", "whole"))
    assert all(torch.equal(tensor, whole[key]) for key, tensor in two.items())
    assert spread(3, lambda _: resume(tmp_path / "three", data=rows, shards=3), tmp_path) == [0, 0, 0]
    resume(tmp_path / "one", data=rows, shards=1)
    for other in ("one", "three", "two"):
        same(tmp_path / "whole", tmp_path / other, [name])
        assert not list((tmp_path / other).glob("state*"))


def test_a_run_of_one_process_goes_on_with_its_latents_shared_out(tmp_path):
    rows, name = sparse_data(4096)[0], "local-then-local-topk1-25-s0"
    assert spread(1, lambda _: killed(FAMILY, tmp_path / "run", 1, who=0), tmp_path) == [-signal.SIGKILL]
    assert spread(2, lambda _: resume(tmp_path / "run", data=rows, shards=2), tmp_path) == [0, 0]
    trained(FAMILY, tmp_path / "whole")
    same(tmp_path / "whole", tmp_path / "run", [name])


def test_rows_that_are_missing_are_said(tmp_path):
    assert spread(2, lambda _: killed(FAMILY, tmp_path / "run", 2, who=1), tmp_path)[0] == 1
    next((tmp_path / "run").glob("state.rows.*/*2*.safetensors")).unlink()
    with pytest.raises(DictlabError, match=r"state\.rows\.\d: rows of a run's state, missing or damaged"):
        resume(tmp_path / "run", data=sparse_data(4096)[0], shards=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"activation": ("multitopk",)}, "activation multitopk4: it cannot be trained with its latents shared out"),
        ({"width": (5,), "shards": 4}, "width 5 in 4 shards of 2 latents leaves one without any"),
        ({"shards": 3}, "shards 3: latents are shared out over processes, and 4 were started"),
    ],
)
def test_every_process_says_what_cannot_be_shared_out(settings, words, tmp_path):
    def tried(rank: int) -> None:
        with pytest.raises(DictlabError, match=words):
            trained(ARRAY | {"shards": 2} | settings, tmp_path / "run")

    assert spread(4, tried, tmp_path) == [0] * 4, (tmp_path / "said.0").read_text()[-2000:]
    assert not (tmp_path / "run").exists()


def test_a_step_sends_what_the_plan_counts(tmp_path):
    """Every tensor with a row for each token that goes over a collective, by the formula of a ring."""
    sent: list[float] = []

    def counted(call, share: float, which: int):
        def counting(*tensors, **options):
            tensor = tensors[which]
            if tensor.ndim == 2 and len(tensor) == 64:
                sent.append(share * tensor.numel() * tensor.element_size())
            return call(*tensors, **options)

        return counting

    def tried(rank: int) -> None:
        dist.all_gather = counted(dist.all_gather, 1, which=1)  # to the one other
        dist.all_reduce = counted(dist.all_reduce, 2 * (2 - 1) / 2, which=0)
        trained(ARRAY | {"k": (3,), "batch": 64, "tokens": 64 * 10, "dead_after": 10**9}, tmp_path / "run", 2)
        assert sum(sent) == 10 * exchanged_bytes(16, 64, 3, 2)

    assert spread(2, tried, tmp_path) == [0, 0], (tmp_path / "said.0").read_text()[-2000:]


def test_a_dictionary_that_no_device_can_hold_is_written_and_not_measured(tmp_path):
    def tried(rank: int) -> None:
        def full(self, dictionaries):
            raise torch.OutOfMemoryError("full")

        array.ArraySource.with_metrics = full
        trained(ARRAY, tmp_path / "run", 2)

    assert spread(2, tried, tmp_path) == [0, 0], (tmp_path / "said.0").read_text()[-2000:]
    about = open_run(tmp_path / "run").about
    assert about["state"] == "finished" and "does not fit one device" in about["unmeasured"]
    assert "not measured: a whole dictionary" in (tmp_path / "said.0").read_text()
    metrics = load(tmp_path / "run" / "local-topk4-25-s0.safetensors").metadata.metrics
    assert metrics.keys() == {"dead", "firing_tokens"}, "what training itself counts, and no measurement"


def test_shards_need_processes(tmp_path):
    with pytest.raises(DictlabError, match="1 was started; start a multiple of 2, such as torchrun --nproc_per_node 2"):
        trained(ARRAY, tmp_path / "run", 2)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 10**6), st.booleans())
def test_the_winners_of_all_shards_are_the_k_largest_of_all_also_among_equals(sizes, k, seed, ties):
    """Against sorting all of them; shards may have fewer latents than k, and none of them a positive value."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(-2, 3, (6, sum(sizes)), generator=generator).float()
    z += 0 if ties else torch.rand(z.shape, generator=generator)
    own = [part.topk(min(k, part.shape[1]), dim=1).values.relu() for part in z.split(sizes, dim=1)]
    padded = torch.cat([torch.nn.functional.pad(part, (0, k - part.shape[1]), value=-torch.inf) for part in own])
    kept = [winning(part, k, shard, lambda _: padded) for shard, part in enumerate(own)]
    found = torch.cat([part.where(keep, torch.tensor(0.0)) for part, keep in zip(own, kept, strict=True)], dim=1)
    wanted = z.relu().sort(dim=1, descending=True).values[:, :k]
    assert torch.equal(found.sort(dim=1, descending=True).values[:, : wanted.shape[1]], wanted)
    assert int(torch.cat(kept, dim=1).sum(dim=1).max()) <= k


@pytest.mark.parametrize("n", [1, 3, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS + 3, 3 * ROWS])
def test_directions_drawn_in_pieces_are_those_drawn_at_once(n):
    whole = torch.randn(n, 5, generator=torch.Generator().manual_seed(1))
    pieces = list(normal_rows(n, 5, torch.Generator().manual_seed(1)))
    assert torch.equal(torch.cat([rows for _, rows in pieces]), whole)
    assert [start for start, _ in pieces] == [sum(len(r) for _, r in pieces[:i]) for i in range(len(pieces))]


@pytest.mark.parametrize("activation", [TopK(4), Gated(*torch.rand(3, 24))])
def test_a_file_written_some_latents_at_a_time_is_that_written_at_once(activation, tmp_path):
    whole = random_dictionary(activation=activation)
    groups = [whole_part(whole, start, end) for start, end in ((0, 5), (5, 6), (6, 24))]
    native.save(whole, tmp_path / "at-once.safetensors")
    streamed.save(iter(groups), 24, tmp_path / "streamed.safetensors")
    assert (tmp_path / "streamed.safetensors").read_bytes() == (tmp_path / "at-once.safetensors").read_bytes()
    with pytest.raises(DictlabError, match="19 latents came of 24"):
        streamed.save(iter(groups[1:2] + groups[2:]), 24, tmp_path / "short.safetensors")
    groups[1].W_dec[0, 3] = torch.nan
    with pytest.raises(DictlabError, match="W_dec holds 1 values that are NaN"):
        streamed.save(iter(groups), 24, tmp_path / "nan.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"at-once.safetensors", "streamed.safetensors"}


def whole_part(dictionary, start: int, end: int):
    some = slice(start, end)
    return replace(
        dictionary,
        W_enc=dictionary.W_enc[:, some],
        b_enc=dictionary.b_enc[some],
        W_dec=dictionary.W_dec[some].clone(),
        activation=dictionary.activation.at(torch.arange(start, end)),
    )
