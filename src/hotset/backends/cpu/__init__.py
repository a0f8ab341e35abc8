"""The native backend: this CPU's kernels behind the contract."""

from hotset.backends.cpu.backend import CpuBackend, cache_bytes
from hotset.backends.cpu.experts import CpuExperts
from hotset.backends.cpu.parts import (
    CpuAttention,
    CpuEmbedding,
    CpuFFN,
    CpuHead,
    CpuLayerInput,
    CpuNeuronFFN,
)
from hotset.backends.cpu.recurrent import CpuRecurrent
from hotset.backends.cpu.state import CpuSequence

__all__ = [
    "CpuAttention",
    "CpuBackend",
    "CpuEmbedding",
    "CpuExperts",
    "CpuFFN",
    "CpuHead",
    "CpuLayerInput",
    "CpuNeuronFFN",
    "CpuRecurrent",
    "CpuSequence",
    "cache_bytes",
]
