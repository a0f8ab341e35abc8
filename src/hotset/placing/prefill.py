"""How long a placed model reads a prompt, with every neuron: a prompt's tokens together need them all."""

import math
from enum import Enum

from hotset.core.config import Placement
from hotset.model.transformer import SLICE
from hotset.placing.costs import gpu_of
from hotset.placing.machine import CpuRates, GpuRates, MachineProfile
from hotset.placing.sizes import LayerPart, ModelParts


class ColdPrefill(str, Enum):
    """What becomes of cold neurons while a prompt is read."""

    CPU = "cpu"
    """The processor computes them while the GPU computes the hot ones."""
    STREAM = "stream"
    """They are copied to the GPU, slice by slice, while it computes the slice before."""


def prefill_ms(
    parts: ModelParts, placement: Placement, machine: MachineProfile, tokens: int, cold: ColdPrefill
) -> float:
    """Milliseconds to read a prompt of so many tokens, without the head."""
    gpu = gpu_of(machine)
    return sum(
        _layer_ms(parts, layer, placed.attention, placed.hot, machine.cpu, gpu, tokens, cold)
        for layer, placed in zip(parts.layers, placement.layers, strict=True)
    )


def _layer_ms(
    parts: ModelParts,
    layer: LayerPart,
    on_device: bool,
    hot: int,
    cpu: CpuRates,
    gpu: GpuRates,
    tokens: int,
    cold: ColdPrefill,
) -> float:
    ffn, config = layer.ffn, parts.config
    passes = math.ceil(tokens / SLICE)  # weights are read again for each slice of the prompt

    def compute(rates: CpuRates | GpuRates, multiplied: float, nbytes: float) -> float:
        arithmetic = 2 * multiplied / (rates.tflops * 1e9)
        return max(arithmetic, passes * nbytes / (rates.stream * rates.kernel_share * 1e6))

    # Each token with those before it: q times k, and the weights times v.
    scores = tokens * min(tokens, layer.window or tokens) * config.n_heads * config.head_dim
    attention = compute(
        gpu if on_device else cpu,
        layer.attention_parameters * tokens + scores,
        layer.device_attention_bytes if on_device else layer.attention_bytes,
    )
    n_cold = ffn.size - hot
    crossing = tokens * config.hidden_size * 4 * (1 / gpu.to_host + 1 / gpu.to_device) / 1e6

    # Of experts, a token multiplies those that it uses; a few tokens together do not read all.
    each, share = ffn.used * ffn.parameters, 1 - (1 - ffn.used) ** min(tokens, SLICE)

    def on_gpu(units: int) -> float:
        return compute(gpu, units * each * tokens, units * share * ffn.device_unit_bytes) if units else 0.0

    if cold is ColdPrefill.STREAM:
        bus = passes * n_cold * ffn.file_unit_bytes / (gpu.to_device * 1e6)
        return attention + max(on_gpu(ffn.size), bus) + crossing * (not on_device)
    on_cpu = compute(cpu, n_cold * each * tokens, n_cold * share * ffn.unit_bytes) if n_cold else 0.0
    crosses = on_device if n_cold else not on_device
    crosses |= 0 < hot < ffn.size
    return attention + max(on_gpu(hot), on_cpu) + crossing * crosses
