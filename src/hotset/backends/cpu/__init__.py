"""The native backend: this CPU's kernels behind the contract."""

from hotset.backends.cpu.backend import (
    CpuAttention,
    CpuBackend,
    CpuEmbedding,
    CpuFFN,
    CpuHead,
    CpuNeuronFFN,
    cache_bytes,
)
from hotset.backends.cpu.state import CpuSequence, CpuView

__all__ = [
    "CpuAttention",
    "CpuBackend",
    "CpuEmbedding",
    "CpuFFN",
    "CpuHead",
    "CpuNeuronFFN",
    "CpuSequence",
    "CpuView",
    "cache_bytes",
]
