"""Hugging Face directories: config.json and safetensors, whole or in shards."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.architectures.mamba import layer_kinds
from hotset.architectures.row import SOFT_CAPS, Architecture, Windows
from hotset.architectures.table import ARCHITECTURES
from hotset.core.config import Activation, LayerConfig, ModelConfig, NormKind, RopeConfig
from hotset.core.errors import CheckpointError
from hotset.core.heads import QueryGrowth
from hotset.formats import by_layer, recurrent
from hotset.formats import latent as latent_attention
from hotset.formats.checkpoint import Checkpoint, without_images, without_predictions
from hotset.formats.experts import add_even_switches, dense_layers, experts_from_config
from hotset.formats.huggingface_names import final_names, predicts, text_part
from hotset.formats.keys import Keys, shown
from hotset.formats.layers import layer_configs
from hotset.formats.mapped import read_bytes
from hotset.formats.mxfp4 import add_mxfp4
from hotset.formats.overrides import Overrides, override_config
from hotset.formats.rope import rope_from_config, rotated
from hotset.formats.safetensors import parse_json, read_safetensors
from hotset.formats.tensor import Tensor
from hotset.formats.tensor_table import Sizes, TensorTable, check_layer_count, split_name

# Keys of config.json that change the computation in ways that Hotset does not run, with their neutral value.
_NEUTRAL: Mapping[str, Any] = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "hidden_act_param": 0,  # FATReLU's threshold
}
# Keys that change the computation in families that have a default for them; others' files may carry them too.
_OF_SOME = frozenset(
    {
        *("query_pre_attn_scalar", "norm_topk_prob", "routed_scaling_factor"),
        *("n_group", "topk_group", "first_k_dense_replace"),
    }
)
_WHOLE_HEADS: Mapping[str, Any] = {"partial_rotary_factor": 1.0}
_NO_MIXTURE: Mapping[str, Any] = {"num_local_experts": None, "num_experts": None}
_ALSO = {"num_experts": "num_local_experts"}
_IGNORED_TENSORS = ("rotary_emb.inv_freq",)  # a buffer that old versions saved
_TIED = "tie_word_embeddings"


def open_huggingface(directory: Path, overrides: Overrides | None = None) -> Checkpoint:
    """Open a directory with config.json and model.safetensors or its index.

    `overrides` take the place of values in config.json. Of a multimodal model the text part is taken. Raises
    `CheckpointError` for what cannot be read, and for what changes a model in unknown ways.
    """
    raw, multimodal = _read_config(directory, overrides)
    architecture, keys = _keys(raw, directory / "config.json")
    packed: dict[str, NDArray[np.uint8]] | None = {} if _in_mxfp4(keys, architecture) else None
    files = _read_tensors(directory, packed)
    sizes = _sizes(str(directory / "config.json"), keys, architecture, len(files))
    notes = []
    if multimodal:
        text = text_part(files)
        if left_out := len(files) - len(text):
            notes.append(without_images(left_out))
        files = text
    further = keys.integer("num_nextn_predict_layers", 0, low=0)
    if predicting := {name for name in files if predicts(name, sizes.layers, further)}:
        files = {name: tensor for name, tensor in files.items() if name not in predicting}
        notes.append(without_predictions(len(predicting)))
    table, untied = final_names(directory, files, architecture, sizes, tied=keys.flag(_TIED))
    if packed:
        add_mxfp4(table, packed, sizes)
    if untied:
        notes.append(
            "config.json says tie_word_embeddings, but lm_head.weight is another matrix: that one is used"
        )
    add_even_switches(table, architecture, sizes)
    table.check(replace(architecture, maybe_biased=True), sizes)  # config.json says it, and is held to it
    _check_flags(keys, architecture, table)
    by_layer.check_factors(str(directory), table, sizes.layers)
    layers = by_layer.with_scales(_layers(keys, architecture, sizes), table)
    config = _config(keys, architecture, sizes, layers)
    return Checkpoint(directory, config, table, raw, tuple(notes))


def _config(
    keys: Keys, architecture: Architecture, sizes: Sizes, layers: tuple[LayerConfig, ...]
) -> ModelConfig:
    multipliers = _multipliers(keys, architecture)
    caps = [keys.number(key, 0.0, high=1e6) if key in architecture.soft_caps else 0.0 for key in SOFT_CAPS]
    return ModelConfig(
        architecture=architecture.name,
        vocab_size=sizes.vocab,
        context_length=_context(keys),
        hidden_size=sizes.hidden,
        ffn_size=sizes.ffn,
        n_heads=sizes.heads,
        n_kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        layers=layers,
        activation=_activation(keys, architecture),
        gated=architecture.gated,
        norm=NormKind.RMS
        if architecture.rms_where_stated and keys.get("rms_norm_eps") is not None
        else architecture.norm,
        norm_eps=keys.number("norm_eps", 1e-6, high=1.0),
        parallel=architecture.parallel,
        attention_scale=latent_attention.scale_from_config(_rope_table(keys, architecture), sizes.latent)
        if sizes.latent
        else _attention_scale(keys, architecture),
        embedding_scale=sizes.hidden**0.5 if architecture.embedding_scaled else multipliers[0],
        gated_attention=architecture.gated_attention,
        position_offset=architecture.position_offset,
        residual_scale=multipliers[1],
        logit_scale=keys.number("logit_scale", high=1e6) if architecture.logit_factor else 1 / multipliers[2],
        attention_soft_cap=caps[0],
        logit_soft_cap=caps[1],
        query_growth=_query_growth(keys, architecture),
        value_norm=architecture.value_norm,
        layer_input=sizes.layer_input,
        latent=sizes.latent,
    )


def _read_config(directory: Path, overrides: Overrides | None) -> tuple[dict[str, Any], bool]:
    """The text part of config.json, and whether there are other parts."""
    path = directory / "config.json"
    if not path.exists():
        models = sorted(file.name for file in directory.glob("*.gguf"))
        hint = f"; name the file to open {models[0]}" if models else ""
        raise CheckpointError(f"{directory}: expected a model's directory with config.json, found none{hint}")
    raw = parse_json(read_bytes(path), str(path))
    multimodal = isinstance(raw.get("text_config"), dict)
    if multimodal:
        text = raw.pop("text_config")
        tied = any(part.get(_TIED) is True for part in (raw, text))  # either may say so
        raw = {**raw, **text} | ({_TIED: True} if tied else {})
    override_config(raw, overrides or {})
    return raw, multimodal


def _keys(raw: Mapping[str, Any], path: Path) -> tuple[Architecture, Keys]:
    """The family's row, and config.json's values by Llama's names; refuses what changes the computation."""
    architecture = _architecture(raw, path)
    try:
        adapted = architecture.hf_adapt(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    foreign = _OF_SOME - architecture.hf_defaults.keys() - architecture.hf_required.keys()
    adapted = {key: value for key, value in adapted.items() if key not in foreign}
    names = {"norm_eps": "rms_norm_eps", **architecture.hf_keys}
    keys = Keys(adapted, str(path), names=names, also=_ALSO, defaults=architecture.hf_defaults)
    neutral = {key: value for key, value in _NEUTRAL.items() if key not in architecture.soft_caps}
    free = architecture.experts or architecture.by_layer
    keys.require(neutral if free else {**neutral, **_NO_MIXTURE})
    keys.require(architecture.hf_required)
    if not _turns_part(architecture):
        keys.require(_WHOLE_HEADS)
    return architecture, keys


def _turns_part(architecture: Architecture) -> bool:
    """Whether RoPE turns a share of each head, if config.json says so: other families' code turns all."""
    return "partial_rotary_factor" in architecture.hf_defaults


def _architecture(raw: Mapping[str, Any], path: Path) -> Architecture:
    model_type = raw.get("model_type")
    named = [row for row in ARCHITECTURES if model_type in row.model_types]
    mixture = "moe" in layer_kinds(raw) or bool(raw.get("enable_moe_block") or raw.get("num_local_experts"))
    if raw.get("position_embedding_type") == "rope":  # of Granite 4, attention alone
        named = [row for row in named if row.positions] or named
    for architecture in named:
        if len(named) == 1 or mixture == bool(architecture.experts):
            return architecture
    known = ", ".join(dict.fromkeys(name for row in ARCHITECTURES for name in row.model_types))
    raise CheckpointError(f"{path}: model_type: expected one of {known}; found {shown(model_type)}")


def _in_mxfp4(keys: Keys, architecture: Architecture) -> bool:
    """Whether the experts are in MXFP4; raises `CheckpointError` for other ways of storing weights."""
    stated = keys.get("quantization_config")
    if stated is None:
        return False
    method = stated.get("quant_method") if isinstance(stated, dict) else None
    if method != "mxfp4" or not (architecture.experts and architecture.experts.hf_transposed):
        raise keys.refuse(
            "quantization_config",
            "none, as of quantised directories only gpt-oss's (mxfp4) are read: take the model before it was "
            "quantised, or a GGUF file",
            stated,
        )
    return True


def _context(keys: Keys) -> int:
    return keys.integer("max_position_embeddings", 2048)


def _sizes(where: str, keys: Keys, architecture: Architecture, tensors: int) -> Sizes:
    hidden = keys.integer("hidden_size")
    heads = keys.integer("num_attention_heads")
    latent = latent_attention.from_config(keys, architecture)
    if not latent and keys.get("head_dim") is None and hidden % heads:
        raise keys.refuse("num_attention_heads", f"a divisor of hidden_size {hidden}", heads)
    layers = check_layer_count(keys, "num_hidden_layers", tensors)
    kinds = recurrent.from_config(keys, architecture, layers)
    dense = dense_layers(keys, "first_k_dense_replace", architecture, layers)
    own: tuple[by_layer.LayerSizes, ...] = ()
    if architecture.by_layer:
        own = by_layer.from_config(keys, _sliding(keys, architecture, layers))
        by_layer.check(where, own)
    sizes = Sizes(
        vocab=keys.integer("vocab_size"),
        hidden=hidden,
        ffn=keys.integer("intermediate_size") if dense or own or not architecture.experts else 0,
        heads=heads,
        kv_heads=1 if latent else keys.integer("num_key_value_heads", heads),
        head_dim=latent.kept if latent else keys.integer("head_dim", hidden // heads),
        layers=layers,
        positions=_context(keys) + architecture.position_offset,
        experts=experts_from_config(keys, architecture),
        dense_layers=dense,
        kinds=kinds,
        own=own,
        beside=bool(architecture.experts and architecture.experts.beside),
        layer_input=by_layer.layer_input(keys, "hidden_size_per_layer_input", architecture),
        latent=latent,
    )
    sizes.check_heads(keys, "num_key_value_heads")
    return sizes


def _activation(keys: Keys, architecture: Architecture) -> Activation:
    name = keys.text("hidden_act", architecture.activation.value)
    activation = architecture.activations.get(name)
    if activation is None or (activation.gated_only and not architecture.gated):
        raise keys.refuse("hidden_act", "one of " + ", ".join(architecture.activations), name)
    return activation


def _read_tensors(directory: Path, packed: dict[str, NDArray[np.uint8]] | None) -> dict[str, Tensor]:
    """Map all tensors of the directory by Hugging Face's names; those of bytes into `packed`, if given."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.exists() or not index.exists():
        if not single.exists():
            raise CheckpointError(
                f"{directory}: expected model.safetensors or model.safetensors.index.json beside config.json,"
                " found neither; other formats can be converted with transformers' save_pretrained"
            )
        return read_safetensors(single, _IGNORED_TENSORS, packed)
    weight_map = parse_json(read_bytes(index), str(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not all(map(_is_shard_name, weight_map.values())):
        raise CheckpointError(
            f"{index}: weight_map: expected tensor names and .safetensors files beside the index"
        )
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        found = read_safetensors(directory / shard, _IGNORED_TENSORS, packed)
        for name in found.keys() & tensors.keys():
            raise CheckpointError(f"{directory / shard}: tensor {shown(name)} is in another shard too")
        tensors |= found
        for name, place in weight_map.items():
            there = name in found or (packed is not None and name in packed)
            if place == shard and not there and not name.endswith(_IGNORED_TENSORS):
                raise CheckpointError(
                    f"{directory / shard}: tensor {shown(name)} is missing, which {index.name} names"
                )
    return tensors


def _is_shard_name(name: object) -> bool:
    if not isinstance(name, str) or not name.isprintable():
        return False
    return Path(name).name == name and name.endswith(".safetensors")


def _check_flags(keys: Keys, architecture: Architecture, table: TensorTable) -> None:
    """Hold the tensors that may be absent against what config.json says of them."""
    if not keys.flag(_TIED) and "output.weight" not in table:
        raise keys.refuse(_TIED, "true, as there is no lm_head.weight", False)
    there = {split_name(name)[1] for name in table}
    flags = {flag: [f"{part}.bias" for part in parts] for flag, parts in architecture.biases.items()}
    flags |= {flag: [tensor] for flag, tensor in architecture.hf_flags.items()}
    for flag, tensors in flags.items():
        expected = keys.flag(flag)
        if any((tensor in there) != expected for tensor in tensors):
            raise keys.refuse(flag, f"{not expected}, as the tensors have it".lower(), expected)


def _multipliers(keys: Keys, architecture: Architecture) -> list[float]:
    """Of embedding and residuals, and the logits' divisor."""
    names = ("embedding_multiplier", "residual_multiplier", "logits_scaling")
    if not architecture.multipliers:
        return [1.0] * len(names)
    return [keys.number(name, 1.0, low=1e-6, high=1e6) for name in names]


def _attention_scale(keys: Keys, architecture: Architecture) -> float:
    if architecture.multipliers:
        return keys.number("attention_multiplier", 1.0, low=1e-6, high=1e6)
    query_scalar = keys.number("query_pre_attn_scalar", 0.0, high=1e6)
    return query_scalar**-0.5 if query_scalar else architecture.attention_scale


def _query_growth(keys: Keys, architecture: Architecture) -> QueryGrowth | None:
    if not architecture.growing_queries:
        return None
    table = _rope_table(keys, architecture)
    factor = table.number("llama_4_scaling_beta", 0.0, high=1e3)
    context = table.integer("original_max_position_embeddings", _context(keys))
    return QueryGrowth(factor, context) if factor else None


def _rotated(keys: Keys, architecture: Architecture, layers: int) -> list[bool]:
    """Which layers have RoPE, where not all have."""
    if not architecture.rope_period:
        return rotated(0, layers)
    stated = keys.get("no_rope_layers")
    if not stated:
        return rotated(keys.integer("no_rope_layer_interval", architecture.rope_period), layers)
    if not isinstance(stated, list) or len(stated) != layers or not all(x in (0, 1) for x in stated):
        raise keys.refuse("no_rope_layers", f"0 or 1 for each of {layers} layers", stated)
    return [bool(x) for x in stated]


def _layers(keys: Keys, architecture: Architecture, sizes: Sizes) -> tuple[LayerConfig, ...]:
    return layer_configs(
        architecture,
        sizes,
        _ropes(keys, architecture, sizes),
        _window(keys, architecture),
        _sliding(keys, architecture, sizes.layers),
        _rotated(keys, architecture, sizes.layers),
    )


def _window(keys: Keys, architecture: Architecture) -> int:
    """Positions that some layers attend to; 0: all attend to all."""
    if architecture.windows is Windows.NONE or keys.get("sliding_window") is None:
        return 0
    if architecture.windows is Windows.LATE and not keys.flag("use_sliding_window"):
        return 0
    return keys.integer("sliding_window")


def _sliding(keys: Keys, architecture: Architecture, layers: int) -> list[bool]:
    """Which layers attend to a window, where there is one."""
    if architecture.windows is Windows.NONE:
        return [False] * layers
    kinds = keys.get("layer_types")
    if kinds is not None:
        allowed = {"full_attention": False, "sliding_attention": True}
        if (
            not isinstance(kinds, list)
            or len(kinds) != layers
            or not all(str(kind) in allowed for kind in kinds)
        ):
            raise keys.refuse("layer_types", f"{layers} of full_attention and sliding_attention", kinds)
        return [allowed[kind] for kind in kinds]
    if architecture.windows is Windows.ALL:
        return [True] * layers
    if architecture.windows is Windows.LATE:
        first = keys.integer("max_window_layers", 28, low=0)
        return [layer >= first for layer in range(layers)]
    pattern = keys.integer(
        "sliding_window_pattern", keys.get("_sliding_window_pattern", architecture.window_period)
    )
    return [(layer + 1) % pattern != 0 for layer in range(layers)]


def _rope_table(keys: Keys, architecture: Architecture) -> Keys:
    """What is said of RoPE; an original context beside the table goes before the table's own."""
    key = "rope_scaling" if keys.get("rope_scaling") else "rope_parameters"
    stated = keys.get(key, architecture.hf_defaults.get(key, {}))
    original = keys.get("original_max_position_embeddings")
    if original is not None and isinstance(stated, dict):
        stated = {**stated, "original_max_position_embeddings": original}
    return keys.section(key, stated)


def _ropes(
    keys: Keys, architecture: Architecture, sizes: Sizes
) -> tuple[RopeConfig, RopeConfig] | tuple[None, None]:
    """RoPE of fully attending layers and of windowed ones.

    transformers 5 keeps everything in ``rope_parameters``, flat or by kind of layer; before, there were
    ``rope_theta`` and ``rope_scaling``.
    """
    if not architecture.rotary:
        return None, None
    table = _rope_table(keys, architecture)
    factor = keys.number("partial_rotary_factor", 1.0, high=1.0)
    theta = keys.get("rope_theta", 1e4)

    def resolve(table: Keys, theta: Any, size: int = sizes.rope_dim) -> RopeConfig:
        if not _turns_part(architecture) and table.get("rope_type") != "proportional":
            table.require(_WHOLE_HEADS)
        return rope_from_config(
            table,
            size,
            theta,
            factor,
            _context(keys),
            interleaved=architecture.hf_rope_interleaved,
        )

    local_theta = architecture.local_rope_theta and keys.get(
        "rope_local_base_freq", architecture.local_rope_theta
    )
    if table.get("full_attention") is not None or table.get("sliding_attention") is not None:
        full, local = (
            table.section(kind, table.get(kind)) for kind in ("full_attention", "sliding_attention")
        )
        theta = keys.get("rope_theta")
        unequal = len({own.heads.head_dim for own in sizes.own}) > 1
        if unequal and (kind := full.text("rope_type")) != "proportional":
            raise full.refuse("rope_type", "proportional", kind)
        sliding = _sliding(keys, architecture, sizes.layers)
        whole = [own.heads.head_dim for own, s in zip(sizes.own, sliding, strict=False) if not s]
        size = whole[0] if whole else sizes.rope_dim
        return resolve(full, theta, size), resolve(local, local_theta or theta)
    rope = resolve(table, theta)
    if architecture.local_rope_plain:
        local_theta = table.get("rope_theta", theta)
    if local_theta is None:
        return rope, rope
    return rope, resolve(Keys({}, ""), local_theta)
