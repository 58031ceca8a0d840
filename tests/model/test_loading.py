"""Models opened by name in other precisions, with the fingerprint of their weights as they are kept."""

import hashlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from dictlab.errors import DictlabError
from dictlab.model import loading
from dictlab.model.language_model import LanguageModel
from dictlab.model.model_options import ModelOptions
from tests.model.test_language_model import TOKENS, build
from tests.planted import tiny_tokenizer


def saved(folder, architecture="gpt2", **how):
    lm = build(architecture)
    lm.model.save_pretrained(folder, **how)
    tiny_tokenizer().save_pretrained(folder)
    return lm


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_the_fingerprint_does_not_depend_on_the_precision(architecture, tmp_path):
    """It is what it always was in float32: SHA-256 over names, shapes and up to 1,024 values of each parameter."""
    lm = saved(tmp_path, architecture)
    digest = hashlib.sha256()
    for name, weight in sorted(lm.model.state_dict().items()):
        flat = weight.flatten()
        values = flat[:: max(1, len(flat) // 1024)][:1024]
        digest.update(f"{name} {tuple(weight.shape)}".encode() + values.numpy().tobytes())
    for dtype in ("auto", "float32", "bfloat16", "float16", torch.bfloat16):
        opened = LanguageModel.load(tmp_path, dtype=dtype)
        if dtype != "auto":
            assert next(opened.model.parameters()).dtype == getattr(torch, str(dtype).removeprefix("torch."))
        assert opened.fingerprint == digest.hexdigest()[:16] == lm.fingerprint, dtype


def test_the_fingerprint_of_a_checkpoint_in_several_files_or_under_other_names(tmp_path):
    lm = saved(tmp_path / "parts", max_shard_size="4KB")
    assert (tmp_path / "parts" / "model.safetensors.index.json").exists()
    assert LanguageModel.load(tmp_path / "parts", dtype="bfloat16").fingerprint == lm.fingerprint
    source = LanguageModel.load(tmp_path / "parts", dtype="bfloat16")
    assert source.fingerprint == lm.fingerprint
    opened = loading.open_model(ModelOptions(tmp_path / "parts", "bfloat16"), beside=None, device="cpu")
    opened.model.extra = torch.nn.Linear(1, 1)  # a weight that the files lack: the model is opened once more
    assert opened.stored_fingerprint() == lm.fingerprint


def test_other_weights_have_another_fingerprint_in_any_precision(tmp_path):
    saved(tmp_path / "a")
    other = build("gpt2")
    with torch.no_grad():
        other.model.transformer.h[0].mlp.c_fc.weight[0, 0] += 1e-4  # lost in bfloat16
    other.model.save_pretrained(tmp_path / "b")
    tiny_tokenizer().save_pretrained(tmp_path / "b")
    a, b = (LanguageModel.load(tmp_path / name, dtype="bfloat16").fingerprint for name in "ab")
    assert a != b


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "attn_out", "mlp_out", "resid_post"])
def test_half_precision_is_captured_spliced_and_resumed(dtype, site, tmp_path):
    saved(tmp_path, "llama")
    lm, name = LanguageModel.load(tmp_path, dtype=dtype), f"blocks.1.hook_{site}"
    lm.check_site(name)
    logits, start = lm.forward(TOKENS).logits, lm.block_input(name)
    x = lm.capture(TOKENS, [name, start])
    assert torch.equal(lm.resume(x[name], name, residual=x[start]).logits, logits)
    assert torch.equal(lm.splice(TOKENS, name, lambda value: value).logits, logits)


def test_a_precision_that_is_none_is_refused(tmp_path):
    with pytest.raises(DictlabError, match="expected auto, float32, bfloat16, float16"):
        LanguageModel.load(tmp_path, dtype="int8")


def test_an_adapter_without_its_library_is_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "gpt2"}))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(DictlabError, match="holds a PEFT adapter"):
        LanguageModel.load(tmp_path)


def test_an_adapter_is_merged_into_its_base_model(tmp_path, monkeypatch):
    """`peft` is not installed here; a stand-in shows what is asked of it."""
    saved(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    merged, asked = build("llama").model, []

    def from_pretrained(folder, dtype):
        asked.append((folder, dtype))
        return SimpleNamespace(merge_and_unload=lambda: merged)

    stand_in = SimpleNamespace(AutoPeftModelForCausalLM=SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setitem(sys.modules, "peft", stand_in)
    assert LanguageModel.load(tmp_path, dtype="bfloat16").model is merged
    assert asked == [(str(tmp_path), torch.bfloat16)]


def test_a_gguf_file_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(DictlabError, match="pip install gguf accelerate"):
        LanguageModel.load(tmp_path / "model.gguf")
    with pytest.raises(DictlabError, match=r"Tried: the file .*nothing\.gguf"):
        LanguageModel.load(tmp_path / "nothing.gguf")


def test_a_gguf_file_is_asked_of_transformers_by_folder_and_file(tmp_path, monkeypatch):
    import transformers

    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    asked = []
    monkeypatch.setattr(loading, "find_spec", lambda name: object())
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
        answer = build("gpt2").model if auto is transformers.AutoModelForCausalLM else tiny_tokenizer()
        monkeypatch.setattr(auto, "from_pretrained", lambda *a, answer=answer, **k: asked.append((a, k)) or answer)
    LanguageModel.load(tmp_path / "model.gguf", revision="v1", trust_remote_code=True)
    given = {"gguf_file": "model.gguf", "revision": "v1", "trust_remote_code": True}
    assert asked == [((str(tmp_path),), given | {"dtype": torch.float32}), ((str(tmp_path),), given)]
