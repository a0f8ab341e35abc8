"""What goes wrong in mid-step is told, hangs nobody, leaks nothing, and the next request works."""

import _thread
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import pytest
from helpers.placements import by_share, eager_machine
from helpers.random_checkpoint import random_checkpoint
from numpy.typing import NDArray

from hotset.backends.contract import StateShape
from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch, Span
from hotset.core.config import Activation, LayerPlacement, Placement
from hotset.core.errors import HotsetError
from hotset.hybrid.build import build_hybrid
from hotset.hybrid.device import DeviceMemoryError
from hotset.hybrid.transformer import HybridTransformer
from hotset.model.build import build_transformer
from hotset.placing.place import Placed, place
from hotset.testing.stand_in import StandInDevice

CHECKPOINT = random_checkpoint(hidden_size=32, ffn_size=256, activation=Activation.SILU, windows=(None,) * 4)
TOKENS = np.random.default_rng(5).integers(0, 53, 20, dtype=np.int32)
# Attention and FFNs on both sides, split layers and whole ones.
MIXED = Placement(
    (
        LayerPlacement(True, 64),
        LayerPlacement(False, 0),
        LayerPlacement(True, 256),
        LayerPlacement(False, 128),
    ),
    True,
)
T = TypeVar("T")


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call that must not hang."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append((call(), None))
        except BaseException as error:
            result.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, "it hangs"
    value, error = result[0]
    if error:
        raise error
    return value


def build(device: StandInDevice, placement: Placement = MIXED, **options: Any) -> HybridTransformer:
    return build_hybrid(CHECKPOINT, placement, device, CpuBackend(threads=1), **options)


def answer(model: Any, kv: Any = None) -> NDArray[np.float32]:
    kv = kv or model.sequence(32, "f32")
    kv.rewind(0)
    return np.concatenate([model.forward(Batch.of(kv, TOKENS[i : i + 1])) for i in range(5)])


@pytest.fixture(scope="module")
def expected() -> NDArray[np.float32]:
    return answer(build_transformer(CHECKPOINT, CpuBackend(threads=1)))


def assert_right(model: HybridTransformer, expected: NDArray[np.float32]) -> None:
    assert np.abs(within(30, lambda: answer(model)) - expected).max() <= 1e-3 * np.abs(expected).max()


class FaultyDevice(StandInDevice):
    """Does something else at one of the calls that make up a step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.calls = 0
        self.fault: Callable[[int], None] | None = None

    def _count(self) -> None:
        self.calls += 1
        if self.fault:
            self.fault(self.calls)

    def begin(self, control: Any) -> None:
        self._count()
        super().begin(control)

    def send(self, x: Any, to: Any) -> None:
        self._count()
        super().send(x, to)

    def receive(self, x: Any, out: Any, *, add: bool) -> None:
        self._count()
        super().receive(x, out, add=add)

    def upload(self, x: Any, out: Any) -> None:
        self._count()
        super().upload(x, out)

    def download(self, x: Any, out: Any) -> None:
        self._count()
        super().download(x, out)


def calls_of_a_step(model: HybridTransformer, device: FaultyDevice) -> int:
    kv = model.sequence(32, "f32")
    model.forward(Batch.of(kv, TOKENS[:1]))
    device.calls = 0
    model.forward(Batch.of(kv, TOKENS[:1]))
    return device.calls


def next_tokens(sequences: list[Any]) -> Batch:
    """The next token of each of these sequences."""
    tokens = np.array([TOKENS[sequence.length] for sequence in sequences])
    return Batch(tokens, tuple(Span(sequence, 1) for sequence in sequences))


def test_an_interruption_anywhere_in_a_step(expected: NDArray[np.float32]) -> None:
    device = FaultyDevice()
    model = build(device)
    assert_right(model, expected)
    gc.collect()
    pinned = device.pinned_memory.used
    for at in range(1, calls_of_a_step(model, device) + 1):
        # One, two and three sequences in turn.
        kvs = [model.sequence(32, "f32") for _ in range(1 + at % 3)]
        model.forward(next_tokens(kvs))
        device.calls = 0

        def interrupt(call: int, at: int = at) -> None:
            if call == at:
                raise KeyboardInterrupt

        device.fault = interrupt
        with pytest.raises(KeyboardInterrupt):
            within(30, lambda kvs=kvs: model.forward(next_tokens(kvs)))
        device.fault = None
        assert all(kv.length == 1 for kv in kvs)
        again = within(30, lambda kvs=kvs: model.forward(next_tokens(kvs)))
        assert np.abs(again - expected[1]).max() <= 1e-3 * np.abs(expected).max()
        logits = within(30, lambda kv=kvs[-1]: answer(model, kv))
        assert np.abs(logits - expected).max() <= 1e-3 * np.abs(expected).max()
    gc.collect()
    assert device.pinned_memory.used == pinned


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    """A process that a script starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_raises")
def test_ctrl_c_while_the_device_waits() -> None:
    """A packet that nobody writes: the real signal gets through."""
    device = StandInDevice()
    device.begin(np.array([1, 1], np.uint32))
    threading.Timer(0.1, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        device.receive(device.pinned((1, 16), np.uint64), device.empty((1, 16)), add=False)


def test_a_failing_worker(expected: NDArray[np.float32]) -> None:
    model = build(StandInDevice())
    kv = model.sequence(32, "f32")
    model.forward(Batch.of(kv, TOKENS[:1]))
    right = kv.on_host
    kv.on_host = CpuBackend(threads=1).sequence(StateShape(1, 2, 8, (None,) * 4), 4, "f32")
    kv.on_host.advance(1)
    for _ in range(3):
        with pytest.raises(
            HotsetError, match="CPU's part of the model failed: the sequence is another model's"
        ):
            within(30, lambda: model.forward(Batch.of(kv, TOKENS[1:2])))
        assert kv.length == 1
    kv.on_host = right
    assert np.abs(within(30, lambda: answer(model, kv)) - expected).max() <= 1e-3 * np.abs(expected).max()


def test_a_worker_that_ends_in_mid_step(expected: NDArray[np.float32]) -> None:
    device = FaultyDevice()
    model = build(device)
    for at in range(1, calls_of_a_step(model, device) + 1):
        kvs = [model.sequence(32, "f32") for _ in range(1 + at % 3)]
        device.calls = 0
        device.fault = lambda call, at=at: model.close() if call == at else None
        try:
            within(30, lambda kvs=kvs: model.forward(next_tokens(kvs)))
        except HotsetError as error:
            assert "stopped in mid-step" in str(error)
        device.fault = None
        assert_right(model, expected)


def test_many_threads_one_model(expected: NDArray[np.float32]) -> None:
    model = build(StandInDevice())
    answers: list[NDArray[np.float32]] = []
    threads = [threading.Thread(target=lambda: answers.append(answer(model)), daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 4
    for found in answers:
        assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()


def test_nothing_is_left_of_a_model() -> None:
    device = StandInDevice()
    model = build(device, stream_from=9)
    kv = model.sequence(32)
    model.forward(Batch.of(kv, TOKENS, lossless=True))
    model.forward(Batch.of(kv, TOKENS[:1]))
    assert device.memory.used > 0
    assert device.pinned_memory.used > 0
    before = threading.active_count()
    del model, kv
    gc.collect()
    assert device.memory.used == 0
    assert device.pinned_memory.used == 0
    assert threading.active_count() <= before


MODEL_BYTES = sum(tensor.nbytes for tensor in CHECKPOINT.tensors.values())


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Callable[[StandInDevice, int], Placed]:
    """Place the model; the device needs no working memory, of which this model would need mostly that."""
    monkeypatch.setattr("hotset.placing.planner.working_bytes", lambda config: 0)

    def put(device: StandInDevice, budget: int) -> Placed:
        return place(
            CHECKPOINT,
            device,
            CpuBackend(threads=1),
            budget,
            machine=eager_machine(),
            context=32,
            kv_type="f16",
        )

    return put


Put = Callable[[StandInDevice, int], Placed]


def test_a_budget_that_fits_is_kept(put: Put, expected: NDArray[np.float32]) -> None:
    used = []
    for share in (0.0, 0.1, 0.5, 0.9, 1.1):
        device = StandInDevice(vram=2 * MODEL_BYTES)
        placed = put(device, int(share * MODEL_BYTES))
        assert placed.notes == ()
        assert device.memory.used <= share * MODEL_BYTES
        assert_right(placed.transformer, expected)
        used.append(device.memory.used)
    assert used[0] == 0
    assert used[1] < used[2] < used[3] < used[4]
    assert all(layer == LayerPlacement(True, 256) for layer in placed.plan.placement.layers)


def test_less_memory_than_asked_for(put: Put, expected: NDArray[np.float32]) -> None:
    device = StandInDevice(vram=MODEL_BYTES // 2)
    placed = put(device, 2 << 30)
    assert placed.notes == ("0.00 GiB of the 2.00 GiB asked for are free on the stand-in: used 0.00 GiB",)
    assert 0.2 * MODEL_BYTES < device.memory.used < 0.5 * MODEL_BYTES
    assert_right(placed.transformer, expected)


class FullDevice(StandInDevice):
    """Others take its memory while a model is built, and again the next time, so often as told."""

    def __init__(self, times: int) -> None:
        super().__init__(vram=2 * MODEL_BYTES)
        self._times = times
        self._attention = self.backend.attention
        self.backend.attention = self._build  # type: ignore

    def _build(self, spec: Any, index: int) -> Any:
        if self.memory.used > 0 and self._times > 0:
            self._times -= 1
            raise DeviceMemoryError("full")
        return self._attention(spec, index)


def test_memory_that_others_take_meanwhile(put: Put, expected: NDArray[np.float32]) -> None:
    device = FullDevice(times=1)
    placed = put(device, MODEL_BYTES)
    assert placed.notes == ("the stand-in ran full with 0.00 GiB planned: used 0.00 GiB",)
    assert 0 < device.memory.used < 0.5 * MODEL_BYTES
    assert_right(placed.transformer, expected)


def test_too_little_memory_twice(put: Put) -> None:
    device = FullDevice(times=2)
    with pytest.raises(DeviceMemoryError, match=r"the stand-in has no room for .* use --vram \d+MiB"):
        put(device, MODEL_BYTES)
    gc.collect()
    assert device.memory.used == 0
    assert device.pinned_memory.used == 0


@pytest.mark.parametrize("room", [0, 12_000, 1 << 20])
def test_no_room_to_stream_a_prompt(room: int, expected: NDArray[np.float32]) -> None:
    """The CPU computes what does not fit any more, and the model goes on; the next prompt tries again."""
    device = StandInDevice(vram=MODEL_BYTES)
    model = build(device, by_share(CHECKPOINT, 0.3, 64), stream_from=9)
    usual = build_transformer(CHECKPOINT, CpuBackend(threads=1))
    logits = usual.forward(Batch.of(usual.sequence(32, "f32"), TOKENS, lossless=True, logits=None))
    sequences = [model.sequence(32, "f32") for _ in range(2)]
    for capacity, kv in zip((device.memory.used + room, MODEL_BYTES), sequences, strict=True):
        device.memory.capacity = capacity
        found = within(30, lambda kv=kv: model.forward(Batch.of(kv, TOKENS, lossless=True, logits=None)))
        assert np.abs(found - logits).max() <= 1e-3 * np.abs(logits).max()
    assert_right(model, expected)
