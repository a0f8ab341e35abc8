"""Mixtures stored by neuron: experts sorted, the same logits, exact by what is read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q
from helpers.parity import assert_close
from helpers.profiles import random_profile
from helpers.random_gguf import F32, LAYERS, TOKENS, VOCABULARY, random_model, write_plain

from hotset.backends.building import Backend
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.convert.by_neuron import convert
from hotset.core.batch import Batch
from hotset.core.config import FFNPlan, Score, Way
from hotset.core.errors import CheckpointError, HotsetError
from hotset.formats import Checkpoint, TensorType, open_checkpoint
from hotset.model.build import build_transformer
from hotset.model.reading import traffic
from hotset.model.transformer import SINK_TOKENS
from hotset.serve.load import with_plan

REFERENCE, CPU = ReferenceBackend(), CpuBackend(threads=2)
EXACT = FFNPlan(Way.EXACT)


def source(directory: Path, name: str, kind: Q = Q.F16) -> Checkpoint:
    """Its experts are in single precision, of numbers that halves hold too."""
    model = random_model(name, activation="relu")
    weights = {name: values.astype(np.float16).astype(np.float32) for name, values in model.weights.items()}
    model = replace(model, weights=weights)
    keys = {**model.keys}
    if name == "smallthinker":
        keys |= {"smallthinker.expert_gating_func": 2, "smallthinker.vocab_size": VOCABULARY}
        keys["smallthinker.attention.sliding_window"] = 5
    return open_checkpoint(write_plain(directory / f"{name}.gguf", replace(model, keys=keys), kind))


def logits(checkpoint: Checkpoint, backend: Backend = REFERENCE) -> F32:
    model = build_transformer(checkpoint, backend)
    sequence = model.sequence(len(TOKENS), "f32")
    # A prompt, and then token by token.
    parts = [model.forward(Batch.of(sequence, TOKENS[:7], lossless=True, logits=None))]
    return np.concatenate([*parts, *(model.forward(Batch.of(sequence, t)) for t in TOKENS[7:, None])])


@pytest.mark.parametrize("name", ["smallthinker", "qwen3moe", "qwen2moe"])
def test_a_mixture_by_neuron(name: str, tmp_path: Path) -> None:
    original = source(tmp_path, name)
    profile = random_profile(original, seed=3)
    result = convert(original, tmp_path / "out.gguf", profile)
    assert result.plans == (EXACT,) * LAYERS
    assert not any(result.down_error)  # halves stay halves
    by_neuron = open_checkpoint(tmp_path / "out.gguf")
    assert [layer.ffn for layer in by_neuron.config.layers] == [EXACT] * LAYERS
    heat = by_neuron.tensors["blk.0.ffn_profile.weight"].to_float32()[0]
    assert heat.size == 6 and (np.diff(heat) <= 0).all()
    turned, down = (
        m.tensors["blk.1." + n + ".weight"]
        for m, n in ((by_neuron, "ffn_down_t_exps"), (original, "ffn_down_exps"))
    )
    np.testing.assert_array_equal(turned.to_float32(), down.to_float32()[profile.order[1]].transpose(0, 2, 1))
    expected = logits(original)
    assert_close(logits(by_neuron), expected)
    assert_close(logits(by_neuron, CPU), expected, 2e-3)
    dense = with_plan(by_neuron, Way.DENSE)
    np.testing.assert_array_equal(logits(dense, CPU), logits(by_neuron, CPU))

    again = convert(by_neuron, tmp_path / "again.gguf", random_profile(by_neuron, seed=4))
    assert again.plans == result.plans
    assert_close(logits(open_checkpoint(tmp_path / "again.gguf")), expected)


def test_what_is_read_and_counted(tmp_path: Path) -> None:
    original = source(tmp_path, "smallthinker")
    convert(original, tmp_path / "out.gguf", random_profile(original))
    by_neuron = open_checkpoint(tmp_path / "out.gguf")
    found = traffic(by_neuron)
    assert found.ffn_size == 3 * 24
    used = sum(t.nbytes for n, t in by_neuron.tensors.items() if "_exps" in n) // 2
    assert found.idle == used
    assert found.by_neuron == (2 * 2 * 64,) * LAYERS  # rows of up and down, in halves
    model = build_transformer(by_neuron, CPU)
    sequence = model.sequence(SINK_TOKENS + 4)
    model.forward(Batch.of(sequence, TOKENS[:SINK_TOKENS], lossless=True))
    for token in TOKENS[SINK_TOKENS : SINK_TOKENS + 4, None]:
        model.forward(Batch.of(sequence, token))
    for chooser in sequence.choosers:
        assert chooser and chooser.work.rows == 4
        assert 0 < chooser.work.fired == chooser.work.read < 4 * found.ffn_size


def test_types(tmp_path: Path) -> None:
    original = source(tmp_path, "qwen3moe")
    result = convert(original, tmp_path / "out.gguf", random_profile(original), ffn_type=TensorType.Q8_0)
    tensors = open_checkpoint(tmp_path / "out.gguf").tensors
    types = {
        name: tensors[f"blk.0.ffn_{name}.weight"].type for name in ("gate_exps", "up_exps", "down_t_exps")
    }
    assert types == {"gate_exps": Q.F32, "up_exps": Q.Q8_0, "down_t_exps": Q.Q8_0}
    assert all(0 < error < 0.02 for error in result.down_error)
    assert result.changed == ((TensorType.F32, TensorType.Q8_0),)
    by_neuron = open_checkpoint(tmp_path / "out.gguf")
    with pytest.raises(HotsetError, match="stored by neuron already, as Q8_0: storing it as q4_0"):
        convert(by_neuron, tmp_path / "x.gguf", random_profile(by_neuron), ffn_type=TensorType.Q4_0)


def test_refusals(tmp_path: Path) -> None:
    silu = open_checkpoint(write_plain(tmp_path / "silu.gguf", random_model("qwen3moe"), Q.F16))
    with pytest.raises(HotsetError, match="nothing is exactly zero"):
        convert(silu, tmp_path / "x.gguf", random_profile(silu))
    assert not (tmp_path / "x.gguf").exists()
    original = source(tmp_path, "qwen3moe")
    threshold = [FFNPlan(Way.THRESHOLD, Score.GATE, 0.1)] * LAYERS
    with pytest.raises(CheckpointError, match="layer 0: expected dense or exact in a mixture of experts"):
        convert(original, tmp_path / "x.gguf", random_profile(original), threshold)
