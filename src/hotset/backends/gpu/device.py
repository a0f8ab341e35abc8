"""The GPU that parts are built for: where their tensors are, how wide it is, and scratch memory."""

from typing import Any

import torch
import triton

from hotset.backends.gpu.kernels.norm import norm as _any_kernel
from hotset.core.errors import HotsetError

INTERPRETED = 1
"""The interpreter's multiprocessors: it runs one program after the other, so the fewer, the better."""


class Gpu:
    """A device of torch's; ``cpu`` stands for Triton's interpreter."""

    def __init__(self, device: str) -> None:
        interpreted = not isinstance(_any_kernel, triton.runtime.jit.JITFunction)
        self.device = torch.device(device)
        if self.device.type == "cpu" and not interpreted:
            raise HotsetError(
                "device cpu: the GPU's kernels run there in Triton's interpreter only; "
                "set TRITON_INTERPRET=1 before starting, or use the CPU backend"
            )
        self.multiprocessors = INTERPRETED
        self.capability = 80
        # Instructions of NVIDIA's that Triton has no words for; elsewhere kernels do without.
        self.ptx = self.device.type != "cpu" and torch.version.hip is None
        if self.device.type != "cpu":
            if not torch.cuda.is_available():
                raise HotsetError(
                    f"device {device}: torch {torch.__version__} finds no GPU; "
                    "run on the CPU, or install the driver and a torch built for it"
                )
            properties = torch.cuda.get_device_properties(self.device)
            self.multiprocessors = properties.multi_processor_count
            self.capability = 10 * properties.major + properties.minor
        self._scratch: dict[tuple[str, tuple[int, ...]], Any] = {}

    def scratch(self, name: str, *shape: int, dtype: Any = torch.float32) -> Any:
        """A tensor of any content, good until the name is asked for again.

        One token's are kept, so that a recorded step finds them where they were.
        """
        if shape[0] > 1:
            return self.empty(*shape, dtype=dtype)
        if (name, shape) not in self._scratch:
            self._scratch[name, shape] = self.empty(*shape, dtype=dtype)
        return self._scratch[name, shape]

    def empty(self, *shape: int, dtype: Any = torch.float32) -> Any:
        """A tensor of any content."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def upload(self, array: Any) -> Any:
        """A NumPy array's copy on the device."""
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        # The interpreter's device is the host: the tensor must not be the array itself.
        return tensor.clone() if self.device.type == "cpu" else tensor.to(self.device)
