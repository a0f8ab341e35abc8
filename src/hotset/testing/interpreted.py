"""The GPU's own kernels in Triton's interpreter, for tests: TRITON_INTERPRET=1, tensors in main memory."""

from hotset.hybrid.torch_arrays import TorchArrays
from hotset.testing.host_stream import HostStream


class InterpretedDevice(HostStream, TorchArrays):
    """A device whose parts are the GPU backend's and whose stream is the calling thread; see `Device`."""

    name = "interpreter"

    def __init__(self) -> None:
        HostStream.__init__(self)
        TorchArrays.__init__(self, "cpu")

    def free_bytes(self) -> int:
        """As good as endless."""
        return 1 << 62
