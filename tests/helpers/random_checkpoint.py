"""A checkpoint of random numbers in memory: no file, no torch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from hotset.core.config import (
    Activation,
    DeltaNetConfig,
    ExpertsConfig,
    FFNPlan,
    LayerConfig,
    MambaConfig,
    ModelConfig,
    NormKind,
    Recurrent,
    RopeConfig,
    ShortConvConfig,
)
from hotset.core.heads import LatentConfig
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.tensor import Tensor, TensorType, tensor_from_array


def random_checkpoint(
    *, seed: int = 0, windows: tuple[int | None, ...] = (None, 5), **options: Any
) -> Checkpoint:
    """A small decoder with tied output, a layer for each of `windows`; `options` are `ModelConfig`'s."""
    rope = RopeConfig(dim=6, interleaved=False, inverse_frequencies=(1.0, 0.3, 0.1))
    defaults: dict[str, Any] = {
        "architecture": "random",
        "vocab_size": 53,
        "context_length": 64,
        "hidden_size": 20,
        "ffn_size": 28,
        "n_heads": 3,
        "n_kv_heads": 1,
        "head_dim": 8,
        "layers": tuple(LayerConfig(rope, window) for window in windows),
        "activation": Activation.RELU,
        "gated": True,
        "norm": NormKind.RMS,
        "norm_eps": 1e-5,
    }
    c = ModelConfig(**defaults | options)
    rng = np.random.default_rng(seed)
    tensors: dict[str, Tensor] = {}

    def add(name: str, *shape: int) -> None:
        values = (
            rng.standard_normal(shape) * 1.5 / np.sqrt(shape[-1])
            if len(shape) == 2
            else rng.random(shape) + 0.5
        )
        tensors[name] = tensor_from_array(name, values.astype(np.float32))

    add("token_embd.weight", c.vocab_size, c.hidden_size)
    add("output_norm.weight", c.hidden_size)
    for i in range(c.n_layers):
        add(f"blk.{i}.attn_norm.weight", c.hidden_size)
        if isinstance(net := c.layers[i].recurrent, DeltaNetConfig):
            values = net.n_value_heads * net.head_dim
            add(f"blk.{i}.attn_qkv.weight", net.channels, c.hidden_size)
            add(f"blk.{i}.attn_gate.weight", values, c.hidden_size)
            add(f"blk.{i}.ssm_beta.weight", net.n_value_heads, c.hidden_size)
            add(f"blk.{i}.ssm_alpha.weight", net.n_value_heads, c.hidden_size)
            add(f"blk.{i}.ssm_conv1d.weight", net.channels, net.kernel)
            add(f"blk.{i}.ssm_dt.weight", net.n_value_heads)
            decay = -rng.random(net.n_value_heads, np.float32) / 4
            tensors[f"blk.{i}.ssm_a.weight"] = tensor_from_array("decay", decay)
            add(f"blk.{i}.ssm_norm.weight", net.head_dim)
            add(f"blk.{i}.ssm_out.weight", c.hidden_size, values)
        else:
            add(f"blk.{i}.attn_q.weight", c.n_heads * c.head_dim, c.hidden_size)
            add(f"blk.{i}.attn_k.weight", c.n_kv_heads * c.head_dim, c.hidden_size)
            add(f"blk.{i}.attn_v.weight", c.n_kv_heads * c.head_dim, c.hidden_size)
            add(f"blk.{i}.attn_output.weight", c.hidden_size, c.n_heads * c.head_dim)
        if not c.parallel:
            add(f"blk.{i}.ffn_norm.weight", c.hidden_size)
        if c.gated:
            add(f"blk.{i}.ffn_gate.weight", c.ffn_size, c.hidden_size)
        add(f"blk.{i}.ffn_up.weight", c.ffn_size, c.hidden_size)
        add(f"blk.{i}.ffn_down.weight", c.hidden_size, c.ffn_size)
    return Checkpoint(Path("random"), c, tensors)


def mixture(checkpoint: Checkpoint, experts: Sequence[ExpertsConfig | None], seed: int = 0) -> Checkpoint:
    """The same model with mixtures in the layers where `experts` has one; random routers and experts."""
    rng = np.random.default_rng(seed)
    config, tensors = checkpoint.config, dict(checkpoint.tensors)
    hidden = config.hidden_size

    def add(name: str, *shape: int) -> None:
        values = rng.standard_normal(shape) * 1.5 / np.sqrt(shape[-1])
        tensors[f"{name}.weight"] = tensor_from_array(f"{name}.weight", values.astype(np.float32))

    for i, shape in enumerate(experts):
        if shape is None:
            continue
        own = f"blk.{i}"
        for part in ("gate", "up", "down"):
            tensors.pop(f"{own}.ffn_{part}.weight", None)
        add(f"{own}.ffn_gate_inp", shape.count, hidden)
        for part in ("gate", "up") if config.gated else ("up",):
            add(f"{own}.ffn_{part}_exps", shape.count, shape.size, hidden)
            if shape.shared_size:
                add(f"{own}.ffn_{part}_shexp", shape.shared_size, hidden)
        add(f"{own}.ffn_down_exps", shape.count, hidden, shape.size)
        if shape.shared_size:
            add(f"{own}.ffn_down_shexp", hidden, shape.shared_size)
            add(f"{own}.ffn_gate_inp_shexp", 1, hidden)
    pairs = zip(config.layers, experts, strict=True)
    layers = tuple(replace(layer, experts=shape) for layer, shape in pairs)
    return replace(checkpoint, config=replace(config, layers=layers), tensors=tensors)


def recurrent(checkpoint: Checkpoint, nets: Sequence[Recurrent | None], seed: int = 0) -> Checkpoint:
    """The same model with recurrent layers in place of attention where `nets` has one."""
    rng = np.random.default_rng(seed)
    config, tensors = checkpoint.config, dict(checkpoint.tensors)
    hidden = config.hidden_size

    def add(name: str, values: NDArray[np.float64]) -> None:
        tensors[name] = tensor_from_array(name, values.astype(np.float32))

    for i, net in enumerate(nets):
        if net is None:
            continue
        own = f"blk.{i}"
        for part in ("q", "k", "v", "output"):
            tensors.pop(f"{own}.attn_{part}.weight")
        if isinstance(net, ShortConvConfig):
            for name, rows in (("in", 3 * hidden), ("out", hidden)):
                add(f"{own}.shortconv_{name}.weight", rng.standard_normal((rows, hidden)) / np.sqrt(hidden))
            add(f"{own}.shortconv_conv.weight", rng.standard_normal((hidden, net.kernel)))
            continue
        if isinstance(net, MambaConfig):
            rows = net.values + net.channels + net.n_heads
            add(f"{own}.ssm_in.weight", rng.standard_normal((rows, hidden)) / np.sqrt(hidden))
            add(f"{own}.ssm_out.weight", rng.standard_normal((hidden, net.values)) / np.sqrt(net.values))
            add(f"{own}.ssm_conv1d.weight", rng.standard_normal((net.channels, net.kernel)))
            add(f"{own}.ssm_conv1d.bias", rng.standard_normal(net.channels))
            add(f"{own}.ssm_dt.weight", rng.standard_normal(net.n_heads))
            add(f"{own}.ssm_d.weight", rng.standard_normal(net.n_heads))
            add(f"{own}.ssm_a.weight", -np.exp(rng.standard_normal(net.n_heads)) / 4)
            add(f"{own}.ssm_norm.weight", rng.random(net.values) + 0.5)
            continue
        heads = net.n_value_heads
        values = heads * net.head_dim
        for name, rows in (
            ("attn_qkv", net.channels),
            ("attn_gate", values),
            ("ssm_beta", heads),
            ("ssm_alpha", heads),
        ):
            add(f"{own}.{name}.weight", rng.standard_normal((rows, hidden)) / np.sqrt(hidden))
        add(f"{own}.ssm_out.weight", rng.standard_normal((hidden, values)) / np.sqrt(values))
        add(f"{own}.ssm_conv1d.weight", rng.standard_normal((net.channels, net.kernel)))
        add(f"{own}.ssm_dt.weight", rng.standard_normal(heads))
        add(f"{own}.ssm_a.weight", -np.exp(rng.standard_normal(heads)) / 4)
        add(f"{own}.ssm_norm.weight", rng.random(net.head_dim) + 0.5)
    layers = tuple(replace(layer, recurrent=net) for layer, net in zip(config.layers, nets, strict=True))
    return replace(checkpoint, config=replace(config, layers=layers), tensors=tensors)


def latent(checkpoint: Checkpoint, shape: LatentConfig, seed: int = 0) -> Checkpoint:
    """The same model with multi-head latent attention in every layer."""
    rng = np.random.default_rng(seed)
    config, tensors = checkpoint.config, dict(checkpoint.tensors)
    heads = config.n_heads

    def add(name: str, *numbers: int) -> None:
        values = rng.standard_normal(numbers) * 1.5 / np.sqrt(numbers[-1])
        tensors[f"{name}.weight"] = tensor_from_array(f"{name}.weight", values.astype(np.float32))

    for i in range(config.n_layers):
        own = f"blk.{i}.attn"
        for part in ("q", "k", "v", "output"):
            tensors.pop(f"{own}_{part}.weight")
        add(f"{own}_q_a", shape.query_rank, config.hidden_size)
        add(f"{own}_q_a_norm", shape.query_rank)
        add(f"{own}_q_b", heads * shape.query_dim, shape.query_rank)
        add(f"{own}_kv_a_mqa", shape.kept, config.hidden_size)
        add(f"{own}_kv_a_norm", shape.rank)
        add(f"{own}_k_b", heads, shape.rank, shape.nope_dim)
        add(f"{own}_v_b", heads, shape.value_dim, shape.rank)
        add(f"{own}_output", config.hidden_size, heads * shape.value_dim)
    sizes = {"n_kv_heads": 1, "head_dim": shape.kept, "latent": shape}
    return replace(checkpoint, config=replace(config, **sizes), tensors=tensors)


def by_neuron(checkpoint: Checkpoint, plan: FFNPlan, orders: Sequence[NDArray[np.int64]]) -> Checkpoint:
    """The same model (in float types) with every FFN stored by neuron, a layer's neurons in its order."""
    tensors = dict(checkpoint.tensors)
    for i, order in enumerate(orders):
        for part in ("ffn_gate.weight", "ffn_gate.bias", "ffn_up.weight", "ffn_up.bias"):
            name = f"blk.{i}.{part}"
            if name in tensors:
                tensors[name] = tensor_from_array(name, tensors[name].to_float32()[order])
        down = tensors.pop(f"blk.{i}.ffn_down.weight").to_float32()
        name = f"blk.{i}.ffn_down_t.weight"
        tensors[name] = tensor_from_array(name, down.T[order])
    layers = tuple(replace(layer, ffn=plan) for layer in checkpoint.config.layers)
    return replace(checkpoint, config=replace(checkpoint.config, layers=layers), tensors=tensors)


def quantised(checkpoint: Checkpoint, type: TensorType) -> Checkpoint:
    """The same with every matrix of an FFN in a type."""
    tensors = dict(checkpoint.tensors)
    for name, tensor in tensors.items():
        if ".ffn_" in name and "norm" not in name:
            blocks = gguf.quantize(tensor.to_float32(), gguf.GGMLQuantizationType(int(type)))
            data = np.ascontiguousarray(blocks).reshape(-1).view(np.uint8)
            tensors[name] = Tensor(name, type, tensor.shape, data)
    return replace(checkpoint, tensors=tensors)
