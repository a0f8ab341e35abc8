"""RoPE frequencies against transformers' ``modeling_rope_utils``, and what GGUF's keys make of them."""

from typing import Any

import numpy as np
import pytest

from hotset.core.errors import CheckpointError
from hotset.formats.keys import Keys
from hotset.formats.rope import plain_frequencies, rope_from_config, rope_from_gguf

HEAD, CONTEXT = 48, 256

TABLES = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "partial": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    "linear partial": {
        "rope_type": "linear",
        "rope_theta": 500.0,
        "factor": 8,
        "partial_rotary_factor": 0.75,
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn by context": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.5},
    "yarn factor": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 0.7,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "yarn null": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "truncate": None,  # not the default of an absent key
        "beta_fast": None,
        "attention_factor": None,
    },
    "yarn mscale": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 40.0,
        "original_max_position_embeddings": 64,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
}


@pytest.mark.parametrize("name", TABLES)
def test_config_table_resolves_as_in_transformers(name: str) -> None:
    from transformers import NemotronConfig
    from transformers.models.nemotron.modeling_nemotron import NemotronRotaryEmbedding

    table = TABLES[name] | {"partial_rotary_factor": TABLES[name].get("partial_rotary_factor", 1.0)}
    config = NemotronConfig(
        hidden_size=2 * HEAD,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        rope_parameters=dict(table),
    )
    theirs = NemotronRotaryEmbedding(config)
    ours = rope_from_config(Keys(TABLES[name], "x"), HEAD, 1e4, 1.0, CONTEXT)
    assert ours.dim == 2 * theirs.inv_freq.numel()
    assert not ours.interleaved
    np.testing.assert_allclose(ours.inverse_frequencies, theirs.inv_freq.numpy(), rtol=2e-6)
    assert ours.magnitude == pytest.approx(theirs.attention_scaling, rel=1e-6)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"rope_type": "dynamic"},
            "x: rope_type: expected default, linear, llama3, longrope or yarn, found 'dynamic'",
        ),
        ({"type": "dynamic", "factor": 2.0}, "found 'dynamic'"),
        ({"rope_type": "linear"}, "x: factor is missing"),
        ({"rope_type": "linear", "factor": "two"}, "factor: expected a number from 0.001 to 1e"),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
            "high_freq_factor",
        ),
        ({"rope_theta": 0}, "rope_theta: expected a number from 1.001"),
        ({"partial_rotary_factor": 0.1875}, "partial_rotary_factor: expected an even number"),
        ({"rope_type": "yarn", "factor": float("nan")}, "factor: expected a number"),
    ],
)
def test_config_tables_that_cannot_be_run(table: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        rope_from_config(Keys(table, "x"), HEAD, 1e4, 1.0, CONTEXT)


def gguf_rope(*factors: Any, **scaling: Any) -> Any:
    values = {f"m.rope.scaling.{key}": value for key, value in scaling.items()}
    keys = Keys(values, "x", prefix="m.")
    return rope_from_gguf(keys, HEAD, interleaved=True, theta=1e4, context=CONTEXT, factors=factors)


def test_gguf_keys_mean_what_config_tables_mean() -> None:
    def same(ours: Any, name: str) -> None:
        table = Keys(TABLES[name] | {"rope_theta": 1e4}, "x")
        theirs = rope_from_config(table, HEAD, 1e4, 1.0, CONTEXT)
        assert ours.inverse_frequencies == theirs.inverse_frequencies
        assert ours.magnitude == theirs.magnitude

    same(gguf_rope(), "default")
    same(gguf_rope(type="none"), "default")
    same(gguf_rope(type="linear", factor=3.0), "linear")
    same(gguf_rope(factor=3.0), "linear")  # as llama.cpp takes it
    same(gguf_rope(type="none", factor=3.0), "default")
    same(gguf_rope(type="yarn", factor=4.0, original_context_length=64), "yarn")
    legacy = rope_from_gguf(
        Keys({"rope.scale_linear": 3.0}, "x"),
        HEAD,
        interleaved=True,
        theta=1e4,
        context=CONTEXT,
        factors=(),
    )
    same(legacy, "linear")


def test_gguf_factors_divide_and_attention_factors_multiply() -> None:
    factors = np.linspace(1, 8, HEAD // 2, dtype=np.float32)
    assert gguf_rope(factors).inverse_frequencies == tuple((plain_frequencies(1e4, HEAD) / factors).tolist())
    assert gguf_rope(type="none", attn_factor=0.5).magnitude == 0.5
    yarn = {"type": "yarn", "factor": 4.0}
    assert gguf_rope(**yarn, attn_factor=0.5).magnitude == gguf_rope(**yarn).magnitude / 2
    assert gguf_rope(**yarn, yarn_attn_factor=0.5).magnitude == 0.5
    assert gguf_rope(**yarn, yarn_log_multiplier=1.0).magnitude == 1


def test_two_tensors_of_factors_are_for_short_and_long_sequences() -> None:
    short, long = (np.linspace(1, top, HEAD // 2, dtype=np.float32) for top in (2, 8))
    rope = gguf_rope(short, long, original_context_length=64)
    plain = plain_frequencies(1e4, HEAD)
    assert rope.frequencies(64) == tuple((plain / short).tolist())
    assert rope.frequencies(65) == tuple((plain / long).tolist())


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "longrope"}, "x: m.rope.scaling.type: expected none, linear or yarn, found 'longrope'"),
        ({"factor": 1e-40}, "m.rope.scaling.factor: expected 0 or a number from 0.001 to"),
        ({"type": "yarn", "factor": 4.0, "yarn_ext_factor": 0.0}, "yarn_ext_factor: expected 1"),
    ],
)
def test_gguf_scalings_that_cannot_be_run(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        gguf_rope(**scaling)
