"""Checkpoints of real sizes without weights: their tensors' bytes are one byte, repeated."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.core.config import Activation, FFNPlan, LayerConfig, ModelConfig, NormKind
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.tensor import Tensor, TensorType, tensor_from_array


def empty_tensor(name: str, kind: TensorType, *shape: int) -> Tensor:
    """A tensor of that size whose bytes are all one."""
    nbytes = int(np.prod(shape)) // kind.block_size * kind.block_bytes
    return Tensor(name, kind, shape, np.broadcast_to(np.zeros(1, np.uint8), (nbytes,)))


def shape_only(
    *,
    n_layers: int,
    hidden: int,
    ffn: int,
    kind: TensorType = TensorType.F16,
    frequency: NDArray[np.float64] | None = None,
    plan: FFNPlan | None = None,
    predictor_rank: int = 0,
    **options: Any,
) -> Checkpoint:
    """A decoder; with a `plan` stored by neuron, its neurons firing with `frequency` (L, F)."""
    defaults: dict[str, Any] = {
        "architecture": "shape",
        "vocab_size": 256,
        "context_length": 4096,
        "hidden_size": hidden,
        "ffn_size": ffn,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": hidden // 4,
        "layers": (LayerConfig(None, ffn=plan),) * n_layers,
        "activation": Activation.RELU,
        "gated": True,
        "norm": NormKind.RMS,
        "norm_eps": 1e-5,
    }
    config = ModelConfig(**defaults | options)
    tensors = {}

    def add(name: str, *shape: int) -> None:
        tensors[name] = empty_tensor(name, kind, *shape)

    add("token_embd.weight", config.vocab_size, hidden)
    for i in range(n_layers):
        for part, heads in (("q", config.n_heads), ("k", config.n_kv_heads), ("v", config.n_kv_heads)):
            add(f"blk.{i}.attn_{part}.weight", heads * config.head_dim, hidden)
        add(f"blk.{i}.attn_output.weight", hidden, config.n_heads * config.head_dim)
        if config.gated:
            add(f"blk.{i}.ffn_gate.weight", ffn, hidden)
        add(f"blk.{i}.ffn_up.weight", ffn, hidden)
        if plan:
            add(f"blk.{i}.ffn_down_t.weight", ffn, hidden)
        else:
            add(f"blk.{i}.ffn_down.weight", hidden, ffn)
        if plan and frequency is not None:
            name = f"blk.{i}.ffn_profile.weight"
            tensors[name] = tensor_from_array(name, np.stack([frequency[i], frequency[i]]))
        if predictor_rank:
            add(f"blk.{i}.fc1.weight", predictor_rank, hidden)
            add(f"blk.{i}.fc2.weight", ffn, predictor_rank)
    return Checkpoint(Path("shape"), config, tensors)
