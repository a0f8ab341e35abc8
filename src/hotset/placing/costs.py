"""What each part of a model costs on either side: bytes, and milliseconds as the machine was timed.

A layer's options are tables over its hot count n, one for each home of the layer (where its attention and
its part of the KV cache lie). All that the solvers know of a model and a machine is in these tables. Times
are of one token decoded after `filled` others. Where the machine's profile has the times of a part
(`hotset.placing.timing`), they are that part's; else they are predicted from the machine's rates:

- a matrix that is read whole takes its bytes over the side's bandwidth;
- cold neurons take their scanned bytes (such as the gate, by which `exact` chooses) over the streaming
  bandwidth, and their other bytes, times how often each fires, over the gathering bandwidth;
- a split layer of `exact` may have what is scanned on the device, which then says who fires; it reads that
  before the host begins, as it does a predictor;
- where both sides work, both do at their contended rates until one is done;
- of a mixture's experts, on either side, those that the router selects are read, each at the streaming
  bandwidth, as they are megabytes long;
- where a predictor's cut-off is audited, one token in 64 computes a quarter of the other cold neurons;
- a recurrent layer reads and writes its state;
- a hand-shake is paid where a layer is split, and where attention lies across from a part of its FFN.

A layer is split for want of memory only. With few neurons that fire, a split layer can be predicted
to be faster than one that lies wholly on the GPU, whose dense slice reads them all; but a prompt needs every
neuron, and would pay for it. Plans leave such options out (`Options.needed`).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hotset.backends.cutoff import QUARTERS
from hotset.core.errors import HotsetError
from hotset.placing.machine import GpuRates, MachineProfile
from hotset.placing.part_times import TimedParts, ffn_us
from hotset.placing.sizes import FFNPart, LayerPart, ModelParts

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_NEVER_MS = 1e6
"""Of what cannot be done."""
HOST, DEVICE = 0, 1
"""Homes of a layer, and rows of its tables."""


SIDES = ("on the host", "on the device")
"""What follows a mixer's or the head's name, by home."""


def handshake_name(hidden: int) -> str:
    """What the time of a hand-shake is known by."""
    return f"hand-shake: {hidden} numbers there and back"


@dataclass(frozen=True)
class Options:
    """One layer's options: K hot counts for either home, some of them twice."""

    hot: I64
    """(K,), ascending, from 0 to all."""
    gates: NDArray[np.bool_]
    """(K,): whether the device has what is scanned of the cold neurons, too."""
    bytes: I64
    """(2, K): on the device, with the attention and its KV cache where the home is the device."""
    ms: F64
    """(2, K): attention, FFN and hand-shake."""
    attention_ms: F64
    """(2,): the attention's part of it."""
    handshake_ms: F64
    """(2, K): the hand-shakes' but, where the FFN was timed, a split one's own, which is in its time."""

    def at_home(self, home: int) -> "Options":
        """The same options; one of the other home is chosen where nothing else fits, and shows by its ms."""
        here = np.arange(2)[:, None] == home
        return replace(self, bytes=self.bytes * here, ms=self.ms + _NEVER_MS * ~here)

    def needed(self) -> "Options":
        """Without those that split a layer which is faster so than wholly on the device."""
        whole = (self.hot == 0) | (self.hot == self.hot[-1])
        kept = whole | (self.ms >= self.ms[DEVICE, -1]).all(axis=0)
        hot, nbytes, ms, handshake = self.hot, self.bytes, self.ms, self.handshake_ms
        gates = self.gates[kept]
        return Options(hot[kept], gates, nbytes[:, kept], ms[:, kept], self.attention_ms, handshake[:, kept])

    def of(self, hot: int, *, gates: bool) -> int:
        """The number of an option."""
        return int(np.flatnonzero((self.hot == hot) & (self.gates == gates))[0])

    def scaled(self, factor: float) -> "Options":
        """The same, taking so many times as long."""
        ms, attention, handshake = self.ms * factor, self.attention_ms * factor, self.handshake_ms * factor
        return replace(self, ms=ms, attention_ms=attention, handshake_ms=handshake)


def gpu_of(machine: MachineProfile) -> GpuRates:
    """The machine's GPU, or `HotsetError`."""
    if machine.gpu is None:
        raise HotsetError(
            f"the machine {machine.name} has no GPU to place anything on: give a profile of one that has, "
            "as --machine NAME or FILE"
        )
    return machine.gpu


def layer_options(
    layer: LayerPart,
    machine: MachineProfile,
    *,
    context: int,
    filled: int,
    sequences: int = 1,
    times: TimedParts | None = None,
    hidden: int = 0,
) -> Options:
    """A layer's options on a machine, with a KV cache of `context` tokens of which `filled` are read.

    The context is that of all `sequences` together, each of which has recurrent states of its own.

    `times` are those of parts that were timed, of a model with vectors of `hidden` numbers.
    """
    gpu, ffn, times = gpu_of(machine), layer.ffn, times or {}
    hot, gates = _counts(ffn)
    all_cold, split = hot == 0, (hot > 0) & (hot < ffn.size)

    device_bytes = np.ceil(hot * ffn.device_unit_bytes).astype(np.int64) + ffn.device_fixed_bytes * ~all_cold
    if ffn.experts:  # and a spare slot, for swaps
        device_bytes = device_bytes + math.ceil(ffn.device_unit_bytes) * split
    told = np.ceil((ffn.size - hot) * ffn.device_scanned * gates).astype(np.int64)
    resident = device_bytes + ffn.predictor_of(hot) * split + told
    fires = np.append(np.cumsum(ffn.frequency[::-1])[::-1], 0.0)[hot]  # units computed of those from hot on
    timed = ffn.name in times and ffn.size > 0

    def ffn_ms(computed: F64) -> F64:
        by_rates = _ffn_ms(ffn, machine, hot, computed, device_bytes, gates)
        if not timed:
            return by_rates
        # Timed without such gates, whose gain is the one by rates.
        gain = _ffn_ms(ffn, machine, hot, computed, device_bytes, np.zeros_like(gates)) - by_rates
        return np.maximum(ffn_us(times[ffn.name], ffn.size, hot, computed) / 1e3 - gain, 0.0)

    idle = (ffn.size - hot - fires) / QUARTERS  # that an audit computes, of which it reads a part
    both = (1 - ffn.audited) * ffn_ms(fires) + ffn.audited * ffn_ms(fires + ffn.first * idle)
    attention = _mixer_ms(layer, machine, filled, times)
    attention *= layer.attention_bytes > 0  # else there is none
    own = split * (not timed)  # a split FFN's own hand-shake
    crossings = np.stack([own + ~all_cold, own + (all_cold & (ffn.size > 0))])
    handshake = handshake_ms(gpu, times, hidden) * crossings
    kept_bytes = layer.device_attention_bytes + layer.kept_bytes(context, sequences)
    nbytes = np.stack([resident, resident + kept_bytes])
    ms = attention[:, None] + both + handshake
    return Options(hot, gates, nbytes, ms, attention, handshake)


def _counts(ffn: FFNPart) -> tuple[I64, NDArray[np.bool_]]:
    """Hot counts, and whether the gates of the others are on the device."""
    hot = np.append(np.arange(0, ffn.size, ffn.slab), ffn.size)
    if not ffn.exact:
        return hot, np.zeros(len(hot), np.bool_)
    both = np.repeat(hot, np.where((hot > 0) & (hot < ffn.size), 2, 1))
    return both, np.append(False, both[1:] == both[:-1])


def handshake_ms(gpu: GpuRates, times: TimedParts, hidden: int) -> float:
    """Of a task for the processor, and back."""
    timed = times.get(handshake_name(hidden))
    return (timed[0].us[0] if timed else gpu.handshake_us) / 1e3


def _mixer_ms(layer: LayerPart, machine: MachineProfile, filled: int, times: TimedParts) -> F64:
    """(2,): of a layer's attention on either side."""
    seen = min(filled, layer.window or filled)
    kept = layer.kv_position_bytes * seen + 2 * layer.state_bytes
    found = np.zeros(2)
    weights = layer.attention_bytes, layer.device_attention_bytes
    for home, rates in ((HOST, machine.cpu), (DEVICE, gpu_of(machine))):
        read = weights[home] + kept
        timed = times.get(f"{layer.name} {SIDES[home]}")
        rated = rates.part_us / 1e3 + read / (rates.stream * rates.kernel_share * 1e6)
        found[home] = timed[0].at(seen) / 1e3 if timed else rated
    return found


def _ffn_ms(
    ffn: FFNPart,
    machine: MachineProfile,
    hot: I64,
    fires: F64,
    device_bytes: I64,
    gates: NDArray[np.bool_],
) -> F64:
    """(K,): of an FFN of which so many units are hot and of the others so many fire, by rates."""
    cpu, gpu = machine.cpu, gpu_of(machine)
    all_cold, split, all_hot = hot == 0, (hot > 0) & (hot < ffn.size), hot == ffn.size
    # The device computes all of its neurons, but of its experts only the selected ones.
    selected = (fires[0] - fires) * ffn.device_unit_bytes + ffn.device_fixed_bytes * ~all_cold
    device_read = selected if ffn.experts else device_bytes
    scanned = (ffn.size - hot) * ffn.scanned
    streamed = scanned * ~gates + ffn.fixed_bytes + ffn.predictor_bytes * all_cold
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
    told = (ffn.size - hot) * ffn.device_scanned * gates
    prediction = split * (ffn.predictor_of(hot) + told) / (gpu.stream * gpu.kernel_share * 1e6)
    both: F64 = np.where(split, _overlapped(quiet, busy), quiet[HOST] + quiet[DEVICE]) + prediction
    return both


def head_options(parts: ModelParts, machine: MachineProfile, times: TimedParts | None = None) -> Options:
    """The head's two options, as those of a layer without an FFN; logits always end on the host.

    Where it was timed, what a step takes besides its parts is in its time.
    """
    cpu, gpu = machine.cpu, gpu_of(machine)
    logits = 4 * parts.config.vocab_size
    on_host = cpu.part_us / 1e3 + parts.head_bytes / (cpu.stream * cpu.kernel_share * 1e6)
    on_device = gpu.part_us / 1e3 + parts.device_head_bytes / (gpu.stream * gpu.kernel_share * 1e6)
    back = gpu.handshake_us / 2e3 + logits / (gpu.to_host * 1e6)
    ms = np.array([[on_host], [on_device + back]])
    for home, side in enumerate(SIDES):
        if timed := (times or {}).get(f"{parts.head_name} {side}"):
            ms[home] = timed[0].us[0] / 1e3
    return Options(
        np.zeros(1, np.int64),
        gates=np.zeros(1, np.bool_),
        bytes=np.array([[0], [parts.device_head_bytes]], np.int64),
        ms=ms,
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
