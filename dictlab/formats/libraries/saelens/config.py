"""What does a configuration of SAELens say about the function?

Since version 6, cfg.json holds what the function depends on at the top, and where it comes from under `metadata`.
Before, all of it lay side by side, in the first versions together with every setting of the training run; names changed
on the way. A field that is not understood is refused, since it may change what the dictionary computes.
Layouts: sae_lens 6.54.12 (`saes/*.py`, `loading/pretrained_sae_loaders.py`), and the fields of versions 0 to 5.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dictlab.dictionary.activation_records import whole
from dictlab.errors import DictlabError
from dictlab.formats.libraries.defaults import SAELENS, default, numbers
from dictlab.formats.libraries.fields import refuse_unknown, short

RENAMED = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
BY_TENSORS = ("standard", "gated", "jumprelu")
BY_K = ("topk", "abstopk")
BATCHTOPK = ("batchtopk", "matryoshka_batchtopk")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
ARCHITECTURES = (*BY_TENSORS, *BY_K, *BATCHTOPK, *TRANSCODERS)
REFUSED = {
    "temporal": "what it makes of a token depends on the tokens before it",
    "matching_pursuit": "it chooses latents one after another, and has no encoder",
}
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in")
DTYPES = ("float64", "float32", "float16", "bfloat16")
# Fields of all versions that decide about the function.
DECIDING = """
    architecture d_in d_sae k rescale_acts_by_decoder_norm apply_b_dec_to_input normalize_activations
    reshape_activations hook_head_index activation_fn activation_fn_kwargs finetuning_scaling_factor dtype metadata
"""
# Fields of all versions that do not: what it was trained on, how, and what was logged.
HARMLESS = """
    model_name model_class_name model_kwargs model_from_pretrained_kwargs hook_name hook_layer hook_eval hook_point_eval
    hf_hook_name context_size prepend_bos seqpos_slice exclude_special_tokens dataset_path dataset_trust_remote_code
    streaming is_dataset_tokenized use_chat_formatting sequence_separator_token disable_concat_sequences neuronpedia_id
    sae_lens_version sae_lens_training_version device seed
    l1_coefficient lp_norm l1_warm_up_steps l0_coefficient l0_warm_up_steps jumprelu_init_threshold jumprelu_bandwidth
    jumprelu_sparsity_loss_mode jumprelu_tanh_scale jumprelu_ste_to_input pre_act_loss_coefficient target_l0
    use_sparse_activations aux_loss_coefficient topk_threshold_lr matryoshka_widths use_matryoshka_aux_loss
    decoder_init_norm decoder_orthogonal_init decoder_heuristic_init decoder_heuristic_init_norm b_dec_init_method
    init_encoder_as_decoder_transpose normalize_sae_decoder noise_scale noise_sigma mse_loss_normalization
    scale_sparsity_penalty_by_decoder_norm use_ghost_grads expansion_factor from_pretrained_path finetuning_method
    finetuning_tokens training_tokens total_training_tokens total_training_steps n_batches_in_buffer store_batch_size
    store_batch_size_prompts train_batch_size train_batch_size_tokens tokens_per_buffer activations_mixing_fraction
    use_cached_activations cached_activations_path n_batches_for_norm_estimate act_store_device llm_device
    prefetch_llm_batches autocast autocast_lm compile_llm llm_compilation_mode compile_sae sae_compilation_mode
    lr lr_scheduler_name lr_warm_up_steps lr_end lr_decay_steps n_restart_cycles adam_beta1 adam_beta2
    feature_sampling_window feature_sampling_method feature_reinit_scale resample_batches dead_feature_window
    dead_feature_threshold dead_feature_estimation_method n_eval_batches eval_batch_size_prompts
    log_to_wandb log_activations_store_to_wandb log_optimizer_state_to_wandb wandb_project wandb_id wandb_entity
    wandb_log_frequency eval_every_n_wandb_logs run_name logger resume resume_from_checkpoint n_checkpoints
    checkpoint_path output_path save_final_checkpoint verbose
"""
KNOWN = frozenset((DECIDING + HARMLESS).split())


class Meaning(NamedTuple):
    """What the function depends on.

    Attributes:
        architecture: One of `ARCHITECTURES`.
        d_in: Width of the activations.
        n_latents: Number of latents.
        k: Latents kept for each token, where a number decides.
        rescaled: Codes are in units of decoder directions of length 1, whatever length the rows of W_dec have.
        pre_bias: The decoder's bias is subtracted before the encoder.
        normalisation: One of `NORMALISATIONS`.
        finetuned: Codes are multiplied by a factor for each latent before they are decoded.
        d_out: Width of the activations that a transcoder writes; `d_in` of all others.
    """

    architecture: str
    d_in: int
    n_latents: int
    k: int | None
    rescaled: bool
    pre_bias: bool
    normalisation: str
    finetuned: bool
    d_out: int

    @property
    def transcodes(self) -> bool:
        return self.architecture in TRANSCODERS

    @property
    def skip(self) -> bool:
        """Whether a linear map of the input is added to the output."""
        return "skip" in self.architecture

    @property
    def jumps(self) -> bool:
        """Whether each latent has a threshold."""
        return self.architecture.startswith("jumprelu")


def meaning(raw: dict[str, Any], ignore: tuple[str, ...] = ()) -> Meaning:
    """What a configuration says about the function.

    Raises:
        DictlabError: A field says something that is not understood, or that a dictionary cannot express.
    """
    config = renamed(raw)
    architecture = _architecture(config, nested="metadata" in config)
    transcodes = architecture in TRANSCODERS
    refuse_unknown(config, (*KNOWN, "d_out") if transcodes else KNOWN, "the configuration's field", ignore)
    if transcodes:
        _check_transcoder(config)
    heads = (origin_in(config).get(name) for name in ("hook_head_index", "hook_head_index_out"))
    head = next((head for head in heads if head is not None), None)
    if head is not None:
        raise DictlabError(
            f"hook_head_index is {short(head)}: it reads a single head, and a site here has all heads side by side; "
            "expected null."
        )
    if architecture in ("standard", "gated") and config.get("k") is not None:
        raise DictlabError(f"k is {short(config['k'])} with the architecture {architecture!r}; expected none.")
    _one_of(config, "reshape_activations", ("none", "hook_z"))
    if str(field_of(config, "dtype", str, default(SAELENS, "dtype"))).removeprefix("torch.") not in DTYPES:
        raise DictlabError(f"dtype is {short(config['dtype'])}; expected one of {', '.join(DTYPES)}.")
    return Meaning(
        architecture=architecture,
        d_in=whole(config.get("d_in"), "d_in"),
        n_latents=whole(config.get("d_sae"), "d_sae"),
        k=_k(config) if architecture in BY_K else None,
        rescaled=_rescaled(config, architecture),
        pre_bias=field_of(config, "apply_b_dec_to_input", bool, default(SAELENS, "apply_b_dec_to_input")),
        normalisation=_normalize_activations(config),
        finetuned=_finetuned(config),
        d_out=whole(config.get("d_out"), "d_out") if transcodes else whole(config.get("d_in"), "d_in"),
    )


def _check_transcoder(config: dict[str, Any]) -> None:
    """Refuse what SAELens' transcoders do not have, and what two sites would need two numbers for.

    Raises:
        DictlabError: It is named.
    """
    if field_of(config, "apply_b_dec_to_input", bool, default(SAELENS, "apply_b_dec_to_input")):
        raise DictlabError(
            "apply_b_dec_to_input is true (the default) with a transcoder, whose b_dec is a vector of the site that it "
            "writes; SAELens refuses it as well. Expected false."
        )
    if _one_of(config, "reshape_activations", ("none", "hook_z")) != "none":
        raise DictlabError(
            "reshape_activations is 'hook_z' with a transcoder, which does not reshape; expected 'none'."
        )
    if _normalize_activations(config) == "expected_average_only_in":
        raise DictlabError(
            "normalize_activations is 'expected_average_only_in' with a transcoder: one number cannot be the scale of "
            "both of its sites. Expected 'none', with the scales folded into the weights."
        )


def renamed(raw: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the names that fields have today."""
    return {RENAMED.get(name, name): value for name, value in raw.items()}


def origin_in(config: dict[str, Any]) -> dict[str, Any]:
    """Where it says what it was trained on."""
    origin: dict[str, Any] = field_of(config, "metadata", dict, config)
    return origin


def _architecture(config: dict[str, Any], nested: bool) -> str:
    """Before version 6, an architecture "standard" may have the activation function top-k."""
    architecture = config.get("architecture", default(SAELENS, "architecture", "6.0.0" if nested else None))
    if isinstance(architecture, str) and architecture in REFUSED:
        raise DictlabError(f"architecture is {architecture!r}, which is not supported: {REFUSED[architecture]}.")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise DictlabError(f"architecture is {short(architecture)}; known are {', '.join(ARCHITECTURES)}.")
    function = config.get("activation_fn") or default(SAELENS, "activation_fn")
    if function == "relu" and architecture != "topk":
        return architecture
    if function in ("topk", "relu") and (architecture == "topk" or (architecture == "standard" and not nested)):
        return "topk"
    raise DictlabError(
        f"activation_fn is {short(function)} with the architecture {architecture!r}; expected relu, or topk with the "
        "architecture 'standard' of SAELens before version 6, or 'topk'."
    )


def _k(config: dict[str, Any]) -> int:
    settings = config.get("activation_fn_kwargs") or {}
    if not isinstance(settings, dict) or settings.keys() - {"k"}:
        raise DictlabError(f"activation_fn_kwargs is {short(settings)}; expected nothing but k.")
    return whole(config.get("k", settings.get("k")), "k")


def written_by(config: dict[str, Any]) -> str | None:
    """The version of SAELens that wrote the file; None where it does not say."""
    version = origin_in(config).get("sae_lens_version")
    return version if isinstance(version, str) and numbers(version) else None


def _rescaled(config: dict[str, Any], architecture: str) -> bool:
    """Whether pre-activations are multiplied by the lengths of decoder rows: since version 6.14 a setting."""
    name = "rescale_acts_by_decoder_norm"
    of_class = f"{name} of batchtopk" if architecture in BATCHTOPK else name
    rescaled: bool = field_of(config, name, bool, default(SAELENS, of_class, written_by(config)))
    if rescaled and architecture in BY_TENSORS:
        raise DictlabError(
            f"rescale_acts_by_decoder_norm is true with the architecture {architecture!r}; expected none."
        )
    return rescaled


def _finetuned(config: dict[str, Any]) -> bool:
    """Whether codes are multiplied by the file's scaling factors: without a question before version 3.0."""
    version = written_by(config)
    missing = False if version is None else default(SAELENS, "finetuning_scaling_factor", version)
    finetuned: bool = field_of(config, "finetuning_scaling_factor", bool, missing)
    return finetuned


def _normalize_activations(config: dict[str, Any]) -> str:
    value = config.get("normalize_activations")
    if value is None or type(value) is bool:
        return "expected_average_only_in" if value else "none"
    if value == "covariance_whitening":
        raise DictlabError(
            "normalize_activations is 'covariance_whitening': its inputs were whitened, which is not supported. "
            "Expected a file into which the whitening is folded, as SAELens writes at the end of training."
        )
    return _one_of(config, "normalize_activations", NORMALISATIONS)


def field_of(config: dict[str, Any], name: str, kind: type, missing: Any) -> Any:
    """A field, which may be missing or null.

    Raises:
        DictlabError: It is of another type.
    """
    value = config.get(name)
    if value is None:
        return missing
    if type(value) is not kind:
        raise DictlabError(f"{name} is {short(value)}; expected a JSON {kind.__name__}.")
    return value


def _one_of(config: dict[str, Any], name: str, known: tuple[str, ...]) -> str:
    value = config.get(name, default(SAELENS, name))
    if not isinstance(value, str) or value not in known:
        raise DictlabError(f"{name} is {short(value)}; known are {', '.join(known)}.")
    return value
