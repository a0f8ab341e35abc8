"""The native backend: this CPU's kernels behind the contract."""

from hotset.backends.cpu.backend import CpuBackend, cache_bytes
from hotset.backends.cpu.experts import CpuExperts
from hotset.backends.cpu.parts import (
    CpuAttention,
    CpuDeltaNet,
    CpuEmbedding,
    CpuFFN,
    CpuHead,
    CpuNeuronFFN,
)
from hotset.backends.cpu.state import CpuSequence, CpuView

__all__ = [
    "CpuAttention",
    "CpuBackend",
    "CpuDeltaNet",
    "CpuEmbedding",
    "CpuExperts",
    "CpuFFN",
    "CpuHead",
    "CpuNeuronFFN",
    "CpuSequence",
    "CpuView",
    "cache_bytes",
]
