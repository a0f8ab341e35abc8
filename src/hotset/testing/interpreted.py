"""The GPU's own kernels in Triton's interpreter, for tests: TRITON_INTERPRET=1, tensors in main memory."""

from hotset.backends.contract import F32, Array
from hotset.hybrid.device import Flag
from hotset.hybrid.torch_arrays import TorchArrays
from hotset.testing.host_stream import HostStream


class InterpretedDevice(HostStream, TorchArrays):
    """A device whose parts are the GPU backend's and whose stream is the calling thread; see `Device`."""

    name = "interpreter"

    def __init__(self) -> None:
        HostStream.__init__(self)
        TorchArrays.__init__(self, "cpu")

    def receive(self, flag: Flag, x: F32, out: Array, *, add: bool) -> None:
        """See `Device`."""
        self.take_flag(flag)
        arrived = self.empty(x.shape)
        self.upload(x, arrived)
        (self.add if add else self.assign)(arrived, out)

    def free_bytes(self) -> int:
        """See `Device`; as good as endless."""
        return 1 << 62
