"""Small dictionaries, models and data whose truth is known."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import normalize
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from dictlab import Dictionary, LanguageModel, Metadata, ReLU, Text, TopK
from dictlab.dictionary.activation_functions import Activation
from dictlab.dictionary.normalisation import NoNormalisation, Normalisation

SITE = "blocks.1.hook_resid_pre"
READ, WRITTEN = "blocks.1.ln2.hook_out", "blocks.1.hook_mlp_out"  # of transcoders


def random_dictionary(
    n: int = 24,
    d: int = 8,
    *,
    activation: Activation | None = None,
    normalisation: Normalisation | None = None,
    seed: int = 0,
    name: str = "random",
    metadata: Metadata | None = None,
) -> Dictionary:
    """A dictionary with no structure, all of its parts different from zero."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Dictionary(
        W_enc=draw(d, n),
        b_enc=0.3 * draw(n),
        W_dec=normalize(draw(n, d), dim=1),
        b_pre=0.5 * draw(d),
        b_out=0.5 * draw(d),
        activation=activation or TopK(4),
        normalisation=normalisation or NoNormalisation(),
        metadata=metadata or Metadata(site=SITE),
        name=name,
    )


def random_transcoder(
    n: int = 24,
    d_in: int = 8,
    d_out: int = 6,
    *,
    skip: bool = True,
    activation: Activation | None = None,
    normalisation: Normalisation | None = None,
    seed: int = 0,
    name: str = "transcoder",
    reads: str | None = READ,
    writes: str | None = WRITTEN,
) -> Dictionary:
    """A transcoder with no structure, all of its parts different from zero."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Dictionary(
        W_enc=draw(d_in, n),
        b_enc=0.3 * draw(n),
        W_dec=draw(n, d_out),
        b_pre=0.5 * draw(d_in),
        b_out=0.5 * draw(d_out),
        activation=activation or TopK(4),
        normalisation=normalisation or NoNormalisation(),
        W_skip=0.3 * draw(d_in, d_out) if skip else None,
        transcodes=True,
        metadata=Metadata(site=reads, writes=writes),
        name=name,
    )


def identity_dictionary(d: int, **kwargs) -> Dictionary:
    """Reconstructs perfectly: x = relu(x) - relu(-x)."""
    eye = torch.eye(d)
    both = torch.cat([eye, -eye])
    return Dictionary(both.T.clone(), torch.zeros(2 * d), both, torch.zeros(d), torch.zeros(d), ReLU(), **kwargs)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, GPT-2's rule (nothing in front)."""
    letters = {chr(i): i - 31 for i in range(32, 127)} | {"<end>": 0, "\n": 96}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>")


def tiny_model(seed: int = 0, d: int = 16, blocks: int = 3) -> LanguageModel:
    """A randomly initialised GPT-2 over 97 characters, with weights large enough that activations matter."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=97,
        n_positions=32,
        n_embd=d,
        n_layer=blocks,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LanguageModel(GPT2LMHeadModel(config), tiny_tokenizer(), "tiny")


def sink_model(d: int = 16) -> LanguageModel:
    """A tiny model with an attention sink: the first position of a context is fifty times as long as others."""
    model = tiny_model(d=d)
    with torch.no_grad():
        position = model.model.transformer.wpe.weight[0]
        position *= 50 * d**0.5 / position.norm()
    return model


def sparse_data(
    tokens: int, n: int = 32, d: int = 16, active: int = 2, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations made of a few of n known directions each, with a mean away from 0; returns (x, directions).

    The directions are random, and orthogonal where there is room for that.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(n, d, generator=generator), dim=1)
    if n <= d:
        directions = torch.linalg.qr(directions.T).Q.T
    chosen = torch.rand(tokens, n, generator=generator).topk(active, dim=1).indices
    strength = 1 + torch.rand(tokens, active, generator=generator)
    codes = torch.zeros(tokens, n).scatter(1, chosen, strength)
    return codes @ directions + 0.7, directions


def planted_model(d: int = 16) -> LanguageModel:
    """Logits are a fixed linear map of the stream, which its blocks leave as it is: the output minds every direction."""
    model = tiny_model(d=d)
    with torch.no_grad():
        for block in model.model.transformer.h:
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                projection.weight.zero_()
                projection.bias.zero_()
        model.model.transformer.ln_f = torch.nn.Identity()
        model.model.lm_head.weight.copy_(0.3 * torch.randn(97, d, generator=torch.Generator().manual_seed(1)))
    return model


def many_documents(folder: Path) -> Text:
    """A text of 90 short documents that are much alike: both of its splits hold contexts enough for small tests."""
    for i in range(90):
        (folder / f"{i}.txt").write_text(f"document {i}: " + "all work and no play, some rest as well. " * 8)
    return Text.files(folder)
