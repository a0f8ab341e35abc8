"""Runs a planned step: tells the device its instructions, and the host's worker its tasks.

The step is handed over once: the worker gets the addresses of its vectors, the device a function that tells
it the instructions, which it may record and replay. A call only brings the batch's hidden vectors and says
which sequences they belong to.
"""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import TypeAlias

import numpy as np

from hotset import _native
from hotset.backends.contract import F32, Array, BatchView
from hotset.backends.cpu import CpuAttention, CpuExperts, CpuFFN, CpuNeuronFFN, CpuRecurrent
from hotset.core.batch import Batch
from hotset.core.errors import HotsetError
from hotset.hybrid.device import Device, zeros
from hotset.hybrid.step import (
    MOST_ROWS,
    AddInput,
    AddNorm,
    Answer,
    Attend,
    Copy,
    Download,
    DownloadLogits,
    Feed,
    FeedExperts,
    HostAddInput,
    HostAttend,
    HostFeed,
    HostFeedExperts,
    HostSelect,
    Instruction,
    Prefetch,
    Receive,
    Scale,
    Select,
    Send,
    SendChosen,
    SendSelection,
    Step,
    Take,
    TakeChosen,
    Upload,
    Vector,
    Where,
    Work,
    Zero,
)

Arrays: TypeAlias = Mapping[Vector, Array]


def step_numbers() -> Iterator[int]:
    """1, 2 … of 32 bits, and again: memory that packets have left never holds a number to come."""
    return (1 + i % (2**32 - 1) for i in count())


_NUMBERS = step_numbers()
"""Of all steps of the process: a step after one that failed has a number of its own."""


class Executor:
    """A step on a device and the host; one call at a time."""

    def __init__(self, step: Step, device: Device) -> None:
        self._step, self._device = step, device
        self._worker = _native.HostWorker()
        self._arrays = {vector: _room(device, vector, step) for vector in step.vectors()}
        # Selections lie together, to be counted together.
        sent = [i.to for i in step.instructions if isinstance(i, SendSelection)]
        takes = [work for task in step.tasks for work in task.work if isinstance(work, Take)]
        taken = [take.to for take in takes if take.x in sent]
        size = max((vector.size for vector in taken), default=0)
        self._selections: F32 = np.zeros((len(taken), MOST_ROWS, size), np.float32)
        self._arrays |= dict(zip(taken, self._selections, strict=True))
        # So do the layers' embeddings of the tokens, to be copied together.
        width = step.inputs[0].size if step.inputs else 0
        self._inputs = device.pinned((len(step.inputs), MOST_ROWS, width), np.float32)
        self._arrays |= dict(zip(step.inputs, self._inputs, strict=True))
        self._control = device.pinned((2,), np.uint32)
        for task in step.tasks:
            self._worker.task()
            for work in task.work:
                hand_over(work, self._worker, self._arrays)
        self._sliced: dict[int, Arrays] = {}
        self._tell_batch = device.record_batches(self._tell)
        self._unfinished = False

    def run(
        self, x: F32, e: F32 | None, on_device: Batch, on_host: _native.Batch
    ) -> tuple[Array, F32 | None]:
        """The last hidden vectors and, where the head is on the device, the logits of embeddings x (T, D).

        `e` (T, L, P) are each layer's own embeddings, where there are any. The batch is of the sequences'
        halves on either side. What is returned, (T, D) and (T, V), is overwritten by the next step. Raises
        `HotsetError` where the host's part failed; whatever raises, the next step works.
        """
        if self._unfinished:
            self._recover()
        self._unfinished = True
        step, rows = self._step, len(x)
        np.copyto(self._arrays[step.first][:rows], x)
        if e is not None:
            np.copyto(self._inputs[:, :rows], e.swapaxes(0, 1))
        number = next(_NUMBERS)
        self._control[:] = number, rows
        try:
            if step.tasks:
                self._worker.begin(on_host, number)
            self._tell_batch(on_device)
            self._device.mark(spin=not step.tasks).wait()
            error = self._worker.finish()
        except BaseException:
            self._recover()
            raise
        if error:
            self._recover()
            raise HotsetError(f"the CPU's part of the model failed: {error}; ask again")
        if self._device.gave_up(number):
            raise HotsetError(f"the {self._device.name} waited too long for the CPU's part: ask again")
        self._unfinished = False
        logits = None if step.logits is None else self._arrays[step.logits][:rows]
        return self._arrays[step.last][:rows], logits

    def selections(self, rows: int) -> F32:
        """(M, rows, E): what the last step's M split mixtures selected, zeros being what they did not."""
        return self._selections[:, :rows]

    def close(self) -> None:
        """End the worker's thread; a step in hand fails, the next one starts another."""
        self._worker.stop()

    def _tell(self, rows: int, view: BatchView) -> None:
        if rows not in self._sliced:
            self._sliced[rows] = {vector: array[:rows] for vector, array in self._arrays.items()}
        self._device.begin(self._control)
        for instruction in self._step.instructions:
            tell(instruction, self._device, self._sliced[rows], view)

    def _recover(self) -> None:
        """Bring both sides to rest. With all tasks answered, nothing keeps the stream from its end."""
        self._worker.abort()
        self._device.synchronize()
        self._unfinished = False


def tell(instruction: Instruction, device: Device, arrays: Arrays, view: BatchView) -> None:
    """Tell the device one instruction of a step; `view` is of the batch, as its backend takes it."""
    match instruction:
        case Send(x, to):
            device.send(arrays[x], arrays[to])
        case Receive(x, to, add):
            device.receive(arrays[x], arrays[to], add=add)
        case Upload(x, to):
            device.upload(arrays[x], arrays[to])
        case Download(x, to):
            device.download(arrays[x], arrays[to])
        case Zero(to):
            device.zero(arrays[to])
        case Copy(x, to):
            device.assign(arrays[x], arrays[to])
        case Scale(x, factor):
            device.scale(arrays[x], factor)
        case _:
            _tell_part(instruction, device, arrays, view)


def _tell_part(instruction: Instruction, device: Device, arrays: Arrays, view: BatchView) -> None:
    """The same of what a layer's part or the head computes."""
    match instruction:
        case Attend(_, mixer, x, to):
            mixer.forward(arrays[x], arrays[to], view)
        case Feed(_, ffn, x, to):
            ffn.forward(arrays[x], arrays[to], view)
        case AddInput(_, layer_input, x, e):
            layer_input.forward(arrays[x], arrays[e], arrays[x])
        case AddNorm(_, add_normed, x, to):
            add_normed(arrays[x], arrays[to])
        case SendChosen(_, predict, x, cutoffs, column, to, values):
            device.send_chosen(predict(arrays[x]), arrays[cutoffs][:, column], arrays[to], values=values)
        case Select(_, experts, x, to):
            device.assign(experts.select(arrays[x]), arrays[to])
        case SendSelection(_, experts, weights, to):
            device.send(experts.for_host(arrays[weights]), arrays[to])
        case FeedExperts(_, experts, x, weights, to):
            experts.add(arrays[x], arrays[to], arrays[weights])
        case DownloadLogits(head, x, to):
            device.download(device.logits(head, arrays[x]), arrays[to])


def hand_over(work: Work, worker: _native.HostWorker, arrays: Arrays) -> None:
    """Add one piece of work to the worker's last task."""
    match work:
        case Take(x, to):
            worker.take(arrays[x], arrays[to])
        case Prefetch(x, CpuNeuronFFN() as ffn, cutoffs, column, to, until):
            worker.prefetch(ffn.native, arrays[x], arrays[to], arrays[cutoffs][:, column], arrays[until])
        case TakeChosen(x, CpuNeuronFFN() as ffn, cutoffs, column, to):
            worker.take_chosen(ffn.native, arrays[x], arrays[to], arrays[cutoffs][:, column])
        case Answer(x, to):
            worker.answer(arrays[x], arrays[to])
        case Zero(to):
            worker.zero(arrays[to])
        case Copy(x, to):
            worker.copy(arrays[x], arrays[to])
        case Scale(x, factor):
            worker.scale(arrays[x], factor)
        case _:
            _hand_over_part(work, worker, arrays)


def _hand_over_part(work: Work, worker: _native.HostWorker, arrays: Arrays) -> None:
    """The same of what a layer's part computes."""
    match work:
        case HostAttend(_, CpuRecurrent() as layer, x, to):
            worker.recurrent(layer.native, arrays[x], arrays[to])
        case HostAttend(_, CpuAttention() as attention, x, to):
            worker.attention(attention.native, arrays[x], arrays[to])
        case HostFeed(_, CpuNeuronFFN() as ffn, x, to, None):
            worker.neuron_ffn(ffn.native, arrays[x], arrays[to])
        case HostFeed(_, CpuNeuronFFN() as ffn, x, to, TakeChosen() as taken):
            cutoffs = arrays[taken.cutoffs][:, taken.column]
            worker.neuron_ffn(ffn.native, arrays[x], arrays[to], arrays[taken.to], cutoffs)
        case HostFeed(_, CpuFFN() as ffn, x, to):
            worker.ffn(ffn.native, arrays[x], arrays[to])
        case HostFeed(_, CpuExperts() as experts, x, to):
            worker.experts(experts.native, arrays[x], arrays[to], None)
        case HostSelect(_, experts, x, to):
            worker.select(experts.native, arrays[x], arrays[to])
        case HostAddInput(_, layer_input, x, e):
            worker.layer_input(layer_input.native, arrays[x], arrays[e])
        case HostFeedExperts(_, experts, x, weights, to):
            worker.experts(experts.native, arrays[x], arrays[to], arrays[weights])


def _room(device: Device, vector: Vector, step: Step) -> Array:
    shape = (MOST_ROWS, vector.size)
    match vector.where:
        case Where.PACKET:
            return device.pinned(shape, np.uint64)
        case Where.HOST if vector in (step.first, *step.inputs, step.last, step.logits, step.cutoffs):
            return device.pinned(shape, np.float32)
        case Where.HOST:
            return np.zeros(shape, np.float32)
    return zeros(device, shape)  # rows beyond a batch's are computed too, of whatever they hold
