"""dictlab's own file of a transcoder, or of a dictionary with a skip."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dictlab import DictlabError, Metadata, load, save
from dictlab.cli.dictionaries import convert, info
from dictlab.dictionary.normalisation import LayerNorm
from dictlab.formats import conversion
from dictlab.formats.native.header import described
from tests.planted import random_dictionary, random_transcoder

X = torch.randn(7, 8, generator=torch.Generator().manual_seed(1))


def with_skip():
    return replace(random_dictionary(), W_skip=torch.randn(8, 8))


@pytest.mark.parametrize(
    "dictionary", [random_transcoder(), random_transcoder(skip=False, normalisation=LayerNorm()), with_skip()]
)
def test_written_and_read_it_is_the_same_function_at_the_same_sites(dictionary, tmp_path):
    back = load(save(dictionary, tmp_path / "t.safetensors"))
    torch.testing.assert_close(back.reconstruct(X), dictionary.reconstruct(X), atol=0, rtol=0)
    assert back.transcodes == dictionary.transcodes and back.metadata == dictionary.metadata
    assert described(tmp_path / "t.safetensors") is None  # the short way to `info` is for autoencoders


def header_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["dictlab"])


def test_a_plain_dictionary_keeps_the_file_that_older_versions_read(tmp_path):
    path = save(random_dictionary(), tmp_path / "a.safetensors")
    assert header_of(path)["schema"] == 1 and "transcodes" not in header_of(path)
    assert header_of(save(random_transcoder(), tmp_path / "t.safetensors"))["schema"] == 2  # which those refuse


def test_a_file_without_the_newer_fields_is_read_as_before(tmp_path):
    dictionary = random_dictionary()
    path = save(dictionary, tmp_path / "a.safetensors")
    header = header_of(path)
    del header["metadata"]["writes"]
    save_file(load_file(path), path, {"dictlab": json.dumps(header)})
    back = load(path)
    assert back.plain and back.metadata == replace(dictionary.metadata, convention=None)
    torch.testing.assert_close(back.reconstruct(X), dictionary.reconstruct(X))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"transcodes": None}, "'transcodes' is None"),
        ({"transcodes": False}, "writes is 'blocks.1.hook_mlp_out'"),
        ({"schema": 1}, "W_skip, which files of schema 1"),
        ({"schema": 3}, "reads 1 and 2"),
    ],
)
def test_a_header_that_contradicts_the_tensors_is_refused(change, words, tmp_path):
    path = save(random_transcoder(d_out=8), tmp_path / "t.safetensors")
    save_file(load_file(path), path, {"dictlab": json.dumps(header_of(path) | change)})
    with pytest.raises(DictlabError, match=words):
        load(path)


@pytest.mark.parametrize("name", ["W_skip", "W_enc", "b_out"])
def test_tensors_that_do_not_fit_are_refused(name, tmp_path):
    path = save(random_transcoder(), tmp_path / "t.safetensors")
    tensors, header = load_file(path), header_of(path)
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, path, {"dictlab": json.dumps(header)})
    with pytest.raises(DictlabError, match=r"has shape"):
        load(path)


def test_convert_keeps_it_and_names_the_sites(tmp_path, capsys):
    source = save(random_transcoder(reads=None, writes=None), tmp_path / "t.safetensors")
    convert(str(source), tmp_path / "u.safetensors", site="blocks.1.ln2.hook_out", writes="blocks.1.hook_mlp_out")
    back = load(tmp_path / "u.safetensors")
    assert (back.metadata.site, back.metadata.writes) == ("blocks.1.ln2.hook_out", "blocks.1.hook_mlp_out")
    torch.testing.assert_close(back.reconstruct(X), random_transcoder().reconstruct(X))
    info(str(tmp_path / "u.safetensors"))
    said = capsys.readouterr().out.split()
    assert said[said.index("writes") + 1] == "blocks.1.hook_mlp_out"
    plain = save(random_dictionary(), tmp_path / "a.safetensors")
    with pytest.raises(DictlabError, match="is no transcoder"):
        convert(str(plain), tmp_path / "v.safetensors", writes="blocks.1.hook_mlp_out")


@pytest.mark.parametrize("format", ["openai", "dictionary_learning", "e2e_sae"])
def test_a_format_that_cannot_hold_it_says_so(format, tmp_path):
    for dictionary, what in ((random_transcoder(d_out=8), "a transcoder"), (with_skip(), "a linear skip")):
        with pytest.raises(DictlabError, match=f"{what}.* is not written in the format|is only read"):
            conversion.write(dictionary, tmp_path / "out", format)
        assert not (tmp_path / "out").exists()


def test_what_comes_back_is_compared_in_all_its_parts(tmp_path, monkeypatch):
    """A writer that loses the skip, the second site's bias or that it is a transcoder is caught."""
    whole = random_transcoder(d_out=8)
    for lost in (
        {"W_skip": None},
        {"W_skip": whole.W_skip.flip(0)},
        {"b_out": 1.1 * whole.b_out},
        {"transcodes": False, "metadata": Metadata(site="blocks.1.ln2.hook_out")},
        {"metadata": replace(whole.metadata, writes="blocks.2.hook_mlp_out")},
    ):
        monkeypatch.setattr(conversion, "load", lambda *_, lost=lost, **__: replace(whole, **lost))
        with pytest.raises(DictlabError, match="read back"):
            conversion.write(whole, tmp_path / "t.safetensors", "dictlab")
    assert asdict(whole.metadata)["writes"] and not (tmp_path / "t.safetensors").exists()
