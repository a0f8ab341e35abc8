"""The GPU suite's first part: every kernel against its oracle and the GPU's copy bandwidth."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from synthetic import TYPES, random_blocks

from hotset.backends.alone import view_alone
from hotset.backends.contract import AttentionSpec, FFNSpec, Linear, NeuronFFNSpec, Norm, StateShape
from hotset.backends.gpu import GpuBackend
from hotset.backends.gpu.matrix import build_matrix
from hotset.backends.gpu.packets import GpuPackets
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch
from hotset.core.config import Activation, FFNPlan, NormKind, RopeConfig, Score, Way
from hotset.formats.tensor import Tensor, TensorType
from hotset.hybrid.device import chosen_words

F32 = NDArray[np.float32]

MATRIX_TYPES = (
    TensorType.Q4_0,
    TensorType.Q4_1,
    TensorType.Q4_K,
    TensorType.Q6_K,
    TensorType.Q8_0,
    TensorType.F16,
)


@dataclass(frozen=True)
class Sizes:
    """How large the layers are, how many tokens a prompt has, and how much is read before a repetition."""

    hidden: int = 4096
    ffn: int = 11008
    heads: int = 32
    kv_heads: int = 8
    context: int = 4096
    prompt: int = 512
    rotation: int = 512 << 20
    """Bytes of matrices that are taken in turn: more than caches hold."""


SMALL = Sizes(hidden=256, ffn=512, heads=4, kv_heads=2, context=64, prompt=4, rotation=0)


class Clock:
    """Times work on the device: as a CUDA graph on a GPU, by the wall in the interpreter."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu

    def seconds(self, calls: list[Callable[[], object]]) -> float:
        """Of one of the calls, the best of a few rounds through all of them."""
        for call in calls[:2]:
            call()
        if not self.on_gpu:
            start = time.perf_counter()
            calls[0]()
            return time.perf_counter() - start
        torch.cuda.synchronize()
        repeats = math.ceil(32 / len(calls))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                for call in calls:
                    call()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        best = math.inf
        for _ in range(6):
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            best = min(best, begin.elapsed_time(end) / 1e3)
        return best / (repeats * len(calls))


def copy_bandwidth(clock: Clock, device: Any, nbytes: int) -> float:
    """GB/s of a copy within the device's memory, read and written."""
    source = torch.empty(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / clock.seconds([lambda: target.copy_(source)]) / 1e9


def random_tensor(type: TensorType, rows: int, cols: int, seed: int = 0) -> Tensor:
    """Random but valid blocks, scaled by 1 / sqrt(cols)."""
    rng = np.random.default_rng(seed)
    count = rows * cols // type.block_size
    blocks = random_blocks(TYPES[type.name.lower()], cols, count, rng)
    return Tensor("weight", type, (rows, cols), np.ascontiguousarray(blocks).reshape(-1).view(np.uint8))


def numbers(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def error(found: Any, expected: F32) -> float:
    """The largest difference over the largest number."""
    return float(np.abs(found.cpu().numpy() - expected).max() / np.abs(expected).max())


class KernelSuite:
    """All kernels at one size; each method gives rows of figures."""

    def __init__(self, backend: GpuBackend, sizes: Sizes) -> None:
        self.backend, self.sizes = backend, sizes
        self.clock = Clock(backend.gpu.device.type != "cpu")
        self.copy = copy_bandwidth(self.clock, backend.gpu.device, max(sizes.rotation // 2, 1 << 20))

    def figure(self, name: str, seconds: float, nbytes: int, off: float, **more: Any) -> dict[str, Any]:
        """A row: what was read, how fast, and how far from the oracle."""
        rate = nbytes / seconds / 1e9
        row = {"kernel": name, "us": seconds * 1e6, "gb_per_second": rate, "share_of_copy": rate / self.copy}
        return row | {"relative_error": off} | more

    def matrices(self) -> list[dict[str, Any]]:
        """One token, and a prompt, through a matrix of every type, by rows and by neuron."""
        s, gpu, rows = self.sizes, self.backend.gpu, []
        for type in MATRIX_TYPES:
            weight = random_tensor(type, s.ffn, s.hidden)
            w = weight.to_float32()
            copies = max(1, math.ceil(s.rotation / weight.nbytes))
            matrices = [build_matrix(gpu, Linear(weight), s.ffn, s.hidden) for _ in range(copies)]
            x, h = numbers(1, 1, s.hidden), numbers(2, 1, s.ffn)
            few = h * (np.random.default_rng(3).random(h.shape) < 0.1)
            on_gpu = {"x": gpu.upload(x), "h": gpu.upload(h), "few": gpu.upload(few.astype(np.float32))}
            out, back = gpu.empty(1, s.ffn), gpu.empty(1, s.hidden)

            def by_row(m: Any, on_gpu: Any = on_gpu, out: Any = out) -> Callable[[], object]:
                return lambda: m.times(on_gpu["x"], out)

            def by_neuron(m: Any, key: str, on_gpu: Any = on_gpu, back: Any = back) -> Callable[[], object]:
                return lambda: m.sum_rows(on_gpu[key], back, skip=key == "few")

            seconds = self.clock.seconds([by_row(m) for m in matrices])
            rows.append(self.figure(f"matvec {type.name}", seconds, matrices[0].nbytes, error(out, x @ w.T)))
            for key, factors, label in (("h", h, "all"), ("few", few, "10 % of")):
                seconds = self.clock.seconds([by_neuron(m, key) for m in matrices])
                nbytes = int(matrices[0].nbytes * (factors != 0).mean())
                name = f"sum of {label} rows {type.name}"
                rows.append(self.figure(name, seconds, nbytes, error(back, factors @ w)))
            prompt = numbers(4, s.prompt, s.hidden)
            many, result = gpu.upload(prompt), gpu.empty(s.prompt, s.ffn)
            seconds = self.clock.seconds([lambda m=m, a=many, b=result: m.times(a, b) for m in matrices[:2]])
            flops = 2 * s.prompt * s.ffn * s.hidden / seconds / 1e12
            rows.append(
                self.figure(
                    f"matmul {type.name}, {s.prompt} tokens",
                    seconds,
                    matrices[0].nbytes,
                    error(result, prompt @ w.T),
                    tflops=flops,
                )
            )
        return rows

    def ffns(self) -> list[dict[str, Any]]:
        """A whole FFN for one token: norm, gate and up with the activation, down; ordinary and by neuron."""
        s, rows = self.sizes, []
        norm = Norm(NormKind.RMS, 1e-5, np.ones(s.hidden, np.float32))
        gate, up = (Linear(random_tensor(TensorType.Q4_0, s.ffn, s.hidden, i)) for i in (1, 2))
        down = Linear(random_tensor(TensorType.Q4_0, s.hidden, s.ffn, 3))
        down_t = Linear(random_tensor(TensorType.Q4_0, s.ffn, s.hidden, 4))
        plan = FFNPlan(Way.DENSE)
        specs: dict[str, Any] = {
            "FFN SwiGLU Q4_0": FFNSpec(norm, gate, up, down, Activation.SILU),
            "FFN ReGLU Q4_0 by neuron": NeuronFFNSpec(norm, gate, up, down_t, Activation.RELU, plan),
        }
        for name, spec in specs.items():
            x = numbers(5, 1, s.hidden)
            expected = np.zeros_like(x)
            layers = []
            for backend in (ReferenceBackend(), self.backend):
                build = backend.neuron_ffn if isinstance(spec, NeuronFFNSpec) else backend.ffn
                layers.append(build(spec))
            layers[0].forward(x, expected, view_alone(ReferenceBackend(), 1, [0.0], lossless=True))
            on_gpu, out = self.backend.gpu.upload(x), self.backend.gpu.upload(np.zeros_like(x))
            layers[1].forward(on_gpu, out, None)
            off = error(out, expected)
            seconds = self.clock.seconds([lambda f=layers[1], a=on_gpu, b=out: f.forward(a, b, None)])
            rows.append(
                self.figure(name, seconds, 3 * gate.weight.nbytes, off, note="may lie in the L2 cache")
            )
        return rows

    def attention(self) -> list[dict[str, Any]]:
        """One token's attention with a full context."""
        s = self.sizes
        head = s.hidden // s.heads
        rope = RopeConfig(head, False, tuple(10000.0 ** (-2 * i / head) for i in range(head // 2)))
        kv_size = s.kv_heads * head
        spec = AttentionSpec(
            Norm(NormKind.RMS, 1e-5, np.ones(s.hidden, np.float32)),
            *(Linear(random_tensor(TensorType.Q4_0, n, s.hidden, n)) for n in (s.hidden, kv_size, kv_size)),
            Linear(random_tensor(TensorType.Q4_0, s.hidden, s.hidden, 9)),
            s.heads, s.kv_heads, head, head**-0.5, rope,
        )  # fmt: skip
        results, x = [], numbers(6, s.context, s.hidden)
        nbytes = spec.q.weight.nbytes * 2 + spec.k.weight.nbytes * 2 + 2 * s.context * kv_size * 2
        for backend in (ReferenceBackend(), self.backend):
            kv = backend.sequence(StateShape(1, s.kv_heads, head), s.context, "f16")
            layer = backend.attention(spec)
            last = s.context - 1
            for start in range(0, last, 512):
                part = x[start : min(start + 512, last)]
                upload = self.backend.gpu.upload if backend is self.backend else np.copy
                view = backend.view(Batch.of(kv, np.zeros(len(part), np.int32)))
                layer.forward(upload(part), upload(np.zeros_like(part)), view)
                kv.advance(len(part))
            token, out = upload(x[last:]), upload(np.zeros_like(x[last:]))
            view = backend.view(Batch.of(kv, np.zeros(1, np.int32)))
            layer.forward(token, out, view)
            results.append(out)
        before = self.backend.gpu.upload(np.zeros_like(x[last:]))
        off = error(results[1], results[0])
        seconds = self.clock.seconds([lambda: layer.forward(token, before, view)])
        return [self.figure(f"attention Q4_0, {s.context} positions", seconds, nbytes, off)]

    def predictor(self) -> list[dict[str, Any]]:
        """Scores by a 2-bit copy of the gate, and the choice of neurons, as a packet on the GPU."""
        s, gpu = self.sizes, self.backend.gpu
        norm = Norm(NormKind.RMS, 1e-5, np.ones(s.hidden, np.float32))
        gate = Linear(random_tensor(TensorType.F16, s.ffn, s.hidden))
        plan = FFNPlan(Way.PREDICTOR, Score.GATE_Q2)
        part = self.backend.predictor(NeuronFFNSpec(norm, gate, gate, gate, Activation.RELU, plan))
        x, cutoffs = gpu.upload(numbers(7, 1, s.hidden)), gpu.upload(np.zeros(1, np.float32))
        packet = gpu.upload(np.zeros((1, chosen_words(s.ffn)), np.int64))
        packets = GpuPackets(gpu, packet, 1)
        packets.begin(gpu.upload(np.ones(2, np.int32)))

        def choose() -> Any:
            scores = part.scores(x)
            packets.send_chosen(scores, cutoffs, packet)
            return scores

        scores = choose().cpu().numpy()[0]
        words = packet.cpu().numpy()[0, : chosen_words(s.ffn) - s.ffn].astype(np.uint32)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: s.ffn]
        equal = np.array_equal(bits, scores >= 0)
        seconds = self.clock.seconds([choose])
        nbytes = s.ffn * s.hidden * 10 // 32
        return [self.figure("predictor gate_q2 with its choice", seconds, nbytes, 0.0 if equal else 1.0)]
