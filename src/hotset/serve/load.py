"""The one place that knows everything: from a model's name to a model that runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hotset.backends.contract import F32
from hotset.core.config import FFNPlan, Way
from hotset.core.errors import HotsetError, RequestError
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.mapped import check_whole
from hotset.formats.overrides import Overrides
from hotset.formats.pooling import read_pooling
from hotset.model.reading import order_notes, rounding_notes, traffic
from hotset.model.transformer import Transformer
from hotset.serve.loaded import DEFAULT_CONTEXT, Model, check_context
from hotset.serve.memory import check_memory
from hotset.state.kv_types import check_kv_type

if TYPE_CHECKING:
    from hotset.backends.cpu import CpuBackend
    from hotset.hybrid.device import Device
    from hotset.placing.machine import MachineProfile
    from hotset.placing.place import Placed

Progress = Callable[[int, int], None]
"""Told (done, total) while a model's parts are built."""


def load_model(
    model: str | Path | Checkpoint | None = None,
    *,
    overrides: Overrides | None = None,
    threads: int | None = None,
    ffn: Way | FFNPlan | None = None,
    vram: int | None = None,
    ram: int | None = None,
    context: int | None = None,
    kv_type: str = "f16",
    parallel: int = 1,
    device: "Device | None" = None,
    machine: "MachineProfile | None" = None,
    progress: Progress | None = None,
) -> Model:
    """Find, open and build a model for the CPU, or with `vram` for a GPU and the CPU.

    `model` is a path, a name on the hub (see `locate`), None for the demo model, or one that is open;
    `overrides` take the place of its metadata, see `open_model`. `threads` None means one a physical core;
    `ffn` takes the place of the file's plan in layers stored by neuron, see `with_plan`. `vram` is how many
    bytes may lie on the GPU, `parallel` KV caches of `context` tokens and `kv_type` among them; `device`
    takes the GPU's place in tests, `machine` that of the profile of this machine (`hotset doctor`), by which
    it is chosen what lies there. `ram` is how many bytes a mixture's experts may take in main memory. Raises
    `CheckpointError` for what cannot be read or run, `HotsetError` where main memory has too little room for
    the weights and a KV cache of `context` tokens, and `DeviceMemoryError` where the GPU has.
    """
    from hotset.backends.cpu import CpuBackend
    from hotset.model.build import build_transformer
    from hotset.tokenizer import Tokenizer

    opened = model if isinstance(model, Checkpoint) else open_model(model, overrides)
    checkpoint = with_plan(opened, ffn)
    rounding = rounding_notes(checkpoint)
    notes = [*checkpoint.notes, *rounding]
    kv_type = check_kv_type(kv_type, checkpoint.config)
    if ram is not None and not checkpoint.config.mixture:
        raise RequestError(f"--ram keeps experts in the file: {checkpoint.path} is no mixture of experts")
    check_fits(checkpoint, context, kv_type, vram=vram, ram=ram, parallel=parallel)
    pooling = read_pooling(checkpoint)
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    if vram and device is None:
        device = gpu_device()
    backend = CpuBackend(threads=threads, ram=ram)
    if device is None:
        transformer: Transformer = build_transformer(checkpoint, backend, progress)
        check_whole()
        plan = None
    else:
        if rounding:
            raise HotsetError(f"{checkpoint.path}: {rounding[0]} (with --vram, do that first)")
        placed = _place(
            checkpoint,
            device,
            backend,
            device.free_bytes() if vram is None else vram,
            machine=machine,
            context=check_context(checkpoint.config, context) * parallel,
            kv_type=kv_type,
            sequences=parallel,
            progress=progress,
        )
        transformer, plan = placed.transformer, placed.plan
        notes += placed.notes
    return Model(
        checkpoint.path, transformer, tokenizer, backend, traffic(checkpoint), plan, pooling, tuple(notes)
    )


def check_fits(
    checkpoint: Checkpoint,
    context: int | None,
    kv_type: str,
    *,
    vram: int | None = None,
    ram: int | None = None,
    parallel: int = 1,
) -> None:
    """Raise `HotsetError` where main memory has too little room for a model, as `load_model` will load it."""
    longest = checkpoint.config.context_length
    tokens = min(DEFAULT_CONTEXT if context is None else context or longest, longest)
    kv_type = check_kv_type(kv_type, checkpoint.config)
    check_memory(checkpoint, tokens, kv_type, vram=vram or 0, ram=ram, parallel=parallel)


def _place(
    checkpoint: Checkpoint,
    device: "Device",
    backend: "CpuBackend",
    vram: int,
    *,
    machine: "MachineProfile | None",
    context: int,
    kv_type: str,
    sequences: int,
    progress: Progress | None,
) -> "Placed":
    """A model on a device, of which it may take `vram` bytes, and the CPU."""
    from hotset.placing.doctor import machine_for
    from hotset.placing.place import place

    placed = place(
        checkpoint,
        device,
        backend,
        vram,
        machine=machine or machine_for(checkpoint, device, backend, kv_type=kv_type, progress=progress),
        context=context,
        kv_type=kv_type,
        sequences=sequences,
        frequency=neuron_frequency(checkpoint, threads=backend.threads, progress=progress),
        progress=progress,
    )
    layers = enumerate(placed.plan.placement.layers)
    if any(0 < layer.hot < checkpoint.config.units(i) for i, layer in layers):
        return replace(placed, notes=(*order_notes(checkpoint), *placed.notes))
    return placed


def gpu_device() -> "Device":
    """This machine's GPU; `HotsetError` where there is none."""
    check_gpu()
    from hotset.hybrid.cuda import CudaDevice

    return CudaDevice()


def check_gpu() -> None:
    """Raise `HotsetError` where there is no GPU to use."""
    from hotset.placing.doctor import no_gpu

    if reason := no_gpu():
        raise HotsetError(f"{reason}; without --vram the CPU does all")


def neuron_frequency(
    checkpoint: Checkpoint, *, threads: int | None = None, progress: Progress | None = None
) -> F32 | None:
    """How often units are computed (L, units), where a placement needs it and no file says; else None.

    A few hundred tokens of built-in text are read, by the CPU.
    """
    from hotset.placing.sizes import needs_profile

    if not needs_profile(checkpoint):
        return None
    from hotset.activations.quick_profile import quick_frequency

    model = load_model(checkpoint, threads=threads, ffn=Way.DENSE, progress=progress)
    return quick_frequency(model.transformer, model.tokenizer, checkpoint, progress)


def open_model(model: str | Path | None = None, overrides: Overrides | None = None) -> Checkpoint:
    """Find a model by its name, as `load_model`, and read its headers.

    `overrides` take the place of what the file says: values by GGUF's full keys, or by config.json's (with a
    dot: those of a table in it).
    """
    from hotset.backends.cpu.cut_files import survive_cut_files
    from hotset.formats import locate, open_checkpoint

    survive_cut_files()
    return open_checkpoint(locate(None if model is None else str(model)), overrides)


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
