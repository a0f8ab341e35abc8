"""The one place that knows everything: from a model's name to a model that runs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hotset.backends.base import F32, KVCache, NeuronCounts, NeuronFFN
from hotset.config import FFNPlan, ModelConfig, Way
from hotset.engine.traffic import Traffic, traffic
from hotset.errors import HotsetError, RequestError
from hotset.formats.checkpoint import Checkpoint
from hotset.model.transformer import Transformer

if TYPE_CHECKING:
    from hotset.backends.cpu import CpuBackend
    from hotset.hybrid.device import Device
    from hotset.neurons.machine import MachineProfile
    from hotset.neurons.placement import Plan
    from hotset.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
"""Told (done, total) while a model's parts are built."""

DEFAULT_CONTEXT = 4096
"""Tokens of context unless asked otherwise: a cache for all that models allow can take gigabytes."""

KV_TYPES = {"f16": 2.0, "q8_0": 34 / 32, "f32": 4.0}
"""Types of the KV cache and the bytes of one number."""


@dataclass(frozen=True)
class Model:
    """A model in memory, shared by everything that runs it; immutable."""

    path: Path
    transformer: Transformer
    tokenizer: "Tokenizer"
    backend: "CpuBackend"
    traffic: Traffic
    plan: "Plan | None" = None
    """What lies on a device, and how fast that is reckoned to be; None where all is the CPU's."""
    notes: tuple[str, ...] = ()
    """What the user should know about how the model was loaded, a line each."""

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.transformer.config

    @property
    def chooses_neurons(self) -> bool:
        """Whether decoding leaves out neurons, unlike reading a prompt."""
        layers = enumerate(self.config.layers)
        return any(
            layer.ffn and layer.ffn.way is not Way.DENSE and not self._wholly_on_device(i)
            for i, layer in layers
        )

    def neuron_counts(self) -> list[NeuronCounts | None]:
        """What each layer has chosen so far; None for layers that are not stored by neuron.

        A layer that is wholly on a device computes all neurons, for the tokens for which others chose.
        """
        pairs = zip(self.config.layers, self.transformer.layers, strict=True)
        counts = [cast(NeuronFFN, layer.ffn).counts() if config.ffn else None for config, layer in pairs]
        if self.plan is None:
            return counts
        chosen = [c.tokens for i, c in enumerate(counts) if c and not self._wholly_on_device(i)]
        tokens = max(chosen, default=0)
        everything = NeuronCounts(tokens, tokens * self.config.ffn_size, 0)
        return [everything if c and self._wholly_on_device(i) else c for i, c in enumerate(counts)]

    def _wholly_on_device(self, layer: int) -> bool:
        return self.plan is not None and self.plan.placement.layers[layer].hot == self.config.ffn_size

    def kv_cache(self, context: int | None = None, kv_type: str = "f16") -> KVCache:
        """Room for `context` tokens; None: what the model was trained for, at most `DEFAULT_CONTEXT`."""
        return self.transformer.kv_cache(check_context(self.config, context), check_kv_type(kv_type))


def load_model(
    model: str | Path | None = None,
    *,
    threads: int | None = None,
    ffn: Way | FFNPlan | None = None,
    vram: int | None = None,
    context: int | None = None,
    kv_type: str = "f16",
    device: "Device | None" = None,
    machine: "MachineProfile | None" = None,
    progress: Progress | None = None,
) -> Model:
    """Find, open and build a model for the CPU, or with `vram` for a GPU and the CPU.

    `model` is a path, ``hf:org/repo[:file]`` or None for the demo model; `threads` None means one a physical
    core; `ffn` takes the place of the file's plan in layers stored by neuron, see `with_plan`. `vram` is how
    many bytes may lie on the GPU, a KV cache of `context` tokens and `kv_type` among them; `device` takes the
    GPU's place in tests, `machine` that of the profile of this machine (`hotset doctor`), by which it is
    chosen what lies there. Raises `CheckpointError` for what cannot be read or run, and `DeviceMemoryError`
    where the GPU has too little memory.
    """
    from hotset.backends.cpu import CpuBackend
    from hotset.model.build import build_transformer
    from hotset.tokenizer import Tokenizer

    checkpoint = with_plan(open_model(model), ffn)
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    if vram and device is None:
        device = _gpu()
    backend = CpuBackend(threads=threads)
    if device is None:
        transformer = build_transformer(checkpoint, backend, progress)
        return Model(checkpoint.path, transformer, tokenizer, backend, traffic(checkpoint))

    from hotset.engine.doctor import gpu_machine
    from hotset.engine.placing import place

    context = check_context(checkpoint.config, context)
    frequency = neuron_frequency(checkpoint, threads=threads, progress=progress)
    placed = place(
        checkpoint,
        device,
        backend,
        device.free_bytes() if vram is None else vram,
        machine=machine or gpu_machine(progress),
        context=context,
        kv_type=check_kv_type(kv_type),
        frequency=frequency,
        progress=progress,
    )
    return Model(
        checkpoint.path,
        placed.transformer,
        tokenizer,
        backend,
        traffic(checkpoint),
        placed.plan,
        placed.notes,
    )


def _gpu() -> "Device":
    from hotset.engine.doctor import no_gpu

    if reason := no_gpu():
        raise HotsetError(f"{reason}; without --vram the CPU does all")
    from hotset.hybrid.cuda import CudaDevice

    return CudaDevice()


def neuron_frequency(
    checkpoint: Checkpoint, *, threads: int | None = None, progress: Progress | None = None
) -> F32 | None:
    """How often neurons fire (L, F), where a placement needs to know and the file does not say; else None.

    A few hundred tokens of built-in text are read, by the CPU.
    """
    from hotset.neurons.costs import needs_profile

    if not needs_profile(checkpoint):
        return None
    from hotset.engine.quick_profile import quick_frequency

    model = load_model(checkpoint.path, threads=threads, ffn=Way.DENSE, progress=progress)
    return quick_frequency(model, checkpoint, progress)


def open_model(model: str | Path | None = None) -> Checkpoint:
    """Find a model by its name, as `load_model`, and read its headers."""
    from hotset.formats import locate, open_checkpoint

    return open_checkpoint(locate(None if model is None else str(model)))


def with_plan(checkpoint: Checkpoint, plan: Way | FFNPlan | None) -> Checkpoint:
    """The checkpoint with one plan for all layers stored by neuron; None: the file's own.

    As a way alone, dense always does and exact where the activation produces zeros; the others need
    cut-offs, which a file's own plan has: `RequestError`.
    """
    if plan is None:
        return checkpoint
    config = checkpoint.config
    if isinstance(plan, Way):
        if plan not in (Way.DENSE, Way.EXACT):
            raise RequestError(
                f"ffn is {plan.value!r}: expected dense, exact or nothing, the file's plan (--ffn)"
            )
        plan = FFNPlan(plan)
    if plan.way is Way.EXACT and not config.activation.zero_producing:
        raise RequestError(
            f"exact needs an activation that produces zeros: {checkpoint.path} has "
            f"{config.activation.value}; calibrate thresholds instead (hotset calibrate)"
        )
    layers = tuple(replace(layer, ffn=layer.ffn and plan) for layer in config.layers)
    return replace(checkpoint, config=replace(config, layers=layers))


def kv_cache_bytes(config: ModelConfig, context: int, kv_type: str) -> int:
    """Bytes of a KV cache of `context` tokens."""
    numbers = 2 * config.n_layers * config.n_kv_heads * config.head_dim * context
    return int(numbers * KV_TYPES[check_kv_type(kv_type)])


def check_context(config: ModelConfig, context: int | None) -> int:
    """The tokens of context to make room for, or `RequestError`."""
    if context is None:
        return min(config.context_length, DEFAULT_CONTEXT)
    if not 1 <= context <= config.context_length:
        raise RequestError(
            f"context is {context}: expected 1 to {config.context_length}, which this model was trained "
            "for (--context)"
        )
    return context


def check_kv_type(kv_type: str) -> str:
    """The type itself, or `RequestError`."""
    if kv_type not in KV_TYPES:
        raise RequestError(f"kv_type is {kv_type!r}: expected {', '.join(KV_TYPES)} (--kv-type)")
    return kv_type
