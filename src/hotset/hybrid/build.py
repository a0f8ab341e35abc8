"""Builds a `HybridTransformer`: each part of a checkpoint where a placement says."""

from collections.abc import Callable
from functools import partial

from hotset.backends.contract import FFN
from hotset.backends.cpu import CpuBackend
from hotset.core.config import Placement
from hotset.formats.checkpoint import Checkpoint
from hotset.hybrid.device import Device
from hotset.hybrid.ffn import HybridFFN, build_ffn
from hotset.hybrid.layer import AddCold, HybridLayer
from hotset.hybrid.slices import Spec, all_computed
from hotset.hybrid.streaming import ColdLayer, ColdStream
from hotset.hybrid.transformer import HybridTransformer
from hotset.model.build import attention_spec, embedding_spec, ffn_spec, head_spec, neuron_ffn_spec

Progress = Callable[[int, int], None]
"""Told (done, total) while parts are built."""


def build_hybrid(
    checkpoint: Checkpoint,
    placement: Placement,
    device: Device,
    host: CpuBackend,
    *,
    stream_from: int | None = None,
    progress: Progress | None = None,
) -> HybridTransformer:
    """Build every part of the model in its place; `progress(done, total)` is told after each of them.

    Prompts of at least `stream_from` tokens have the cold neurons streamed through the device; None: never.
    Raises `DeviceMemoryError` where the device cannot hold its part, and `ValueError` for a placement of
    another model.
    """
    config = checkpoint.config
    if not placement.fits(config):
        raise ValueError("the placement is another model's")

    def done(parts: int) -> None:
        if progress:
            progress(parts, config.n_layers + 2)

    embedding = host.embedding(embedding_spec(checkpoint))
    done(1)
    layers, cold = [], []
    counts = {True: 0, False: 0}  # layers whose attention is on the device, and on the host
    for i, place in enumerate(placement.layers):
        index = counts[place.attention]
        backend = device.backend if place.attention else host
        attention = backend.attention(attention_spec(checkpoint, i), index)
        spec = any_ffn_spec(checkpoint, i)
        if place.hot == 0:
            layer_ffn = build_ffn(spec, host, i)
        elif place.hot == config.ffn_size:
            layer_ffn = build_ffn(all_computed(spec), device.backend, i)
        else:
            layer_ffn = HybridFFN(spec, place.hot, device, host, i)
        add_cold = None
        if stream_from is not None and place.hot < config.ffn_size:
            cold.append(ColdLayer(partial(any_ffn_spec, checkpoint, i), place.hot))
            add_cold = _cold_adder(layer_ffn, spec, device)
        layers.append(HybridLayer(attention, layer_ffn, place.attention, place.hot > 0, index, add_cold))
        counts[place.attention] += 1
        done(i + 2)
    head = (device.backend if placement.head else host).head(head_spec(checkpoint))
    stream = ColdStream(device, cold) if cold else None
    done(config.n_layers + 2)
    return HybridTransformer(
        config,
        host,
        device,
        embedding,
        layers,
        head,
        head_on_device=placement.head,
        stream=stream,
        stream_from=stream_from or 0,
    )


def _cold_adder(ffn: FFN, spec: Spec, device: Device) -> AddCold:
    """What takes x, out and the cold neurons' sum, and adds the FFN of x to out."""
    if isinstance(ffn, HybridFFN):
        return lambda x, out, total: ffn.add(x, out, lambda: total)
    add = device.normed_adder(spec.post_norm) if spec.post_norm else device.add
    return lambda x, out, total: add(total, out)


def any_ffn_spec(checkpoint: Checkpoint, layer: int) -> Spec:
    """A layer's FFN, stored by neuron or not."""
    plan = checkpoint.config.layers[layer].ffn
    return neuron_ffn_spec(checkpoint, layer, plan) if plan else ffn_spec(checkpoint, layer)
