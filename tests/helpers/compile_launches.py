"""Compiles, without a GPU, every kernel as the GPU backend launches it; a script, not for the interpreter.

    python compile_launches.py 80 [all | few]

Parts of a real model's shape are built on the CPU; where one launches a kernel, its arguments' types and the
constants and options it is launched with are compiled for the compute capability given, down to machine code.
So an error of types, which the interpreter does not see, or a kernel that needs more shared memory than
there is, shows without a GPU. Prints a line for each kernel.
"""

import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from hotset.backends.contract import (
    AttentionSpec,
    DeltaNetSpec,
    ExpertsSpec,
    FFNSpec,
    HeadSpec,
    LatentSpec,
    Linear,
    MambaSpec,
    NeuronFFNSpec,
    Norm,
    RecurrentSpec,
    SharedExpertSpec,
    ShortConvSpec,
    StateShape,
)
from hotset.backends.gpu.backend import GpuBackend
from hotset.backends.gpu.device import Gpu
from hotset.core.batch import Batch
from hotset.core.config import (
    Activation,
    DeltaNetConfig,
    ExpertsConfig,
    FFNPlan,
    Gating,
    MambaConfig,
    NormKind,
    RopeConfig,
    Score,
    ShortConvConfig,
    Way,
)
from hotset.core.heads import KvShape, LatentConfig, QueryGrowth
from hotset.formats.tensor import Tensor, TensorType

SHARED_BYTES = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10}
"""Of one program, by compute capability (CUDA C programming guide, technical specifications)."""

_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}
D, F, HEAD = 2048, 5632, 128


class _Launches:
    """Takes the place of `JITFunction.run`."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.seen: set[str] = set()

    def launch(
        self, kernel: JITFunction, *args: Any, grid: Any, warmup: bool = False, **options: Any
    ) -> None:
        values = dict(zip(kernel.arg_names, args, strict=False))
        values |= {name: options.pop(name) for name in list(options) if name in kernel.arg_names}
        signature, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(kernel.params):
            name, value = parameter.name, values[parameter.name]
            # As Triton specialises: what is 1 is a constant, and what 16 divides is known to be so.
            if parameter.is_constexpr or (isinstance(value, int) and value == 1):
                signature[name], constants[name] = "constexpr", value
                continue
            is_tensor = isinstance(value, torch.Tensor)
            signature[name] = (
                _POINTERS[value.dtype] if is_tensor else "fp32" if isinstance(value, float) else "i32"
            )
            if is_tensor or (isinstance(value, int) and value % 16 == 0):
                attributes[i,] = [["tt.divisibility", 16]]
        key = f"{kernel.__name__} {signature} {constants} {attributes} {options}"
        if key in self.seen:
            return
        self.seen.add(key)
        shown = " ".join(f"{k}={v}" for k, v in constants.items() if k.isupper())
        try:
            compiled = triton.compile(
                ASTSource(kernel, signature, constants, attributes),
                target=GPUTarget("cuda", self.capability, 32),
                options=options,
            )
        except Exception as error:
            while error.__cause__:
                error = error.__cause__
            print(f"FAILED {kernel.__name__} {shown}: {str(error)[-600:]}")
            return
        shared = compiled.metadata.shared
        verdict = "ok" if shared <= SHARED_BYTES[self.capability] else "FAILED: too much shared memory"
        print(f"{verdict} {kernel.__name__} {shown} {options} shared={shared}")


class _NoGpu(Gpu):
    """A GPU's numbers with tensors on the CPU."""

    def __init__(self, capability: int) -> None:
        self.device, self.multiprocessors, self.capability = torch.device("cpu"), 108, capability
        self._scratch, self.ptx = {}, True


def tensor(type: TensorType, *shape: int) -> Tensor:
    nbytes = math.prod(shape) // type.block_size * type.block_bytes
    return Tensor("weight", type, shape, np.zeros(nbytes, np.uint8))


def linear(type: TensorType, rows: int, cols: int, bias: bool = False) -> Linear:
    return Linear(tensor(type, rows, cols), np.zeros(rows, np.float32) if bias else None)


def norm(size: int, kind: NormKind = NormKind.RMS, bias: bool = False) -> Norm:
    return Norm(kind, 1e-5, np.ones(size, np.float32), np.zeros(size, np.float32) if bias else None)


def forward(layer: Any, *token_counts: int) -> None:
    for tokens in token_counts:
        layer.forward(torch.zeros(tokens, D), torch.zeros(tokens, D), None)


def ffns(backend: GpuBackend, types: list[TensorType], token_counts: tuple[int, ...]) -> None:
    for t in types:
        whole = FFNSpec(norm(D), linear(t, F, D), linear(t, F, D), linear(t, D, F), Activation.SILU)
        forward(backend.ffn(whole), *token_counts)
        by_neuron = NeuronFFNSpec(
            norm(D), linear(t, F, D), linear(t, F, D), linear(t, F, D), Activation.RELU, FFNPlan(Way.EXACT)
        )
        forward(backend.neuron_ffn(by_neuron), 1, token_counts[-1])


def everything_else(backend: GpuBackend) -> None:
    t = TensorType.Q4_0
    for activation in (Activation.RELU2, Activation.GELU, Activation.GELU_TANH):
        spec = FFNSpec(norm(D), None, linear(t, F, D, True), linear(t, D, F, True), activation, norm(D))
        forward(backend.ffn(spec), 1)
    rope = RopeConfig(HEAD, True, tuple([0.1] * (HEAD // 2)))
    head_norm = norm(HEAD, NormKind.LAYER, True)
    for kv_heads, head, kv_type, options in (
        (4, HEAD, "f16", {"rope": rope}),
        (4, 2 * HEAD, "f16", {}),
        (16, HEAD, "f16", {"rope": rope, "q_norm": head_norm, "k_norm": norm(HEAD), "post_norm": norm(D)}),
        (1, HEAD, "f32", {"window": 100}),
        (4, 2 * HEAD, "f16", {"gated": True}),
        (4, HEAD, "f16", {"rope": replace(rope, long_frequencies=(0.1,) * (HEAD // 2), long_from=4096)}),
        (4, HEAD, "f16", {"rope": rope, "growth": QueryGrowth(0.1, 8192)}),
        (4, HEAD, "f16", {"sinks": np.zeros(D // HEAD, np.float32), "soft_cap": 50.0}),
        (4, HEAD, "f16", {"head_gate": linear(TensorType.F16, D // HEAD, D)}),
        (4, HEAD, "q8_0", {"rope": rope}),
        *((2, 4 * HEAD, kv_type, {"v_norm": norm(4 * HEAD)}) for kv_type in ("f16", "f32", "q8_0")),
    ):
        q_rows = D * (1 + ("gated" in options))
        spec = AttentionSpec(
            norm(D, NormKind.LAYER, True), linear(t, q_rows, D), linear(t, kv_heads * head, D),
            linear(TensorType.Q6_K, kv_heads * head, D), linear(t, D, D), D // head, kv_heads, head, 0.1,
            **options,
        )  # fmt: skip
        kv = backend.sequence(StateShape(1, kv_heads, head), 4096, kv_type)
        layer = backend.attention(spec)
        for tokens in (1, 300):
            view = backend.view(Batch.of(kv, np.zeros(tokens, np.int32)))
            layer.forward(torch.zeros(tokens, D), torch.zeros(tokens, D), view)
    spec = NeuronFFNSpec(
        norm(D), linear(TensorType.F16, F, D), linear(t, F, D), linear(t, F, D), Activation.RELU,
        FFNPlan(Way.PREDICTOR, Score.GATE_Q2),
    )  # fmt: skip
    predictor = backend.predictor(spec)
    predictor.scores(torch.zeros(1, D))
    backend.head(HeadSpec(norm(D), linear(TensorType.Q6_K, 32000, D))).forward(torch.zeros(1, D))


def recurrent_layers(backend: GpuBackend) -> None:
    """Of real models' shapes."""

    def zeros(*shape: int) -> Any:
        return np.zeros(shape, np.float32)

    t, net = TensorType.Q4_K, DeltaNetConfig(16, 32, 128, 4, tiled=True)
    heads, values = net.n_value_heads, net.n_value_heads * net.head_dim
    mamba, conv = MambaConfig(8, 64, 64, 128, 4), ShortConvConfig(D, 3)
    specs: list[RecurrentSpec] = [
        DeltaNetSpec(
            norm(D), linear(t, net.channels, D), linear(t, values, D), linear(TensorType.F32, heads, D),
            linear(TensorType.F32, heads, D), zeros(net.channels, net.kernel), zeros(heads), zeros(heads),
            norm(net.head_dim), linear(t, D, values), net,
        ),
        MambaSpec(
            norm(D), linear(TensorType.Q5_K, mamba.values + mamba.channels + mamba.n_heads, D),
            zeros(mamba.channels, mamba.kernel), zeros(mamba.channels), zeros(mamba.n_heads),
            zeros(mamba.n_heads), zeros(mamba.n_heads), norm(mamba.values), linear(t, D, mamba.values), mamba,
        ),
        ShortConvSpec(norm(D), linear(t, 3 * D, D), zeros(D, conv.kernel), linear(t, D, D), conv),
    ]  # fmt: skip
    for spec in specs:
        sequence = backend.sequence(StateShape(0, 1, HEAD, recurrent=(spec.shape,) * 2), 512, "f16")
        for tokens in (1, 300):
            view = backend.view(Batch.of(sequence, np.zeros(tokens, np.int32)))
            backend.recurrent(spec, 1).forward(torch.zeros(tokens, D), torch.zeros(tokens, D), view)


def latent_attention(backend: GpuBackend) -> None:
    """GLM-4.7-Flash's and DeepSeek-V2's shapes."""
    t = TensorType.Q8_0
    for heads, shape in ((20, LatentConfig(512, 64, 192, 256, 768)), (16, LatentConfig(512, 64, 128, 128))):
        low = shape.query_rank
        spec = LatentSpec(
            norm(D), linear(t, low, D) if low else None, norm(low) if low else None,
            linear(t, heads * shape.query_dim, low or D), linear(t, shape.kept, D), norm(shape.rank),
            tensor(t, heads, shape.rank, shape.nope_dim), tensor(t, heads, shape.value_dim, shape.rank),
            linear(t, D, heads * shape.value_dim), heads, 0.1, RopeConfig(64, True, (0.1,) * 32), shape,
        )  # fmt: skip
        layer = backend.latent_attention(spec)
        for kv_type in ("f16", "f32", "q8_0"):
            kept = KvShape(1, shape.kept, values=False)
            kv = backend.sequence(StateShape(1, 1, 1, own=(kept,)), 4096, kv_type)
            for tokens in (1, 300):
                view = backend.view(Batch.of(kv, np.zeros(tokens, np.int32)))
                layer.forward(torch.zeros(tokens, D), torch.zeros(tokens, D), view)


def mixtures(backend: GpuBackend) -> None:
    """As Gemma 4 26B's and DeepSeek-V3's, with fewer experts."""
    count, size = 64, 256

    def stacked(type: TensorType, rows: int, cols: int) -> Linear:
        return Linear(tensor(type, count, rows, cols))

    for t, activation, plan in (
        (TensorType.Q4_K, Activation.SILU, None),
        (TensorType.BF16, Activation.GELU_TANH, None),
        (TensorType.Q8_0, Activation.RELU, FFNPlan(Way.EXACT)),
    ):
        up, down = linear(t, size, D), linear(t, D, size)
        down_stack = stacked(t, size, D) if plan else stacked(t, D, size)
        common = ExpertsSpec(
            norm(D), linear(TensorType.F32, count, D), stacked(t, size, D), stacked(t, size, D), down_stack,
            activation, ExpertsConfig(count, 8, size), plan=plan,
        )  # fmt: skip
        grouped = ExpertsConfig(
            count, 8, size, size, gating=Gating.SIGMOID, normalised=True, scale=2.5, groups=8, groups_used=4
        )
        for spec in (
            replace(
                common, router_norm=norm(D), factors=np.ones(count, np.float32), post_norm=norm(D),
                beside=FFNSpec(norm(D), up, up, down, activation, norm(D)), joined_norm=norm(D),
            ),
            replace(
                common, shape=grouped, selection_bias=np.zeros(count, np.float32),
                shared=SharedExpertSpec(up, up, down, linear(TensorType.F32, 1, D)),
            ),
        ):  # fmt: skip
            layer = backend.experts(spec)
            for tokens in (1, 8, 100):
                x = torch.zeros(tokens, D)
                weights = layer.select(x)
                weights.fill_(0.1)
                layer.add(x, torch.zeros(tokens, D), weights)


def main() -> None:
    capability, everything = int(sys.argv[1]), "all" in sys.argv
    launches = _Launches(capability)
    JITFunction.run = lambda kernel, *args, **kw: launches.launch(kernel, *args, **kw)  # noqa: PLW0108
    torch.set_num_threads(1)
    backend = GpuBackend.__new__(GpuBackend)
    backend.gpu = _NoGpu(capability)
    types = list(TensorType) if everything else [TensorType.Q4_K]
    few = "few" in sys.argv
    ffns(backend, types, (1,) if few else (1, 2, 33, 70, 300) if everything else (1, 300))
    if not few:
        everything_else(backend)
        recurrent_layers(backend)
        latent_attention(backend)
        mixtures(backend)
    print(f"{len(launches.seen)} launches for compute capability {capability}")


if __name__ == "__main__":
    main()
