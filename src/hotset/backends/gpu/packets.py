"""Sends packets to the host and awaits those of the host; see `hotset.hybrid.device.Packet`."""

from typing import Any

import torch
import triton

from hotset.backends.gpu.device import Gpu
from hotset.backends.gpu.kernels.packets import receive, send, send_chosen

_BLOCK = 128
"""Words of a program, which is one warp: a kilobyte, four words to a lane."""

_CHOSEN_BLOCK = 512
"""Neurons of a program, which is one warp; a multiple of 32."""


class GpuPackets:
    """Packets (T, N) are int64 tensors, in memory that both sides reach or on the GPU."""

    def __init__(self, gpu: Gpu, told: Any, polls: int) -> None:
        """`told` (1,), int32 and pinned, gets the number of a step that gives up, after so many looks."""
        self._gpu, self._told, self._polls = gpu, told, polls
        self._control = torch.zeros(2, dtype=torch.int32, device=gpu.device)
        self._given_up = torch.zeros(1, dtype=torch.int32, device=gpu.device)

    def begin(self, control: Any) -> None:
        """Begin a step: `control` (2,), int32 and pinned, has its number and its rows."""
        self._control.copy_(control, non_blocking=True)

    def send(self, x: Any, packet: Any) -> None:
        """Write the step's rows of x (T, N)."""
        send[_grid(packet)](
            x, packet, self._control, packet.shape[1], PTX=self._gpu.ptx, BLOCK=_BLOCK, num_warps=1
        )

    def send_chosen(self, scores: Any, cutoffs: Any, packet: Any, *, values: bool) -> None:
        """Write which neurons scores (T, F) choose at cut-offs (T,), to a packet (T, ceil(F / 32) + F).

        With `values`, their scores too.
        """
        rows, neurons = scores.shape
        send_chosen[triton.cdiv(neurons, _CHOSEN_BLOCK), rows](
            scores, cutoffs, cutoffs.stride(0), packet, self._control, neurons, VALUES=values,
            PTX=self._gpu.ptx, BLOCK=_CHOSEN_BLOCK, num_warps=1,
        )  # fmt: skip

    def receive(self, packet: Any, out: Any, *, add: bool) -> None:
        """Await the step's rows, and copy them, or add them, to out (T, N)."""
        receive[_grid(packet)](
            packet, out, self._control, self._given_up, self._told, packet.shape[1], self._polls,
            ADD=add, BLOCK=_BLOCK, num_warps=1,
        )  # fmt: skip


def _grid(packet: Any) -> tuple[int, int]:
    rows, width = packet.shape
    return triton.cdiv(width, _BLOCK), rows
