"""Sizes of a model's parts: what its tensors say of each layer's attention and FFN, and of the head."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset.backends.blocks import gpu_bytes, memory_bytes
from hotset.backends.cutoff import MOST_GAP
from hotset.core.config import ModelConfig, Way
from hotset.core.errors import HotsetError
from hotset.core.heads import KvShape
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.tensor import Tensor, TensorType
from hotset.model.reading import COPY_BITS, skipped_matrices
from hotset.placing.part_times import described, whole_step
from hotset.state.kv_types import STATES

F64 = NDArray[np.float64]

SLAB = 64
"""Neurons are placed in groups of so many, experts one by one."""
_OWN_INPUT = ("inp_gate.", "proj.", "post_norm.")
"""What a layer's own embedding is multiplied with lies where the FFN does."""


@dataclass(frozen=True)
class FFNPart:
    """One layer's FFN: units that are placed, neurons or, in a mixture, experts.

    Bytes of a neuron are those of its rows (columns) of all matrices, as main memory lays them out unless
    they are said to be the file's, or on the device: either lays out some types in more.
    """

    size: int
    slab: int
    """Hot counts are multiples of this, and ``size`` itself."""
    unit_bytes: float
    scanned: float
    """Bytes of a cold unit that every token reads."""
    chosen: float
    """Bytes of a cold unit that are read only where the unit is computed."""
    f16_rows: bool
    frequency: F64
    """(size,): how often each unit is computed, in the file's order."""
    fixed_bytes: int
    """Norms, routers, shared experts and the like: wherever the FFN, or a part of it, lies."""
    predictor_bytes: int
    """On the host where the layer is wholly cold; where it is split, that of its cold neurons is on the
    device. Unused if wholly hot."""
    parameters: float
    """Of one unit."""
    experts: tuple[int, ...] = ()
    """A mixture's experts, hottest first: as they may lie anywhere, `frequency` is in this order."""
    exact: bool = False
    """Zeros alone are left out; the device may tell which, by all that is scanned."""
    used: float = 1.0
    """Share of the units that a token of a prompt computes."""
    name: str = ""
    """What its times are known by; see `hotset.placing.part_times`."""
    audited: float = 0.0
    """Share of a long conversation's tokens for which all cold neurons are computed, to move the cut-off."""
    first: float = 1.0
    """Of what is read of a chosen neuron, the share that is read before it is known to be zero."""
    file_unit_bytes: float = 0.0
    """Of a unit in the file, as it goes to the device for a prompt."""
    device_unit_bytes: float = 0.0
    """Of a unit on the device."""
    device_scanned: float = 0.0
    """Of `scanned` there."""
    device_fixed_bytes: int = 0
    """Of `fixed_bytes` there."""
    predictor_unit_bytes: float = 0.0
    """Of `predictor_bytes`, a unit's own."""

    def predictor_of(self, hot: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes of the predictor of the units from so many on."""
        found: NDArray[np.int64] = np.ceil(self.predictor_bytes - hot * self.predictor_unit_bytes).astype(
            np.int64
        )
        return found


@dataclass(frozen=True)
class LayerPart:
    """One layer."""

    attention_bytes: int
    """Of the attention, or of the recurrent mixer in its place."""
    attention_parameters: int
    kv_position_bytes: int
    window: int | None
    state_bytes: int
    """Of a recurrent layer, however long the context; read and written with every token."""
    ffn: FFNPart
    device_attention_bytes: int
    """Of the same on the device."""
    name: str = ""
    """What the times of the attention, or the mixer, are known by, with the side."""

    def kept_bytes(self, context: int, sequences: int) -> int:
        """Of keys and values of so many positions, and of the states of so many sequences."""
        return self.kv_position_bytes * context + STATES * sequences * self.state_bytes


@dataclass(frozen=True)
class ModelParts:
    """A model, as far as placing it goes."""

    config: ModelConfig
    layers: tuple[LayerPart, ...]
    head_bytes: int
    device_head_bytes: int
    head_name: str = ""

    @property
    def step_name(self) -> str:
        """What the times of a step of all parts are known by."""
        layers = (name for layer in self.layers for name in (layer.name, layer.ffn.name))
        return whole_step([*layers, self.head_name])


def model_parts(
    checkpoint: Checkpoint,
    frequency: Sequence[NDArray[np.floating]] | NDArray[np.floating] | None = None,
    kv_number_bytes: float = 2.0,
) -> ModelParts:
    """Sizes of a model's parts.

    `frequency` (L, units) says how often each layer's neurons fire, or its experts are selected, in the
    file's order; None: what the file's profile says. Raises `HotsetError` where a layer chooses neurons and
    there is neither; experts are then taken to be equally hot.
    """
    config, tensors = checkpoint.config, checkpoint.tensors
    layers = []
    for i, layer in enumerate(config.layers):
        own = {
            name.removeprefix(f"blk.{i}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"blk.{i}.")
        }
        attention = {
            name: tensor
            for name, tensor in own.items()
            if name.startswith(("attn_", "post_attention", "ssm_", "shortconv_"))
        }
        measured = None if frequency is None else frequency[i]
        if not (layer.attention or layer.recurrent):  # its one norm is the FFN's
            attention = {}
        build = _experts_part if layer.experts else _ffn_part if layer.feeds else _no_ffn
        recurrent = layer.recurrent
        kept = _kept_bytes(config.kv_shape(i), kv_number_bytes) if i in config.kv_layers else 0
        facts = recurrent or config.latent or config.heads(i), layer.window, f"{kv_number_bytes:g} bytes kept"
        layers.append(
            LayerPart(
                attention_bytes=_in_memory(attention.values()),
                attention_parameters=sum(math.prod(tensor.shape) for tensor in attention.values()),
                kv_position_bytes=kept,
                window=layer.window,
                state_bytes=4 * recurrent.state_size if recurrent else 0,
                ffn=build(checkpoint, i, own, measured),
                device_attention_bytes=_on_device(attention.values()),
                name=described("mixer", attention, *facts) if attention else "",
            )
        )
    output = tensors.get("output.weight", tensors["token_embd.weight"])
    beside = [t for name, t in tensors.items() if name.startswith("output_norm") or name == "output.bias"]
    head = [output, *beside]
    name = described("head", {"output": output})
    return ModelParts(config, tuple(layers), _in_memory(head), _on_device(head), name)


def _in_memory(tensors: Iterable[Tensor]) -> int:
    return sum(map(memory_bytes, tensors))


def _on_device(tensors: Iterable[Tensor]) -> int:
    return sum(map(gpu_bytes, tensors))


def _kept_bytes(kept: KvShape, number_bytes: float) -> int:
    """Of a position's keys and values; on a GPU each are padded to 16 numbers, in q8_0 to 16 bytes."""
    step = 16 * max(1, int(number_bytes))
    return math.ceil(kept.heads * kept.size * number_bytes / step) * step * (1 + kept.values)


def needs_profile(checkpoint: Checkpoint) -> bool:
    """Whether some layer chooses neurons or experts and the file does not say how often."""
    return any(
        (layer.experts or (layer.ffn and layer.ffn.way is not Way.DENSE))
        and f"blk.{i}.ffn_profile.weight" not in checkpoint.tensors
        for i, layer in enumerate(checkpoint.config.layers)
    )


def _no_ffn(
    checkpoint: Checkpoint, number: int, own: dict[str, Tensor], measured: NDArray[np.floating] | None
) -> FFNPart:
    return FFNPart(0, 1, 0.0, 0.0, 0.0, False, np.zeros(0), 0, 0, 0.0)


def _ffn_part(
    checkpoint: Checkpoint, number: int, own: dict[str, Tensor], measured: NDArray[np.floating] | None
) -> FFNPart:
    config = checkpoint.config
    size, plan = config.neurons(number), config.layers[number].ffn
    names = [name for name in ("ffn_gate", "ffn_up", "ffn_down_t", "ffn_down") if f"{name}.weight" in own]
    matrices = {name: own[f"{name}.weight"] for name in names}
    biases = [own[f"{name}.bias"] for name in ("ffn_gate", "ffn_up") if f"{name}.bias" in own]
    row = {name: memory_bytes(tensor) / size for name, tensor in matrices.items()}
    skipped = skipped_matrices(plan, config.gated) if plan else ()
    unit_bytes = sum(row.values()) + _in_memory(biases) / size
    chosen = sum(row[name] for name in skipped)
    frequency = np.ones(size)
    if skipped:
        profile = own.get("ffn_profile.weight")
        if measured is not None:
            frequency = np.asarray(measured, np.float64)
        elif profile is not None:
            frequency = profile.to_float32()[0].astype(np.float64)
        else:
            raise HotsetError(
                f"{checkpoint.path}: layer {number} chooses neurons, and the file does not say how often "
                "they fire: store it with hotset convert"
            )
    predictor, predictor_unit = 0, 0.0
    if plan and plan.score in COPY_BITS:
        predictor_unit = config.hidden_size * COPY_BITS[plan.score] / 8
        predictor = int(size * predictor_unit)
    elif plan and plan.way is Way.PREDICTOR:
        predictor = _on_device((own["fc1.weight"], own["fc2.weight"]))
        predictor_unit = gpu_bytes(own["fc2.weight"]) / size
    shared = ("ffn_norm.", "post_ffw", "ffn_down.bias", "ffn_down_t.bias", *_OWN_INPUT)
    fixed = [tensor for name, tensor in own.items() if name.startswith(shared)]
    device_unit = _on_device((*matrices.values(), *biases)) / size
    return FFNPart(
        size=size,
        slab=SLAB if "ffn_down_t" in matrices else math.lcm(SLAB, matrices["ffn_down"].type.block_size),
        unit_bytes=unit_bytes,
        scanned=unit_bytes - chosen,
        chosen=chosen,
        f16_rows=bool(skipped) and matrices[skipped[-1]].type is TensorType.F16,
        frequency=frequency,
        fixed_bytes=_in_memory(fixed),
        predictor_bytes=predictor,
        parameters=sum(math.prod(tensor.shape) for tensor in matrices.values()) / size,
        exact=plan is not None and plan.way is Way.EXACT,
        name=described("FFN", _feeding(own), config.activation.value, plan and (plan.way.value, plan.score)),
        audited=1 / MOST_GAP if plan and plan.way is Way.PREDICTOR and plan.kept else 0.0,
        first=row[skipped[0]] / chosen if skipped and config.activation.zero_producing else 1.0,
        file_unit_bytes=sum(tensor.nbytes for tensor in (*matrices.values(), *biases)) / size,
        device_unit_bytes=device_unit,
        device_scanned=device_unit - _on_device(matrices[name] for name in skipped) / size,
        device_fixed_bytes=_on_device(fixed),
        predictor_unit_bytes=predictor_unit,
    )


def _feeding(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of a layer's tensors is its FFN's."""
    return {
        name: tensor
        for name, tensor in own.items()
        if name.startswith(("ffn_", "fc", "exp_probs")) and not name.startswith("ffn_profile")
    }


def _experts_part(
    checkpoint: Checkpoint, number: int, own: dict[str, Tensor], measured: NDArray[np.floating] | None
) -> FFNPart:
    """Neurons that are left out inside the experts are taken to be read."""
    experts = checkpoint.config.layers[number].experts
    assert experts
    matrices = [tensor for name, tensor in own.items() if name.endswith("_exps.weight")]
    stacked = [tensor for name, tensor in own.items() if "_exps." in name]
    profile = own.get("ffn_profile.weight")
    frequency = np.full(experts.count, experts.used / experts.count)
    if measured is not None:
        frequency = np.asarray(measured, np.float64)
    elif profile is not None:
        frequency = profile.to_float32()[0].astype(np.float64)
    each = _in_memory(stacked) / experts.count
    order = np.argsort(-frequency, kind="stable")
    # An FFN beside the experts goes where they go.
    beside = ("ffn_gate.", "ffn_up.", "ffn_down.", "pre_ffw")
    names = ("ffn_norm.", "ffn_gate_inp", "exp_probs", "post_ffw", *beside, *_OWN_INPUT)
    fixed = [tensor for name, tensor in own.items() if name.startswith(names) or "_shexp." in name]
    return FFNPart(
        size=experts.count,
        slab=1,
        unit_bytes=each,
        scanned=0.0,
        chosen=each,
        f16_rows=False,
        frequency=frequency[order],
        fixed_bytes=_in_memory(fixed),
        predictor_bytes=0,
        parameters=sum(math.prod(tensor.shape) for tensor in matrices) / experts.count,
        experts=tuple(order.tolist()),
        used=experts.used / experts.count,
        name=described("experts", _feeding(own), checkpoint.config.activation.value, experts),
        file_unit_bytes=sum(tensor.nbytes for tensor in stacked) / experts.count,
        device_unit_bytes=_on_device(stacked) / experts.count,
        device_fixed_bytes=_on_device(fixed),
    )
