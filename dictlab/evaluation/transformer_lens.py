"""Whose activations does a dictionary read?

TransformerLens processes the weights of a model when it opens it (its default). The model computes the same
distribution, but not the same activations, and dictionaries that were trained there read those. For the sites that
dictionaries are trained at, the difference to the unprocessed model of Hugging Face is known exactly:

    residual stream, what attention or the MLP adds     each token has the mean 0 over its coordinates, in models with
                                                        layer norm (not RMS norm): x' = x - mean(x)
    heads' outputs (`attn.hook_z`)                      without the value bias, which is moved behind the output
                                                        projection: x' = x - V(0), with V(0) the values that
                                                        attention computes where its layer norm gives 0 before its bias
    the MLP's neurons (`mlp.hook_post`)                 the same
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dictlab.dictionary import Dictionary
from dictlab.dictionary.normalisation import Centred, LayerNorm, NoNormalisation
from dictlab.errors import DictlabError
from dictlab.model.block_parts import attention_of
from dictlab.model.hooked_transformer import HookedTransformerModel
from dictlab.model.hooks import HookPoint, hook
from dictlab.model.language_model import LanguageModel

CENTRED = re.compile(r"blocks\.\d+\.hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)")
SHIFTED = re.compile(r"blocks\.(\d+)\.attn\.hook_z")
SAME = re.compile(r"blocks\.\d+\.mlp\.hook_post")


def adapted(dictionary: Dictionary, model: LanguageModel) -> Dictionary:
    """The dictionary for use on the activations of a Hugging Face model, with the codes that it has in its own world.

    A reconstruction is one of the unprocessed activation: what the processing took away is given back.

    Raises:
        DictlabError: The dictionary was trained on processed activations of a site where the difference is not known,
            or its input normalisation does not allow to express it.
    """
    convention = dictionary.metadata.convention
    if isinstance(model, HookedTransformerModel) and (model.centred or convention != "transformer_lens"):
        return _on_hooked_transformer(dictionary, model)
    if convention in (None, "huggingface"):
        return dictionary
    if convention != "transformer_lens":
        raise DictlabError(
            f"{dictionary.name} reads the activations of {convention[:40]!r}; "
            "known are huggingface and transformer_lens."
        )
    if not dictionary.plain:
        raise DictlabError(
            f"{dictionary.name} is a {'transcoder' if dictionary.transcodes else 'dictionary with a linear skip'} of a "
            "model that TransformerLens has processed; how its output differs from that on the Hugging Face model is "
            "not known here. Give a HookedTransformer that is processed likewise."
        )
    stated = dictionary.metadata.site or ""
    try:
        site = model.canonical_site(stated) if stated else ""
    except DictlabError as error:  # TransformerLens has sites that the model of Hugging Face has not
        raise _unknown_site(dictionary) from error
    if CENTRED.fullmatch(site):
        moved = _centred(dictionary) if _centres(model) else dictionary
    elif shifted := SHIFTED.fullmatch(site):
        moved = _shifted(dictionary, _value_bias(model, int(shifted[1])))
    elif SAME.fullmatch(site):
        moved = dictionary
    else:
        raise _unknown_site(dictionary)
    return replace(moved, metadata=replace(moved.metadata, convention="huggingface"))


def _unknown_site(dictionary: Dictionary) -> DictlabError:
    return DictlabError(
        f"{dictionary.name} was trained on a TransformerLens model at {dictionary.metadata.site or 'an unnamed site'}; "
        "how activations there differ from the Hugging Face model's is known for hook_resid_*, hook_attn_out, "
        "hook_mlp_out, attn.hook_z and mlp.hook_post only."
    )


def _on_hooked_transformer(dictionary: Dictionary, model: HookedTransformerModel) -> Dictionary:
    """The dictionary as it is, where the model is processed as the dictionary's was.

    Raises:
        DictlabError: The dictionary reads the activations of the unprocessed model.
    """
    if model.centred and dictionary.metadata.convention == "huggingface":
        raise DictlabError(
            f"{dictionary.name} reads the activations of {dictionary.metadata.model or 'a model'} as they are; this "
            "HookedTransformer is processed (its residual stream has no mean). Open it with "
            "HookedTransformer.from_pretrained_no_processing."
        )
    return dictionary


@torch.no_grad()
def _centres(model: LanguageModel) -> bool:
    """Whether the model reads its residual stream through a layer norm, which takes means away: the norm is asked."""
    if isinstance(model, HookedTransformerModel):
        return model.layer_norm
    norm, entered = _norm_before(model, 0, _attention(model, 0)), []
    with hook(HookPoint(0, "module", norm, "in"), lambda x: entered.append(x)):
        model.forward(torch.zeros(1, 1, dtype=torch.long))
    x = entered[0].float() + torch.arange(entered[0].shape[-1], device=entered[0].device) % 7  # never constant
    plain, moved = (norm(y.to(entered[0].dtype)).float() for y in (x, x + x.std()))
    return torch.allclose(plain, moved, rtol=1e-2, atol=1e-2 * float(plain.abs().max()))


def _attention(model: LanguageModel, block: int) -> nn.Module:
    return attention_of(model.blocks[block])


def _centred(dictionary: Dictionary) -> Dictionary:
    plain = dictionary.in_input_units()
    if isinstance(plain.normalisation, LayerNorm | Centred):  # both centre already, and give the mean back
        return plain
    return replace(plain, normalisation=Centred(plain.normalisation))


def _shifted(dictionary: Dictionary, shift: Float[Tensor, " d_in"]) -> Dictionary:
    """Reads x - shift, and gives the shift back: both biases move by it."""
    plain = dictionary.in_input_units()
    if not shift.any():
        return plain
    if plain.normalisation != NoNormalisation():
        raise DictlabError(
            f"{dictionary.name}: its input normalisation ({plain.normalisation.kind}) is applied after the value bias "
            "is taken away, which cannot be expressed. Use it on activations from TransformerLens."
        )
    shift = shift.to(plain.b_pre)
    return replace(plain, b_pre=plain.b_pre + shift, b_out=plain.b_out + shift)


@torch.no_grad()
def _value_bias(model: LanguageModel, block: int) -> Float[Tensor, " d_in"]:
    """V(0): what the heads give where the layer norm before attention gives nothing but its bias.

    For a single token a head's output is its value, whatever the layout of the weights, so the model is asked.
    """
    attention = _attention(model, block)
    norm = _norm_before(model, block, attention)
    bias = getattr(norm, "bias", None)
    site, caught = model.locate(f"blocks.{block}.attn.hook_z"), []
    entering = HookPoint(block, "module", attention, "in")

    def only_bias(x: Tensor) -> Tensor:
        return torch.zeros_like(x) if bias is None else bias.expand_as(x).to(x.dtype)

    with hook(entering, only_bias), hook(site, lambda x: caught.append(x)):
        model.forward(torch.zeros(1, 1, dtype=torch.long))
    return caught[0].flatten().float()


def _norm_before(model: LanguageModel, block: int, attention: nn.Module) -> nn.Module:
    """The module of the block whose output attention reads."""
    given: list[Tensor] = []
    outputs: list[tuple[nn.Module, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda m, _, out: outputs.append((m, out)) if isinstance(out, Tensor) else None)
        for module in model.blocks[block].modules()
    ]
    try:
        with torch.no_grad(), hook(HookPoint(block, "module", attention, "in"), lambda x: given.append(x)):
            model.forward(torch.zeros(1, 1, dtype=torch.long))
    finally:
        for handle in handles:
            handle.remove()
    norm = next((module for module, out in outputs if out is given[0]), None)
    if norm is None:
        raise DictlabError(
            f"{model.name}: what attention reads in block {block} is no norm's output, so how TransformerLens "
            "processes the model is unknown."
        )
    return norm
