"""Sweeps and traces of a small random model on the CPU backend."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.random_checkpoint import by_neuron, random_checkpoint

from hotset.backends.cpu import CpuBackend
from hotset.cli.bench import room_for
from hotset.core.config import FFNPlan, Score, Way
from hotset.core.errors import RequestError
from hotset.draw.plots import plot_sweep, plot_trace
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.tensor import Tensor, TensorType
from hotset.measure.speed import Sizes
from hotset.measure.sweep import PLAN, sweep
from hotset.measure.trace import EVERY, trace
from hotset.model.build import build_transformer
from hotset.model.reading import traffic
from hotset.serve.loaded import Model
from hotset.state.kv_types import STATES


@pytest.mark.parametrize("longest", [200, 2048, 1 << 20])
@pytest.mark.parametrize("counts", [[], [1], [1, 8, 64]])
@pytest.mark.parametrize(("prompt", "tokens"), [(512, 128), (0, 3000), (0, 1)])
def test_a_gpu_has_room_for_what_is_timed(longest: int, counts: list[int], prompt: int, tokens: int) -> None:
    context, requests = room_for(Sizes(prompt, tokens), counts, longest)
    assert 1 <= context <= longest
    assert context * requests >= min(max(prompt, 8 + tokens), longest)
    sequences = 2 * max(counts, default=0)  # copies, and what they are copies of
    assert context * requests >= sequences * min(128 + tokens, longest)
    assert STATES * requests >= 2 * sequences


class Letters:
    def encode(self, text: str, parse_special: bool = True) -> list[int]:
        return [ord(letter) % 53 for letter in text]


def half(checkpoint: Checkpoint) -> None:
    """FFNs in a type that can be read by row."""
    tensors: dict[str, Tensor] = checkpoint.tensors  # type: ignore[assignment]
    for name, tensor in tensors.items():
        if "ffn_" in name and "norm" not in name:
            data = tensor.to_float32().astype(np.float16).reshape(-1).view(np.uint8)
            tensors[name] = Tensor(name, TensorType.F16, tensor.shape, data)


def model(plan: FFNPlan | None) -> Model:
    checkpoint = random_checkpoint(hidden_size=32, ffn_size=300)
    if plan:
        orders = [np.arange(300)] * checkpoint.config.n_layers
        checkpoint = by_neuron(checkpoint, plan, orders)
        half(checkpoint)
    backend = CpuBackend(threads=1)
    transformer = build_transformer(checkpoint, backend)
    return Model(Path("m.gguf"), transformer, Letters(), backend, traffic(checkpoint))  # type: ignore[arg-type]


def test_a_sweep_computes_the_shares_asked_for(tmp_path: Path) -> None:
    found = sweep(model(PLAN), (0.1, 0.3, 0.9, 1.0))
    # ReLU: about half of the neurons are zero; more cannot be had, and are not computed.
    assert [point.density for point in found] == pytest.approx([0.1, 0.3, 0.5], abs=0.06)
    assert all(point.decode_tokens_per_second > 0 for point in found)
    assert found[0].gb_per_token < found[1].gb_per_token < found[2].gb_per_token
    plot_sweep(found, r"$\no$", tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"


def test_a_sweep_needs_neurons() -> None:
    with pytest.raises(RequestError, match=r"m.gguf is not stored by neuron: convert it first"):
        sweep(model(None))


def test_a_trace_follows_the_subjects(tmp_path: Path) -> None:
    texts = [("one", "abc" * 20), ("two", "xyz" * 10), ("one", "abc" * 6)]
    found = trace(model(FFNPlan(Way.PREDICTOR, Score.GATE_Q4, 0.1)), texts)
    assert [(point.subject, point.tokens) for point in found] == [
        ("one", EVERY),
        ("one", 2 * EVERY),
        ("one", 3 * EVERY),
        ("two", 4 * EVERY),
        ("one", 5 * EVERY),
    ]
    assert all(0 < point.density < 1 and point.cutoffs == pytest.approx((0.1, 0.1)) for point in found)
    plot_trace([replace(point, subject=r"$\no$") for point in found], "m", tmp_path / "trace.png")
    assert (tmp_path / "trace.png").stat().st_size > 1000


def test_a_trace_reads_long_texts_to_their_ends() -> None:
    """With fewer points, and another conversation where the context ends; audits say what is kept."""
    plan = FFNPlan(Way.PREDICTOR, Score.GATE_Q4, 1.0, kept=0.9)
    traced = model(plan)
    room = traced.config.context_length
    found = trace(traced, [("one", "abc" * 800), ("two", "xyz" * 100)])
    every = found[0].tokens
    assert every % EVERY == 0
    assert every > EVERY
    assert room < 2400 - every < found[-1].tokens <= 2700
    kept = [point.kept for point in found if not np.isnan(point.kept)]
    assert len(kept) > len(found) // 2
    assert np.mean(kept[4:]) == pytest.approx(0.9, abs=0.05)
    assert found[-1].cutoffs != (1.0, 1.0)


def test_density_counts_gates_read_in_vain() -> None:
    """A predictor that chooses all neurons reads all gates, however few fire."""
    everything = trace(model(FFNPlan(Way.PREDICTOR, Score.GATE_Q4, -1e9)), [("a", "abc" * 20)])
    assert everything[1].density == 1
    exact = trace(model(FFNPlan(Way.EXACT)), [("a", "abc" * 20)])
    assert 0.3 < exact[1].density < 0.7


def test_what_cannot_be_traced_is_refused() -> None:
    with pytest.raises(RequestError, match="computes all its neurons"):
        trace(model(FFNPlan(Way.DENSE)), [("a", "b" * 99)])
    with pytest.raises(RequestError, match="short: 3 tokens of text: expected at least 16"):
        trace(model(FFNPlan(Way.EXACT)), [("short", "abc")])
