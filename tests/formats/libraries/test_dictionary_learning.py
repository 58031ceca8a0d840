"""Files of dictionary_learning, written by hand from its classes' formulas, are the same functions here."""

import gc
import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dictlab import Dictionary, DictlabError, Metadata, ReLU, TopK, load
from dictlab.dictionary.activation_functions import AbsTopK, BatchTopK, Gated, GroupMax, JumpReLU
from dictlab.dictionary.normalisation import Centred, ConstantNorm, LayerNorm, NoNormalisation, Scale
from dictlab.dictionary.union import Union
from dictlab.formats.libraries.dictionary_learning import write
from dictlab.formats.loading import mapped
from tests.planted import random_dictionary

D, M, K = 6, 20, 4
# Values are of order 1, sums have D or M terms: rounding in float32 stays below 1e-5.
CLOSE = {"atol": 1e-5, "rtol": 0}
LINEAR = ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE")
CLASSES = (*LINEAR, "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder")
BATCH = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
BIAS = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}


def state_of(name, threshold=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    if name in LINEAR:
        state = {
            "encoder.weight": 0.5 * draw(M, D),
            "decoder.weight": 0.4 * draw(D, M),
            BIAS.get(name, "b_dec"): draw(D),
        }
    else:
        state = {"W_enc": 0.5 * draw(D, M), "b_enc": draw(M), "W_dec": 0.4 * draw(M, D), "b_dec": draw(D)}
    if name == "GatedAutoEncoder":
        return state | {"gate_bias": draw(M), "r_mag": 0.3 * draw(M), "mag_bias": draw(M)}
    if name in LINEAR:
        state["encoder.bias"] = draw(M)
    if name == "JumpReluAutoEncoder":
        return state | {"threshold": draw(M).abs() - 0.1}
    if name in (*BATCH, "AutoEncoderTopK"):
        state |= {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(threshold)}
    return state | ({"group_sizes": torch.tensor([5, 15])} if name.startswith("Matryoshka") else {})


def reference(name, s, x):
    """Codes and reconstruction, dense, as the classes define them."""
    if name in LINEAR:
        We, Wd, b = s["encoder.weight"].T, s["decoder.weight"].T, s[BIAS.get(name, "b_dec")]
    else:
        We, Wd, b = s["W_enc"], s["W_dec"], s["b_dec"]
    if name == "GatedAutoEncoder":
        p = (x - b) @ We
        f = (p + s["gate_bias"] > 0) * (s["r_mag"].exp() * p + s["mag_bias"]).relu()
        return f, f @ Wd + b
    shifted = x if name in ("AutoEncoderNew", "JumpReluAutoEncoder") else x - b
    z = shifted @ We + (s["encoder.bias"] if name in LINEAR else s["b_enc"])
    if name.startswith("AutoEncoder"):
        f = z.relu()
    elif name == "JumpReluAutoEncoder":
        f = (z * (z > s["threshold"])).relu()
    else:
        f = z.relu() * (z.relu() > s["threshold"])
    if name == "AutoEncoderTopK":
        f = torch.zeros_like(f).scatter(1, f.topk(K).indices, f.topk(K).values)
    return f, f @ Wd + b


def config_of(name, **trainer):
    known = {"trainer_class": "T", "dict_class": name, "activation_dim": D, "dict_size": M, "seed": 3, "steps": 10}
    where = {"layer": 2, "lm_name": "EleutherAI/pythia-70m", "submodule_name": "resid_post_layer_2"}
    own = {"k": K} if name in (*BATCH, "AutoEncoderTopK") else {}
    buffer = {"d_submodule": D, "io": "out", "ctx_len": 128, "out_batch_size": 50, "n_ctxs": 30.0, "device": "cpu"}
    return {"trainer": {**known, **where, **own, **trainer}, "buffer": buffer}


def folder(tmp_path, state, config=None, file="ae.pt"):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, tmp_path / file)
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def batch(n=64, seed=1):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) + 0.5


def assert_same(dictionary, f, x_hat, x):
    codes, made = dictionary(x)
    assert torch.equal(codes.dense() != 0, f != 0)
    torch.testing.assert_close(codes.dense(), f, **CLOSE)
    torch.testing.assert_close(made, x_hat, **CLOSE)
    torch.testing.assert_close(dictionary.decode(codes), x_hat, **CLOSE)


def assert_same_function(one, other):
    x = batch()
    assert_same(other, one.encode(x).dense(), one.reconstruct(x), x)


# Reading


@pytest.mark.parametrize("name", CLASSES)
def test_codes_and_reconstructions_are_those_of_the_formula(name, tmp_path):
    state = state_of(name)
    found = load(folder(tmp_path, state, config_of(name)))
    x = batch()
    f, x_hat = reference(name, state, x)
    assert 0 < int((f != 0).sum()) < f.numel()
    assert_same(found, f, x_hat, x)


@pytest.mark.parametrize("name", ["AutoEncoder", "GatedAutoEncoder", "MatryoshkaBatchTopKSAE"])
def test_tensors_that_only_one_class_has_need_no_configuration(name, tmp_path):
    state = state_of(name)
    x = batch()
    found = load(folder(tmp_path, state) / "ae.pt")
    assert_same(found, *reference(name, state, x), x)
    assert found.metadata.model is None
    assert found.metadata.site is None


def test_common_names_are_not_claimed_without_a_configuration_but_read_when_asked(tmp_path):
    for name in ("AutoEncoderNew", "JumpReluAutoEncoder"):
        state = state_of(name)
        file = folder(tmp_path, state, file=f"{name}.pt") / f"{name}.pt"
        with pytest.raises(DictlabError, match="no dictionary of a known format"):
            load(file)
        x = batch()
        assert_same(load(file, format="dictionary_learning"), *reference(name, state, x), x)


def test_two_classes_with_the_same_tensors_need_the_configuration(tmp_path):
    with pytest.raises(DictlabError, match=r"AutoEncoderTopK and BatchTopKSAE.*config\.json"):
        load(folder(tmp_path, state_of("BatchTopKSAE")))


def test_a_topk_file_from_before_thresholds_takes_k_from_the_configuration(tmp_path):
    full = state_of("AutoEncoderTopK")
    state = {name: tensor for name, tensor in full.items() if name not in ("k", "threshold")}
    x = batch()
    assert_same(load(folder(tmp_path, state, config_of("AutoEncoderTopK"))), *reference("AutoEncoderTopK", full, x), x)
    config = config_of("AutoEncoderTopK")
    del config["trainer"]["k"]
    with pytest.raises(DictlabError, match="k is neither among its tensors nor in"):
        load(folder(tmp_path, state, config))


def test_a_k_that_changed_during_training_is_the_tensors_own(tmp_path):
    found = load(folder(tmp_path, state_of("AutoEncoderTopK"), config_of("AutoEncoderTopK", k=9)))
    assert found.activation == TopK(K)
    assert any("k = 9" in note and f"k = {K}" in note for note in found.metadata.notes)


@pytest.mark.parametrize("name", BATCH)
def test_a_threshold_that_was_never_estimated_leaves_the_rule_of_training(name, tmp_path):
    state = state_of(name, threshold=-1.0)
    found = load(folder(tmp_path, state, config_of(name)))
    assert found.activation == BatchTopK(K)
    assert any("depend on what a token is encoded with" in note for note in found.metadata.notes)
    x = batch(16)
    z = reference(name, state | {"threshold": torch.tensor(-1.0)}, x)[0]  # with -1, all that is positive
    smallest = z.flatten().topk(16 * K).values[-1]
    torch.testing.assert_close(found.encode(x).dense(), z * (z >= smallest), **CLOSE)


def test_a_file_without_a_threshold_is_one_whose_threshold_was_never_estimated(tmp_path):
    state = state_of("BatchTopKSAE")
    del state["threshold"]
    assert load(folder(tmp_path, state, config_of("BatchTopKSAE"))).activation == BatchTopK(K)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("factor", [None, 1.0, 4.0, torch.tensor(4.0)])
def test_a_backup_reads_activations_in_the_units_of_its_training(name, factor, tmp_path):
    """The final file of the same run has its biases and thresholds multiplied by the factor, and reads raw ones."""
    state, scale = state_of(name), float(factor or 1.0)
    backup = {"step": 7, "ae": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "norm_factor": factor}
    found = load(folder(tmp_path, backup | {"config": config_of(name)["trainer"]}))
    x = 4 * batch()
    f, y = reference(name, state, x / scale)
    codes, x_hat = found(x)
    assert torch.equal(codes.dense() != 0, f != 0)
    torch.testing.assert_close(codes.dense(), f, **CLOSE)
    torch.testing.assert_close(x_hat, y * scale, atol=4e-5, rtol=0)  # values four times as large
    assert found.normalisation == (NoNormalisation() if scale == 1 else Scale(1 / 4))
    final = state | {
        key: value * scale
        for key, value in state.items()
        if value.ndim < 2 and key not in ("k", "r_mag", "group_sizes")
    }
    f_final, x_final = reference(name, final, x)
    torch.testing.assert_close(found.in_input_units().encode(x).dense(), f_final, atol=4e-5, rtol=0)
    torch.testing.assert_close(x_hat, x_final, atol=4e-5, rtol=0)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf"), True, "2", torch.ones(2)])
def test_a_norm_factor_that_is_no_positive_number_is_refused(factor, tmp_path):
    with pytest.raises(DictlabError, match="norm_factor"):
        load(folder(tmp_path, {"step": 1, "ae": state_of("AutoEncoder"), "norm_factor": factor}))


def test_a_checkpoint_of_a_step_finds_the_configuration_in_the_folder_above(tmp_path):
    state = state_of("BatchTopKSAE")
    folder(tmp_path, state, config_of("BatchTopKSAE"), file="checkpoints/ae_4.pt")
    for place in (tmp_path / "checkpoints" / "ae_4.pt", tmp_path / "checkpoints"):
        found = load(place)
        x = batch()
        assert_same(found, *reference("BatchTopKSAE", state, x), x)
        assert found.metadata.tokens == 4 * 50
        assert found.metadata.training["step"] == 4


def test_the_prefix_of_compiled_modules_is_taken_off_also_inside_a_backup(tmp_path):
    state = state_of("AutoEncoder")
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    x = batch()
    for content in (compiled, {"step": 1, "ae": compiled}):
        assert_same(load(folder(tmp_path, content)), *reference("AutoEncoder", state, x), x)


def test_half_precision_is_computed_with_in_single_precision(tmp_path):
    state = {name: tensor.to(torch.bfloat16) for name, tensor in state_of("AutoEncoder").items()}
    path = folder(tmp_path, state)
    assert mapped(path).W_enc.dtype == torch.bfloat16
    x = batch()
    assert_same(load(path), *reference("AutoEncoder", {n: t.float() for n, t in state.items()}, x), x)


def test_where_it_came_from(tmp_path):
    config = config_of("AutoEncoder", l1_penalty=0.1, lr=1e-3, trainer_class="StandardTrainer")
    about = load(folder(tmp_path, state_of("AutoEncoder"), config)).metadata
    assert about.model == "EleutherAI/pythia-70m"
    assert about.site == "blocks.2.hook_resid_post"
    assert (about.seed, about.tokens, about.objective, about.convention) == (3, 500, "local", "huggingface")
    assert about.library == "dictionary_learning"
    assert about.training["l1"] == 0.1
    assert about.training["context"] == 128
    assert about.foreign == config
    assert about.notes == ()


@pytest.mark.parametrize(
    ("label", "layer", "io", "site"),
    [
        ("resid_post_layer_8", 8, "out", "blocks.8.hook_resid_post"),
        ("resid_out_layer3", 3, "out", "blocks.3.hook_resid_post"),
        ("mlp_out_layer3", 3, "out", "blocks.3.hook_mlp_out"),
        ("attn_out_layer_11", None, "out", "blocks.11.hook_attn_out"),
        ("gpt_neox.layers.3", 3, "out", "blocks.3.hook_resid_post"),
        ("gpt_neox.layers.3", 3, "in", "blocks.3.hook_resid_pre"),
        ("model.layers.3.mlp", 3, "out", "model.layers.3.mlp"),
        ("model.layers.3.mlp", 3, "in", "model.layers.3.mlp:in"),
        ("model.embed_tokens", 0, "out", "model.embed_tokens"),
        ("resid_post_layer_8", 7, "out", "resid_post_layer_8"),  # the two contradict each other
        ("resid_post_layer_8", 8, "in", "resid_post_layer_8"),
        (None, 8, "out", None),
        ("", "", "out", None),
    ],
)
def test_sites_are_named_as_everywhere_else(label, layer, io, site, tmp_path):
    config = config_of("AutoEncoder", submodule_name=label, layer=layer)
    config["buffer"]["io"] = io
    about = load(folder(tmp_path, state_of("AutoEncoder"), config)).metadata
    assert about.site == site
    assert bool(about.notes) == (site == "resid_post_layer_8" or (site is None and layer == 8))


def test_a_trainer_that_leaves_decoder_norms_free_is_noted(tmp_path):
    config = config_of("AutoEncoder", trainer_class="StandardTrainerAprilUpdate")
    found = load(folder(tmp_path, state_of("AutoEncoder"), config))
    assert any("normalize_decoder=False" in note for note in found.metadata.notes)


# Refusals


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dict_class": "CrossCoder"}, "dict_class is CrossCoder"),
        ({"dict_class": 3}, "dict_class is 3"),
        ({"activation_dim": 7}, "activation_dim is 7; the tensors have 6"),
        ({"dict_size": True}, "dict_size is True"),
        ({"k": 1.5}, "k is 1.5"),
        ({"k": True}, "k is True"),
        ({"decoder_rescue": 2}, "trainer 'decoder_rescue' is unknown"),
    ],
)
def test_what_the_configuration_says_is_honoured_or_refused_by_name(change, said, tmp_path):
    with pytest.raises(DictlabError, match=said):
        load(folder(tmp_path, state_of("BatchTopKSAE"), config_of("BatchTopKSAE", **change)))


@pytest.mark.parametrize(("part", "name"), [("trainer", "new"), ("buffer", "new"), (None, "new")])
def test_an_unknown_field_can_be_passed_over(part, name, tmp_path):
    config = config_of("AutoEncoder")
    (config[part] if part else config)[name] = 1
    path = folder(tmp_path, state_of("AutoEncoder"), config)
    with pytest.raises(DictlabError, match="'new' is unknown"):
        load(path)
    assert load(path, ignore=["new"]).n_latents == M


def test_a_transcoder_is_refused(tmp_path):
    config = config_of("AutoEncoder")
    config["buffer"]["io"] = "in_and_out"
    with pytest.raises(DictlabError, match=r"buffer\.io is 'in_and_out': a transcoder"):
        load(folder(tmp_path, state_of("AutoEncoder"), config))


def test_a_damaged_configuration_is_not_passed_over(tmp_path):
    path = folder(tmp_path, state_of("AutoEncoder"))
    (path / "config.json").write_text("{")
    with pytest.raises(DictlabError, match=r"config\.json"):
        load(path)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "AutoEncoder",
            {"decoder.weight": torch.zeros(M, D)},
            r"decoder.weight has shape \[20, 6\]; expected \[6, 20\]",
        ),
        ("AutoEncoder", {"encoder.weight": torch.zeros(M)}, "encoder.weight has shape"),
        ("AutoEncoder", {"encoder.weight": torch.zeros(M, 0)}, "encoder.weight has shape"),
        ("AutoEncoder", {"bias": torch.zeros(D + 1)}, "bias has shape"),
        ("AutoEncoder", {"bias": torch.zeros(D, dtype=torch.int64)}, "bias holds int64"),
        ("AutoEncoder", {"activation_mean": torch.zeros(D)}, "'activation_mean' is unknown"),
        ("AutoEncoder", {"bias": torch.full((D,), float("nan"))}, "NaN or infinite"),
        ("BatchTopKSAE", {"threshold": torch.zeros(2)}, "threshold has shape"),
        ("BatchTopKSAE", {"threshold": torch.tensor(3)}, "threshold holds int64"),
        ("BatchTopKSAE", {"threshold": torch.tensor(float("nan"))}, "NaN or infinite"),
        ("BatchTopKSAE", {"k": torch.tensor(4.0)}, "expected one whole number"),
        ("BatchTopKSAE", {"k": torch.tensor([4])}, "expected one whole number"),
        ("BatchTopKSAE", {"k": torch.tensor(0)}, "k is 0"),
        ("BatchTopKSAE", {"k": torch.tensor(M + 1)}, "k is 21; it has 20 latents"),
        ("MatryoshkaBatchTopKSAE", {"group_sizes": torch.tensor([5, 16])}, "group_sizes are"),
        ("MatryoshkaBatchTopKSAE", {"group_sizes": torch.tensor([-5, 25])}, "group_sizes are"),
        ("MatryoshkaBatchTopKSAE", {"group_sizes": torch.tensor([5.0, 15.0])}, "group_sizes are"),
        ("JumpReluAutoEncoder", {"threshold": torch.tensor(0.1)}, "threshold has shape"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(name, change, said, tmp_path):
    with pytest.raises(DictlabError, match=said) as caught:
        load(folder(tmp_path, state_of(name) | change, config_of(name)))
    assert str(tmp_path / "ae.pt") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_tensor_is_named(tmp_path):
    state = state_of("AutoEncoder")
    del state["bias"]
    with pytest.raises(DictlabError, match="'bias' is missing"):
        load(folder(tmp_path, state, config_of("AutoEncoder")), format="dictionary_learning")


def test_an_unknown_entry_of_a_backup_is_refused(tmp_path):
    with pytest.raises(DictlabError, match="'act_mean' is unknown"):
        load(folder(tmp_path, {"step": 1, "ae": state_of("AutoEncoder"), "act_mean": torch.zeros(D)}))


# Laziness


def resident():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
@pytest.mark.parametrize("backup", [False, True])
def test_opening_reads_no_numbers(backup, tmp_path):
    d, m = 1024, 1 << 13
    state = {"encoder.weight": torch.zeros(m, d), "decoder.weight": torch.zeros(d, m)}
    state |= {"encoder.bias": torch.zeros(m), "bias": torch.ones(d)}
    path = folder(tmp_path, {"step": 1, "ae": state, "norm_factor": 2.0} if backup else state) / "ae.pt"
    del state
    gc.collect()
    before = resident()
    found = mapped(path)
    assert (found.d_in, found.n_latents, found.activation) == (d, m, ReLU())
    assert float(found.b_out[-1]) == 1
    assert resident() - before < path.stat().st_size // 8


# Writing


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("threshold", [0.4, -1.0])
def test_what_was_read_is_written_back_tensor_by_tensor(name, threshold, tmp_path):
    state = state_of(name, threshold)
    first = load(folder(tmp_path / "a", state, config_of(name)))
    write(first, tmp_path / "b")
    again = torch.load(tmp_path / "b" / "ae.pt", weights_only=True)
    assert again.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(again[key], tensor), key
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    expected = config_of(name)
    assert {k: v for k, v in config["trainer"].items() if k != "group_sizes"} == expected["trainer"]
    assert config["buffer"] == expected["buffer"]
    second = load(tmp_path / "b")
    assert_same_function(first, second) if not second.activation.batchwise else None
    ours = ("site", "model", "seed", "tokens", "convention", "objective", "training", "library", "notes")
    assert all(getattr(first.metadata, field) == getattr(second.metadata, field) for field in ours)


widths = st.tuples(st.integers(1, 7), st.integers(2, 12))
scales = st.sampled_from([NoNormalisation(), Scale(0.25), Scale(3.0)])


@st.composite
def expressible(draw):
    d, m = draw(widths)
    seed = draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(3, m, generator=generator)
    k = draw(st.integers(1, m))
    activation = draw(
        st.sampled_from(
            [ReLU(), TopK(k), BatchTopK(k), JumpReLU(vectors[0]), Gated(vectors[0], 0.3 * vectors[1], vectors[2])]
        )
    )
    made = random_dictionary(m, d, activation=activation, normalisation=draw(scales), seed=seed)
    return replace(made, b_pre=draw(st.sampled_from([made.b_pre, made.b_out, torch.zeros(d)])))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dictionary=expressible())
def test_any_dictionary_that_a_class_can_express_is_the_same_function_read_back(dictionary, tmp_path_factory):
    """Constant scales and separate biases are folded: the same codes and reconstructions, up to rounding."""
    path = write(dictionary, tmp_path_factory.mktemp("written") / "folder")
    back = load(path)
    assert back.normalisation == NoNormalisation()
    x = 2 * torch.randn(32, dictionary.d_in, generator=torch.Generator().manual_seed(5))
    (f, x_hat), (f_back, x_hat_back) = dictionary(x), back(x)
    torch.testing.assert_close(f_back.dense(), f.dense(), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(x_hat_back, x_hat, atol=1e-4, rtol=1e-5)  # divided by a scale of a quarter


@pytest.mark.parametrize(
    ("dictionary", "said"),
    [
        (random_dictionary(activation=AbsTopK(2)), "abstopk"),
        (random_dictionary(activation=GroupMax(2)), "groupmax"),
        (random_dictionary(activation=Union(((24, ReLU()),), torch.ones(24, dtype=torch.bool))), "union"),
        (random_dictionary(normalisation=LayerNorm()), "input normalisation .layer_norm"),
        (random_dictionary(normalisation=ConstantNorm()), "constant_norm"),
        (random_dictionary(normalisation=Centred()), "centred"),
        (random_dictionary(metadata=Metadata(training={"x": torch.ones(1)})), "metadata is no JSON"),
        (replace(random_dictionary(), b_enc=torch.full((24,), float("nan"))), "NaN"),
    ],
)
def test_what_no_class_can_express_is_refused_and_leaves_nothing_behind(dictionary, said, tmp_path):
    with pytest.raises(DictlabError, match=said):
        write(dictionary, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(DictlabError, match="exists already"):
        write(random_dictionary(), tmp_path / "out")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_relu_dictionary_is_written_as_the_class_whose_loader_leaves_its_decoder_alone(tmp_path):
    unit = replace(random_dictionary(activation=ReLU()), b_pre=torch.zeros(8), b_out=torch.zeros(8))
    longer = replace(unit, W_dec=2 * unit.W_dec)
    for name, dictionary, expected in (("a", unit, "AutoEncoder"), ("b", longer, "AutoEncoderNew")):
        config = json.loads((write(dictionary, tmp_path / name) / "config.json").read_text())
        assert config["trainer"]["dict_class"] == expected


def test_metadata_of_any_dictionary_survives(tmp_path):
    about = Metadata(
        model="gpt2", site="blocks.6.hook_resid_pre", seed=4, tokens=123, convention="transformer_lens", objective="e2e",
        training={"context": 64, "l1": 0.5}, metrics={"l0": 3.5}, notes=("a note",), library="sae_lens 6",
    )  # fmt: skip
    dictionary = random_dictionary(metadata=about)
    path = write(dictionary, tmp_path / "out")
    back = load(path).metadata
    assert replace(back, foreign={}) == about
    trainer = json.loads((path / "config.json").read_text())["trainer"]
    assert (trainer["layer"], trainer["lm_name"], trainer["submodule_name"]) == (6, "gpt2", "resid_pre_layer_6")


def test_folding_half_precision_is_done_and_kept_in_single_precision(tmp_path):
    dictionary = random_dictionary(activation=TopK(3)).to(dtype=torch.bfloat16)
    back = mapped(write(dictionary, tmp_path / "folded"))
    assert back.W_enc.dtype == torch.float32
    exact = dictionary.to(dtype=torch.float32)
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(back.encode(x).dense(), exact.encode(x).dense(), **CLOSE)
    one = replace(dictionary, b_pre=dictionary.b_out)
    assert mapped(write(one, tmp_path / "as_it_is")).W_enc.dtype == torch.bfloat16


def test_a_view_is_written_without_what_it_is_a_view_of(tmp_path):
    big = torch.randn(8, 100_000)
    small = random_dictionary()
    dictionary = replace(small, W_enc=big[:, :24], b_pre=small.b_out)
    assert isinstance(dictionary, Dictionary)
    assert (write(dictionary, tmp_path / "out") / "ae.pt").stat().st_size < 20_000
