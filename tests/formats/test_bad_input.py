"""Mutated files: each runs or is refused in one line, fast and within a memory that no header sets.

The everyday run tries some hundred cases; the slow-marked one more than 10,000 of mixtures and delta nets,
and as many of other families. `test_bad_directories.py` does likewise with what `transformers` saves.
"""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bad_input import (
    JSON,
    MUTATION,
    MUTATIONS,
    NUMBERS,
    WEIRD,
    assert_runs_or_refuses,
    fuzz,
    mutated,
    of_families,
)
from helpers.gguf_bytes import by_neuron, lacks, shape_of, split, tiny_model
from hypothesis import strategies as st
from safetensors.numpy import save

from hotset.architectures.delta_nets import DELTA_NETS
from hotset.architectures.mixtures import MIXTURES
from hotset.architectures.row import Architecture
from hotset.architectures.table import ARCHITECTURES
from hotset.formats import open_checkpoint
from hotset.formats.tensor_table import ONLY_BIAS, is_global

WITH_EXPERTS = (*MIXTURES, *DELTA_NETS)
OTHERS = tuple(row for row in ARCHITECTURES if row not in WITH_EXPERTS)


def examples(everyday: int, thorough: int) -> Any:
    return pytest.mark.parametrize("examples", [everyday, pytest.param(thorough, marks=pytest.mark.slow)])


def of_rows(everyday: int, thorough: int) -> Any:
    """So many cases of all rows of the table, or of each of two parts of it."""
    return of_families(
        "rows", (ARCHITECTURES, everyday), experts=(WITH_EXPERTS, thorough), others=(OTHERS, thorough)
    )


def files(rows: Sequence[Architecture]) -> st.SearchStrategy[Any]:
    """An architecture, and how a tiny model of it is stored: as usual, or as PowerInfer does."""
    return st.tuples(st.sampled_from(rows), st.sampled_from([lambda file: file, by_neuron]))


# GGUF.


def words(text: str) -> list[str]:
    return text.split()


GGUF_KEYS = words("""
    context_length embedding_length block_count feed_forward_length attention.head_count
    attention.head_count_kv attention.key_length attention.value_length attention.layer_norm_rms_epsilon
    attention.layer_norm_epsilon attention.sliding_window attention.sliding_window_pattern attention.scale
    attention.causal expert_count rope.dimension_count rope.freq_base rope.freq_base_swa rope.scaling.type
    rope.scaling.factor rope.scale_linear rope.scaling.original_context_length rope.scaling.attn_factor
    expert_used_count expert_feed_forward_length expert_shared_feed_forward_length expert_weights_norm
    expert_weights_scale expert_gating_func expert_group_count expert_group_used_count
    leading_dense_block_count interleave_moe_layer_step ssm.time_step_rank ssm.group_count ssm.state_size
    ssm.conv_kernel ssm.inner_size full_attention_interval attention.recurrent_layers nextn_predict_layers
    rope.scaling.yarn_beta_fast final_logit_softcapping rope.global.freq_base rope.local.freq_base
""")
GENERAL_KEYS = words("""
    general.architecture general.alignment general.type hotset.activation split.no split.count
    split.tensors.count tokenizer.ggml.tokens tokenizer.ggml.model tokenizer.ggml.pre hotset.ffn.way
    hotset.ffn.score hotset.ffn.cutoff hotset.ffn.kept hotset.ffn.raw_input powerinfer.sparse_threshold
""")
IN_DIRECTORIES = [
    row for row in ARCHITECTURES if row.model_types and not (row.delta_net or row.short_conv or row.mamba)
]
DIRECTORIES = st.sampled_from(IN_DIRECTORIES)


@of_rows(200, 5000)
def test_mutated_gguf_bytes(rows: Sequence[Architecture], examples: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"

    def check(case: Any) -> None:
        (architecture, stored), mutations = case
        path.write_bytes(mutated(stored(tiny_model(architecture)).to_bytes(), mutations))
        assert_runs_or_refuses(path)

    fuzz(st.tuples(files(rows), MUTATIONS), check, examples)


@of_rows(200, 5000)
def test_weird_gguf_values(rows: Sequence[Architecture], examples: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"

    def check(case: Any) -> None:
        (architecture, stored), values, overrides = case

        def named(values: dict[str, Any]) -> dict[str, Any]:
            return {
                key if key in GENERAL_KEYS else f"{architecture.name}.{key}": value
                for key, value in values.items()
            }

        path.write_bytes(stored(tiny_model(architecture, **named(values))).to_bytes())
        assert_runs_or_refuses(path, named(overrides))

    keys = st.sampled_from(GGUF_KEYS + GENERAL_KEYS)
    values = st.dictionaries(keys, WEIRD, min_size=1, max_size=3)
    scalars = WEIRD.filter(lambda value: isinstance(value, bool | int | float | str))
    overrides = st.dictionaries(keys, scalars, max_size=2)
    fuzz(st.tuples(files(rows), values, overrides), check, examples)


@examples(100, 1500)
def test_reordered_and_cyclic_splits(examples: int, tmp_path: Path) -> None:
    parts = [part.to_bytes() for part in split(tiny_model(ARCHITECTURES[0]), 3)]
    paths = [tmp_path / f"m-{i + 1:05d}-of-00003.gguf" for i in range(3)]

    def check(case: tuple[list[int], int, list[Callable[[bytes], bytes]], int]) -> None:
        order, damaged, mutations, opened = case
        for i, path in enumerate(paths):
            data = parts[order[i]]
            path.write_bytes(mutated(data, mutations) if i == damaged else data)
        assert_runs_or_refuses(paths[opened])

    part = st.integers(0, 2)
    fuzz(
        st.tuples(st.lists(part, min_size=3, max_size=3), st.integers(0, 5), MUTATIONS, part), check, examples
    )


# Hugging Face directories.

CONFIG = {
    "vocab_size": 6,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2}
LATENT = {
    "n_routed_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 5,
    "shared_expert_intermediate_size": 7,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 4,
    "q_lora_rank": 5,
    "qk_nope_head_dim": 2,
    "qk_rope_head_dim": 4,
    "v_head_dim": 3,
}
FAMILY: dict[str, dict[str, Any]] = {
    "falcon": {"ffn_hidden_size": 12, "multi_query": True},
    "opt": {"ffn_dim": 12, "num_key_value_heads": 1},
    "gemma3_text": {"layer_types": ["full_attention"]},
    "mixtral": {"num_experts_per_tok": 2, "num_local_experts": 3, "intermediate_size": 5},
    "gpt_oss": {"num_experts_per_tok": 2, "num_local_experts": 3, "intermediate_size": 5},
    "olmoe": EXPERTS | {"intermediate_size": 5},
    "qwen2_moe": EXPERTS | {"moe_intermediate_size": 5, "shared_expert_intermediate_size": 7},
    "qwen3_moe": EXPERTS | {"moe_intermediate_size": 5},
    "mellum": EXPERTS | {"moe_intermediate_size": 5},
    "granitemoe": EXPERTS | {"intermediate_size": 5, "shared_intermediate_size": 7},
    "laguna": EXPERTS
    | {"moe_intermediate_size": 5, "shared_expert_intermediate_size": 7, "first_k_dense_replace": 0},
    "cohere2_moe": EXPERTS
    | {"intermediate_size": 5, "shared_expert_intermediate_size": 7}
    | {"prefix_dense_intermediate_size": 12},
    "smallthinker": {"moe_num_primary_experts": 3, "moe_num_active_primary_experts": 2}
    | {"moe_ffn_hidden_size": 5, "moe_layer_layout": [1], "rope_layout": [1], "sliding_window_layout": [0]},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT | {"n_group": 1, "topk_group": 1},
    "glm4": {"attention_bias": False},
    "glm4_moe_lite": LATENT,
    "glm4_moe": {
        "use_qk_norm": True,
        "n_routed_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 5,
        "shared_expert_intermediate_size": 7,
        "first_k_dense_replace": 0,
    },
    "ernie4_5_moe": {
        "moe_num_experts": 3,
        "moe_k": 2,
        "moe_intermediate_size": 5,
        "shared_expert_intermediate_size": 7,
        "moe_layer_start_index": 0,
    },
    "gemma4_text": {"hidden_size_per_layer_input": 3, "global_head_dim": 4, "top_k_experts": 2}
    | {"num_experts": 3, "moe_intermediate_size": 5},
}
HF_KEYS = words("""
    model_type hidden_size vocab_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim hidden_act hidden_activation activation_function activation
    max_position_embeddings rms_norm_eps norm_eps layer_norm_epsilon tie_word_embeddings sliding_window
    use_sliding_window max_window_layers layer_types sliding_window_pattern rope_theta rope_scaling
    rope_parameters rope_local_base_freq partial_rotary_factor query_pre_attn_scalar attention_bias mlp_bias
    bias enable_bias alibi multi_query new_decoder_architecture parallel_attn ffn_hidden_size ffn_dim
    num_experts num_local_experts num_experts_per_tok moe_intermediate_size norm_topk_prob
    shared_expert_intermediate_size decoder_sparse_step mlp_only_layers clip_qkv
    num_kv_heads original_max_position_embeddings quantization_config final_logit_softcapping
    hidden_act_param do_layer_norm_before
""")
ROPE_KEYS = words("""
    rope_type type rope_theta factor low_freq_factor high_freq_factor original_max_position_embeddings
    beta_fast beta_slow attention_factor mscale mscale_all_dim truncate partial_rotary_factor full_attention
    sliding_attention
""")
ROPE = st.dictionaries(
    st.sampled_from(ROPE_KEYS),
    st.sampled_from(["default", "linear", "llama3", "yarn", 1.5, 8, 4.0]) | JSON,
    max_size=7,
)


def tiny_directory(architecture: Architecture) -> tuple[dict[str, Any], bytes]:
    """config.json and model.safetensors of a one-layer model."""
    tensors = {}
    for part, modules in architecture.tensors.items():
        if lacks(architecture, part) or (part == "attn_qkv" and "attn_q" in architecture.tensors):
            continue
        shape = shape_of(architecture, part)
        if part.endswith("_exps") and architecture.experts and architecture.experts.hf_transposed:
            shape = (shape[0], shape[2], shape[1])
        name = modules.split("|", maxsplit=1)[0].format(0)
        for number in range(shape[0]) if "*" in name else [0]:
            own, whole = (shape[1:], name.replace("*", str(number))) if "*" in name else (shape, name)
            stored = whole if part == ONLY_BIAS else f"{whole}.weight"
            tensors[stored] = np.ones(own, np.float16 if is_global(part) else np.float32)
            if part in architecture.always_biased:
                bias = own[:-1] or own
                if part.endswith("_exps"):
                    bias = shape_of(architecture, part)[:-1]
                tensors[f"{whole}.bias"] = np.ones(bias, np.float32)
    config = CONFIG | {"model_type": architecture.model_types[0], "num_key_value_heads": 1, "head_dim": 4}
    if architecture.experts and architecture.experts.beside:
        config |= {"enable_moe_block": True}
    if architecture.name == "granite":  # which Granite 4's small models are
        config |= {"position_embedding_type": "rope", "shared_intermediate_size": 12}
    return config | {"intermediate_size": 12} | FAMILY.get(architecture.model_types[0], {}), save(tensors)


def write_directory(folder: Path, config: Mapping[str, Any] | bytes, weights: bytes) -> None:
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / "config.json").write_bytes(text)
    (folder / "model.safetensors").write_bytes(weights)


@pytest.mark.parametrize("architecture", IN_DIRECTORIES, ids=lambda a: a.model_types[0])
def test_what_gets_mutated_is_sound(architecture: Architecture, tmp_path: Path) -> None:
    write_directory(tmp_path, *tiny_directory(architecture))
    directory = open_checkpoint(tmp_path)
    (tmp_path / "m.gguf").write_bytes(tiny_model(architecture).to_bytes())
    file = open_checkpoint(tmp_path / "m.gguf")
    assert set(directory.tensors) == set(file.tensors)
    assert bool(file.config.layers[0].experts) == bool(directory.config.layers[0].experts)
    if not architecture.experts:
        (tmp_path / "m.gguf").write_bytes(by_neuron(tiny_model(architecture)).to_bytes())
        assert open_checkpoint(tmp_path / "m.gguf").config.layers[0].ffn


@examples(200, 3000)
def test_mutated_safetensors_bytes(examples: int, tmp_path: Path) -> None:
    def check(case: tuple[Architecture, bool, list[Callable[[bytes], bytes]]]) -> None:
        architecture, in_config, mutations = case
        config, weights = tiny_directory(architecture)
        if in_config:
            write_directory(tmp_path, mutated(json.dumps(config).encode(), mutations), weights)
        else:
            write_directory(tmp_path, config, mutated(weights, mutations))
        assert_runs_or_refuses(tmp_path)

    fuzz(st.tuples(DIRECTORIES, st.booleans(), MUTATIONS), check, examples)


@examples(200, 3000)
def test_weird_config_values(examples: int, tmp_path: Path) -> None:
    def check(case: tuple[Architecture, dict[str, Any], dict[str, Any] | None]) -> None:
        architecture, values, rope = case
        config, weights = tiny_directory(architecture)
        config |= values
        if rope is not None:
            config["rope_parameters"] = rope
        write_directory(tmp_path, config, weights)
        assert_runs_or_refuses(tmp_path)

    values = st.dictionaries(st.sampled_from(HF_KEYS), JSON, max_size=3)
    fuzz(st.tuples(DIRECTORIES, values, st.none() | ROPE), check, examples)


@examples(100, 1500)
def test_weird_safetensors_headers(examples: int, tmp_path: Path) -> None:
    config, weights = tiny_directory(ARCHITECTURES[0])
    length = struct.unpack("<Q", weights[:8])[0]
    header, body = json.loads(weights[8 : 8 + length]), weights[8 + length :]
    names = sorted(header)
    sizes = st.lists(NUMBERS | st.integers(-1, 600), max_size=4)

    def check(case: tuple[list[tuple[str, str, Any]], int]) -> None:
        changes, padding = case
        entries = {name: dict(entry) for name, entry in header.items()}
        for name, key, value in changes:
            entries[name][key] = value
        text = json.dumps(entries).encode() + b" " * padding
        write_directory(tmp_path, config, struct.pack("<Q", len(text)) + text + body)
        assert_runs_or_refuses(tmp_path)

    value = sizes | JSON | st.sampled_from(["F32", "BF16", "F8_E4M3", "I64"])
    change = st.tuples(st.sampled_from(names), st.sampled_from(["dtype", "shape", "data_offsets"]), value)
    fuzz(st.tuples(st.lists(change, max_size=2), st.integers(0, 8)), check, examples)


@examples(100, 1500)
def test_weird_shard_indexes(examples: int, tmp_path: Path) -> None:
    config, weights = tiny_directory(ARCHITECTURES[0])
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "a.safetensors").write_bytes(weights)
    (tmp_path / "b.safetensors").write_bytes(save({"lm_head.weight": np.ones((6, 8), np.float32)}))
    length = struct.unpack("<Q", weights[:8])[0]
    names = sorted(json.loads(weights[8 : 8 + length]))
    places = [
        "a.safetensors",
        "b.safetensors",
        "../a.safetensors",
        "/etc/passwd",
        "",
        "x\0.safetensors",
        "n" * 300,
    ]

    def check(case: tuple[Any, list[Callable[[bytes], bytes]]]) -> None:
        text = json.dumps({"weight_map": case[0]}).encode()
        (tmp_path / "model.safetensors.index.json").write_bytes(mutated(text, case[1]))
        assert_runs_or_refuses(tmp_path)

    place = st.sampled_from(places) | JSON
    maps = st.dictionaries(st.sampled_from([*names, "lm_head.weight", "x"]), place, max_size=4) | JSON
    whole = st.just(dict.fromkeys(names, "a.safetensors"))
    fuzz(st.tuples(maps | whole, st.lists(MUTATION, max_size=1)), check, examples)
