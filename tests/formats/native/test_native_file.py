"""A dictionary's file gives back what was put in, bit for bit, or one line that says what is wrong with it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from dictlab import Dictionary, DictlabError, Metadata, ReLU, TopK, load, save
from dictlab.dictionary.activation_functions import AbsTopK, BatchTopK, Gated, GroupMax, JumpReLU
from dictlab.dictionary.normalisation import Centred, ConstantNorm, LayerNorm, NoNormalisation, Scale
from dictlab.dictionary.union import Union
from tests.dictionary.test_activation_functions import every, gated, jumprelu

WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_pre", "b_out")
RELAXED = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def build(n_latents: int = 6, d_in: int = 4, seed: int = 0, **changes) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    made = Dictionary(
        W_enc=normal(d_in, n_latents),
        b_enc=normal(n_latents),
        W_dec=normal(n_latents, d_in),
        b_pre=normal(d_in),
        b_out=normal(d_in),
        activation=TopK(2),
        firing_rate=torch.rand(n_latents, generator=generator),
        metadata=Metadata(model="m", site="blocks.0.hook_resid_pre", seed=1, metrics={"l0": 2.0}, sources=("a", "b")),
    )
    return replace(made, **changes)


# Round trips


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def tensors(*shape: int):
    count = int(np.prod(shape))
    values = st.lists(finite, min_size=count, max_size=count)
    return values.map(lambda numbers: torch.tensor(numbers, dtype=torch.float32).reshape(shape))


def plain_activations(n_latents: int):
    """Any rule but a union, for so many latents."""
    vector, k = tensors(n_latents), st.integers(1, 50)
    return st.one_of(
        st.just(ReLU()),
        *(k.map(kind) for kind in (TopK, AbsTopK, BatchTopK)),
        st.sampled_from([k for k in range(1, n_latents + 1) if n_latents % k == 0]).map(GroupMax),
        vector.map(JumpReLU),
        st.builds(Gated, vector, vector, vector),
    )


@st.composite
def activations(draw, n_latents: int):
    if n_latents < 2 or draw(st.booleans()):
        return draw(plain_activations(n_latents))
    cut = draw(st.integers(1, n_latents - 1))
    emits = torch.tensor(draw(st.lists(st.booleans(), min_size=n_latents, max_size=n_latents)))
    return Union(
        ((cut, draw(plain_activations(cut))), (n_latents - cut, draw(plain_activations(n_latents - cut)))), emits
    )


positive = st.floats(1e-30, 1e30)
plain_normalisations = st.one_of(
    st.just(NoNormalisation()),
    st.just(ConstantNorm()),
    positive.map(Scale),
    positive.map(LayerNorm),
    st.just(LayerNorm(0.0)),
)
normalisations = st.one_of(plain_normalisations, plain_normalisations.map(Centred))
integers = st.integers(-(1 << 63), (1 << 64) - 1)
json_values = st.recursive(
    st.none() | st.booleans() | integers | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
records = st.dictionaries(st.text(max_size=8), json_values, max_size=4)
names = st.none() | st.text(max_size=12)
metadata = st.builds(
    Metadata,
    model=names,
    model_fingerprint=names,
    site=names,
    objective=names,
    seed=st.none() | integers,
    tokens=st.none() | st.integers(0, (1 << 64) - 1),
    training=records,
    metrics=records,
    sources=st.lists(st.text(max_size=8), max_size=3).map(tuple),
    library=names,
    convention=names,
    foreign=records,
    notes=st.lists(st.text(max_size=8), max_size=3).map(tuple),
)


@st.composite
def dictionaries(draw):
    n_latents, d_in = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    return Dictionary(
        W_enc=draw(tensors(d_in, n_latents)),
        b_enc=draw(tensors(n_latents)),
        W_dec=draw(tensors(n_latents, d_in)),
        b_pre=draw(tensors(d_in)),
        b_out=draw(tensors(d_in)),
        activation=draw(activations(n_latents)),
        normalisation=draw(normalisations),
        firing_rate=draw(st.none() | tensors(n_latents)),
        metadata=draw(metadata),
    )


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


@RELAXED
@given(dictionaries())
def test_what_is_loaded_is_what_was_saved_bit_for_bit(tmp_path, dictionary):
    path = save(dictionary, tmp_path / "some name.safetensors")
    loaded = load(path)
    for name in WEIGHTS:
        assert same_bits(getattr(loaded, name), getattr(dictionary, name)), name
    assert (loaded.firing_rate is None) == (dictionary.firing_rate is None)
    if loaded.firing_rate is not None:
        assert same_bits(loaded.firing_rate, dictionary.firing_rate)
    assert loaded.normalisation == dictionary.normalisation
    assert loaded.metadata == dictionary.metadata
    assert loaded.activation.record() == dictionary.activation.record()
    assert {n: t.tolist() for n, t in loaded.activation.tensors().items()} == {
        n: t.tolist() for n, t in dictionary.activation.tensors().items()
    }
    assert (loaded.name, loaded.path) == ("some name", path)


@pytest.mark.parametrize(
    "activation", [*every(6, 3, 0), Union(((4, gated(4)), (2, jumprelu(2))), torch.ones(6) > 0)], ids=lambda a: a.kind
)
@pytest.mark.parametrize(
    "normalisation",
    [NoNormalisation(), Scale(0.3), LayerNorm(), ConstantNorm(), Centred(Scale(0.3))],
    ids=lambda n: n.kind,
)
def test_a_loaded_dictionary_does_what_the_saved_one_did(tmp_path, activation, normalisation):
    dictionary = build(activation=activation, normalisation=normalisation)
    loaded = load(save(dictionary, tmp_path / "a.safetensors"))
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(9))
    assert torch.equal(loaded.encode(x).dense(), dictionary.encode(x).dense())
    assert torch.equal(loaded.reconstruct(x), dictionary.reconstruct(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_thresholds_and_gates_keep_their_precision_in_a_half_precision_file(tmp_path, dtype):
    """A threshold that is rounded decides otherwise."""
    for activation in (jumprelu(6), gated(6), Union(((2, jumprelu(2)), (4, gated(4))), torch.ones(6) > 0)):
        loaded = load(save(build(activation=activation), tmp_path / "half.safetensors", dtype))
        for name, tensor in activation.tensors().items():
            assert same_bits(loaded.activation.tensors()[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_stored_as_such_and_read_back_in_float32(tmp_path, dtype):
    dictionary = build()
    loaded = load(save(dictionary, tmp_path / "half.safetensors", dtype))
    with safe_open(tmp_path / "half.safetensors", "pt") as file:
        assert file.get_tensor("W_dec").dtype == dtype
    for name in WEIGHTS:
        assert torch.equal(getattr(loaded, name), getattr(dictionary, name).to(dtype).float())
    assert torch.equal(loaded.firing_rate, dictionary.firing_rate), "rates of rare latents need float32"


def test_saving_twice_gives_the_same_bytes(tmp_path):
    a, b = (save(build(), tmp_path / f"{name}.safetensors").read_bytes() for name in "ab")
    assert a == b


def test_weights_that_share_memory_are_saved_like_any_others(tmp_path):
    """A decoder bias that is also the pre-bias, a tied encoder, two matrices cut out of one."""
    tied = build()
    both = torch.randn(2, 16)
    square = build(4, 4, W_enc=both[0].reshape(4, 4), W_dec=both[1].reshape(4, 4))
    same = build(
        4, 4, W_enc=(matrix := torch.eye(4)), W_dec=matrix, b_enc=(bias := torch.arange(4.0)), b_out=bias, b_pre=bias
    )
    for number, dictionary in enumerate(
        [replace(tied, b_pre=tied.b_out), replace(tied, W_enc=tied.W_dec.T), square, same]
    ):
        loaded = load(save(dictionary, tmp_path / f"{number}.safetensors"))
        for name in WEIGHTS:
            assert torch.equal(getattr(loaded, name), getattr(dictionary, name)), (number, name)


def test_folders_on_the_way_are_made(tmp_path):
    assert load(save(build(), tmp_path / "new" / "folders" / "a.safetensors")).n_latents == 6


# What cannot be loaded


def refused(path, *needles: str):
    """One line that names the file and the problem."""
    import re

    lookaheads = "".join(f"(?=.*{re.escape(needle)})" for needle in (str(path), *needles))
    return pytest.raises(DictlabError, match=rf"\A{lookaheads}[^\n]*\Z")


def write(path, header: object = None, weights=None, raw: str | None = None):
    """A file with a header and tensors of one's own."""
    weights = weights if weights is not None else {name: getattr(build(), name) for name in WEIGHTS}
    entry = raw if raw is not None else json.dumps(valid_header() if header is None else header)
    save_file(weights, path, metadata={"dictlab": entry})
    return path


def valid_header(**changes):
    parts = {"schema": 1, "activation": {"kind": "relu"}, "normalisation": {"kind": "none"}, "metadata": {}}
    return parts | changes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "broken.safetensors"


def test_the_header_of_these_tests_is_a_valid_one(path):
    assert load(write(path)).activation == ReLU()


def test_a_missing_file_and_a_folder_are_named(tmp_path, path):
    with refused(path, "no such file"):
        load(path)
    with refused(tmp_path, "folder"):
        load(tmp_path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named(path, share):
    content = save(build(), path).read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with refused(path, "damaged"):
        load(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x00", bytes(8), bytes(100), b"\xff" * 100, b"PK\x03\x04" * 50, bytes(range(256)) * 4]
)
def test_bytes_that_are_no_safetensors_file_are_named(path, content):
    path.write_bytes(content)
    with refused(path, "damaged"):
        load(path)


def test_a_safetensors_file_of_something_else_is_named(path):
    save_file({"x": torch.zeros(2)}, path)
    with refused(path, "no dictionary"):
        load(path)
    save_file({"x": torch.zeros(2)}, path, metadata={"format": "pt"})
    with refused(path, "no dictionary"):
        load(path)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_missing_tensor_is_named(path, name):
    weights = {other: getattr(build(), other) for other in WEIGHTS if other != name}
    with refused(path, repr(name), "missing"):
        load(write(path, weights=weights))


def test_a_union_without_its_tensor_is_refused(path):
    header = valid_header(activation={"kind": "union", "parts": [[6, {"kind": "relu"}]]})
    with refused(path, "emits", "missing"):
        load(write(path, header))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [*WEIGHTS, "firing_rate"])
def test_a_number_that_is_not_finite_is_counted_and_its_tensor_named(path, name, value):
    weights = {other: getattr(build(), other) for other in (*WEIGHTS, "firing_rate")}
    weights[name].view(-1)[1] = value
    with refused(path, name, "1 values", "NaN or infinite"):
        load(write(path, weights=weights))


def test_a_double_that_is_infinite_as_a_float_is_refused(path):
    weights = {name: getattr(build(), name).double() for name in WEIGHTS}
    weights["b_enc"][0] = 1e300
    with refused(path, "b_enc", "infinite"):
        load(write(path, weights=weights))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("W_enc", (6, 4)),
        ("b_enc", (5,)),
        ("b_enc", (6, 1)),
        ("W_dec", (6,)),
        ("W_dec", (4, 6)),
        ("W_dec", (0, 4)),
        ("b_pre", (6,)),
        ("b_out", ()),
        ("firing_rate", (4,)),
    ],
)
def test_a_wrong_shape_is_named_with_the_right_one(path, name, shape):
    weights = {other: getattr(build(), other) for other in WEIGHTS} | {name: torch.zeros(shape)}
    with refused(path, "shape", "expected"):
        load(write(path, weights=weights))


@pytest.mark.parametrize(("kind", "names"), [("jumprelu", ("threshold",)), ("gated", ("b_gate", "r_mag", "b_mag"))])
def test_the_tensors_of_an_activation_function_are_checked_like_the_others(path, kind, names):
    whole = {name: getattr(build(), name) for name in WEIGHTS} | {f"activation.{n}": torch.ones(6) for n in names}
    header = valid_header(activation={"kind": kind})
    assert load(write(path, header, whole)).activation.kind == kind
    for name in names:
        key = f"activation.{name}"
        with refused(path, kind, name, "missing"):
            load(write(path, header, {n: t for n, t in whole.items() if n != key}))
        with refused(path, name, "shape [5]", "[6]"):
            load(write(path, header, whole | {key: torch.ones(5)}))
        with refused(path, key, "1 values", "NaN or infinite"):
            load(write(path, header, whole | {key: torch.tensor([1, 2, 3, 4, float("nan"), 6.0])}))
        with refused(path, key, "int64"):
            load(write(path, header, whole | {key: torch.ones(6, dtype=torch.long)}))


def test_a_tensor_or_field_that_would_be_passed_over_is_refused(path):
    weights = {name: getattr(build(), name) for name in WEIGHTS}
    with refused(path, "'threshold' is unknown"):
        load(write(path, valid_header(), weights | {"activation.threshold": torch.ones(6)}))
    with refused(path, "'bandwidth' is unknown"):
        load(write(path, valid_header(activation={"kind": "relu", "bandwidth": 1})))


def test_a_part_or_scale_that_the_file_has_no_use_for_is_refused(path):
    write(path)
    with refused(path, "blocks.3", "one dictionary"):
        load(f"{path}#blocks.3")
    with refused(path, "scale of 2.0"):
        load(path, scale=2.0)


def test_a_file_that_is_forced_to_be_dictlabs_is_named(path):
    save_file({"x": torch.zeros(2)}, path)
    with refused(path, "dictlab did not write it"):
        load(path, format="dictlab")


def test_a_wrong_shape_of_the_emitting_latents_is_refused(path):
    header = valid_header(activation={"kind": "union", "parts": [[6, {"kind": "relu"}]]})
    weights = {name: getattr(build(), name) for name in WEIGHTS} | {"activation.emits": torch.ones(5, dtype=torch.bool)}
    with refused(path, "emits", "shape"):
        load(write(path, header, weights))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.uint8])
@pytest.mark.parametrize("name", ["W_dec", "b_pre", "firing_rate"])
def test_weights_that_are_integers_are_refused(path, name, dtype):
    weights = {other: getattr(build(), other) for other in (*WEIGHTS, "firing_rate")}
    weights[name] = weights[name].to(dtype)
    with refused(path, name, str(dtype).removeprefix("torch."), "float32"):
        load(write(path, weights=weights))


@pytest.mark.parametrize("kind", ["softmax", "", None, 3, ["topk"], {"kind": "topk"}, "missing"])
def test_an_unknown_activation_function_is_named_with_those_that_are_known(path, kind):
    record = {} if kind == "missing" else {"kind": kind}
    with refused(path, "activation function", "topk"):
        load(write(path, valid_header(activation=record)))


@pytest.mark.parametrize("k", [0, -1, 1.5, "16", None, True, [4], "missing"])
def test_a_k_that_is_no_count_is_refused(path, k):
    record = {"kind": "topk"} if k == "missing" else {"kind": "topk", "k": k}
    with refused(path, "topk", "k is"):
        load(write(path, valid_header(activation=record)))


RELU = {"kind": "relu"}


@pytest.mark.parametrize(
    "parts",
    [
        None,
        [],
        {},
        "ab",
        [3],
        [[3]],
        [[3, RELU, 1]],
        [[3, RELU]],
        [[3, RELU], [4, RELU]],
        [[-1, RELU], [7, RELU]],
        [["6", RELU]],
        [[6, "relu"]],
        [[6, {"kind": "nonsense"}]],
        [[6, {"kind": "topk", "k": 0}]],
        [[6, {"kind": "union", "parts": [[6, RELU]]}]],
    ],
    ids=repr,
)
def test_donors_that_make_no_union_are_refused(path, parts):
    weights = {name: getattr(build(), name) for name in WEIGHTS} | {"activation.emits": torch.ones(6, dtype=torch.bool)}
    with refused(path, "activation function"):
        load(write(path, valid_header(activation={"kind": "union", "parts": parts}), weights))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"kind": "batch_norm"},
        {"kind": ["none"]},
        {"kind": "scale"},
        {"kind": "scale", "factor": 0},
        {"kind": "scale", "factor": -1.0},
        {"kind": "scale", "factor": "2"},
        {"kind": "scale", "factor": None},
        {"kind": "scale", "factor": float("nan")},
        {"kind": "scale", "factor": float("inf")},
        {"kind": "scale", "factor": 10**18, "then": {"kind": "none"}},
        {"kind": "centred"},
        {"kind": "centred", "then": "none"},
        {"kind": "centred", "then": {"kind": "centred", "then": {"kind": "none"}}},
        {"kind": "centred", "then": {"kind": "scale", "factor": 0}},
        {"kind": "constant_norm", "eps": 1.0},
        {"kind": "scale", "factor": 1.0, "shift": 2.0},
        {"kind": "none", "factor": 1.0},
        {"kind": "layer_norm", "eps": -1e-5},
    ],
    ids=repr,
)
def test_a_normalisation_that_makes_no_sense_is_refused(path, record):
    with refused(path, "input normalisation"):
        load(write(path, valid_header(normalisation=record)))


@pytest.mark.parametrize("schema", [0, 3, "1", None, 1.0, True, [1]])
def test_another_schema_is_named_with_the_one_that_is_read(path, schema):
    with refused(path, "schema", "reads 1"):
        load(write(path, valid_header(schema=schema)))


@pytest.mark.parametrize(
    "raw", ["", "{", "nonsense", '{"schema": 1', "[1, 2]", "null", "3", '"schema"', "{}", "[" * 100_000]
)
def test_a_damaged_header_is_named(path, raw):
    with refused(path, "'dictlab'", "damaged"):
        load(write(path, raw=raw))


@pytest.mark.parametrize("value", [None, [], [1], "text", 3, True])
@pytest.mark.parametrize("entry", ["activation", "normalisation", "metadata"])
def test_a_part_of_the_header_that_is_no_object_is_named(path, entry, value):
    with refused(path, entry, "expected a JSON object"):
        load(write(path, valid_header(**{entry: value})))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 3),
        ("site", ["a"]),
        ("seed", "0"),
        ("seed", True),
        ("tokens", 1.5),
        ("training", [1]),
        ("metrics", "good"),
        ("sources", "ab"),
        ("sources", [1, 2]),
        ("library", {"name": "x" * 500}),
        ("convention", ["huggingface"]),
        ("foreign", "cfg"),
        ("notes", "one"),
        ("notes", [1]),
    ],
)
def test_metadata_of_the_wrong_type_is_named(path, field, value):
    with refused(path, "metadata", field) as caught:
        load(write(path, valid_header(metadata={field: value})))
    assert len(str(caught.value)) < 300 + len(str(path))


def test_metadata_of_a_later_version_is_passed_over(path):
    assert load(
        write(path, valid_header(metadata={"from the future": 1, "seed": 4, "site": None}))
    ).metadata == Metadata(seed=4, convention="huggingface")


def test_files_from_before_conventions_read_the_models_own_activations(path):
    assert load(write(path, valid_header(metadata={}))).metadata.convention == "huggingface"
    assert load(write(path, valid_header(metadata={"convention": None}))).metadata.convention is None


# What cannot be saved


def test_another_ending_is_refused(tmp_path):
    for name in ("a.pt", "a", "a.safetensors.gz"):
        with refused(tmp_path / name, ".safetensors"):
            save(build(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    with refused(tmp_path / "a.safetensors", "folder"):
        save(build(), tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("broken", "dtype", "needle"),
    [
        (build(b_enc=torch.full((6,), float("nan"))), None, "b_enc"),
        (build(W_dec=torch.full((6, 4), 1e6)), torch.float16, "W_dec"),
        (build(metadata=Metadata(training={"text": object()})), None, "JSON"),
        (build(metadata=Metadata(seed="0")), None, "seed"),  # type: ignore[arg-type]
        (build(metadata=Metadata(seed=1 << 70)), None, "64 bits"),
        (build(metadata=Metadata(notes=(1,))), None, "notes"),  # type: ignore[arg-type]
        (build(activation=JumpReLU(torch.full((6,), float("inf")))), None, "activation.threshold"),
        (build(activation=JumpReLU(torch.zeros(5))), None, "threshold"),
        (build(activation=GroupMax(4)), None, "groups"),
        (build(normalisation=Scale(0.0)), None, "factor"),
        (build(activation=TopK(0)), None, "k is 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_could_not_be_loaded_is_not_saved_and_the_old_file_stays(tmp_path, broken, dtype, needle):
    path = save(build(), tmp_path / "a.safetensors")
    before = path.read_bytes()
    with refused(path, "not saved", needle):
        save(broken, path, dtype)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("stage", ["save_file", "os.replace"])
def test_a_save_that_breaks_off_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, stage):
    path = save(build(), tmp_path / "a.safetensors")
    before = path.read_bytes()

    def full(*args, **kwargs):
        if stage == "save_file":
            args[1].write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        {"save_file": "safetensors.torch.save_file"}.get(stage, f"dictlab.runtime.atomic_files.{stage}"), full
    )
    with pytest.raises(OSError, match="No space left"):
        save(build(seed=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# Damage of any kind


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    union = Union(((2, TopK(1)), (1, ReLU())), torch.tensor([True, False, True]))
    return save(
        build(3, 2, activation=union, normalisation=Scale(2.0)), tmp_path_factory.mktemp("fuzz") / "a.safetensors"
    ).read_bytes()


edits = st.lists(
    st.tuples(st.sampled_from(["flip", "delete", "insert"]), st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, changes, header_only: bool) -> bytes:
    for kind, where, value in changes:
        at = int(where * (int.from_bytes(content[:8], "little") + 8 if header_only else len(content)))
        if kind == "flip":
            content = content[:at] + bytes([content[at] ^ (value or 1)]) + content[at + 1 :]
        elif kind == "delete":
            content = content[:at] + content[at + 1 :]
        else:
            content = content[:at] + bytes([value]) + content[at:]
        if int.from_bytes(content[:8], "little") > len(content):
            break
    return content


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=edits, header_only=st.booleans())
def test_a_damaged_file_is_loaded_or_refused_and_nothing_else(tmp_path, content, changes, header_only):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(edited(content, changes, header_only))
    try:
        loaded = load(path)
    except DictlabError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert loaded.W_dec.dtype == torch.float32 and bool(torch.isfinite(loaded.W_dec).all())


json_damage = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.floats()
    | st.sampled_from(["relu", "topk", "union", "scale", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "k", "parts", "factor", "eps", "seed", "sources"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entry=st.sampled_from(["schema", "activation", "normalisation", "metadata"]), value=json_damage)
def test_whatever_stands_in_the_header_the_file_is_loaded_or_refused(path, entry, value):
    write(path, valid_header(**{entry: value}))
    try:
        assert isinstance(load(path), Dictionary)
    except DictlabError as error:
        assert str(path) in str(error)
