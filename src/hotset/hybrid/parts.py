"""A layer's parts and the places where they are computed.

Each variant is a type of its own; whoever treats them differently matches on it.
"""

from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from hotset.backends.contract import FFN, Experts, LayerInput, Mixer
from hotset.backends.cpu import (
    CpuAttention,
    CpuExperts,
    CpuFFN,
    CpuLayerInput,
    CpuNeuronFFN,
    CpuRecurrent,
)
from hotset.hybrid.device import AddNormed, Predict, ResidentExperts

Part_co = TypeVar("Part_co", covariant=True)

HostFFN: TypeAlias = CpuFFN | CpuNeuronFFN | CpuExperts
HostMixer: TypeAlias = CpuAttention | CpuRecurrent


@dataclass(frozen=True)
class OnHost(Generic[Part_co]):
    """A part that the CPU computes."""

    part: Part_co


@dataclass(frozen=True)
class OnDevice(Generic[Part_co]):
    """A part that the device computes."""

    part: Part_co


@dataclass(frozen=True)
class Split:
    """An FFN in two places: hot neurons ``[:n_hot]`` on the device, cold ones ``[n_hot:]`` on the host.

    All hot neurons are computed, cold ones by the layer's plan: the sum of both equals the FFN that computes
    all neurons wherever the plan leaves out none that is not zero. It reads and writes on the device.
    """

    hot: FFN
    cold: HostFFN
    n_hot: int
    n_cold: int
    predict: Predict | None = None
    """Scores the cold neurons on the device, in layers whose plan has a predictor; or, with `values`, tells
    their activations. The host, which moves the cut-off, says what is chosen."""
    values: bool = False
    add_normed: AddNormed | None = None
    """The norm after the FFN, which is of the sum, where there is one."""


@dataclass(frozen=True)
class SplitExperts:
    """A mixture in two places: router, shared expert and some experts on the device, others on the host.

    It reads and writes on the device. The host's part has all experts, but packs only those that it is asked
    for: which experts are resident may change between steps. The device says with each selection which
    experts it leaves to the host.
    """

    resident: ResidentExperts
    cold: CpuExperts
    count: int
    """Of all experts."""
    expert_bytes: int
    add_normed: AddNormed | None = None
    """The norm after the FFN, which is of the sum, where there is one."""


AnyMixer: TypeAlias = OnHost[HostMixer] | OnDevice[Mixer]
AnyFFN: TypeAlias = OnHost[HostFFN] | OnDevice[FFN] | Split | SplitExperts
AnyLayerInput: TypeAlias = OnHost[CpuLayerInput] | OnDevice[LayerInput]


@dataclass(frozen=True)
class EarlyRouter:
    """A layer's mixture, where its router reads what the mixer reads."""

    experts: OnHost[CpuExperts] | OnDevice[Experts] | SplitExperts
    count: int
    """Of all experts."""


@dataclass(frozen=True)
class Streamed:
    """An FFN whose cold neurons are streamed through the device, for long prompts."""

    hot: FFN | None
    """The hot neurons, which need not be."""
    add: AddNormed
    """Adds the sum of all neurons to the hidden vectors, normalised where there is a norm after the FFN."""


@dataclass(frozen=True)
class HybridLayer:
    """One decoder layer, each of its parts in its place; None where it has not that part."""

    mixer: AnyMixer | None
    ffn: AnyFFN | None
    early: EarlyRouter | None = None
    """The FFN, where its router reads what the mixer reads."""
    own_input: AnyLayerInput | None = None
    """What the layer's own embedding of the tokens adds at its end."""
    streamed: Streamed | None = None
    """The FFN for prompts whose cold neurons are streamed; None where none ever are."""
    scale: float = 1.0
    """Factor on all of it, its input included."""
