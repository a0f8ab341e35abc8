"""Times a model's parts on two sides, by running excerpts of the model as the model runs.

An excerpt has one part of one layer, again and again, each with memory of its own: more than caches hold. So
its times are those of real steps: recorded where the device records, with packets that carry the vectors that
a plan's will carry, all of the host's threads, both sides at once where an FFN is split. What a step takes
without layers is taken off.

Where an FFN chooses neurons, it is timed with as many chosen as are asked for: cut-offs are moved until they
are, and every one that is chosen is taken not to be zero. Between two timed steps all are computed, so that
caches forget those that were chosen last.

At the end one step has layers of each kind, placed in each way. The planner predicts it from the parts, and
what it took of that is kept.
"""

import contextlib
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np

from hotset.backends.contract import NeuronFFNSpec
from hotset.backends.cpu import CpuBackend, CpuNeuronFFN
from hotset.core.config import Activation, LayerPlacement, Placement, Score, Way
from hotset.formats.checkpoint import Checkpoint
from hotset.hybrid.build import build_hybrid
from hotset.hybrid.device import Device, DeviceMemoryError
from hotset.hybrid.handshake import handshake_us
from hotset.placing.costs import SIDES, handshake_name
from hotset.placing.excerpt import ROOM, Excerpt, Piece, excerpt
from hotset.placing.machine import MachineProfile
from hotset.placing.part_times import PartTime, Row
from hotset.placing.planner import Planner
from hotset.placing.sizes import FFNPart, LayerPart, model_parts
from hotset.state.kv_types import KV_TYPES

Progress = Callable[[int, int], None]

_BYTES = 256 << 20
"""Weights of an excerpt: more than caches hold of them from step to step."""
_COPIES = 2, 24
"""Of a part in an excerpt, at least and at most."""
_STEPS = 9
"""Timed for one number, the median."""
_EXPERT_STEPS = 24
"""The same where what is computed changes with the token."""
_FILLED = 64, 1024, 4096
"""Tokens that attention reads."""
_CHOSEN = 0.0, 0.02, 0.05, 0.1, 0.3, 1.0
"""Shares of the cold neurons that are computed."""
_USUAL = 0.05
"""The same in a step of all kinds of layers."""
_HOT = 0.25, 0.5
"""Shares of the units on the device where an FFN is split, between the least and the most."""


def sides(host: CpuBackend, device: Device) -> str:
    """What times of parts depend on beside the machine and the part."""
    return f"{host.threads} threads, {host.level}; {device.name}"


def timed(
    checkpoint: Checkpoint,
    device: Device,
    host: CpuBackend,
    machine: MachineProfile,
    *,
    kv_type: str = "f16",
    progress: Progress | None = None,
) -> MachineProfile:
    """The profile with the times of all of the model's parts, of which those that it lacks are measured.

    `progress(done, total)` counts parts. A part that the device has no room for is left out; so are models
    whose layers share keys and values or have inputs of their own: none of them stands alone.
    """
    config = checkpoint.config
    if config.layer_input or any(layer.kv_from is not None for layer in config.layers):
        return machine
    both, timer = sides(host, device), _Timer(checkpoint, device, host, kv_type)
    times = dict(machine.times_of(both))
    jobs = [(name, job) for name, job in timer.jobs() if name not in times]
    if not jobs and timer.parts.step_name in times:
        return machine
    found = replace(machine, times={**machine.times, both: times})
    jobs.append((timer.parts.step_name, lambda: timer.whole_step(found, both)))
    for done, (name, job) in enumerate(jobs):
        with contextlib.suppress(DeviceMemoryError):
            times[name] = job()
        gc.collect()
        if progress:
            progress(done + 1, len(jobs))
    return found


Job: TypeAlias = Callable[[], PartTime]


class _AllFire(CpuBackend):
    """Neurons that are chosen by cut-offs alone, none of which is zero: whoever is chosen is computed."""

    def neuron_ffn(self, spec: NeuronFFNSpec, index: int = 0, *, scores_given: bool = False) -> CpuNeuronFFN:
        if spec.plan.way is not Way.DENSE:
            plan = spec.plan
            if plan.way is Way.EXACT:
                plan = replace(plan, way=Way.THRESHOLD, score=Score.GATE)
            spec = replace(spec, plan=plan, activation=Activation.SILU)
        return super().neuron_ffn(spec, index, scores_given=scores_given)


class _Timer:
    """Builds excerpts of one model and times them."""

    def __init__(self, checkpoint: Checkpoint, device: Device, host: CpuBackend, kv_type: str) -> None:
        self._checkpoint, self._device, self._kv_type = checkpoint, device, kv_type
        self._host = _AllFire(host.threads, host.level, host.parts)
        config = checkpoint.config
        unknown = [np.ones(config.units(i)) for i in range(config.n_layers)]
        self.parts = model_parts(checkpoint, unknown, KV_TYPES[kv_type])
        self._nothing_us = math.nan

    def jobs(self) -> Iterator[tuple[str, Job]]:
        """What there is to time: names of parts, each with what times it."""
        hidden = self._checkpoint.config.hidden_size
        yield handshake_name(hidden), partial(self.handshake, hidden)
        for on_device, side in enumerate(SIDES):
            yield f"{self.parts.head_name} {side}", partial(self.head, bool(on_device))
        for i, layer in self._kinds(lambda layer: layer.name):
            for on_device, side in enumerate(SIDES):
                yield f"{layer.name} {side}", partial(self.mixer, i, layer, bool(on_device))
        for i, layer in self._kinds(lambda layer: layer.ffn.name):
            yield layer.ffn.name, partial(self.ffn, i, layer.ffn)

    def _kinds(self, name: Callable[[LayerPart], str]) -> Iterator[tuple[int, LayerPart]]:
        """The first layer of each name."""
        seen = {""}
        for i, layer in enumerate(self.parts.layers):
            if name(layer) not in seen:
                seen.add(name(layer))
                yield i, layer

    def handshake(self, hidden: int) -> PartTime:
        """Of a task of no work."""
        return (Row(0, (0.0,), (handshake_us(self._device, hidden),)),)

    def head(self, on_device: bool) -> PartTime:
        """Of a step of no layers, with the model's head."""
        run = self._excerpt([], [], head=on_device, whole_head=True)
        return (Row(0, (0.0,), (run.timed(_STEPS).us,)),)

    def mixer(self, i: int, layer: LayerPart, on_device: bool) -> PartTime:
        """Of a layer's attention or recurrent mixer, by the tokens that it reads."""
        count = _copies(layer.attention_bytes)
        run = self._excerpt([Piece(i, ffn=False)] * count, [LayerPlacement(on_device, 0)] * count)
        most = max(1, self._checkpoint.config.context_length - ROOM)
        filled = sorted({min(n, most, layer.window or n) for n in _FILLED})
        if not layer.kv_position_bytes:
            filled = filled[:1]
        us = []
        for n in filled:
            run.fill(n)
            us.append(self._of_one(run, run.timed(_STEPS).us))
        return (Row(0, tuple(map(float, filled)), tuple(us)),)

    def ffn(self, i: int, part: FFNPart) -> PartTime:
        """Of a layer's FFN, by the units on the device and by those that the host computes."""
        most = (part.size - 1) // part.slab * part.slab
        inner = {min(most, max(1, round(share * part.size / part.slab)) * part.slab) for share in _HOT}
        found: dict[int, list[tuple[float, float]]] = {}
        for hot in sorted({0, part.slab, *inner, most, part.size} & set(range(part.size + 1))):
            pieces = [Piece(i, mixer=False)] * _copies(round(part.size * part.unit_bytes))
            try:
                run = self._excerpt(pieces, [LayerPlacement(hot > 0, hot)] * len(pieces))
            except DeviceMemoryError:
                continue  # the others' rows say what it would take
            if part.experts:  # where both sides compute, time depends on how many each does
                kind = hot if hot in (0, part.size) else 1
                found.setdefault(kind, []).append(self._by_experts(run))
            elif part.chosen and hot < part.size:
                found[hot] = [self._by_chosen(run, share) for share in _CHOSEN]
            else:
                found[hot] = [(0.0, self._of_one(run, run.timed(_STEPS).us))]
            del run
            gc.collect()
        if not found:
            raise DeviceMemoryError(f"the device has no room for two of {part.name}")
        return tuple(_row(hot, points) for hot, points in sorted(found.items()))

    def whole_step(self, machine: MachineProfile, both: str) -> PartTime:
        """Two layers of each kind in each way, against what the planner predicts of them."""
        pieces, places = [], []
        for i, layer in self._kinds(lambda layer: layer.name + layer.ffn.name):
            ffn = layer.ffn
            some = ffn.size // 4 // ffn.slab * ffn.slab
            nbytes = layer.attention_bytes + ffn.size * ffn.unit_bytes
            for _ in range(2 if nbytes < _BYTES else 1):
                for attention, hot in ((False, 0), (False, some), (True, some), (True, ffn.size)):
                    pieces.append(Piece(i))
                    places.append(LayerPlacement(attention, hot))
        run = self._excerpt(pieces, places, head=True, whole_head=True)
        run.prompt()
        run.choose(_USUAL)
        step = run.timed(_EXPERT_STEPS)
        planner = Planner(
            run.checkpoint,
            machine,
            context=_FILLED[0],
            prompt=_FILLED[0],
            frequency=run.frequency(step.chosen),
            kv_number_bytes=KV_TYPES[self._kv_type],
            sides=both,
        )
        return (Row(0, (planner.predicted(run.placement).ms * 1e3,), (step.us,)),)

    def _excerpt(
        self,
        pieces: Sequence[Piece],
        places: Sequence[LayerPlacement],
        *,
        head: bool = False,
        whole_head: bool = False,
    ) -> "Excerpt":
        checkpoint = excerpt(self._checkpoint, pieces, whole_head=whole_head)
        placement = Placement(tuple(places), head)
        model = build_hybrid(checkpoint, placement, self._device, self._host)
        return Excerpt(checkpoint, placement, model, self._kv_type)

    def _of_one(self, run: "Excerpt", us: float) -> float:
        """What one of the layers takes of a step's time."""
        if math.isnan(self._nothing_us):
            self._nothing_us = self._excerpt([], []).timed(_STEPS).us
        return max(0.0, us - self._nothing_us) / len(run.placement.layers)

    def _by_chosen(self, run: "Excerpt", share: float) -> tuple[float, float]:
        run.choose(share)
        step = run.timed(_STEPS)
        return float(step.chosen.mean()), self._of_one(run, step.us)

    def _by_experts(self, run: "Excerpt") -> tuple[float, float]:
        run.prompt()
        step = run.timed(_EXPERT_STEPS)
        return float(step.chosen.mean()), self._of_one(run, step.us)


def _copies(nbytes: int) -> int:
    """Of a part of so many bytes in an excerpt."""
    least, most = _COPIES
    return min(max(least, -(-_BYTES // max(nbytes, 1))), most)


def _row(hot: int, points: Sequence[tuple[float, float]]) -> Row:
    """A row of these times. More work never takes less: what was disturbed takes no more than the next."""
    by_n: dict[float, float] = {}
    least = math.inf
    for n, us in sorted(points, reverse=True):
        by_n[n] = least = min(us, least)
    return Row(hot, tuple(reversed(by_n)), tuple(reversed(by_n.values())))
