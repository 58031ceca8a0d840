"""What is written is read back as the same function at the same place, or nothing is written and the old file stays."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dictlab import DictlabError, Metadata, ReLU, TopK, load, save
from dictlab.dictionary.activation_functions import BatchTopK, JumpReLU
from dictlab.dictionary.normalisation import Centred, ConstantNorm, LayerNorm, NoNormalisation, Scale
from dictlab.dictionary.union import Union
from dictlab.formats import conversion, loading
from dictlab.formats.native import native_file as native
from tests.dictionary.test_activation_functions import every, gated, jumprelu
from tests.planted import random_dictionary

NORMALISATIONS = [NoNormalisation(), Scale(0.3), LayerNorm(), ConstantNorm(), Centred(), Centred(Scale(0.3))]


@pytest.fixture
def lossy(monkeypatch):
    """A format that is dictlab's own, in a folder, but writes what `change` makes of the dictionary."""
    made = SimpleNamespace(change=lambda dictionary: dictionary, extra=())

    def write(dictionary, path):
        path.mkdir(parents=True)
        save(made.change(dictionary), path / "weights.safetensors")
        for name in made.extra:
            (path / name).write_text("{}")
        return path

    module = SimpleNamespace(recognise=lambda source: False, read=native.read, write=write)
    only_read = SimpleNamespace(recognise=lambda source: False, read=native.read)
    known = {"dictlab": native, "lossy": module, "only-read": only_read}
    monkeypatch.setattr(loading, "_installed", lambda: (known, {}))
    return made


def everything(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(*needles: str):
    import re

    return pytest.raises(DictlabError, match="".join(f"(?=.*{re.escape(n)})" for n in needles))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_a_dictionary_goes_through_the_native_format_unchanged(tmp_path, normalisation):
    about = Metadata(
        model="m", site="blocks.1.hook_mlp_out", convention="transformer_lens", notes=("n",), foreign={"a": 1}
    )
    x = torch.randn(20, 8)
    for number, activation in enumerate(every(24, 4, 0)):
        dictionary = random_dictionary(activation=activation, normalisation=normalisation, metadata=about)
        path = conversion.write(dictionary, tmp_path / f"{number}.safetensors", "dictlab")
        back = load(path)
        assert torch.equal(back.reconstruct(x), dictionary.reconstruct(x)) and back.metadata == about
    assert all(p.name[0].isdigit() for p in tmp_path.iterdir()), "nothing is left beside"


def test_a_constant_scale_may_be_folded_on_the_way(tmp_path, lossy):
    lossy.change = lambda dictionary: dictionary.in_input_units()
    for activation in (ReLU(), TopK(4), jumprelu(24), gated(24)):
        dictionary = random_dictionary(activation=activation, normalisation=Scale(0.01))
        path = conversion.write(dictionary, tmp_path / activation.kind, "lossy")
        x = 100 * torch.randn(20, 8)
        torch.testing.assert_close(load(path).reconstruct(x), dictionary.reconstruct(x), atol=1e-3, rtol=1e-4)


LOSSES = {
    "a pre-bias": (lambda d: replace(d, b_pre=torch.zeros(8)), {}),
    "an output bias": (lambda d: replace(d, b_out=torch.zeros(8)), {}),
    "one encoder bias": (lambda d: replace(d, b_enc=torch.where(torch.arange(24) == 3, d.b_enc + 1, d.b_enc)), {}),
    "one decoder row": (lambda d: replace(d, W_dec=torch.where(torch.arange(24)[:, None] == 3, 0, d.W_dec)), {}),
    "a normalisation": (lambda d: replace(d, normalisation=NoNormalisation()), {"normalisation": LayerNorm()}),
    "a centring": (lambda d: replace(d, normalisation=NoNormalisation()), {"normalisation": Centred()}),
    "a scale": (lambda d: replace(d, normalisation=NoNormalisation()), {"normalisation": Scale(1.01)}),
    "a k": (lambda d: replace(d, activation=TopK(5)), {"activation": TopK(4)}),
    "a threshold": (lambda d: replace(d, activation=ReLU()), {"activation": JumpReLU(torch.full((24,), 0.5))}),
    "a high threshold": (lambda d: replace(d, activation=ReLU()), {"activation": JumpReLU(torch.full((24,), 60.0))}),
    "a gate": (lambda d: replace(d, activation=ReLU()), {"activation": gated(24)}),
    "the batch": (lambda d: replace(d, activation=TopK(4)), {"activation": BatchTopK(4)}),
    "rivals": (
        lambda d: replace(d, activation=ReLU()),
        {"activation": Union(((24, TopK(4)),), torch.arange(24) % 3 > 0)},
    ),
    "half the precision": (lambda d: d.to(dtype=torch.bfloat16), {}),
    "the order of latents": (
        lambda d: replace(d, W_enc=d.W_enc.flip(1), b_enc=d.b_enc.flip(0), W_dec=d.W_dec.flip(0)), {}
    ),
    "a latent": (lambda d: replace(d, W_enc=d.W_enc[:, 1:], b_enc=d.b_enc[1:], W_dec=d.W_dec[1:]), {}),
}  # fmt: skip


@pytest.mark.parametrize("lost", LOSSES)
def test_a_format_that_loses_something_is_caught_and_the_old_file_stays(tmp_path, lossy, lost):
    lossy.change, own = LOSSES[lost]
    old = tmp_path / "out"
    old.mkdir()
    (old / "weights.safetensors").write_bytes(b"old")
    before = everything(tmp_path)
    with refused(str(old), "not written", "read back from the lossy file"):
        conversion.write(random_dictionary(**own), old, "lossy", force=True)
    assert everything(tmp_path) == before and [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("size", [0.05, 1.0, 1e3])
def test_units_do_not_hide_a_loss(tmp_path, lossy, size):
    """The same dictionary for activations of another size: biases and thresholds grow with it."""
    dictionary = random_dictionary(activation=JumpReLU(torch.full((24,), 2.0 * size)))
    dictionary = replace(
        dictionary, b_enc=size * dictionary.b_enc, b_pre=size * dictionary.b_pre, b_out=size * dictionary.b_out
    )
    conversion.write(dictionary, tmp_path / "kept", "lossy")
    for change in (
        lambda d: replace(d, activation=d.activation.scaled(1.05)),
        lambda d: replace(d, b_out=1.05 * d.b_out),
    ):
        lossy.change = change
        with refused("was lost"):
            conversion.write(dictionary, tmp_path / "lost", "lossy")


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ({"site": "blocks.1.hook_resid_pre"}, {"site": "blocks.2.hook_resid_pre"}, "its site is"),
        ({"convention": "transformer_lens"}, {"convention": "huggingface"}, "of huggingface, not of transformer_lens"),
        ({"convention": "transformer_lens"}, {"convention": None}, "an unnamed library, not of transformer_lens"),
        ({"convention": "huggingface"}, {"convention": "transformer_lens"}, "of transformer_lens, not of huggingface"),
        ({"site": "blocks.1.hook_resid_pre"}, {"site": "h.0"}, None),
        ({"site": "blocks.1.hook_resid_pre"}, {"site": None}, None),
        ({"convention": None}, {"convention": "huggingface"}, None),
        ({"convention": "huggingface"}, {"convention": None}, None),
    ],
)
def test_where_it_belongs_comes_back_in_any_spelling_or_it_is_refused(tmp_path, lossy, before, after, says):
    lossy.change = lambda dictionary: replace(dictionary, metadata=Metadata(**after))
    dictionary = random_dictionary(metadata=Metadata(**before))
    if says is None:
        assert conversion.write(dictionary, tmp_path / "out", "lossy").is_dir()
        return
    with refused("not written", says):
        conversion.write(dictionary, tmp_path / "out", "lossy")
    assert not list(tmp_path.iterdir())


def test_a_format_that_refuses_leaves_no_trace(tmp_path, lossy):
    def refuse(dictionary):
        raise DictlabError("it cannot express the activation function.")

    lossy.change = refuse
    with refused(str(tmp_path / "new" / "folders" / "out"), "not written: it cannot express"):
        conversion.write(random_dictionary(), tmp_path / "new" / "folders" / "out", "lossy")
    assert not list(tmp_path.iterdir())


def test_a_crash_in_the_middle_leaves_no_trace_either(tmp_path, lossy):
    def full(dictionary):
        raise OSError(28, "No space left on device")

    path = save(random_dictionary(), tmp_path / "a.safetensors")
    before, lossy.change = everything(tmp_path), full
    with refused(str(path), "not written: No space left on device"):
        conversion.write(random_dictionary(), path, "lossy", force=True)
    assert everything(tmp_path) == before


def test_what_is_there_is_replaced_only_by_force(tmp_path, lossy):
    one, other = random_dictionary(seed=1), random_dictionary(seed=2)
    for name, format in (("a.safetensors", "dictlab"), ("folder", "lossy")):
        path = conversion.write(one, tmp_path / name, format)
        with refused(str(path), "exists already", "force=True"):
            conversion.write(other, path, format)
        assert torch.equal(load(path).W_enc, one.W_enc)
        conversion.write(other, path, format, force=True)
        assert torch.equal(load(path).W_enc, other.W_enc)
    conversion.write(one, tmp_path / "a.safetensors", "lossy", force=True)
    assert (tmp_path / "a.safetensors").is_dir()


def test_force_deletes_nothing_but_an_older_dictionary(tmp_path, lossy):
    """A folder full of other work, named by mistake."""
    home = tmp_path / "home"
    (home / "thesis").mkdir(parents=True)
    (home / "thesis" / "chapter.tex").write_text("years of work")
    (home / "weights.safetensors").write_bytes(b"old")
    before = everything(tmp_path)
    for name, format in ((home, "lossy"), (home, "dictlab"), (tmp_path, "lossy")):
        with refused("not written"):
            conversion.write(random_dictionary(), name, format, force=True)
    assert everything(tmp_path) == before
    with refused("thesis", "nothing in it was touched"):
        conversion.write(random_dictionary(), home, "lossy", force=True)


def test_a_place_without_a_name_is_refused(tmp_path, lossy, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (".", "..", "x/..", ""):
        with refused("expected the name of a file or folder"):
            conversion.write(random_dictionary(), path, "lossy", force=True)


def test_an_unknown_format_and_one_that_is_only_read_are_named(tmp_path, lossy):
    with refused("'nonsense'", "known are dictlab, lossy, only-read"):
        conversion.write(random_dictionary(), tmp_path / "out", "nonsense")
    with refused("'only-read' is only read", "written are dictlab, lossy."):
        conversion.write(random_dictionary(), tmp_path / "out", "only-read")
    assert not list(tmp_path.iterdir())


def test_a_value_at_its_threshold_may_fall_on_either_side(tmp_path, lossy):
    """One code of a probe flips by rounding: no property was lost."""
    dictionary = random_dictionary(2000, 8, activation=ReLU())
    x = conversion._probes(dictionary)
    z = dictionary.pre_activations(x)
    token, latent = divmod(int(z.abs().argmin()), 2000)
    nudged = dictionary.b_enc.clone()
    nudged[latent] -= 1.01 * z[token, latent]
    lossy.change = lambda d: replace(d, b_enc=nudged)
    assert abs(float(z[token, latent])) < 1e-3
    conversion.write(dictionary, tmp_path / "out", "lossy")
