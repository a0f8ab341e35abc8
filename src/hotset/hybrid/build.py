"""Builds a `HybridTransformer`: each part of a checkpoint where a placement says."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

from hotset.backends.contract import Head
from hotset.backends.cpu import CpuBackend
from hotset.core.config import LayerPlacement, Placement
from hotset.core.errors import HotsetError
from hotset.formats.checkpoint import Checkpoint
from hotset.hybrid.device import Device
from hotset.hybrid.experts import build_split_experts
from hotset.hybrid.ffn import build_ffn, build_host_ffn, build_split
from hotset.hybrid.parts import AnyFFN, AnyMixer, HostFFN, HybridLayer, OnDevice, OnHost, Split, Streamed
from hotset.hybrid.slices import Spec, all_computed
from hotset.hybrid.streaming import ColdLayer, ColdStream
from hotset.hybrid.transformer import HybridTransformer
from hotset.model.build import (
    attention_spec,
    embedding_spec,
    experts_spec,
    ffn_spec,
    head_spec,
    latent_spec,
    neuron_ffn_spec,
    recurrent_spec,
)

Progress = Callable[[int, int], None]
"""Told (done, total) while parts are built."""


def build_hybrid(
    checkpoint: Checkpoint,
    placement: Placement,
    device: Device,
    host: CpuBackend,
    *,
    stream_from: int | None = None,
    swap_rate: float = 0.0,
    progress: Progress | None = None,
) -> HybridTransformer:
    """Build every part of the model in its place; `progress(done, total)` is told after each of them.

    Prompts of at least `stream_from` tokens have the cold neurons streamed through the device; None: never.
    Experts are swapped at `swap_rate` bytes a second at most; 0: they stay where they are placed.
    Raises `DeviceMemoryError` where the device cannot hold its part, and `ValueError` for a placement of
    another model.
    """
    config = checkpoint.config
    if not placement.fits(config):
        raise ValueError("the placement is another model's")
    if any(layer.experts and layer.experts.early for layer in config.layers):
        raise HotsetError(
            f"{checkpoint.path}: routers that read before attention run on the CPU alone so far; "
            "leave out --vram"
        )

    if config.layer_input or any(layer.kv_from is not None for layer in config.layers):
        raise HotsetError(
            f"{checkpoint.path}: models whose layers have inputs of their own, or share keys and values, "
            "run on the CPU alone so far; leave out --vram"
        )

    def done(parts: int) -> None:
        if progress:
            progress(parts, config.n_layers + 2)

    embedding = host.embedding(embedding_spec(checkpoint))
    done(1)
    with device.guard():
        layers: list[HybridLayer] = []
        cold: list[ColdLayer] = []
        # Keys and values, and states, are numbered on each side.
        numbers: defaultdict[tuple[bool, bool], Iterator[int]] = defaultdict(count)
        for i, place in enumerate(placement.layers):
            layer = config.layers[i]
            mixer, ffn, streamed = None, None, None
            if layer.attention or layer.recurrent:
                index = next(numbers[place.attention, layer.recurrent is not None])
                mixer = _mixer(checkpoint, i, place.attention, index, device, host)
            if layer.experts:
                ffn = _experts(checkpoint, i, place, device, host)
            elif layer.feeds:
                spec = any_ffn_spec(checkpoint, i)
                ffn = dense = _ffn(spec, place.hot, device, host, i)
                if stream_from is not None and isinstance(dense, OnHost | Split):
                    cold.append(ColdLayer(partial(any_ffn_spec, checkpoint, i), place.hot, i))
                    streamed = _streamed(dense, spec, device)
            layers.append(HybridLayer(mixer, ffn, streamed, layer.scale))
            done(i + 2)
        spec_of_head = head_spec(checkpoint)
        head: OnHost[Head] | OnDevice[Head] = (
            OnDevice(device.backend.head(spec_of_head)) if placement.head else OnHost(host.head(spec_of_head))
        )
        stream = ColdStream(device, cold) if cold else None
    done(config.n_layers + 2)
    return HybridTransformer(
        config,
        host,
        device,
        embedding,
        layers,
        head,
        stream=stream,
        stream_from=stream_from or 0,
        swap_rate=swap_rate,
    )


def _mixer(
    checkpoint: Checkpoint, layer: int, on_device: bool, index: int, device: Device, host: CpuBackend
) -> AnyMixer:
    if checkpoint.config.layers[layer].recurrent:
        spec = recurrent_spec(checkpoint, layer)
        return (
            OnDevice(device.backend.recurrent(spec, index))
            if on_device
            else OnHost(host.recurrent(spec, index))
        )
    if checkpoint.config.latent:
        latent = latent_spec(checkpoint, layer)
        return (
            OnDevice(device.backend.latent_attention(latent, index))
            if on_device
            else OnHost(host.latent_attention(latent, index))
        )
    attention = attention_spec(checkpoint, layer)
    if on_device:
        return OnDevice(device.backend.attention(attention, index))
    return OnHost(host.attention(attention, index))


def _experts(
    checkpoint: Checkpoint, layer: int, place: LayerPlacement, device: Device, host: CpuBackend
) -> AnyFFN:
    spec = experts_spec(checkpoint, layer)
    if place.hot == 0:
        return OnHost(host.experts(spec, layer))
    if place.hot == spec.shape.count:
        return OnDevice(device.backend.experts(spec, layer))
    resident = range(place.hot) if place.experts is None else place.experts
    return build_split_experts(spec, resident, device, host, layer)


def _ffn(spec: Spec, hot: int, device: Device, host: CpuBackend, index: int) -> AnyFFN:
    if hot == 0:
        return OnHost(build_host_ffn(spec, host, index))
    if hot == spec.up.weight.shape[0]:
        return OnDevice(build_ffn(all_computed(spec), device.backend, index))
    return build_split(spec, hot, device, host, index)


def _streamed(ffn: OnHost[HostFFN] | Split, spec: Spec, device: Device) -> Streamed:
    match ffn:
        case Split(hot=hot, add_normed=add_normed):
            return Streamed(hot, add_normed or device.add)
        case _:
            return Streamed(None, device.normed_adder(spec.post_norm) if spec.post_norm else device.add)


def any_ffn_spec(checkpoint: Checkpoint, layer: int) -> Spec:
    """A layer's FFN, stored by neuron or not."""
    plan = checkpoint.config.layers[layer].ffn
    return neuron_ffn_spec(checkpoint, layer, plan) if plan else ffn_spec(checkpoint, layer)
