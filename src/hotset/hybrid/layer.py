"""One decoder layer, each of its parts in its place."""

from collections.abc import Callable
from dataclasses import dataclass

from hotset.backends.contract import Array, Attention
from hotset.backends.cpu import CpuAttention, CpuFFN, CpuNeuronFFN
from hotset.hybrid.ffn import HybridFFN
from hotset.model.transformer import Layer

AddCold = Callable[[Array, Array, Array], None]
HostFFN = CpuFFN | CpuNeuronFFN


@dataclass(frozen=True)
class HybridLayer(Layer):
    """A layer's parts; a `HybridFFN` counts as the device's, for it reads and writes there."""

    attention_on_device: bool
    ffn_on_device: bool
    index: int
    """The attention's number in the KV cache of its place."""
    add_cold: AddCold | None = None
    """Adds the FFN of x to out, given x, out and the sum of its cold neurons, all on the device."""

    @property
    def host_attention(self) -> CpuAttention | None:
        """The attention, if it is the host's."""
        return None if self.attention_on_device else _host_attention(self.attention)

    @property
    def host_ffn(self) -> HostFFN | None:
        """What of the FFN is the host's: all of it, the cold neurons, or nothing."""
        part = self.ffn.cold if isinstance(self.ffn, HybridFFN) else self.ffn
        if self.ffn_on_device and part is self.ffn:
            return None
        if not isinstance(part, HostFFN):
            raise TypeError("the host's FFNs are the CPU backend's")
        return part


def _host_attention(attention: Attention) -> CpuAttention:
    if not isinstance(attention, CpuAttention):
        raise TypeError("the host's attention is the CPU backend's")
    return attention
