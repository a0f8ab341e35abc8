"""Weights for measurements: random, valid, and of a real model's magnitude."""

import numpy as np

from hotset.formats.tensor import Tensor, TensorType


def random_weights(kind: TensorType, rows: int, cols: int, rng: np.random.Generator) -> Tensor:
    """Random weights whose products stay finite, from one random block row, repeated."""
    blocks = rng.integers(0, 256, (cols // kind.block_size * 64, kind.block_bytes), dtype=np.uint8)
    if kind is TensorType.F16:
        blocks = (rng.standard_normal(len(blocks)) / cols**0.5).astype("<f2").view(np.uint8).reshape(-1, 2)
    else:  # Q4_0: a half-precision scale first
        blocks[:, :2] = np.frombuffer(np.float16(cols**-0.5 / 4.6).tobytes(), np.uint8)
    return Tensor(
        "random",
        kind,
        (rows, cols),
        np.resize(blocks.reshape(-1), rows * cols // kind.block_size * kind.block_bytes),
    )
