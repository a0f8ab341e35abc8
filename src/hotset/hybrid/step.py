"""One decoding step as data: what the device's stream is told, and what the host's worker does meanwhile.

A step is planned once, from a model's layers (`hotset.hybrid.plan_step`), and is the same at every call: for
any sequences and any number of rows up to `MOST_ROWS`. `hotset.hybrid.executor` runs it. ``print(step)``
shows both sides.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

from hotset.backends.contract import FFN, Experts, Head, LayerInput, Mixer
from hotset.backends.cpu import CpuExperts, CpuLayerInput
from hotset.hybrid.device import AddNormed, Predict, ResidentExperts
from hotset.hybrid.parts import HostFFN, HostMixer

MOST_ROWS = 8
"""Rows of a step at most; batches of more go layer by layer."""


class Where(Enum):
    """Where a vector's rows are."""

    DEVICE = auto()
    HOST = auto()
    PACKET = auto()
    """On the way from one to the other; see `hotset.hybrid.device.Packet`."""


@dataclass(frozen=True)
class Vector:
    """`MOST_ROWS` rows of `size` numbers."""

    name: str
    size: int
    where: Where

    def __str__(self) -> str:
        return self.name


# What the device is told, in the stream's order. `layer` counts the model's layers.


@dataclass(frozen=True)
class Send:
    """Send rows to the host, in a packet."""

    x: Vector
    to: Vector

    def __str__(self) -> str:
        return f"send {self.x} as {self.to}"


@dataclass(frozen=True)
class SendChosen:
    """Predict from x which cold neurons of a layer fire, and send the choice; see `Device.send_chosen`.

    With `values` it is no prediction: the activations are computed, and sent too.
    """

    layer: int
    predict: Predict = field(repr=False)
    x: Vector
    cutoffs: Vector
    """Of all layers that choose so, each at its `column`."""
    column: int
    to: Vector
    values: bool

    def __str__(self) -> str:
        return f"send chosen {self.layer} of {self.x} as {self.to}"


@dataclass(frozen=True)
class Select:
    """Select a mixture's experts for x: their weights."""

    layer: int
    part: ResidentExperts | Experts = field(repr=False)
    x: Vector
    to: Vector

    def __str__(self) -> str:
        return f"select experts {self.layer} of {self.x} to {self.to}"


@dataclass(frozen=True)
class SendSelection:
    """Send the weights of experts to the host, those of resident ones negated."""

    layer: int
    part: ResidentExperts = field(repr=False)
    weights: Vector
    to: Vector

    def __str__(self) -> str:
        return f"send selection {self.layer}, {self.weights} as {self.to}"


@dataclass(frozen=True)
class FeedExperts:
    """Add the resident experts of x, computed on the device."""

    layer: int
    part: ResidentExperts | Experts = field(repr=False)
    x: Vector
    weights: Vector
    to: Vector

    def __str__(self) -> str:
        return f"add experts {self.layer} of {self.x} by {self.weights} to {self.to}"


@dataclass(frozen=True)
class Receive:
    """Await the host's packet, and copy its rows to the device, or add them there."""

    x: Vector
    to: Vector
    add: bool

    def __str__(self) -> str:
        return f"await {self.x} and {'add' if self.add else 'copy'} it to {self.to}"


@dataclass(frozen=True)
class Upload:
    """Copy rows that the host wrote before the step."""

    x: Vector
    to: Vector

    def __str__(self) -> str:
        return f"upload {self.x} to {self.to}"


@dataclass(frozen=True)
class Download:
    """Copy rows to where the host finds them after the step."""

    x: Vector
    to: Vector

    def __str__(self) -> str:
        return f"download {self.x} to {self.to}"


@dataclass(frozen=True)
class DownloadLogits:
    """The same of the head's logits of x."""

    head: Head = field(repr=False)
    x: Vector
    to: Vector

    def __str__(self) -> str:
        return f"download logits of {self.x} to {self.to}"


@dataclass(frozen=True)
class Zero:
    """Set rows to zero."""

    to: Vector

    def __str__(self) -> str:
        return f"zero {self.to}"


@dataclass(frozen=True)
class Copy:
    """Copy rows within one place."""

    x: Vector
    to: Vector

    def __str__(self) -> str:
        return f"copy {self.x} to {self.to}"


@dataclass(frozen=True)
class Scale:
    """Multiply rows by a number."""

    x: Vector
    factor: float

    def __str__(self) -> str:
        return f"scale {self.x} by {self.factor:g}"


@dataclass(frozen=True)
class Attend:
    """Add a layer's attention of x, or its recurrent mixer, computed on the device."""

    layer: int
    part: Mixer = field(repr=False)
    x: Vector
    to: Vector

    def __str__(self) -> str:
        return f"add attention {self.layer} of {self.x} to {self.to}"


@dataclass(frozen=True)
class Feed:
    """Add a layer's FFN of x, or its hot neurons, computed on the device."""

    layer: int
    part: FFN = field(repr=False)
    x: Vector
    to: Vector

    def __str__(self) -> str:
        return f"add FFN {self.layer} of {self.x} to {self.to}"


@dataclass(frozen=True)
class AddInput:
    """Add to x what a layer's own embedding e of the tokens gives with it, computed on the device."""

    layer: int
    part: LayerInput = field(repr=False)
    x: Vector
    e: Vector

    def __str__(self) -> str:
        return f"add input {self.layer} of {self.x} and {self.e} to {self.x}"


@dataclass(frozen=True)
class AddNorm:
    """Add the normalised sum of a layer's FFN."""

    layer: int
    add: AddNormed = field(repr=False)
    x: Vector
    to: Vector

    def __str__(self) -> str:
        return f"add norm {self.layer} of {self.x} to {self.to}"


Instruction: TypeAlias = (
    Send
    | SendChosen
    | Select
    | SendSelection
    | Receive
    | Upload
    | Download
    | DownloadLogits
    | Zero
    | Copy
    | Scale
    | Attend
    | Feed
    | FeedExperts
    | AddInput
    | AddNorm
)


# What the host's worker does in a task.


@dataclass(frozen=True)
class Take:
    """Await the device's packet and take its rows."""

    x: Vector
    to: Vector

    def __str__(self) -> str:
        return f"take {self.x} to {self.to}"


@dataclass(frozen=True)
class TakeChosen:
    """Await the device's choice of a layer's neurons.

    Before each step the host writes at which cut-offs that is made.
    """

    x: Vector
    part: HostFFN = field(repr=False)
    cutoffs: Vector
    column: int
    to: Vector

    def __str__(self) -> str:
        return f"take {self.x} to {self.to}"


@dataclass(frozen=True)
class Prefetch:
    """Await an early guess at a layer's choice, and have these neurons fetched until the choice comes."""

    x: Vector
    part: HostFFN = field(repr=False)
    cutoffs: Vector
    column: int
    to: Vector
    until: Vector

    def __str__(self) -> str:
        return f"prefetch by {self.x}, until {self.until}"


@dataclass(frozen=True)
class Answer:
    """Send rows to the device, in a packet."""

    x: Vector
    to: Vector

    def __str__(self) -> str:
        return f"answer {self.x} as {self.to}"


@dataclass(frozen=True)
class HostAttend:
    """Add a layer's attention of x, or its recurrent mixer, computed on the host."""

    layer: int
    part: HostMixer = field(repr=False)
    x: Vector
    to: Vector

    def __str__(self) -> str:
        return f"add attention {self.layer} of {self.x} to {self.to}"


@dataclass(frozen=True)
class HostFeed:
    """Add a layer's FFN of x, or its cold neurons, computed on the host; maybe as the device chose."""

    layer: int
    part: HostFFN = field(repr=False)
    x: Vector
    to: Vector
    chosen: TakeChosen | None = None

    def __str__(self) -> str:
        chosen = f", chosen by {self.chosen.to}," if self.chosen else ""
        return f"add FFN {self.layer} of {self.x}{chosen} to {self.to}"


@dataclass(frozen=True)
class HostSelect:
    """Select a mixture's experts for x on the host: their weights."""

    layer: int
    part: CpuExperts = field(repr=False)
    x: Vector
    to: Vector

    def __str__(self) -> str:
        return f"select experts {self.layer} of {self.x} to {self.to}"


@dataclass(frozen=True)
class HostAddInput:
    """Add to x what a layer's own embedding e of the tokens gives with it, computed on the host."""

    layer: int
    part: CpuLayerInput = field(repr=False)
    x: Vector
    e: Vector

    def __str__(self) -> str:
        return f"add input {self.layer} of {self.x} and {self.e} to {self.x}"


@dataclass(frozen=True)
class HostFeedExperts:
    """Add the experts of x whose weights are positive, computed on the host."""

    layer: int
    part: CpuExperts = field(repr=False)
    x: Vector
    weights: Vector
    to: Vector

    def __str__(self) -> str:
        return f"add experts {self.layer} of {self.x} by {self.weights} to {self.to}"


HostPart: TypeAlias = HostAttend | HostFeed | HostSelect | HostFeedExperts | HostAddInput
Work: TypeAlias = Take | TakeChosen | Prefetch | Answer | Zero | Copy | Scale | HostPart


@dataclass(frozen=True)
class Task:
    """What the host takes, what it does with it, and its answer; a step's tasks are done in their order."""

    number: int
    work: tuple[Work, ...]
    beside: int
    """So many instructions are told before it may begin; to print it beside the next."""


@dataclass(frozen=True)
class Step:
    """Both sides of a step. The hidden vectors of the batch's tokens are in `first` when it begins.

    Each layer's own embedding of the tokens is then in `inputs`, where there is one.
    """

    instructions: tuple[Instruction, ...]
    tasks: tuple[Task, ...]
    first: Vector
    inputs: tuple[Vector, ...]
    last: Vector
    """The hidden vectors after the last layer: where the head is."""
    logits: Vector | None
    """What the head makes of them, on the host, where the head is on the device."""
    cutoffs: Vector | None = None
    """At which the device chooses neurons, on the host: of each row one number for each layer that it does so
    for. The device's copy is uploaded first."""

    def vectors(self) -> Iterator[Vector]:
        """Every vector of the step, once."""
        seen = dict.fromkeys((self.first, *self.inputs, self.last))
        parts = [*self.instructions, *(work for task in self.tasks for work in task.work)]
        for part in parts:
            values = vars(part).values()
            seen |= {value: None for value in values if isinstance(value, Vector)}
        return iter(seen)

    def __str__(self) -> str:
        width = max(map(len, map(str, self.instructions)), default=0) + 4
        lines = [f"{'device':<{width}}host"]
        for i, instruction in enumerate([*self.instructions, ""]):
            work = [str(work) for task in self.tasks if task.beside == i for work in task.work]
            first, *others = work or ("",)
            lines.append(f"{instruction!s:<{width}}{first}".rstrip())
            lines += [f"{'':<{width}}{other}" for other in others]
        return "\n".join(lines).rstrip()
