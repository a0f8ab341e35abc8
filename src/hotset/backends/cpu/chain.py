"""Parts of layers that run one after another in one native call."""

from collections.abc import Sequence

from hotset import _native
from hotset.backends.contract import FFN, Mixer
from hotset.backends.cpu.experts import CpuExperts
from hotset.backends.cpu.parts import CpuAttention, CpuFFN, CpuNeuronFFN
from hotset.backends.cpu.recurrent import CpuRecurrent


def native_chain(parts: Sequence[Mixer | FFN], hidden: int) -> _native.Chain | None:
    """The parts, of rows of `hidden` numbers, as one; None if one is no native part.

    A token of a small model takes few milliseconds, of which returning to Python between all parts would
    take a tenth: weights have pushed the interpreter out of the caches each time.
    """
    chain = _native.Chain(hidden)
    for part in parts:
        if not isinstance(part, CpuAttention | CpuRecurrent | CpuFFN | CpuNeuronFFN | CpuExperts):
            return None
        chain.add(part.native)
    return chain
