"""Mixtures of experts in model files: what keys say of them, and all experts' tensors made of the files'."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.architectures.row import Architecture
from hotset.core.config import ExpertsConfig, Gating
from hotset.core.errors import CheckpointError
from hotset.formats.keys import REQUIRED, Keys
from hotset.formats.tensor import Tensor, TensorType, tensor_from_array
from hotset.formats.tensor_table import Sizes, TensorTable

_GATING = {1: Gating.SOFTMAX, 2: Gating.SIGMOID, 3: Gating.SELECTED}
"""GGUF's ``expert_gating_func``."""
_SINGLE_EXPERT = re.compile(r"blk\.\d+\.ffn_(gate|up|down)\.\d+\.weight")


def experts_from_gguf(
    keys: Keys, architecture: Architecture, tensors: Mapping[str, Tensor], first: int
) -> ExpertsConfig | None:
    """Read a GGUF file's keys; a size that they lack is that of the tensors of layer `first`.

    None: there are no mixtures.
    """
    row = architecture.experts
    if row is None:
        return None
    keys.require({"moe_latent_size": 0})
    keys.integer("interleave_moe_layer_step", 1, low=0, high=1)
    keys.integer("moe_every_n_layers", 1, low=0, high=1)
    both = _axis(tensors, f"blk.{first}.ffn_gate_up_exps.weight", 1)
    size = _axis(tensors, f"blk.{first}.ffn_up_exps.weight", 1) or (both and both // 2)
    shared = _axis(tensors, f"blk.{first}.ffn_up_shexp.weight", 0)
    gating = keys.integer("expert_gating_func", 0, low=0, high=max(_GATING))  # 0: none is stated
    usual = row.gating
    if row.gating_if_biased and f"blk.{first}.exp_probs_b.bias" in tensors:
        usual = row.gating_if_biased
    count = keys.integer("expert_count", high=_MOST)
    groups = keys.integer("expert_group_count", 1, low=0) or 1
    experts = ExpertsConfig(
        count=count,
        used=keys.integer("expert_used_count", high=count),
        size=keys.integer("expert_feed_forward_length", size or REQUIRED),
        shared_size=_shared(keys, architecture, "expert_shared_feed_forward_length", shared),
        gating=_GATING[gating] if gating else usual,
        normalised=keys.flag("expert_weights_norm", row.normalised),
        scale=keys.number("expert_weights_scale", 1.0, high=1e6) or 1.0,
        groups=groups,
        groups_used=keys.integer("expert_group_used_count", 1, low=0, high=groups) or 1,
        early=row.early,
    )
    if groups > 1 and experts.gating is Gating.SOFTMAX and architecture.latent:
        raise keys.refuse(
            "expert_group_count", "1, as DeepSeek-V2 chooses groups by their best expert", groups
        )
    if count % groups or experts.used > count // groups * experts.groups_used:
        raise keys.refuse(
            "expert_group_count", f"groups of {count} experts with room for {experts.used}", groups
        )
    return _averaged(architecture, experts)


def experts_from_config(keys: Keys, architecture: Architecture) -> ExpertsConfig | None:
    """Read config.json, by the names of Qwen's; None: no mixtures."""
    row = architecture.experts
    if row is None:
        return None
    count = keys.integer("num_experts", high=_MOST)
    gating = keys.text("scoring_func", row.gating.value)
    if gating not in list(Gating):
        raise keys.refuse("scoring_func", "one of " + ", ".join(Gating), gating)
    experts = ExpertsConfig(
        count=count,
        used=keys.integer("num_experts_per_tok", high=count),
        size=keys.integer("moe_intermediate_size"),
        shared_size=_shared(keys, architecture, "shared_expert_intermediate_size", 0),
        gating=Gating(gating),
        normalised=keys.flag("norm_topk_prob", row.normalised),
        scale=keys.number("routed_scaling_factor", 1.0, low=1e-6, high=1e6),
        groups=(groups := keys.integer("n_group", 1)),
        groups_used=keys.integer("topk_group", 1, high=groups),
        early=row.early,
    )
    return _averaged(architecture, experts)


def add_even_switches(table: TensorTable, architecture: Architecture, sizes: Sizes) -> None:
    """Where the shared expert's result and the others' are averaged: a switch of zeros is always half on.

    The others' weights are halved by `ExpertsConfig.scale`.
    """
    if architecture.experts and architecture.experts.averaged and sizes.experts and sizes.experts.shared_size:
        for layer in range(sizes.dense_layers, sizes.layers):
            name = f"blk.{layer}.ffn_gate_inp_shexp.weight"
            table.add(name, tensor_from_array(name, np.zeros((1, sizes.hidden), np.float32)))


def _averaged(architecture: Architecture, experts: ExpertsConfig) -> ExpertsConfig:
    """With half the weights, where the shared expert has the other half."""
    halved = architecture.experts and architecture.experts.averaged and experts.shared_size
    return replace(experts, scale=experts.scale / 2) if halved else experts


def refuse_single_experts(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse files from before experts were stacked."""
    for name in filter(_SINGLE_EXPERT.fullmatch, tensors):
        raise CheckpointError(
            f"{path}: tensor {name} is of a single expert, as in files from before spring 2024: "
            "get the model as a newer file"
        )


def dense_layers(keys: Keys, key: str, architecture: Architecture, layers: int) -> int:
    """Read how many layers from the first on are no mixtures, in families where others are."""
    if not architecture.experts:
        return 0
    if not architecture.dense_layers:
        keys.require({key: 0})
        return 0
    return keys.integer(key, 0, low=0, high=layers - 1)


_MOST = 1 << 16
"""More experts are taken for damage."""


def _axis(tensors: Mapping[str, Tensor], name: str, axis: int) -> int:
    """A dimension of a tensor; 0, if there is none such."""
    shape = tensors[name].shape if name in tensors else ()
    return shape[axis] if axis < len(shape) else 0


def _shared(keys: Keys, architecture: Architecture, key: str, default: int) -> int:
    if "ffn_up_shexp" not in architecture.tensors:
        return 0
    if architecture.experts and architecture.experts.maybe_shared:
        return keys.integer(key, default, low=0)
    return keys.integer(key, default or REQUIRED)


class Stacks:
    """Tensors of single experts, which become one of all experts."""

    def __init__(self, where: str, count: int) -> None:
        self._where = where
        self._count = count
        self._single: dict[tuple[str, str], dict[int, Tensor]] = {}

    def take(self, target: str, pattern: str, expert: int, tensor: Tensor) -> bool:
        """Take in an expert's part of `target`; `pattern` is its name, ``*`` in place of its number.

        False: there are not so many experts.
        """
        if expert >= self._count:
            return False
        self._single.setdefault((target, pattern), {})[expert] = tensor
        return True

    def add_to(self, table: TensorTable) -> None:
        """Put the stacks into the table; raise `CheckpointError` where an expert lacks its part."""
        for (target, pattern), parts in self._single.items():
            for expert in range(self._count):
                name = pattern.replace("*", str(expert))
                if expert not in parts:
                    raise CheckpointError(f"{self._where}: tensor {name} is missing: the file is incomplete")
                if parts[expert].shape != parts[0].shape:
                    raise table.mismatch(name, parts[0].shape, parts[expert].shape)
                if parts[expert].type != parts[0].type:
                    raise CheckpointError(
                        f"{self._where}: tensor {name}: expected {parts[0].type.name} like expert 0's, "
                        f"found {parts[expert].type.name}"
                    )
            ordered = [parts[expert] for expert in range(self._count)]
            add_stack(table, target, ordered[0].type, (self._count, *ordered[0].shape), ordered.__getitem__)


def add_stack(
    table: TensorTable,
    name: str,
    type: TensorType,
    shape: tuple[int, ...],
    make: Callable[[int], Tensor],
    scale: NDArray[np.float32] | None = None,
) -> None:
    """Take in a tensor of all experts; `make` gives each one's part."""
    table.add_made(name, shape, partial(Stack, name, type, shape, make, scale))


def add_gate_up(
    table: TensorTable, layer: int, suffix: str, fused: Tensor, sizes: Sizes, *, transposed: bool
) -> None:
    """Take ``ffn_gate_up_exps`` in as its halves: (E, 2X, D), gate's rows first, or its bias (E, 2X).

    `transposed`: (E, D, 2X), gate's columns alternating with up's.
    """
    count, size, hidden = sizes.dimensions("EXD")
    weight = suffix == "weight"
    expected = (count, 2 * size, hidden) if weight else (count, 2 * size)
    if transposed and weight:
        expected = (count, hidden, 2 * size)
    if fused.shape != expected:
        raise table.mismatch(f"blk.{layer}.ffn_gate_up_exps.{suffix}", expected, fused.shape)
    for half, part in enumerate(("ffn_gate_exps", "ffn_up_exps")):
        name = f"blk.{layer}.{part}.{suffix}"
        shape = (count, size, hidden) if weight else (count, size)
        add_stack(table, name, fused.type, shape, partial(_half, fused, half, transposed), fused.scale)


def add_transposed(table: TensorTable, name: str, tensor: Tensor) -> None:
    """Take a stack of matrices (E, in, out) of floats in as (E, out, in)."""
    if len(tensor.shape) != 3:
        raise CheckpointError(
            f"{table.where}: tensor {name}: expected a stack of matrices, found {tensor.shape}"
        )
    count, columns, rows = tensor.shape
    add_stack(table, name, tensor.type, (count, rows, columns), partial(_transposed, tensor))


class Stack(Tensor):
    """All experts' parts of a tensor, where a file has them apart or in another form: made when asked for."""

    def __init__(
        self,
        name: str,
        type: TensorType,
        shape: tuple[int, ...],
        make: Callable[[int], Tensor],
        scale: NDArray[np.float32] | None = None,
    ) -> None:
        fields = {"name": name, "type": type, "shape": shape, "_make": make, "scale": scale}
        for key, value in fields.items():
            object.__setattr__(self, key, value)

    @property
    def data(self) -> NDArray[np.uint8]:
        """All parts, one after the other: a copy."""
        return np.concatenate([self.part(expert).data for expert in range(self.shape[0])])

    @property
    def nbytes(self) -> int:
        return prod(self.shape) // self.type.block_size * self.type.block_bytes

    def part(self, index: int) -> Tensor:
        make: Callable[[int], Tensor] = self._make  # type: ignore[attr-defined]
        return make(index)


def _half(fused: Tensor, half: int, alternating: bool, expert: int) -> Tensor:
    """Gate (0) or up (1) of an expert."""
    whole = fused.part(expert)
    if alternating:
        return of_numbers(whole.name, whole.type, _numbers(whole)[..., half::2].T)
    size = whole.shape[0] // 2
    return whole.rows(half * size, (half + 1) * size)


def _transposed(stack: Tensor, expert: int) -> Tensor:
    return transposed(stack.part(expert))


def transposed(matrix: Tensor) -> Tensor:
    """A matrix of floats, transposed: a copy."""
    return of_numbers(matrix.name, matrix.type, _numbers(matrix).T)


def _numbers(tensor: Tensor) -> NDArray[Any]:
    """A float tensor's numbers by their bits."""
    return tensor.data.view(f"u{tensor.type.block_bytes}").reshape(tensor.shape)


def of_numbers(name: str, type: TensorType, numbers: NDArray[Any]) -> Tensor:
    """A tensor of a float type, of such numbers or their bits."""
    data = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)
    return Tensor(name, type, numbers.shape, data)
