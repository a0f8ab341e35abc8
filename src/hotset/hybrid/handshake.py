"""How long a device and the host's worker take to hand a vector to and fro."""

import time
from statistics import median

import numpy as np

from hotset import _native
from hotset.hybrid.device import Device

_TASKS = 64
_STEPS = 20
_WARM_STEPS = 4


def handshake_us(device: Device, hidden: int = 4096) -> float:
    """Microseconds of one task without work: `hidden` numbers sent, both flags raised and seen, a sum back.

    The median of 20 steps of 64 tasks each, recorded where the device can.
    """
    with device.guard():
        return _handshake_us(device, hidden)


def _handshake_us(device: Device, hidden: int) -> float:
    worker = _native.HostWorker()
    host = device.pinned((1, hidden), np.float32)
    flags = device.pinned((_TASKS, 2, 16), np.uint32)
    x = device.empty((1, hidden))
    device.zero(x)
    for ready, done in flags:
        worker.task(ready, done)

    def step() -> None:
        for ready, done in flags:
            device.download(x, host)
            device.raise_flag(ready)
            device.receive(done, host, x, add=True)

    recorded = device.record(step)
    times = []
    try:
        for _ in range(_WARM_STEPS + _STEPS):
            start = time.perf_counter()
            worker.begin(_native.Batch([], [], []))
            recorded()
            device.synchronize()
            worker.finish()
            times.append(time.perf_counter() - start)
    finally:
        worker.stop()
    return median(times[_WARM_STEPS:]) / _TASKS * 1e6
