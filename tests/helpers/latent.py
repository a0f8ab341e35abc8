"""Latent attention of random weights, and sequences for it."""

from typing import Any

import numpy as np

from helpers.random_tensors import random_tensor
from helpers.recurrent import HIDDEN, numbers
from hotset.backends.contract import LatentSpec, Linear, Norm, StateShape
from hotset.core.batch import Sequence
from hotset.core.config import NormKind, RopeConfig
from hotset.core.heads import KvShape, LatentConfig
from hotset.formats.tensor import Tensor, TensorType, tensor_from_array


def matrix(seed: int, *shape: int, quantised: bool) -> Tensor:
    if quantised and shape[-1] % 32 == 0:
        flat = random_tensor(TensorType.Q4_0, int(np.prod(shape[:-1])), shape[-1], seed=seed)
        return Tensor(flat.name, flat.type, shape, flat.data)
    return tensor_from_array(f"weight_{seed}", numbers(seed, *shape) / np.float32(shape[-1] ** 0.5))


def latent_spec(heads: int, shape: LatentConfig, quantised: bool = False) -> LatentSpec:
    def linear(seed: int, rows: int, cols: int) -> Linear:
        return Linear(matrix(seed, rows, cols, quantised=quantised))

    def norm(seed: int, size: int) -> Norm:
        return Norm(NormKind.RMS, 1e-5, 1 + numbers(seed, size) / 4)

    low = shape.query_rank
    frequencies = tuple(float(x) for x in 100.0 ** -np.linspace(0, 1, shape.rope_dim // 2))
    return LatentSpec(
        norm=norm(1, HIDDEN),
        q_a=linear(2, low, HIDDEN) if low else None,
        q_norm=norm(3, low) if low else None,
        q=linear(4, heads * shape.query_dim, low or HIDDEN),
        kv_a=linear(5, shape.kept, HIDDEN),
        kv_norm=norm(6, shape.rank),
        k_b=matrix(7, heads, shape.rank, shape.nope_dim, quantised=quantised),
        v_b=matrix(8, heads, shape.value_dim, shape.rank, quantised=quantised),
        output=linear(9, HIDDEN, heads * shape.value_dim),
        n_heads=heads,
        scale=shape.query_dim**-0.5,
        rope=RopeConfig(shape.rope_dim, True, frequencies, 1.1),
        shape=shape,
    )


def latent_sequence(backend: Any, spec: LatentSpec, kv_type: str, capacity: int) -> Sequence:
    kept = KvShape(1, spec.shape.kept, values=False)
    sequence: Sequence = backend.sequence(StateShape(1, 1, 1, own=(kept,)), capacity, kv_type)
    return sequence
