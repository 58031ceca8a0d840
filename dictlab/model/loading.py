"""Opening a language model: a folder, a name on the Hugging Face Hub, a GGUF file, or a PEFT adapter's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from safetensors import SafetensorError

from dictlab.errors import DictlabError
from dictlab.model.fingerprint import fingerprint_of, fingerprint_of_files, safetensors_files
from dictlab.model.model_options import ModelDtype, ModelOptions

ADAPTER = "adapter_config.json"


class OpenedModel(NamedTuple):
    """A model of `transformers`, its tokenizer, and how the fingerprint of its weights as they are kept is computed."""

    model: Any
    tokenizer: Any
    stored_fingerprint: Callable[[], str]


def open_model(options: ModelOptions, *, beside: Path | None, device: str) -> OpenedModel:
    """Open a model and its tokenizer, on a device.

    Args:
        options: What to open, and how.
        beside: Where to look for a folder or file first: next to the dictionary that names it.
        device: "cpu", "cuda", ...

    Raises:
        DictlabError: It is in none of these places, or cannot be opened; the message says which were tried.
    """
    check_device(device)
    if options.dtype not in get_args(ModelDtype):
        raise DictlabError(f"model dtype is {options.dtype!r}; expected {', '.join(get_args(ModelDtype))}.")
    name = str(options.name)
    places = [Path(name)] if beside is None else [beside / name, Path(name)]
    path = next((place for place in places if _is_model(place)), None)
    kind = "file" if name.endswith(".gguf") else "folder"
    tried = [f"the {kind} {place}" for place in places]
    if path is None and not _may_be_on_hub(name):
        raise DictlabError(f"model {name!r} was not found. Tried: {'; '.join(tried)}.")
    source = _Source(replace(options, name=path or name), device)
    try:
        with _quiet():
            model = source.load(source.dtype())
            tokenizer = source.tokenizer()
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        where = "; ".join(tried if path else [*tried, f"{name!r} on the Hugging Face Hub"])
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DictlabError(f"model {name!r} could not be opened. Tried: {where} ({first}).") from error
    return OpenedModel(model, tokenizer, lambda: source.fingerprint(model))


class _Source:
    """Where a model's weights come from, for opening it more than once."""

    def __init__(self, options: ModelOptions, device: str) -> None:
        self.options, self.device = options, device
        self.name, self.gguf = _split_gguf(str(options.name))
        self.is_adapter = (Path(self.name) / ADAPTER).exists()
        self.given: dict[str, Any] = {"revision": options.revision} if options.revision else {}
        if options.trust_remote_code:
            self.given["trust_remote_code"] = True
        if self.gguf:
            self.given["gguf_file"] = self.gguf
            missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
            if missing:
                raise DictlabError(f"model {options.name}: a GGUF file needs pip install {' '.join(missing)}.")

    def dtype(self) -> torch.dtype | Literal["auto"]:
        """The precision of the weights, as `transformers` takes it."""
        if self.options.dtype != "auto":
            dtype: torch.dtype = getattr(torch, self.options.dtype)
            return dtype
        return torch.float32 if self.device == "cpu" else "auto"

    def load(self, dtype: torch.dtype | Literal["auto"], device: str | None = None) -> Any:
        """The model, straight onto its device where `accelerate` is installed; else by way of the CPU."""
        from transformers import AutoModelForCausalLM

        device = device or self.device
        straight = {"device_map": {"": device}} if device != "cpu" and find_spec("accelerate") else {}
        if self.is_adapter:
            return self._adapted(dtype, straight).to(device)
        model = AutoModelForCausalLM.from_pretrained(self.name, dtype=dtype, **straight, **self.given)
        if getattr(model, "is_quantized", False) or straight:  # a quantised model is where it was loaded
            return model
        return model.to(device)

    def _adapted(self, dtype: torch.dtype | Literal["auto"], straight: dict[str, Any]) -> Any:
        """A PEFT adapter with the base model that it names, merged into one model."""
        try:
            peft = import_module("peft")
        except ImportError as error:
            raise DictlabError(
                f"model {self.name}: this folder holds a PEFT adapter ({ADAPTER}), not a whole model. "
                "pip install peft, or give the folder of the merged model."
            ) from error
        adapted = peft.AutoPeftModelForCausalLM.from_pretrained(self.name, dtype=dtype, **straight, **self.given)
        return adapted.merge_and_unload()

    def tokenizer(self) -> Any:
        """The tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.name, **self.given)

    def fingerprint(self, model: Any) -> str:
        """The fingerprint of the weights as they are kept, whatever precision `model` has."""
        from transformers.utils import cached_file

        def find(file: str) -> Path | None:
            where = cached_file(
                self.name, file, revision=self.options.revision, _raise_exceptions_for_missing_entries=False
            )
            return None if where is None else Path(where)

        files = {} if self.gguf or self.is_adapter else safetensors_files(find)
        known = fingerprint_of_files(model, files) if files else None
        if known is not None:
            return known
        with _quiet():  # a GGUF file, an adapter, weights by other names: opened once more
            return fingerprint_of(self.load(torch.float32, "cpu").state_dict().items())


def _is_model(path: Path) -> bool:
    return path.is_file() if path.suffix == ".gguf" else any((path / f).exists() for f in ("config.json", ADAPTER))


def _split_gguf(name: str) -> tuple[str, str | None]:
    """The folder or repository of a GGUF file, and the file's name in it; other names as they are."""
    if not name.endswith(".gguf"):
        return name, None
    folder, _, file = name.rpartition("/")
    return folder or ".", file


def _may_be_on_hub(name: str) -> bool:
    """Whether a name can be one on the Hub (`gpt2`, `owner/name`), not a path. Asking in vain costs half a minute."""
    repository, gguf = _split_gguf(name)
    local = repository[0] in "./~" or ("/" in repository and Path(repository).parent.is_dir())
    return repository.count("/") <= 1 and not local and not (gguf and "/" not in repository)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar for weights that load in a moment; the caller's setting is put back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_device(device: str) -> None:
    """Refuse a device that is not there, rather than quietly use another.

    Raises:
        DictlabError: CUDA was asked for and this machine, or this build of torch, has none.
    """
    try:
        torch.device(device)
    except RuntimeError as error:
        raise DictlabError(f"device {device!r} is unknown; write cpu, cuda, or cuda:1.") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DictlabError(f"device {device!r}: no CUDA device is available to torch {torch.__version__}; use cpu.")
