"""Plans a model's decoding step: which side computes what, and where the hidden vectors cross.

Parts that follow one another on the host are one task; the hidden vectors cross only between tasks. Every
task has packets of its own for what it takes and for what it answers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from hotset.backends.contract import Experts, Head
from hotset.hybrid.device import AddNormed, Predict, ResidentExperts, chosen_words
from hotset.hybrid.parts import (
    AnyFFN,
    AnyLayerInput,
    AnyMixer,
    EarlyRouter,
    HybridLayer,
    OnDevice,
    OnHost,
    Split,
    SplitExperts,
)
from hotset.hybrid.step import (
    AddInput,
    AddNorm,
    Answer,
    Attend,
    Copy,
    Download,
    DownloadLogits,
    Feed,
    FeedExperts,
    HostAddInput,
    HostAttend,
    HostFeed,
    HostFeedExperts,
    HostSelect,
    Instruction,
    Prefetch,
    Receive,
    Scale,
    Select,
    Send,
    SendChosen,
    SendSelection,
    Step,
    Take,
    TakeChosen,
    Task,
    Upload,
    Vector,
    Where,
    Work,
    Zero,
)


def plan_step(
    layers: Sequence[HybridLayer],
    head: OnHost[Head] | OnDevice[Head],
    *,
    hidden: int,
    vocab_size: int,
    parallel: bool,
    layer_input: int = 0,
) -> Step:
    """The step of a model's layers and its head.

    `parallel` says that a layer's FFN reads what its attention reads (Falcon), not what that has added to;
    `layer_input` is the size of each layer's own embedding of a token, where there is one.
    """
    inputs = [Vector(f"inputs {i}", layer_input, Where.HOST) for i in range(len(layers))]
    choosing = sum(isinstance(layer.ffn, Split) and layer.ffn.predict is not None for layer in layers)
    plan = _Plan(hidden, inputs, choosing)
    for i, layer in enumerate(layers):
        if parallel and layer.mixer and layer.ffn:
            plan.parallel(i, layer.mixer, layer.ffn)
        else:
            weights = plan.select(i, layer.early) if layer.early else None
            if layer.mixer:
                plan.mixer(i, layer.mixer, layer.ffn)
            if layer.early and weights:
                plan.selected(i, layer.early, weights)
            elif layer.ffn:
                plan.ffn(i, layer.ffn)
        if layer.own_input:
            plan.own_input(i, layer.own_input)
        if layer.scale != 1:
            plan.scale(layer.scale)
    return plan.end(head, vocab_size)


class _Plan:
    """A step as far as it is planned. The hidden vectors are on one side at a time."""

    def __init__(self, hidden: int, inputs: Sequence[Vector], choosing: int) -> None:
        """`choosing`: of so many layers the device chooses the cold neurons."""
        self._hidden, self._inputs = hidden, inputs
        self._instructions: list[Instruction] = []
        self._columns: dict[int, int] = {}  # of layers
        self._cutoffs = Vector("cutoffs", choosing, Where.DEVICE)
        self._host_cutoffs = Vector("cutoffs", choosing, Where.HOST)
        if choosing:
            self._tell(Upload(self._host_cutoffs, self._cutoffs))
        self._tasks: list[list[Work]] = []
        self._beside: list[int] = []  # instructions told before each task
        self._x, self._y = self._on_device("x"), self._on_device("y")
        self._first = self._on_host("first")
        self._on_device_now = False
        # Where the host has the hidden vectors, as long as they are the present ones.
        self._at_host: Vector | None = self._first
        # The host's last task goes on with them, as nothing came between; and its other vector.
        self._chained = False
        self._spare: Vector | None = None

    def mixer(self, layer: int, mixer: AnyMixer, ffn: AnyFFN | None) -> None:
        """Attention, or a recurrent mixer, that adds to its own input; before that FFN."""
        match mixer:
            case OnHost(part):
                x = self._continue_on_host()
                self._work(HostAttend(layer, part, x, x))
            case OnDevice(part):
                x = self._go_to_device()
                if isinstance(ffn, Split) and ffn.predict and not ffn.values:
                    self._prefetch(layer, ffn, ffn.predict, x)
                self._tell(Attend(layer, part, x, x))
                self._at_host = None

    def select(self, layer: int, early: EarlyRouter) -> Vector:
        """The weights that an early router gives experts, where the mixture is: of what the mixer reads."""
        match early.experts:
            case OnHost(part):
                x = self._present() if self._chained else self._asked(self._task())
                weights = Vector(f"{layer}.weights", early.count, Where.HOST)
                self._work(HostSelect(layer, part, x, weights))
            case OnDevice(experts) | SplitExperts(resident=experts):
                weights = self._select_on_device(layer, experts, early.count, self._go_to_device())
        return weights

    def selected(self, layer: int, early: EarlyRouter, weights: Vector) -> None:
        """A mixture that adds to its own input, by the weights that its router has given before."""
        match early.experts:
            case OnHost(part):
                x = self._continue_on_host()
                self._work(HostFeedExperts(layer, part, x, weights, x))
            case OnDevice(experts):
                x = self._go_to_device()
                self._tell(FeedExperts(layer, experts, x, weights, x))
            case SplitExperts() as split:
                x = self._go_to_device()
                self._add_experts(layer, split, x, x, weights)
        if self._on_device_now:
            self._at_host = None

    def ffn(self, layer: int, ffn: AnyFFN) -> None:
        """An FFN that adds to its own input."""
        match ffn:
            case OnHost(part):
                x = self._continue_on_host()
                self._work(HostFeed(layer, part, x, x))
            case OnDevice(part):
                x = self._go_to_device()
                self._tell(Feed(layer, part, x, x))
            case Split():
                x = self._go_to_device()
                self._add_split(layer, ffn, self._start_cold(layer, ffn, x), x, x)
            case SplitExperts():
                x = self._go_to_device()
                self._add_experts(layer, ffn, x, x, self._select_on_device(layer, ffn.resident, ffn.count, x))
        if self._on_device_now:
            self._at_host = None

    def own_input(self, layer: int, part: AnyLayerInput) -> None:
        """What the layer's own embedding of the tokens adds to the hidden vectors."""
        e = self._inputs[layer]
        match part:
            case OnHost(of_host):
                self._work(HostAddInput(layer, of_host, self._continue_on_host(), e))
            case OnDevice(of_device):
                x, there = self._go_to_device(), Vector("input", e.size, Where.DEVICE)
                self._tell(Upload(e, there), AddInput(layer, of_device, x, there))
                self._at_host = None

    def scale(self, factor: float) -> None:
        """A factor on the hidden vectors."""
        if self._on_device_now:
            self._tell(Scale(self._x, factor))
            self._at_host = None
        else:
            self._work(Scale(self._continue_on_host(), factor))

    def parallel(self, layer: int, attention: AnyMixer, ffn: AnyFFN) -> None:
        """Both parts read the same; the host's are started first, and all add to a copy."""
        match attention, ffn:
            case OnHost(a), OnHost(f):
                x, y = self._continue_on_host(), self._other_on_host()
                self._work(Copy(x, y), HostAttend(layer, a, x, y), HostFeed(layer, f, x, y))
                self._at_host, self._spare = y, x
                return
        x, y = self._go_to_device(), self._y
        attended = fed = None
        match attention:
            case OnHost(a):
                attended = self._start(lambda asked, answer: HostAttend(layer, a, asked, answer))
        match ffn:
            case OnHost(f):
                fed = self._start(lambda asked, answer: HostFeed(layer, f, asked, answer))
            case Split():
                fed = self._start_cold(layer, ffn, x)
        self._tell(Copy(x, y))
        match attention:
            case OnDevice(part):
                self._tell(Attend(layer, part, x, y))
        match ffn:
            case OnDevice(part):
                self._tell(Feed(layer, part, x, y))
            case Split() if fed:
                self._add_split(layer, ffn, fed, x, y)
            case SplitExperts():
                self._add_experts(layer, ffn, x, y, self._select_on_device(layer, ffn.resident, ffn.count, x))
            case OnHost() if fed:
                self._tell(Receive(fed, y, add=True))
        if attended:
            self._tell(Receive(attended, y, add=True))
        self._x, self._y, self._at_host = y, x, None

    def end(self, head: OnHost[Head] | OnDevice[Head], vocab_size: int) -> Step:
        """The whole step."""
        logits = None
        match head:
            case OnDevice(part):
                last = self._go_to_device()
                logits = Vector("logits", vocab_size, Where.HOST)
                self._tell(DownloadLogits(part, last, logits))
            case OnHost():
                last = self._at_host or self._on_host("last")
                if self._at_host is None:
                    self._tell(Download(self._x, last))
        tasks = tuple(
            Task(number, tuple(work), beside)
            for number, (work, beside) in enumerate(zip(self._tasks, self._beside, strict=True))
        )
        inputs = tuple(vector for vector in self._inputs if vector.size)
        cutoffs = self._host_cutoffs if self._cutoffs.size else None
        return Step(tuple(self._instructions), tasks, self._first, inputs, last, logits, cutoffs)

    # The two sides.

    def _go_to_device(self) -> Vector:
        """The hidden vectors, on the device from here on."""
        if not self._on_device_now:
            x = self._present()
            if self._chained:
                self._tell(Receive(self._answer(x), self._x, add=False))
            else:
                self._tell(Upload(x, self._x))
        self._on_device_now, self._chained = True, False
        return self._x

    def _continue_on_host(self) -> Vector:
        """The hidden vectors in a task that works on them there: the last one, where nothing came between."""
        if not self._chained:
            task = self._task()
            total = self._on_host(f"{task}.sum")
            if self._at_host is None:
                self._take(Vector(f"{task}.x", self._hidden, Where.PACKET), total)
            else:
                self._work(Copy(self._at_host, total))
            self._at_host, self._chained, self._spare = total, True, None
            self._on_device_now = False
        return self._present()

    def _other_on_host(self) -> Vector:
        """Another vector of the host's last task."""
        return self._spare or self._on_host(f"{len(self._tasks) - 1}.other")

    def _present(self) -> Vector:
        if self._at_host is None:
            raise AssertionError("the hidden vectors are not on the host")
        return self._at_host

    # Tasks whose answer the device adds to what it computes meanwhile.

    def _start(self, work: Callable[[Vector, Vector], Work]) -> Vector:
        """Start such a task, of what it is asked and what it adds to: its answer."""
        task = self._task()
        return self._finish(task, self._asked(task), work)

    def _asked(self, task: int) -> Vector:
        """The hidden vectors on the host, in a task that has just begun."""
        if self._at_host is None:
            self._at_host = self._on_host(f"{task}.in")
            self._take(Vector(f"{task}.x", self._hidden, Where.PACKET), self._at_host)
        return self._at_host

    def _finish(self, task: int, asked: Vector, work: Callable[[Vector, Vector], Work]) -> Vector:
        total = self._on_host(f"{task}.sum")
        self._work(Zero(total), work(asked, total))
        return self._answer(total)

    def _start_cold(self, layer: int, split: Split, x: Vector) -> Vector:
        task = self._task()
        asked, chosen = self._asked(task), None
        if split.predict:
            column, sent, here = self._column(layer), _chosen(task, split), _cold(task, split)
            self._tell(SendChosen(layer, split.predict, x, self._cutoffs, column, sent, split.values))
            chosen = TakeChosen(sent, split.cold, self._host_cutoffs, column, here)
            self._work(chosen)
        return self._finish(
            task, asked, lambda given, total: HostFeed(layer, split.cold, given, total, chosen)
        )

    def _prefetch(self, layer: int, split: Split, predict: Predict, x: Vector) -> None:
        """While the device attends, have the host fetch the neurons that x before attention would choose."""
        task, column = self._task(), self._column(layer)
        sent, until = _chosen(task, split), _chosen(task + 1, split)
        self._tell(SendChosen(layer, predict, x, self._cutoffs, column, sent, values=False))
        self._work(Prefetch(sent, split.cold, self._host_cutoffs, column, _cold(task, split), until))

    def _column(self, layer: int) -> int:
        return self._columns.setdefault(layer, len(self._columns))

    def _select_on_device(
        self, layer: int, experts: ResidentExperts | Experts, count: int, x: Vector
    ) -> Vector:
        weights = Vector("weights", count, Where.DEVICE)
        self._tell(Select(layer, experts, x, weights))
        return weights

    def _add_experts(self, layer: int, split: SplitExperts, x: Vector, to: Vector, weights: Vector) -> None:
        task = self._task()
        asked = self._asked(task)
        sent = Vector(f"{task}.selection", split.count, Where.PACKET)
        here = Vector(f"{task}.experts", split.count, Where.HOST)
        self._tell(SendSelection(layer, split.resident, weights, sent))
        self._work(Take(sent, here))
        answer = self._finish(
            task, asked, lambda given, total: HostFeedExperts(layer, split.cold, given, here, total)
        )
        with self._sum_for(layer, split.add_normed, to) as total:
            self._tell(FeedExperts(layer, split.resident, x, weights, total))
            self._tell(Receive(answer, total, add=True))

    def _add_split(self, layer: int, split: Split, answer: Vector, x: Vector, to: Vector) -> None:
        with self._sum_for(layer, split.add_normed, to) as total:
            self._tell(Feed(layer, split.hot, x, total), Receive(answer, total, add=True))

    @contextmanager
    def _sum_for(self, layer: int, add_normed: AddNormed | None, to: Vector) -> Iterator[Vector]:
        """Where both sides add: `to` itself or, where there is a norm of the sum, a vector from zero."""
        if add_normed is None:
            yield to
            return
        total = self._on_device("sum")
        self._tell(Zero(total))
        yield total
        self._tell(AddNorm(layer, add_normed, total, to))

    def _task(self) -> int:
        self._tasks.append([])
        self._beside.append(len(self._instructions))
        return len(self._tasks) - 1

    def _take(self, packet: Vector, to: Vector) -> None:
        """Have the hidden vectors sent, and taken by the last task."""
        self._tell(Send(self._x, packet))
        self._work(Take(packet, to))

    def _answer(self, x: Vector) -> Vector:
        """The last task's answer."""
        packet = Vector(f"{len(self._tasks) - 1}.answer", self._hidden, Where.PACKET)
        self._work(Answer(x, packet))
        return packet

    def _tell(self, *instructions: Instruction) -> None:
        self._instructions += instructions

    def _work(self, *work: Work) -> None:
        self._tasks[-1] += work

    def _on_device(self, name: str) -> Vector:
        return Vector(name, self._hidden, Where.DEVICE)

    def _on_host(self, name: str) -> Vector:
        return Vector(name, self._hidden, Where.HOST)


def _chosen(task: int, split: Split) -> Vector:
    """The device's choice of cold neurons, on its way."""
    return Vector(f"{task}.chosen", chosen_words(split.n_cold), Where.PACKET)


def _cold(task: int, split: Split) -> Vector:
    """The same on the host."""
    return Vector(f"{task}.cold", chosen_words(split.n_cold), Where.HOST)
