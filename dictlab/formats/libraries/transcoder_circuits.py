"""Transcoders of jacobdunefsky/transcoder_circuits (Dunefsky et al. 2024), read only: the state dict alone.

    f = max((x - b_dec) W_enc + b_enc, 0)      y_hat = f W_dec + b_dec_out

W_enc is [d_in, n_latents], W_dec [n_latents, d_out]; b_dec is of the input here, b_dec_out of the output. Released
files keep the state dict beside a pickled object `cfg`, which is not unpickled here: save `{"state_dict": ...}` of one
anew. They were trained on GPT-2 as TransformerLens processes it, from `ln2.hook_normalized` to `hook_mlp_out`; the
layer is nowhere but in that object. Source: commit 8721ff0; not checked against released files.
"""

from __future__ import annotations

from dictlab.dictionary import Dictionary, Metadata
from dictlab.dictionary.activation_functions import ReLU
from dictlab.formats.libraries.fields import refuse_extras, refuse_unknown, shaped
from dictlab.formats.reading.source import Source

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "b_dec_out")
NO_SITES = (
    "no file says of which layer it is; dictlab convert writes that down: site blocks.L.ln2.hook_normalized, writes "
    "blocks.L.hook_mlp_out."
)


def recognise(source: Source) -> bool:
    """Whether there is a decoder's bias of each end."""
    return source.has(*TENSORS)


def read(source: Source) -> Dictionary:
    """The transcoder in a state dict.

    Raises:
        DictlabError: A tensor is missing, unknown or of another shape.
    """
    refuse_extras(source)
    refuse_unknown(source.tensors, TENSORS, "the tensor", source.ignore)
    tensors = source.tensors
    d_in, n_latents = shaped(tensors, "W_enc", None, None).shape
    (d_out,) = shaped(tensors, "b_dec_out", None).shape
    return Dictionary(
        W_enc=tensors["W_enc"],
        b_enc=shaped(tensors, "b_enc", n_latents),
        W_dec=shaped(tensors, "W_dec", n_latents, d_out),
        b_pre=shaped(tensors, "b_dec", d_in),
        b_out=tensors["b_dec_out"],
        activation=ReLU(),
        transcodes=True,
        metadata=Metadata(
            objective="local",
            library="transcoder_circuits",
            convention="transformer_lens",
            notes=(NO_SITES,),
        ),
    )
