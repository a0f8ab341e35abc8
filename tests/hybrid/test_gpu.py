"""The hybrid executor with the GPU's own kernels: in Triton's interpreter, and with `-m gpu` on a GPU.

The interpreter runs the same parts as a GPU, one program after the other; the stream is the calling thread.
"""

import gc
import threading
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from helpers.parity import LENGTH, TOKENS, assert_close
from helpers.placements import by_share, eager_machine
from helpers.random_checkpoint import by_neuron, quantised, random_checkpoint
from helpers.tiny_models import tiny_models
from numpy.typing import NDArray

from hotset import _native
from hotset.backends.contract import StateShape
from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch, Span
from hotset.core.config import Activation, FFNPlan, LayerPlacement, Placement, Score, Way
from hotset.core.errors import HotsetError
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.tensor import TensorType, tensor_from_array
from hotset.hybrid import streaming
from hotset.hybrid.build import build_hybrid
from hotset.hybrid.device import Device
from hotset.model.build import build_transformer
from hotset.model.transformer import Transformer
from hotset.placing.planner import Planner

if not (find_spec("torch") and find_spec("triton")):
    pytest.skip("needs torch and triton", allow_module_level=True)


@pytest.fixture
def interpreter() -> Device:
    import torch

    from hotset.testing.interpreted import InterpretedDevice

    torch.set_num_threads(1)
    return InterpretedDevice()


@pytest.fixture
def cuda() -> Device:
    from hotset.hybrid.cuda import CudaDevice

    return CudaDevice()


USUAL = random_checkpoint(hidden_size=32, ffn_size=96, activation=Activation.RELU, windows=(None,))


def stored(plan: FFNPlan) -> Checkpoint:
    return quantised(by_neuron(USUAL, plan, [np.arange(96)[::-1]]), TensorType.F16)


def logits(model: Transformer, prompt: int, length: int) -> NDArray[np.float32]:
    kv = model.sequence(length, "f32")
    parts = [model.forward(Batch.of(kv, TOKENS[:prompt] % 53, lossless=True, logits=None))]
    parts += [model.forward(Batch.of(kv, TOKENS[i : i + 1] % 53)) for i in range(prompt, length)]
    return np.concatenate(parts)


def hybrid(checkpoint: Checkpoint, placement: Placement, device: Device, stream: bool) -> Transformer:
    return build_hybrid(
        checkpoint, placement, device, CpuBackend(threads=1), stream_from=9 if stream else None
    )


@pytest.mark.parametrize("type", [TensorType.Q4_0, TensorType.Q5_0])
@pytest.mark.parametrize("plan", [None, Way.EXACT, Score.GATE_Q2, Score.GATE_Q4])
def test_matrices_take_what_is_planned(
    interpreter: Device, type: TensorType, plan: Way | Score | None
) -> None:
    """What is planned besides are norms, some of which are there twice."""
    from hotset.backends.gpu.matrix import Matrix

    usual = random_checkpoint(hidden_size=64, ffn_size=512, head_dim=16, windows=(None,) * 3)
    if plan is not None:
        if type is not TensorType.Q4_0:
            return  # others' rows cannot be read one by one
        way = FFNPlan(Way.PREDICTOR, plan, 0.0, 0.95) if isinstance(plan, Score) else FFNPlan(plan)
        usual = by_neuron(usual, way, [np.arange(512)] * 3)
    checkpoint = quantised(usual, type)
    tensors = dict(checkpoint.tensors)
    heat = np.tile(np.linspace(1, 0, 512, dtype=np.float32), (2, 1))
    tensors |= {
        name: tensor_from_array(name, heat) for name in (f"blk.{i}.ffn_profile.weight" for i in range(3))
    }
    planner = Planner(replace(checkpoint, tensors=tensors), eager_machine(), context=32, prompt=8)

    def matrices() -> int:
        gc.collect()
        return sum(found.nbytes for found in gc.get_objects() if isinstance(found, Matrix))

    for share in (0.3, 0.6, 1.0):
        room = int(share * (planner.everything - planner.working_bytes))
        found = planner.plan(planner.working_bytes + room)
        before = matrices()
        model = build_hybrid(checkpoint, found.placement, interpreter, CpuBackend(threads=1))
        taken = matrices() - before
        kept = sum(use.kv_bytes for use in found.layers)
        planned = found.device_bytes - found.working_bytes - kept
        assert 0.97 * planned <= taken <= planned
        model.close()
        del model


SPLIT = Placement((LayerPlacement(True, 32),), True)
# The interpreter takes seconds for an attention.
FFN_ALONE = Placement((LayerPlacement(False, 32),), False)
PREDICTED = FFNPlan(Way.PREDICTOR, Score.GATE_Q4, cutoff=-1e9)


@pytest.mark.parametrize(
    ("plan", "placement", "prompt", "stream"),
    [
        (FFNPlan(Way.EXACT), SPLIT, 1, False),
        (FFNPlan(Way.EXACT), FFN_ALONE, 9, True),
        (PREDICTED, FFN_ALONE, 8, False),  # the first after them is the first for which scores are asked
    ],
    ids=["everything", "streamed", "predictor"],
)
def test_kernels_of_the_gpu(
    interpreter: Device, plan: FFNPlan, placement: Placement, prompt: int, stream: bool
) -> None:
    checkpoint = stored(plan)
    expected = logits(build_transformer(checkpoint, CpuBackend(threads=1)), prompt, prompt + 1)
    found = logits(hybrid(checkpoint, placement, interpreter, stream), prompt, prompt + 1)
    assert_close(found, expected, 1e-3)


def test_a_norm_after_the_sum(interpreter: Device) -> None:
    checkpoint = stored(FFNPlan(Way.EXACT))
    name = "blk.0.post_ffw_norm.weight"
    norm = tensor_from_array(name, np.linspace(0.5, 2, 32, dtype=np.float32))
    checkpoint = replace(checkpoint, tensors={**checkpoint.tensors, name: norm})
    expected = logits(build_transformer(checkpoint, CpuBackend(threads=1)), 1, 2)
    assert_close(logits(hybrid(checkpoint, FFN_ALONE, interpreter, False), 1, 2), expected, 1e-3)


def rows_of_several_sequences(checkpoint: Checkpoint, device: Device, steps: int) -> None:
    """One, three and two sequences at a time, token by token, each as when alone in one place."""
    model = hybrid(checkpoint, SPLIT, device, False)
    whole = build_transformer(checkpoint, CpuBackend(threads=1))
    pairs = [(model.sequence(16, "f32"), whole.sequence(16, "f32")) for _ in range(3)]
    for chosen in ([1], [0, 1, 2], [2, 0]):
        for step in range(steps):
            tokens = TOKENS[[5 * i + step for i in chosen]] % 53
            found, expected = (
                at.forward(Batch(tokens, tuple(Span(pairs[i][place], 1) for i in chosen)))
                for place, at in enumerate((model, whole))
            )
            assert_close(found, expected, 1e-2)


def test_rows_of_several_sequences(interpreter: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told once for so many rows is good for any sequences: the device finds them in its table."""
    recorded: list[object] = []

    def record(step: Callable[[], None]) -> Callable[[], None]:
        recorded.append(step)
        return step

    monkeypatch.setattr(interpreter, "record", record)
    rows_of_several_sequences(quantised(USUAL, TensorType.F16), interpreter, 1)
    assert len(recorded) == 3  # for one, four and two rows


@pytest.mark.gpu
def test_rows_of_several_sequences_on_a_gpu(cuda: Device) -> None:
    """Steps enough for the recorded ones to be replayed."""
    rows_of_several_sequences(quantised(USUAL, TensorType.F16), cuda, 5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", tiny_models())
def test_every_architecture_on_a_gpu(
    cuda: Device, name: str, tiny: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps enough for the recorded one to be replayed.

    A prompt's activations are taken as float16, which random weights blow up: by 0.6 % at most, as seen.
    """
    monkeypatch.setattr(streaming, "PIECE_BYTES", 5000)
    checkpoint = tiny(name)
    expected = logits(build_transformer(checkpoint, CpuBackend(threads=1)), 19, LENGTH)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        for stream in (False, True):
            model = hybrid(checkpoint, by_share(checkpoint, share), cuda, stream)
            assert_close(logits(model, 19, LENGTH), expected, 1e-2)


@pytest.mark.gpu
def test_failures_on_a_gpu(cuda: Device) -> None:
    """A worker that fails while the graph is replayed, and one that is stopped: told, and then it works."""
    checkpoint = stored(FFNPlan(Way.EXACT))
    placement = Placement((LayerPlacement(False, 32),), True)
    model = build_hybrid(checkpoint, placement, cuda, CpuBackend(threads=1))
    expected = logits(build_transformer(checkpoint, CpuBackend(threads=1)), 9, 30)
    kv = model.sequence(30, "f32")
    for i in range(6):
        model.forward(Batch.of(kv, TOKENS[i : i + 1] % 53))
    right = kv.on_host
    kv.on_host = CpuBackend(threads=1).sequence(StateShape(1, 2, 8, (None,) * 4), 4, "f32")
    with pytest.raises(HotsetError, match="CPU's part"):
        model.forward(Batch.of(kv, TOKENS[6:7] % 53))
    kv.on_host = right
    for _ in range(20):
        stop = threading.Timer(0.0005, model.close)
        stop.start()
        try:
            kv.rewind(3)
            model.forward(Batch.of(kv, TOKENS[3:4] % 53))
        except HotsetError as error:
            assert "stopped" in str(error)
        stop.join()
    assert_close(logits(model, 9, 30), expected, 1e-3)


@pytest.mark.gpu
def test_what_a_model_held_is_free_again(cuda: Device) -> None:
    import torch

    gc.collect()
    before = torch.cuda.memory_allocated()
    model = hybrid(stored(FFNPlan(Way.EXACT)), SPLIT, cuda, True)
    logits(model, 9, 20)
    assert torch.cuda.memory_allocated() > before
    del model
    gc.collect()
    # The backend keeps its scratch memory.
    assert torch.cuda.memory_allocated() - before < 4 << 20


@pytest.mark.gpu
def test_the_hand_shake_on_a_gpu(cuda: Device) -> None:
    """Kernels await packets themselves, both ways in the time that is asked for."""
    from hotset.hybrid.handshake import handshake_us

    assert type(cuda.packets).__name__ == "GpuPackets"  # type: ignore[attr-defined]
    assert handshake_us(cuda) <= 12


@pytest.mark.gpu
def test_many_hand_shakes_on_a_gpu(cuda: Device) -> None:
    """A hundred thousand tasks beside a stream of copies: each answer is its own question's."""
    import torch

    tasks, size = 50, 1024
    worker = _native.HostWorker()
    packets = cuda.pinned((tasks, 2, 1, size), np.uint64)
    control = cuda.pinned((2,), np.uint32)
    host = np.zeros((tasks, 1, size), np.float32)
    for (asked, answer), here in zip(packets, host, strict=True):
        worker.task()
        worker.take(asked, here)
        worker.answer(here, answer)
    cpu = CpuBackend(threads=1)
    batch = cpu.view(Batch.of(cpu.sequence(StateShape(1, 1, 8), 1, "f32"), np.zeros(1, np.int32))).native
    first, last = (cuda.pinned((1, size), np.float32) for _ in range(2))
    a, b = torch.zeros(1 << 24, device="cuda"), torch.zeros(1 << 24).pin_memory()
    with cuda.guard():
        x = cuda.empty((1, size))

        def step() -> None:
            cuda.begin(control)
            cuda.upload(first, x)
            for asked, answer in packets:
                cuda.send(x, asked)
                cuda.receive(answer, x, add=True)  # x is twice what it was
                x.mul_(0.5)
            cuda.download(x, last)

        recorded = cuda.record(step)
        for number in range(1, 2001):
            first[:] = number + np.arange(size)
            control[:] = number, 1
            worker.begin(batch, number)
            with cuda.aside():
                a.copy_(b, non_blocking=True)
            recorded()
            cuda.synchronize()
            assert worker.finish() == ""
            np.testing.assert_array_equal(last, first)
    worker.stop()
