"""How long a device and the host's worker take to hand a vector to and fro."""

import time
from statistics import median

import numpy as np

from hotset import _native
from hotset.backends.contract import StateShape
from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch
from hotset.hybrid.device import Device, zeros

_TASKS = 64
_STEPS = 20
_WARM_STEPS = 4


def handshake_us(device: Device, hidden: int = 4096) -> float:
    """Microseconds of one task without work: `hidden` numbers sent and taken, and as many back and added.

    The median of 20 steps of 64 tasks each, recorded where the device can.
    """
    with device.guard():
        return _handshake_us(device, hidden)


def _handshake_us(device: Device, hidden: int) -> float:
    worker = _native.HostWorker()
    control = device.pinned((2,), np.uint32)
    host = np.zeros((1, hidden), np.float32)
    packets = device.pinned((_TASKS, 2, 1, hidden), np.uint64)
    x = zeros(device, (1, hidden))
    for asked, answer in packets:
        worker.task()
        worker.take(asked, host)
        worker.answer(host, answer)

    def step() -> None:
        device.begin(control)
        for asked, answer in packets:
            device.send(x, asked)
            device.receive(answer, x, add=True)

    recorded = device.record(step)
    times = []
    cpu = CpuBackend(threads=1)
    sequence = cpu.sequence(StateShape(1, 1, 8), 1, "f32")
    batch = cpu.view(Batch.of(sequence, np.zeros(1, np.int32)))
    try:
        for number in range(1, _WARM_STEPS + _STEPS + 1):
            control[:] = number, 1
            start = time.perf_counter()
            worker.begin(batch, number)
            recorded()
            device.synchronize()
            worker.finish()
            times.append(time.perf_counter() - start)
    finally:
        worker.stop()
    return median(times[_WARM_STEPS:]) / _TASKS * 1e6
