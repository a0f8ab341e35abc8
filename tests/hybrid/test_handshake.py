"""The hand-shake's stop-watch."""

import threading

from hotset.hybrid.handshake import handshake_us
from hotset.testing.stand_in import StandInDevice


def test_a_time_comes_out_and_nothing_stays() -> None:
    device, before = StandInDevice(), threading.active_count()
    assert 0.1 < handshake_us(device, hidden=64) < 1e5
    assert threading.active_count() == before
    assert device.pinned_memory.used == 0
