"""Builds a `HybridTransformer`: each part of a checkpoint where a placement says."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

from hotset.backends.contract import Experts, Head
from hotset.backends.cpu import CpuBackend, CpuExperts
from hotset.core.config import LayerPlacement, Placement
from hotset.formats.checkpoint import Checkpoint
from hotset.hybrid.device import Device
from hotset.hybrid.experts import build_split_experts
from hotset.hybrid.ffn import build_ffn, build_host_ffn, build_split
from hotset.hybrid.parts import (
    AnyFFN,
    AnyLayerInput,
    AnyMixer,
    EarlyRouter,
    HostFFN,
    HybridLayer,
    OnDevice,
    OnHost,
    Split,
    SplitExperts,
    Streamed,
)
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
    layer_input_spec,
    layer_inputs_spec,
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
    Raises `DeviceMemoryError` where the device cannot hold its part, `HotsetError` for parts that it does not
    compute, and `ValueError` for a placement of another model.
    """
    if not placement.fits(checkpoint.config):
        raise ValueError("the placement is another model's")
    n_layers = checkpoint.config.n_layers

    def done(parts: int) -> None:
        if progress:
            progress(parts, n_layers + 2)

    embedding = host.embedding(embedding_spec(checkpoint))
    inputs = host.layer_inputs(layer_inputs_spec(checkpoint)) if checkpoint.config.layer_input else None
    done(1)
    with device.guard():
        builder = _LayerBuilder(checkpoint, device, host, streams=stream_from is not None)
        layers = []
        for i, place in enumerate(placement.layers):
            layers.append(builder.layer(i, place))
            done(i + 2)
        head = _head(checkpoint, device if placement.head else None, host)
        stream = ColdStream(device, builder.cold) if builder.cold else None
    done(n_layers + 2)
    return HybridTransformer(
        checkpoint.config,
        host,
        device,
        embedding,
        layers,
        head,
        inputs,
        stream=stream,
        stream_from=stream_from or 0,
        swap_rate=swap_rate,
    )


def _head(checkpoint: Checkpoint, device: Device | None, host: CpuBackend) -> OnHost[Head] | OnDevice[Head]:
    """The head on the device, or on the host where that is None."""
    spec = head_spec(checkpoint)
    return OnDevice(device.backend.head(spec)) if device else OnHost(host.head(spec))


class _LayerBuilder:
    """Builds the layers in their order, each part in its place."""

    def __init__(self, checkpoint: Checkpoint, device: Device, host: CpuBackend, *, streams: bool) -> None:
        """With `streams`, cold neurons may be streamed through the device."""
        self.cold: list[ColdLayer] = []
        """The layers whose cold neurons are."""
        self._checkpoint, self._device, self._host = checkpoint, device, host
        self._streams = streams
        # Keys and values, and states, are numbered on each side.
        self._numbers: defaultdict[tuple[bool, bool], Iterator[int]] = defaultdict(count)
        self._number_of: dict[int, int] = {}  # of each layer's

    def layer(self, i: int, place: LayerPlacement) -> HybridLayer:
        """Build layer `i`."""
        layer = self._checkpoint.config.layers[i]
        mixer: AnyMixer | None = None
        ffn: AnyFFN | None = None
        early, streamed = None, None
        if layer.attention or layer.recurrent:
            mixer = self._mixer(i, place.attention)
        if layer.experts:
            experts = self._experts(i, place)
            early = EarlyRouter(experts, layer.experts.count) if layer.experts.early else None
            ffn = experts
        elif layer.feeds:
            spec = any_ffn_spec(self._checkpoint, i)
            ffn = dense = _ffn(spec, place, self._device, self._host, i)
            if self._streams and isinstance(dense, OnHost | Split):
                self.cold.append(ColdLayer(partial(any_ffn_spec, self._checkpoint, i), place.hot, i))
                streamed = _streamed(dense, spec, self._device)
        own_input: AnyLayerInput | None = None
        if self._checkpoint.config.layer_input:  # where the FFN leaves its sum
            spec_of_input = layer_input_spec(self._checkpoint, i)
            if ffn is None or isinstance(ffn, OnHost):
                own_input = OnHost(self._host.layer_input(spec_of_input))
            else:
                own_input = OnDevice(self._device.backend.layer_input(spec_of_input))
        return HybridLayer(mixer, ffn, early, own_input, streamed, layer.scale)

    def _mixer(self, i: int, on_device: bool) -> AnyMixer:
        checkpoint = self._checkpoint
        layer = checkpoint.config.layers[i]
        recurrent = layer.recurrent is not None
        if layer.kv_from is None:
            self._number_of[i] = next(self._numbers[on_device, recurrent])
        index = self._number_of[i if layer.kv_from is None else layer.kv_from]
        if recurrent:
            state = recurrent_spec(checkpoint, i)
            if on_device:
                return OnDevice(self._device.backend.recurrent(state, index))
            return OnHost(self._host.recurrent(state, index))
        if checkpoint.config.latent:
            latent = latent_spec(checkpoint, i)
            if on_device:
                return OnDevice(self._device.backend.latent_attention(latent, index))
            return OnHost(self._host.latent_attention(latent, index))
        attention = attention_spec(checkpoint, i)
        if on_device:
            return OnDevice(self._device.backend.attention(attention, index))
        return OnHost(self._host.attention(attention, index))

    def _experts(
        self, i: int, place: LayerPlacement
    ) -> OnHost[CpuExperts] | OnDevice[Experts] | SplitExperts:
        spec = experts_spec(self._checkpoint, i)
        if place.hot == 0:
            return OnHost(self._host.experts(spec, i))
        if place.hot == spec.shape.count:
            return OnDevice(self._device.backend.experts(spec, i))
        resident = range(place.hot) if place.experts is None else place.experts
        return build_split_experts(spec, resident, self._device, self._host, i)


def _ffn(spec: Spec, place: LayerPlacement, device: Device, host: CpuBackend, index: int) -> AnyFFN:
    hot = place.hot
    if hot == 0:
        return OnHost(build_host_ffn(spec, host, index))
    if hot == spec.up.weight.shape[0]:
        return OnDevice(build_ffn(all_computed(spec), device.backend, index))
    return build_split(spec, hot, device, host, index, gates=place.gates)


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
