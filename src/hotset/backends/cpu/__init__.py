"""The native backend: this CPU's kernels behind the contract."""

from hotset.backends.cpu.backend import (
    CpuBackend,
    CpuEmbedding,
    CpuHead,
    CpuNeuronFFN,
    cache_bytes,
)

__all__ = ["CpuBackend", "CpuEmbedding", "CpuHead", "CpuNeuronFFN", "cache_bytes"]
