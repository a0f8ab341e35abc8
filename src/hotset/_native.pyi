"""Types of the native module; the definitions are in csrc/bindings/."""

from collections.abc import Callable
from collections.abc import Sequence as ListOf

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Packet = NDArray[np.uint64]

ACTIVATIONS: dict[str, int]
WAYS: dict[str, int]
SCORES: dict[str, int]
GATINGS: dict[str, int]
KV_TYPES: dict[str, int]
TENSOR_TYPES: dict[str, int]
KV_BLOCK: int
COUNTED: int

def kernel_levels() -> list[str]: ...
def set_codebook(type: int, entries: NDArray[np.uint8]) -> None: ...
def survive_cut_files(tell: Callable[[], object]) -> None: ...
def watch_mapping(data: NDArray[np.uint8]) -> None: ...
def gather(
    type: int, data: NDArray[np.uint8], rows: int, indices: NDArray[np.int32], out: F32, cols: int
) -> None: ...
def round_to_nearest(type: int, weights: F32, out: NDArray[np.uint8], threads: int) -> None: ...
def quantise(
    type: int, weights: F32, importance: F32 | None, out: NDArray[np.uint8], threads: int
) -> None: ...
def quantise_slab(type: int, slab: F32, factor: F32, out: NDArray[np.uint8], threads: int) -> None: ...

class Runtime:
    def __init__(self, threads: int, level: str, parts: int) -> None: ...
    def memory_bandwidth(self, bytes: int, repeats: int) -> float: ...
    def measure_zones(self, on: bool) -> None: ...
    def zone_seconds(self) -> dict[str, float]: ...

class Linear:
    def __init__(
        self,
        runtime: Runtime,
        type: int,
        rows: int,
        cols: int,
        data: NDArray[np.uint8],
        from_file: bool,
        bias: F32 | None,
        scale: float = 1.0,
    ) -> None: ...

class Norm:
    def __init__(self, kind: int, eps: float, weight: F32, bias: F32 | None) -> None: ...

class Rope:
    def __init__(
        self,
        inverse_frequencies: ListOf[float],
        magnitude: float,
        interleaved: bool,
        long_frequencies: ListOf[float],
        long_from: int,
    ) -> None: ...

class Chooser:
    cutoff: float
    @property
    def work(self) -> tuple[int, int, int, int, int, float]: ...

class Sequence:
    def __init__(
        self,
        runtime: Runtime,
        kv_type: int,
        layers: ListOf[tuple[int, int, bool]],
        capacity: int,
        cutoffs: list[float | None],
        kept: list[float],
        recurrent: list[tuple[int, int, int, int, int, int]],
    ) -> None: ...
    @property
    def length(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def choosers(self) -> list[Chooser | None]: ...
    @property
    def saved_bytes(self) -> int: ...
    def advance(self, count: int) -> None: ...
    def reusable(self, at_most: int) -> int: ...
    @property
    def undoable(self) -> int: ...
    def save(self) -> bool: ...
    def forget(self, length: int) -> None: ...
    def limit_saved(self, bytes: int) -> None: ...
    def rewind(self, length: int) -> None: ...
    def fork(self) -> Sequence: ...

class Batch:
    def __init__(self, sequences: list[Sequence], counts: list[int], lossless: list[bool]) -> None: ...

class Attention:
    def __init__(
        self,
        *,
        runtime: Runtime,
        norm: Norm,
        q: Linear,
        k: Linear | None,
        v: Linear | None,
        output: Linear,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        scale: float,
        window: int | None,
        rope: Rope | None,
        q_norm: Norm | None,
        k_norm: Norm | None,
        v_norm: Norm | None,
        post_norm: Norm | None,
        gated: bool,
        head_gate: Linear | None,
        sinks: F32 | None,
        soft_cap: float,
        growth: float,
        growth_context: int,
        index: int,
    ) -> None: ...
    def forward(self, x: F32, out: F32, batch: Batch) -> None: ...

class LatentAttention:
    def __init__(
        self,
        *,
        runtime: Runtime,
        norm: Norm,
        q_a: Linear | None,
        q_norm: Norm | None,
        q: Linear,
        kv_a: Linear,
        kv_norm: Norm,
        k_b: list[Linear],
        v_b: list[Linear],
        output: Linear,
        scale: float,
        rope: Rope,
        index: int,
    ) -> None: ...
    def forward(self, x: F32, out: F32, batch: Batch) -> None: ...

class Mamba:
    def __init__(
        self,
        *,
        runtime: Runtime,
        norm: Norm,
        input: Linear,
        output: Linear,
        conv: F32,
        dt_bias: F32,
        decay: F32,
        skip: F32,
        out_norm: Norm,
        n_groups: int,
        n_heads: int,
        state_dim: int,
        head_dim: int,
        kernel: int,
        index: int,
    ) -> None: ...
    def forward(self, x: F32, out: F32, batch: Batch) -> None: ...

class ShortConv:
    def __init__(
        self,
        *,
        runtime: Runtime,
        norm: Norm,
        input: Linear,
        output: Linear,
        conv: F32,
        kernel: int,
        index: int,
    ) -> None: ...
    def forward(self, x: F32, out: F32, batch: Batch) -> None: ...

class DeltaNet:
    def __init__(
        self,
        *,
        runtime: Runtime,
        norm: Norm,
        qkv: Linear,
        z: Linear,
        beta: Linear,
        alpha: Linear,
        output: Linear,
        conv: F32,
        dt_bias: F32,
        decay: F32,
        out_norm: Norm,
        n_key_heads: int,
        n_value_heads: int,
        head_dim: int,
        kernel: int,
        tiled: bool,
        index: int,
    ) -> None: ...
    def forward(self, x: F32, out: F32, batch: Batch) -> None: ...

class FFN:
    def __init__(
        self,
        *,
        runtime: Runtime,
        norm: Norm,
        gate: Linear | None,
        up: Linear,
        down: Linear,
        activation: int,
        post_norm: Norm | None,
    ) -> None: ...
    def forward(self, x: F32, out: F32, batch: Batch | None = None) -> None: ...
    def neurons(self, x: F32, gate: F32, h: F32) -> None: ...

class NeuronStore:
    def __init__(self, runtime: Runtime, neurons: int, cols: int, types: list[int]) -> None: ...

class NeuronRows:
    def __init__(
        self,
        store: NeuronStore,
        type: int,
        added: bool,
        rows: int,
        cols: int,
        data: NDArray[np.uint8],
        from_file: bool,
        bias: F32 | None,
    ) -> None: ...

class NeuronFFN:
    def __init__(
        self,
        *,
        runtime: Runtime,
        norm: Norm,
        first: Linear | None,
        first_rows: NeuronRows | None,
        second: Linear | None,
        second_rows: NeuronRows | None,
        down: NeuronRows,
        activation: int,
        way: int,
        score: int,
        predictor: list[Linear],
        raw_input: bool,
        factors: F32 | None,
        post_norm: Norm | None,
        index: int,
    ) -> None: ...
    @property
    def parts(self) -> int: ...
    @property
    def tally(self) -> tuple[int, int, list[int]]: ...
    def forward(self, x: F32, out: F32, batch: Batch | None = None, scores: F32 | None = None) -> None: ...
    def neurons(self, x: F32, gate: F32, h: F32) -> None: ...

class Head:
    def __init__(self, runtime: Runtime, norm: Norm, output: Linear, soft_cap: float) -> None: ...
    def forward(self, x: F32, logits: F32) -> None: ...

class LayerInput:
    def __init__(self, runtime: Runtime, gate: Linear, up: Linear, post_norm: Norm) -> None: ...
    def forward(self, x: F32, e: F32, out: F32) -> None: ...

class HostWorker:
    def __init__(self) -> None: ...
    def task(self) -> None: ...
    def take(self, packet: Packet, x: F32) -> None: ...
    def answer(self, x: F32, packet: Packet) -> None: ...
    def copy(self, x: F32, out: F32) -> None: ...
    def zero(self, out: F32) -> None: ...
    def scale(self, x: F32, factor: float) -> None: ...
    def attention(self, attention: Attention | LatentAttention, x: F32, out: F32) -> None: ...
    def ffn(self, ffn: FFN, x: F32, out: F32) -> None: ...
    def take_chosen(self, ffn: NeuronFFN, packet: Packet, x: F32, cutoffs: F32) -> None: ...
    def prefetch(self, ffn: NeuronFFN, packet: Packet, x: F32, cutoffs: F32, until: Packet) -> None: ...
    def neuron_ffn(
        self, ffn: NeuronFFN, x: F32, out: F32, chosen: F32 | None = None, cutoffs: F32 | None = None
    ) -> None: ...
    def recurrent(self, layer: DeltaNet | ShortConv | Mamba, x: F32, out: F32) -> None: ...
    def experts(self, experts: Experts, x: F32, out: F32, weights: F32 | None) -> None: ...
    def select(self, experts: Experts, x: F32, weights: F32) -> None: ...
    def layer_input(self, layer: LayerInput, x: F32, e: F32) -> None: ...
    def begin(self, batch: Batch, number: int) -> None: ...
    def finish(self) -> str: ...
    def abort(self) -> None: ...
    def stop(self) -> None: ...

def write_packet(x: F32, packet: Packet, number: int) -> None: ...
def take_packet(packet: Packet, number: int, x: F32, seconds: float) -> bool: ...
def await_function() -> int: ...

class ExpertCache:
    def __init__(self, runtime: Runtime, budget: int | None) -> None: ...
    @property
    def counts(self) -> tuple[int, int, int, int]: ...

class ExpertMatrix:
    def __init__(
        self,
        type: int,
        experts: int,
        rows: int,
        cols: int,
        data: NDArray[np.uint8],
        from_file: bool,
        bias: F32 | None,
        use: int | None = None,
        scale: F32 | None = None,
    ) -> None: ...

class Routing:
    def __init__(
        self,
        *,
        count: int,
        used: int,
        gating: int,
        normalised: bool,
        scale: float,
        groups: int,
        groups_used: int,
        bias: F32 | None,
        factors: F32 | None = None,
    ) -> None: ...

class SharedExpert:
    def __init__(self, gate: Linear | None, up: Linear, down: Linear, gate_of: Linear | None) -> None: ...

class Experts:
    def __init__(
        self,
        *,
        runtime: Runtime,
        cache: ExpertCache,
        norm: Norm,
        router: Linear,
        routing: Routing,
        gate: ExpertMatrix | None,
        up: ExpertMatrix,
        down: ExpertMatrix,
        activation: int,
        shared: SharedExpert | None,
        post_norm: Norm | None,
        router_norm: Norm | None = None,
        beside: FFN | None = None,
        joined_norm: Norm | None = None,
        everything: bool = False,
        index: int = 0,
    ) -> None: ...
    @property
    def uses(self) -> tuple[int, list[int], list[bool]]: ...
    def route(self, x: F32, logits: F32) -> None: ...
    def forward(self, x: F32, out: F32, logits: F32 | None = None, batch: Batch | None = None) -> None: ...
    def select(self, x: F32, logits: F32 | None, weights: F32) -> None: ...
    def fired(self, x: F32, weights: F32, counts: F32) -> None: ...
    def add(self, x: F32, out: F32, weights: F32, batch: Batch | None = None) -> None: ...
    def neurons(self, x: F32, gate: F32, h: F32) -> None: ...

class Chain:
    def __init__(self, hidden: int) -> None: ...
    def add(
        self, part: Attention | LatentAttention | DeltaNet | ShortConv | Mamba | FFN | NeuronFFN | Experts
    ) -> None: ...
    def forward(self, x: F32, batch: Batch) -> None: ...
