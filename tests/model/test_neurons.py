"""Models stored by neuron against the same models stored as usual, and exact against dense."""

import gguf
import numpy as np
import pytest
from helpers.random_checkpoint import by_neuron, random_checkpoint

from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.config import Activation, FFNPlan, Way
from hotset.formats.tensor import Tensor, TensorType
from hotset.model.build import build_transformer


@pytest.mark.parametrize("way", [Way.DENSE, Way.EXACT])
@pytest.mark.parametrize(
    ("activation", "gated"),
    [
        (Activation.RELU, True),
        (Activation.RELU, False),
        (Activation.DRELU, True),
        (Activation.RELU2, False),
        (Activation.RELU2, True),
    ],
)
def test_any_order_of_neurons_gives_the_same_logits(activation: Activation, gated: bool, way: Way) -> None:
    usual = random_checkpoint(activation=activation, gated=gated)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(usual.config.ffn_size) for _ in usual.config.layers]
    tokens = rng.integers(0, usual.config.vocab_size, 24, dtype=np.int32)
    logits = []
    for checkpoint in (usual, by_neuron(usual, FFNPlan(way), orders)):
        model = build_transformer(checkpoint, ReferenceBackend())
        kv = model.kv_cache(24, "f32")
        parts = [model.forward(tokens[:12], kv, all_logits=True)]  # a prompt, then tokens one by one
        parts += [model.forward(tokens[i : i + 1], kv) for i in range(12, 24)]
        logits.append(np.concatenate(parts))
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("type", [TensorType.F16, TensorType.Q8_0, TensorType.Q4_0])
@pytest.mark.parametrize(
    ("activation", "gated"),
    [(Activation.RELU, True), (Activation.DRELU, True), (Activation.RELU, False), (Activation.RELU2, False)],
)
def test_exact_writes_the_same_text_as_dense(activation: Activation, gated: bool, type: TensorType) -> None:
    """256 greedy tokens, and the same logits to the bit, with any number of threads and in any order."""
    usual = random_checkpoint(
        hidden_size=64, ffn_size=1100, context_length=300, activation=activation, gated=gated
    )
    rng = np.random.default_rng(1)
    order = [rng.permutation(1100) for _ in usual.config.layers]

    def text(plan: FFNPlan, threads: int) -> tuple[list[int], np.ndarray]:
        checkpoint = by_neuron(usual, plan, order)
        tensors: dict[str, Tensor] = checkpoint.tensors  # type: ignore[assignment]
        for name, tensor in tensors.items():
            if "ffn_" in name and "norm" not in name:
                kind = gguf.GGMLQuantizationType(int(type))
                blocks = np.ascontiguousarray(gguf.quantize(tensor.to_float32(), kind))
                tensors[name] = Tensor(name, type, tensor.shape, blocks.reshape(-1).view(np.uint8))
        model = build_transformer(checkpoint, CpuBackend(threads=threads))
        kv = model.kv_cache(300)
        logits = model.forward(np.arange(12, dtype=np.int32), kv)
        tokens: list[int] = []
        while len(tokens) < 256:
            tokens.append(int(logits.argmax()))
            logits = model.forward(np.array(tokens[-1:], np.int32), kv)
        return tokens, logits

    dense, exact = text(FFNPlan(Way.DENSE), 1), text(FFNPlan(Way.EXACT), 2)
    assert dense[0] == exact[0]
    assert np.array_equal(dense[1], exact[1])
