"""GGUF models: what a file's key-values and tensors mean, after llama.cpp's conventions."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hotset.architectures.row import Architecture, Windows
from hotset.architectures.table import ARCHITECTURES
from hotset.core.config import Activation, LayerConfig, ModelConfig, NormKind, RopeConfig
from hotset.core.errors import CheckpointError
from hotset.core.heads import QueryGrowth
from hotset.formats import by_layer, delta_net, recurrent
from hotset.formats import latent as latent_attention
from hotset.formats.checkpoint import Checkpoint, without_images, without_predictions
from hotset.formats.experts import (
    add_even_switches,
    add_gate_up,
    dense_layers,
    experts_from_gguf,
    refuse_single_experts,
)
from hotset.formats.ffn_plan import plan_notes, read_plans
from hotset.formats.gguf_file import GGUFFile, Metadata, read_gguf
from hotset.formats.keys import REQUIRED, Keys
from hotset.formats.layers import layer_configs
from hotset.formats.overrides import Overrides, check_overrides, override_metadata
from hotset.formats.rope import (
    F32,
    ROPE_FACTORS,
    plain_frequencies,
    read_factors,
    rope,
    rope_from_gguf,
    rotated,
)
from hotset.formats.scales import with_scales
from hotset.formats.tensor import Tensor
from hotset.formats.tensor_table import Sizes, TensorTable, check_layer_count, split_name

# Keys that change the computation in ways that Hotset does not run, with their neutral value.
_NEUTRAL: Mapping[str, Any] = {
    "attn_logit_softcapping": 0,
    "final_logit_softcapping": 0,
    "attention.max_alibi_bias": 0,
    "attention.clamp_kqv": 0,
    "attention.causal": True,
    "logit_scale": 0,
    "residual_scale": 0,
    "embedding_scale": 0,
}
_MULTIPLIERS = ("logit_scale", "residual_scale", "embedding_scale")
_PERIODIC = (Windows.PATTERN, Windows.FIRST_FULL)
_NO_TEXT = ("v.", "mm.", "a.")  # tensors that Ollama puts into a model's one file


def open_gguf(path: Path, overrides: Overrides | None = None) -> Checkpoint:
    """Open a GGUF file, or all parts of a split one, these `overrides` in place of its metadata.

    Raises `CheckpointError` for what cannot be read, and for what changes a model in unknown ways.
    """
    file = read_gguf(path)
    override_metadata(file.metadata, overrides or {})
    architecture, keys = _architecture(file, path)
    check_overrides(overrides or {}, keys.name("").removesuffix("."))  # which may be an alias
    able = architecture.soft_caps + (_MULTIPLIERS if architecture.multipliers else ())
    able += ("logit_scale",) if architecture.logit_factor else ()
    keys.require({key: neutral for key, neutral in _NEUTRAL.items() if key not in able})
    tensors = {name: tensor for name, tensor in file.tensors.items() if not name.startswith(_NO_TEXT)}
    notes = [*_name_pre_tokenizer(file.metadata, architecture)]
    if left_out := len(file.tensors) - len(tensors):
        notes.append(without_images(left_out))
    tensors = with_scales(str(path), tensors, architecture.gguf_names)
    factors = read_factors(path, tensors)
    refuse_single_experts(path, tensors)
    sizes = _sizes(keys, architecture, tensors, path)
    predicting = {name for name in tensors if _predicts(name, sizes.layers, keys)}
    if predicting:
        tensors = {name: tensor for name, tensor in tensors.items() if name not in predicting}
        notes.append(without_predictions(len(predicting)))
    table = _table(path, tensors, sizes, architecture)
    add_even_switches(table, architecture, sizes)
    table.check(architecture, sizes)
    _check_vocabulary(file, path, sizes)
    activation = _activation(file, path, architecture)
    by_layer.check_factors(str(path), table, sizes.layers)
    plans = read_plans(file, path, activation, table, sizes.layers)
    notes += plan_notes(file, plans)
    layers = by_layer.with_scales(_layers(keys, architecture, sizes, factors), table)
    layers = tuple(replace(layer, ffn=plan) for layer, plan in zip(layers, plans, strict=True))
    config = _config(file, keys, architecture, sizes, layers, activation)
    return Checkpoint(path, config, table, file.metadata, tuple(notes))


def _config(
    file: GGUFFile,
    keys: Keys,
    architecture: Architecture,
    sizes: Sizes,
    layers: tuple[LayerConfig, ...],
    activation: Activation,
) -> ModelConfig:
    context = keys.integer("context_length")
    if file.powerinfer and context == sizes.positions:  # its OPT files count the rows before position 0, too
        context -= architecture.position_offset
    position_offset = sizes.positions - context if sizes.positions else 0
    if position_offset not in (0, architecture.position_offset):
        raise keys.refuse(
            "context_length", f"{sizes.positions} as in position_embd.weight, or 2 less", context
        )
    return ModelConfig(
        architecture=architecture.name,
        vocab_size=sizes.vocab,
        context_length=context,
        hidden_size=sizes.hidden,
        ffn_size=sizes.ffn,
        n_heads=sizes.heads,
        n_kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        layers=layers,
        activation=activation,
        gated=architecture.gated,
        norm=_norm_kind(keys, architecture),
        norm_eps=_norm_eps(keys, architecture, file),
        parallel=architecture.parallel,
        attention_scale=_attention_scale(keys, architecture, sizes),
        embedding_scale=_embedding_scale(keys, architecture, sizes),
        gated_attention=architecture.gated_attention,
        position_offset=position_offset,
        residual_scale=_multiplier(keys, architecture, "residual_scale"),
        logit_scale=_logit_scale(keys, architecture),
        logit_soft_cap=_soft_cap(keys, architecture, "final_logit_softcapping"),
        attention_soft_cap=_soft_cap(keys, architecture, "attn_logit_softcapping"),
        query_growth=_query_growth(keys, architecture, context),
        value_norm=architecture.value_norm,
        layer_input=sizes.layer_input,
        latent=sizes.latent,
    )


def _check_vocabulary(file: GGUFFile, path: Path, sizes: Sizes) -> None:
    if "tokenizer.ggml.tokens" not in file.metadata:
        return
    tokens = file.metadata.length("tokenizer.ggml.tokens")
    if tokens > sizes.vocab:
        raise CheckpointError(
            f"{path}: the vocabulary has {tokens} tokens, token_embd.weight only {sizes.vocab}"
        )


def _architecture(file: GGUFFile, path: Path) -> tuple[Architecture, Keys]:
    keys = Keys(file.metadata, str(path))
    kind = keys.text("general.type", "model")
    if kind != "model":
        raise keys.refuse("general.type", "model", kind)
    name = keys.text("general.architecture")
    mixture = bool(Keys(file.metadata, str(path), prefix=f"{name}.").integer("expert_count", 0, low=0))
    named = [row for row in ARCHITECTURES if name in (row.name, *row.gguf_aliases)]
    for architecture in named:
        if mixture == bool(architecture.experts) or len(named) == 1:
            layers = file.metadata.get(f"{name}.block_count")
            own = architecture.gguf_depth_defaults.get(layers, {}) if isinstance(layers, int) else {}
            defaults = {**architecture.gguf_defaults, **own}
            prefix, also = f"{name}.", architecture.gguf_also
            return architecture, Keys(file.metadata, str(path), prefix=prefix, also=also, defaults=defaults)
    known = ", ".join(dict.fromkeys(architecture.name for architecture in ARCHITECTURES))
    raise keys.refuse("general.architecture", f"one of {known}", name)


def _name_pre_tokenizer(metadata: Metadata, architecture: Architecture) -> list[str]:
    """Put in the key that byte-level files from before spring 2024 lack; a note, if that is a guess."""
    model = metadata.get("tokenizer.ggml.model")
    stated = metadata.get("tokenizer.ggml.pre")
    if (
        isinstance(model, str)
        and model in architecture.gguf_tokenizer
        and "tokenizer.ggml.merges" in metadata
    ):
        metadata.change("tokenizer.ggml.model", architecture.gguf_tokenizer[model])
    if isinstance(stated, str) and stated in architecture.gguf_pre:
        metadata.change("tokenizer.ggml.pre", architecture.gguf_pre[stated])
    if "tokenizer.ggml.pre" in metadata or not isinstance(model, str) or model != "gpt2":
        return []
    tokens = metadata.get("tokenizer.ggml.tokens")
    for token, name in architecture.default_pre.items():
        if not token or (isinstance(tokens, list) and token in tokens):
            metadata.change("tokenizer.ggml.pre", name)
            return []
    metadata.change("tokenizer.ggml.pre", "default")
    return [
        "the file does not say how its tokenizer cuts text into words (tokenizer.ggml.pre): default is taken "
        "and may make answers worse; if you know the name, add --override tokenizer.ggml.pre=NAME"
    ]


def _sizes(keys: Keys, architecture: Architecture, tensors: Mapping[str, Tensor], path: Path) -> Sizes:
    hidden = keys.integer("embedding_length")
    heads = by_layer.most_heads(keys) if architecture.by_layer else keys.integer("attention.head_count")
    latent = latent_attention.from_gguf(keys, architecture)
    head_dim = latent.kept if latent else _head_dim(keys, architecture, tensors, hidden, heads)
    layers = check_layer_count(keys, "block_count", len(tensors))
    if (further := keys.integer("nextn_predict_layers", 0, low=0)) >= layers:
        raise keys.refuse("nextn_predict_layers", f"less than the {layers} blocks", further)
    layers -= further
    kinds = recurrent.from_gguf(keys, architecture, layers)
    dense = dense_layers(keys, "leading_dense_block_count", architecture, layers)
    plain = dense or not architecture.experts
    own: tuple[by_layer.LayerSizes, ...] = ()
    if architecture.by_layer:
        own = by_layer.from_gguf(keys, _sliding(keys, architecture, layers), tensors)
        by_layer.check(str(path), own)
    sizes = Sizes(
        vocab=_rows("token_embd.weight", tensors, path),
        hidden=hidden,
        ffn=own[0].ffn if own else _ffn_size(keys) if plain else 0,
        heads=heads,
        kv_heads=own[0].heads.n_kv_heads if own else 1 if latent else recurrent.kv_heads(keys, heads, kinds),
        head_dim=head_dim,
        layers=layers,
        positions=_rows("position_embd.weight", tensors, path)
        if "position_embd" in architecture.tensors
        else 0,
        experts=experts_from_gguf(keys, architecture, tensors, kinds.first_ffn(dense)),
        dense_layers=dense,
        kinds=kinds,
        own=own,
        beside=bool(architecture.experts and architecture.experts.beside),
        layer_input=by_layer.layer_input(keys, "embedding_length_per_layer_input", architecture),
        latent=latent,
    )
    sizes.check_heads(keys, "attention.head_count_kv")
    return sizes


def _head_dim(
    keys: Keys, architecture: Architecture, tensors: Mapping[str, Tensor], hidden: int, heads: int
) -> int:
    # Its norm tells a head's size where no key does (Ollama's Gemma 3).
    norm = None if "attn_q_norm" in architecture.shapes else tensors.get("blk.0.attn_q_norm.weight")
    if norm is None and keys.get("attention.key_length") is None and hidden % heads:
        raise keys.refuse("attention.head_count", f"a divisor of embedding_length {hidden}", heads)
    head_dim = keys.integer("attention.key_length", norm.shape[0] if norm else hidden // heads)
    if (value_dim := keys.integer("attention.value_length", head_dim)) != head_dim:  # of full layers
        raise keys.refuse("attention.value_length", f"{head_dim} like the key's", value_dim)
    return head_dim


def _predicts(name: str, layers: int, keys: Keys) -> bool:
    """Whether a tensor belongs to a block that predicts further tokens (multi-token prediction)."""
    layer, _ = split_name(name)
    further = keys.integer("nextn_predict_layers", 0, low=0)
    return name.startswith("mtp.") or (layer is not None and layers <= layer < layers + further)


def _rows(name: str, tensors: Mapping[str, Tensor], path: Path) -> int:
    if name not in tensors:
        raise CheckpointError(f"{path}: tensor {name} is missing: the file is incomplete")
    return tensors[name].shape[0]


def _table(
    path: Path, tensors: Mapping[str, Tensor], sizes: Sizes, architecture: Architecture
) -> TensorTable:
    table = TensorTable(str(path))
    fused, gate_up = (
        {
            f"blk.{layer}.{part}.{suffix}": (layer, suffix)
            for layer in range(sizes.layers)
            for suffix in ("weight", "bias")
        }
        for part in ("attn_qkv", "ffn_gate_up_exps")
    )
    for name, tensor in tensors.items():
        layer, rest = split_name(name)
        if layer is not None and sizes.own and rest.partition(".")[0] in sizes.own[layer].lacking:
            continue  # a layer that reads another's keys and values has no use for its own
        part, _, suffix = rest.partition(".")
        if layer is not None and part == "ffn_up" and _fused(architecture, layer, tensors):
            table.add_gate_up(layer, suffix, tensor, sizes)
        elif own := _own_name(architecture, rest):
            table.add(own if layer is None else f"blk.{layer}.{own}", tensor)
        elif name.endswith(".ffn_down_t.bias"):  # PowerInfer's name
            table.add(name.replace("ffn_down_t", "ffn_down"), tensor)
        elif delta_net.add_from_gguf(table, name, tensor, sizes.kinds.recurrent):
            pass
        elif name in fused and not sizes.kinds.recurrent:
            table.add_fused(*fused[name], tensor, sizes, grouped=False)
        elif layer is not None and part == latent_attention.FUSED and suffix == "weight" and sizes.latent:
            latent_attention.add_fused(table, layer, tensor, sizes)
        elif name in gate_up and sizes.experts:
            add_gate_up(table, *gate_up[name], tensor, sizes, transposed=False)
        else:
            table.add(name, tensor)
    return table


def _own_name(architecture: Architecture, name: str) -> str | None:
    """Our name of a tensor that GGUF calls otherwise; None: it is not such."""
    names = architecture.gguf_names
    if (whole := name.removesuffix(".weight")) in names:
        return f"{names[whole]}.weight"
    part, _, suffix = name.partition(".")
    return f"{names[part]}.{suffix or 'weight'}" if part in names else None


def _fused(architecture: Architecture, layer: int, tensors: Mapping[str, Tensor]) -> bool:
    """Whether ``ffn_up`` has gate's rows first."""
    return architecture.fused_gate_up and f"blk.{layer}.ffn_gate.weight" not in tensors


def _ffn_size(keys: Keys) -> int:
    """The FFNs' neurons; where files tell each layer's, those without have 0."""
    stated = keys.get("feed_forward_length")
    if isinstance(stated, np.ndarray) and len(own := np.unique(stated[stated != 0])) == 1:
        return int(own[0])
    return keys.integer("feed_forward_length")


def _activation(file: GGUFFile, path: Path, architecture: Architecture) -> Activation:
    keys = Keys(file.metadata, str(path))
    usual = architecture.activation
    if file.powerinfer and usual is not Activation.DRELU:
        usual = Activation.RELU  # its models are, whatever the architecture's others have
    name = keys.text("hotset.activation", usual.value)
    known = [a.value for a in Activation if architecture.gated or not a.gated_only]
    if name not in known:
        raise keys.refuse("hotset.activation", "one of " + ", ".join(known), name)
    return Activation(name)


def _norm_kind(keys: Keys, architecture: Architecture) -> NormKind:
    stated = keys.get("attention.layer_norm_rms_epsilon") is not None
    return NormKind.RMS if architecture.rms_where_stated and stated else architecture.norm


def _norm_eps(keys: Keys, architecture: Architecture, file: GGUFFile) -> float:
    kind = "rms_" if _norm_kind(keys, architecture) is NormKind.RMS else ""
    if architecture.mamba and keys.get("attention.layer_norm_rms_epsilon") is None:
        kind = ""
    # PowerInfer's OPT files do not say it.
    usual = architecture.hf_defaults.get("norm_eps", REQUIRED) if file.powerinfer else REQUIRED
    return keys.number(f"attention.layer_norm_{kind}epsilon", usual, high=1.0)


def _attention_scale(keys: Keys, architecture: Architecture, sizes: Sizes) -> float:
    if sizes.latent:
        return latent_attention.scale_from_gguf(keys, sizes.latent)
    scale = keys.number("attention.scale", 0.0, high=1e6)
    if not scale and sizes.layers == architecture.gguf_hidden_scaled_depth:
        scale = (sizes.hidden / sizes.heads) ** -0.5
    return scale or architecture.attention_scale


def _multiplier(keys: Keys, architecture: Architecture, key: str) -> float:
    return (keys.number(key, 1.0, high=1e6) or 1.0) if architecture.multipliers else 1.0


def _logit_scale(keys: Keys, architecture: Architecture) -> float:
    if architecture.logit_factor:
        return keys.number("logit_scale", 0.0, high=1e6) or 1.0
    return 1 / _multiplier(keys, architecture, "logit_scale")


def _embedding_scale(keys: Keys, architecture: Architecture, sizes: Sizes) -> float:
    if architecture.embedding_scaled:
        return float(sizes.hidden**0.5)
    return _multiplier(keys, architecture, "embedding_scale")


def _soft_cap(keys: Keys, architecture: Architecture, key: str) -> float:
    return keys.number(key, 0.0, high=1e6) if key in architecture.soft_caps else 0.0


def _query_growth(keys: Keys, architecture: Architecture, context: int) -> QueryGrowth | None:
    factor = keys.number("attention.temperature_scale", 0.0, high=1e3)
    if not factor:
        return None
    if not architecture.growing_queries:
        raise keys.refuse("attention.temperature_scale", "0", factor)
    return QueryGrowth(factor, keys.integer("rope.scaling.original_context_length", context))


def _layers(
    keys: Keys, architecture: Architecture, sizes: Sizes, factors: tuple[F32, ...]
) -> tuple[LayerConfig, ...]:
    return layer_configs(
        architecture,
        sizes,
        _ropes(keys, architecture, sizes, factors),
        keys.integer("attention.sliding_window", 0, low=0),
        _sliding(keys, architecture, sizes.layers),
        rotated(architecture.rope_period, sizes.layers),
    )


def _sliding(keys: Keys, architecture: Architecture, layers: int) -> list[bool]:
    """Which layers attend to a window: as stated for each, or all but every so many-th (0: all)."""
    key = "attention.sliding_window_pattern"
    usual = architecture.window_period if architecture.windows in _PERIODIC else 0
    pattern = keys.get(key, usual)
    if isinstance(pattern, np.ndarray):
        if pattern.shape != (layers,) or not np.isin(pattern, (0, 1)).all():
            raise keys.refuse(key, f"true or false for each of {layers} layers, or a number", pattern)
        return [bool(windowed) for windowed in pattern]
    period = keys.integer(key, usual, low=0)
    whole = 0 if architecture.windows is Windows.FIRST_FULL else period - 1
    return [period == 0 or layer % period != whole for layer in range(layers)]


def _ropes(
    keys: Keys, architecture: Architecture, sizes: Sizes, factors: tuple[F32, ...]
) -> tuple[RopeConfig, RopeConfig] | tuple[None, None]:
    """RoPE of fully attending layers and of windowed ones."""
    if not architecture.rotary:
        return None, None
    if architecture.multipliers:
        keys.require({"rope.scaling.finetuned": True})  # else attention is told no positions
    dim = keys.integer("rope.dimension_count", sizes.rope_dim, low=2, high=max(sizes.rope_dim, 2))
    if dim % 2:
        raise keys.refuse("rope.dimension_count", "an even number", dim)
    for own in factors:
        if own.shape != (dim // 2,):
            raise keys.refuse("rope.dimension_count", f"{2 * len(own)} as in {ROPE_FACTORS}", dim)
    theta = keys.number("rope.freq_base", 1e4, low=1.001, high=1e12)
    interleaved = architecture.gguf_rope_interleaved
    context = keys.integer("context_length")
    full = rope_from_gguf(
        keys,
        dim,
        interleaved=interleaved,
        theta=theta,
        context=context,
        factors=factors,
        rounded=architecture.yarn_rounded,
        scored=architecture.latent,
    )
    if architecture.local_rope_theta is None and not architecture.local_rope_plain:
        return full, full
    usual = architecture.local_rope_theta or theta
    local_theta = keys.number("rope.freq_base_swa", usual, low=1.001, high=1e12)
    if sizes.own:  # windowed layers' heads have a size of their own
        size = keys.integer("attention.key_length_swa", sizes.head_dim)
        dim = keys.integer("rope.dimension_count_swa", size, low=2, high=max(size, 2))
        if dim % 2:
            raise keys.refuse("rope.dimension_count_swa", "an even number", dim)
    return full, rope(dim, interleaved, plain_frequencies(local_theta, dim))
