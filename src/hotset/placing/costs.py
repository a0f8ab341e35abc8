"""What each part of a model costs on either side: bytes by its tensors, milliseconds by a machine's rates.

A layer's options are tables over its hot count n, one for each home of the layer (where its attention and
its part of the KV cache lie). All that the solvers know of a model and a machine is in these tables. Times
are of one token decoded after `filled` others:

- a matrix that is read whole takes its bytes over the side's bandwidth;
- cold neurons take their scanned bytes (such as the gate, by which `exact` chooses) over the streaming
  bandwidth, and their other bytes, times how often each fires, over the gathering bandwidth;
- where both sides work, both do at their contended rates until one is done;
- of a mixture's experts, on either side, those that the router selects are read, each at the streaming
  bandwidth, as they are megabytes long;
- a recurrent layer reads and writes its state;
- a hand-shake is paid where a layer is split, or where its FFN lies wholly across from its attention.

A layer is split for want of memory only. With few neurons that fire, a split layer can be predicted
to be faster than one that lies wholly on the GPU, whose dense slice reads them all; but a prompt needs every
neuron, and would pay for it. Such options are left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hotset.core.config import ModelConfig, Way
from hotset.core.errors import HotsetError
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.tensor import Tensor, TensorType
from hotset.model.reading import COPY_BITS, skipped_matrices
from hotset.placing.machine import GpuRates, MachineProfile

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

SLAB = 64
"""Neurons are placed in groups of so many, experts one by one."""
_NEVER_MS = 1e6
"""Of what cannot be done."""
_OWN_INPUT = ("inp_gate.", "proj.", "post_norm.")
"""What a layer's own embedding is multiplied with lies where the FFN does."""
HOST, DEVICE = 0, 1
"""Homes of a layer, and rows of its tables."""


@dataclass(frozen=True)
class FFNPart:
    """One layer's FFN: units that are placed, neurons or, in a mixture, experts.

    Bytes of a neuron are those of its rows (columns) of all matrices.
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
    """On the device where the layer is split, on the host where it is wholly cold, unused if wholly hot."""
    parameters: float
    """Of one unit."""
    experts: tuple[int, ...] = ()
    """A mixture's experts, hottest first: as they may lie anywhere, `frequency` is in this order."""
    used: float = 1.0
    """Share of the units that a token of a prompt computes."""


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
    other_mixer: bool = False
    """A recurrent mixer or latent attention, which not every device runs."""


@dataclass(frozen=True)
class ModelParts:
    """A model, as far as placing it goes."""

    config: ModelConfig
    layers: tuple[LayerPart, ...]
    head_bytes: int
    head_parameters: int


@dataclass(frozen=True)
class Options:
    """One layer's options: K hot counts for either home."""

    hot: I64
    """(K,), ascending, from 0 to all."""
    bytes: I64
    """(2, K): on the device, with the attention and its KV cache where the home is the device."""
    ms: F64
    """(2, K): attention, FFN and hand-shake."""
    attention_ms: F64
    """(2,): the attention's part of it."""
    handshake_ms: F64
    """(2, K): the hand-shake's."""

    def at_home(self, home: int) -> "Options":
        """The same options; one of the other home is chosen where nothing else fits, and shows by its ms."""
        here = np.arange(2)[:, None] == home
        return replace(self, bytes=self.bytes * here, ms=self.ms + _NEVER_MS * ~here)


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
        attention = [
            t for name, t in own.items() if name.startswith(("attn_", "post_attention", "ssm_", "shortconv_"))
        ]
        measured = None if frequency is None else frequency[i]
        if not (layer.attention or layer.recurrent):  # its one norm is the FFN's
            attention = []
        build = _experts_part if layer.experts else _ffn_part if layer.feeds else _no_ffn
        recurrent = layer.recurrent
        kept = config.kv_shape(i).numbers if i in config.kv_layers else 0
        layers.append(
            LayerPart(
                attention_bytes=sum(tensor.nbytes for tensor in attention),
                attention_parameters=sum(math.prod(tensor.shape) for tensor in attention),
                kv_position_bytes=int(kept * kv_number_bytes),
                window=layer.window,
                state_bytes=4 * recurrent.state_size if recurrent else 0,
                ffn=build(checkpoint, i, own, measured),
                other_mixer=bool(recurrent or config.latent),
            )
        )
    output = tensors.get("output.weight", tensors["token_embd.weight"])
    norms = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("output_norm"))
    return ModelParts(config, tuple(layers), output.nbytes + norms, math.prod(output.shape))


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
    row = {name: tensor.nbytes / size for name, tensor in matrices.items()}
    skipped = skipped_matrices(plan, config.gated) if plan else ()
    unit_bytes = sum(row.values()) + sum(tensor.nbytes for tensor in biases) / size
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
    predictor = 0
    if plan and plan.score in COPY_BITS:
        predictor = int(size * config.hidden_size * COPY_BITS[plan.score] / 8)
    elif plan and plan.way is Way.PREDICTOR:
        predictor = own["fc1.weight"].nbytes + own["fc2.weight"].nbytes
    shared = ("ffn_norm.", "post_ffw", "ffn_down.bias", "ffn_down_t.bias", *_OWN_INPUT)
    return FFNPart(
        size=size,
        slab=SLAB if "ffn_down_t" in matrices else math.lcm(SLAB, matrices["ffn_down"].type.block_size),
        unit_bytes=unit_bytes,
        scanned=unit_bytes - chosen,
        chosen=chosen,
        f16_rows=bool(skipped) and matrices[skipped[-1]].type is TensorType.F16,
        frequency=frequency,
        fixed_bytes=sum(tensor.nbytes for name, tensor in own.items() if name.startswith(shared)),
        predictor_bytes=predictor,
        parameters=sum(math.prod(tensor.shape) for tensor in matrices.values()) / size,
    )


def _experts_part(
    checkpoint: Checkpoint, number: int, own: dict[str, Tensor], measured: NDArray[np.floating] | None
) -> FFNPart:
    """Neurons that are left out inside the experts are taken to be read."""
    experts = checkpoint.config.layers[number].experts
    assert experts
    matrices = [tensor for name, tensor in own.items() if name.endswith("_exps.weight")]
    stacked = sum(tensor.nbytes for name, tensor in own.items() if "_exps." in name)
    profile = own.get("ffn_profile.weight")
    frequency = np.full(experts.count, experts.used / experts.count)
    if measured is not None:
        frequency = np.asarray(measured, np.float64)
    elif profile is not None:
        frequency = profile.to_float32()[0].astype(np.float64)
    each = stacked / experts.count
    order = np.argsort(-frequency, kind="stable")
    # An FFN beside the experts goes where they go.
    beside = ("ffn_gate.", "ffn_up.", "ffn_down.", "pre_ffw")
    fixed = ("ffn_norm.", "ffn_gate_inp", "exp_probs", "post_ffw", *beside, *_OWN_INPUT)
    return FFNPart(
        size=experts.count,
        slab=1,
        unit_bytes=each,
        scanned=0.0,
        chosen=each,
        f16_rows=False,
        frequency=frequency[order],
        fixed_bytes=sum(t.nbytes for name, t in own.items() if name.startswith(fixed) or "_shexp." in name),
        predictor_bytes=0,
        parameters=sum(math.prod(tensor.shape) for tensor in matrices) / experts.count,
        experts=tuple(order.tolist()),
        used=experts.used / experts.count,
    )


def gpu_of(machine: MachineProfile) -> GpuRates:
    """The machine's GPU, or `HotsetError`."""
    if machine.gpu is None:
        raise HotsetError(
            f"the machine {machine.name} has no GPU to place anything on: give a profile of one that has, "
            "as --machine NAME or FILE"
        )
    return machine.gpu


def layer_options(
    layer: LayerPart, machine: MachineProfile, *, context: int, filled: int, all_mixers: bool = True
) -> Options:
    """A layer's options on a machine, with a KV cache of `context` tokens of which `filled` are read.

    Without `all_mixers` the GPU runs no recurrent mixers, nor latent attention.
    """
    cpu, gpu, ffn = machine.cpu, gpu_of(machine), layer.ffn
    hot = np.append(np.arange(0, ffn.size, ffn.slab), ffn.size)
    all_cold, split, all_hot = hot == 0, (hot > 0) & (hot < ffn.size), hot == ffn.size

    device_bytes = np.ceil(hot * ffn.unit_bytes).astype(np.int64) + ffn.fixed_bytes * ~all_cold
    resident = device_bytes + ffn.predictor_bytes * split
    fires = np.append(np.cumsum(ffn.frequency[::-1])[::-1], 0.0)[hot]  # units computed of those from hot on
    # The device computes all of its neurons, but of its experts only the selected ones.
    device_read = (
        (fires[0] - fires) * ffn.chosen + ffn.fixed_bytes * ~all_cold if ffn.experts else device_bytes
    )
    streamed = (ffn.size - hot) * ffn.scanned + ffn.fixed_bytes + ffn.predictor_bytes * all_cold
    gathered = fires * ffn.chosen

    def host(stream: float, gather: float) -> F64:
        ms = cpu.part_us / 1e3 + streamed / (stream * cpu.kernel_share * 1e6) + gathered / (gather * 1e6)
        return np.where(all_hot, 0.0, ms)

    def device(stream: float) -> F64:
        ms = gpu.part_us / 1e3 + device_read / (stream * gpu.kernel_share * 1e6)
        return np.where(all_cold, 0.0, ms)

    gather = (
        (cpu.gather_f16, cpu.gather_f16_contended) if ffn.f16_rows else (cpu.gather, cpu.gather_contended)
    )
    if ffn.experts:
        gather = (cpu.stream * cpu.kernel_share, cpu.stream_contended * cpu.kernel_share)
    quiet = host(cpu.stream, gather[0]), device(gpu.stream)
    busy = host(cpu.stream_contended, gather[1]), device(gpu.stream_contended)
    prediction = split * ffn.predictor_bytes / (gpu.stream * gpu.kernel_share * 1e6)
    both = np.where(split, _overlapped(quiet, busy), quiet[HOST] + quiet[DEVICE]) + prediction

    read = layer.attention_bytes + layer.kv_position_bytes * min(filled, layer.window or filled)
    read += 2 * layer.state_bytes
    attention = np.array(
        [
            cpu.part_us / 1e3 + read / (cpu.stream * cpu.kernel_share * 1e6),
            gpu.part_us / 1e3 + read / (gpu.stream * gpu.kernel_share * 1e6),
        ]
    )
    attention *= layer.attention_bytes > 0  # else there is none
    if layer.other_mixer and not all_mixers:
        attention[DEVICE] = _NEVER_MS
    handshake = gpu.handshake_us / 1e3 * np.stack([~all_cold, ~all_hot])
    own = layer.attention_bytes + layer.kv_position_bytes * context + 2 * layer.state_bytes
    nbytes = np.stack([resident, resident + own])
    ms = attention[:, None] + both + handshake
    kept = all_cold | all_hot | (ms >= ms[DEVICE, -1]).all(axis=0)
    return Options(hot[kept], nbytes[:, kept], ms[:, kept], attention, handshake[:, kept])


def head_options(parts: ModelParts, machine: MachineProfile) -> Options:
    """The head's two options, as those of a layer without an FFN; logits always end on the host."""
    cpu, gpu = machine.cpu, gpu_of(machine)
    logits = 4 * parts.config.vocab_size
    on_host = cpu.part_us / 1e3 + parts.head_bytes / (cpu.stream * cpu.kernel_share * 1e6)
    on_device = gpu.part_us / 1e3 + parts.head_bytes / (gpu.stream * gpu.kernel_share * 1e6)
    back = gpu.handshake_us / 2e3 + logits / (gpu.to_host * 1e6)
    return Options(
        np.zeros(1, np.int64),
        bytes=np.array([[0], [parts.head_bytes]], np.int64),
        ms=np.array([[on_host], [on_device + back]]),
        attention_ms=np.zeros(2),
        handshake_ms=np.zeros((2, 1)),
    )


def _overlapped(quiet: tuple[F64, F64], busy: tuple[F64, F64]) -> F64:
    """Time of two sides that begin together; once one is done, the other goes on at its quiet rate."""
    (quiet_a, quiet_b), (busy_a, busy_b) = quiet, busy
    with np.errstate(divide="ignore", invalid="ignore"):
        rest_a = (1 - busy_b / busy_a) * quiet_a
        rest_b = (1 - busy_a / busy_b) * quiet_b
    return np.where(busy_a >= busy_b, busy_b + rest_a, busy_a + rest_b)
