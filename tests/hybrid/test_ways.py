"""Models stored by neuron, split anywhere: each way of choosing neurons, with and without the device."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.parts import LoneFFN
from helpers.placements import by_share
from helpers.random_checkpoint import by_neuron, quantised, random_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hotset.backends.contract import F32, BatchView, Linear, NeuronFFNSpec, StateShape
from hotset.backends.cpu import CpuBackend
from hotset.backends.reference import ReferenceBackend
from hotset.core.batch import Batch, Work
from hotset.core.config import Activation, FFNPlan, LayerPlacement, Placement, Score, Way
from hotset.core.errors import HotsetError
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.tensor import Tensor, TensorType
from hotset.hybrid.build import build_hybrid
from hotset.hybrid.ffn import Views, add_split, build_split
from hotset.hybrid.parts import Split
from hotset.hybrid.slices import cold_slice, hot_slice
from hotset.model.build import build_transformer, neuron_ffn_spec
from hotset.model.transformer import SINK_TOKENS, Transformer
from hotset.testing.stand_in import StandInDevice

FUNCTIONS = [
    (Activation.RELU, True),
    (Activation.RELU, False),
    (Activation.DRELU, True),
    (Activation.RELU2, False),
]
ALL_FIRE = -1e9  # a cut-off that every score reaches
TOKENS = np.random.default_rng(3).integers(0, 53, 30, dtype=np.int32)


def stored_by_neuron(plan: FFNPlan, *, seed: int = 0, **options: object) -> Checkpoint:
    usual = random_checkpoint(seed=seed, **{"hidden_size": 32, "ffn_size": 200, **options})
    rng = np.random.default_rng(seed)
    stored = by_neuron(usual, plan, [rng.permutation(usual.config.ffn_size) for _ in usual.config.layers])
    tensors = dict(stored.tensors)
    if plan.score in (Score.LOW_RANK, Score.LOW_RANK_RELU):
        for i in range(usual.config.n_layers):
            gate = tensors[f"blk.{i}.ffn_gate.weight"].to_float32()
            basis = np.linalg.qr(rng.standard_normal((gate.shape[1], 12)))[0].T.astype(np.float32)
            for name, values in (("fc1", basis), ("fc2", gate @ basis.T)):
                key = f"blk.{i}.{name}.weight"
                data = values.astype(np.float16).reshape(-1).view(np.uint8)
                tensors[key] = Tensor(key, TensorType.F16, values.shape, data)
    return quantised(replace(stored, tensors=tensors), TensorType.F16)


def logits(model: Transformer) -> NDArray[np.float32]:
    kv = model.sequence(64, "f32")
    parts = [model.forward(Batch.of(kv, TOKENS[:12], lossless=True, logits=None))]
    parts += [model.forward(Batch.of(kv, TOKENS[i : i + 1])) for i in range(12, 27)]
    parts += [model.forward(Batch.of(kv, TOKENS[27:], logits=None))]
    return np.concatenate(parts)


def hybrid(checkpoint: Checkpoint, placement: Placement, stream_from: int | None = None) -> Transformer:
    return build_hybrid(
        checkpoint, placement, StandInDevice(), CpuBackend(threads=1), stream_from=stream_from
    )


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float = 1e-3) -> None:
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@settings(max_examples=40, deadline=None)
@given(
    function=st.sampled_from(FUNCTIONS),
    way=st.sampled_from([Way.DENSE, Way.EXACT]),
    hot=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    attention=st.tuples(st.booleans(), st.booleans()),
    head=st.booleans(),
    parallel=st.booleans(),
    stream=st.booleans(),
)
def test_any_split_equals_dense(
    function: tuple[Activation, bool],
    way: Way,
    hot: tuple[int, int],
    attention: tuple[bool, bool],
    head: bool,
    parallel: bool,
    stream: bool,
) -> None:
    checkpoint = stored_by_neuron(FFNPlan(way), activation=function[0], gated=function[1], parallel=parallel)
    layers = tuple(map(LayerPlacement, attention, hot))
    model = hybrid(checkpoint, Placement(layers, head), 9 if stream else None)
    assert_close(logits(model), logits(build_transformer(checkpoint, CpuBackend(threads=1))))


@settings(max_examples=20, deadline=None)
@given(
    type=st.sampled_from([TensorType.F16, TensorType.Q8_0, TensorType.Q4_0, TensorType.Q4_1]),
    slabs=st.tuples(st.integers(0, 8), st.integers(0, 8)),
    activation=st.sampled_from([Activation.SILU, Activation.GELU_TANH, Activation.RELU]),
)
def test_ordinary_layers_split_between_blocks_of_down(
    type: TensorType, slabs: tuple[int, int], activation: Activation
) -> None:
    checkpoint = quantised(random_checkpoint(hidden_size=32, ffn_size=256, activation=activation), type)
    placement = Placement(tuple(LayerPlacement(True, 32 * n) for n in slabs), False)
    expected = logits(build_transformer(checkpoint, CpuBackend(threads=1)))
    # Activations are rounded to eight bits, down's for each slice on its own.
    tolerance = 1e-3 if type is TensorType.F16 else 0.03
    assert_close(logits(hybrid(checkpoint, placement)), expected, tolerance)


def test_a_cut_through_a_block_of_down() -> None:
    checkpoint = quantised(random_checkpoint(hidden_size=32, ffn_size=256), TensorType.Q4_0)
    with pytest.raises(HotsetError, match="ffn_up.weight: 48 neurons cut through a block of down"):
        hybrid(checkpoint, Placement((LayerPlacement(True, 48),) * 2, True))


PREDICTORS = [Score.LOW_RANK, Score.LOW_RANK_RELU, Score.GATE_Q4, Score.GATE_Q2]
CHOOSING = [
    (Way.THRESHOLD, Score.GATE),
    (Way.THRESHOLD, Score.DOWN),
    *((Way.PREDICTOR, s) for s in PREDICTORS),
]


@pytest.mark.parametrize(("way", "score"), CHOOSING)
def test_a_plan_that_chooses_all_equals_dense(way: Way, score: Score) -> None:
    checkpoint = stored_by_neuron(FFNPlan(way, score, cutoff=ALL_FIRE))
    dense = replace(
        checkpoint,
        config=replace(
            checkpoint.config,
            layers=tuple(replace(layer, ffn=FFNPlan(Way.DENSE)) for layer in checkpoint.config.layers),
        ),
    )
    expected = logits(build_transformer(dense, CpuBackend(threads=1)))
    for share in (0.1, 0.5, 0.9):
        assert_close(logits(hybrid(checkpoint, by_share(checkpoint, share))), expected)


class SplitAlone:
    """A split FFN outside a model, as a layer of the host's backend."""

    def __init__(self, split: Split, device: StandInDevice) -> None:
        self._split, self._device = split, device
        self._sequence = device.backend.sequence(StateShape(1, 1, 32, (0.0,)), 4096, "f16")

    def forward(self, x: F32, out: F32, view: BatchView) -> None:
        batch = Batch.of(self._sequence, np.zeros(len(x), np.int32))
        add_split(self._split, self._device, x, out, Views(self._device.backend.view(batch), view))


class CountingDevice(StandInDevice):
    """Counts the steps that it begins: small batches go by one, others layer by layer."""

    begun = 0

    def begin(self, control: Any) -> None:
        self.begun += 1
        super().begin(control)


@settings(max_examples=30, deadline=None)
@given(
    choice=st.sampled_from(CHOOSING),
    activation=st.sampled_from([Activation.RELU, Activation.SILU]),
    hot=st.tuples(st.integers(0, 199), st.integers(0, 200)),
    attention=st.tuples(st.booleans(), st.booleans()),
    parallel=st.booleans(),
    prompt=st.integers(0, 12),
)
def test_prompts_and_first_tokens_are_dense(
    choice: tuple[Way, Score],
    activation: Activation,
    hot: tuple[int, int],
    attention: tuple[bool, bool],
    parallel: bool,
    prompt: int,
) -> None:
    """A prompt and single tokens, with a plan that leaves out all cold neurons wherever it may choose."""
    options = {"activation": activation, "parallel": parallel}
    nothing = stored_by_neuron(FFNPlan(*choice, cutoff=1e9), **options)
    dense = stored_by_neuron(FFNPlan(Way.DENSE), **options)
    device = CountingDevice()
    placement = Placement(tuple(map(LayerPlacement, attention, hot)), False)
    models = (
        build_hybrid(nothing, placement, device, CpuBackend(threads=1)),
        build_transformer(dense, CpuBackend(threads=1)),
    )
    calls = [(prompt, True)] * (prompt > 0) + [(1, False)] * max(0, SINK_TOKENS - prompt)
    calls += [(3, True), (9, True), (1, True), (1, False)]
    caches = [model.sequence(32, "f32") for model in models]
    for at, (count, is_prompt) in enumerate(calls):
        tokens = TOKENS[caches[0].length :][:count]
        device.begun = 0
        found, expected = (
            model.forward(Batch.of(kv, tokens, lossless=is_prompt, logits=None))
            for model, kv in zip(models, caches, strict=True)
        )
        if at < len(calls) - 1:
            assert_close(found, expected)
        elif hot[0] < 100:
            assert np.abs(found - expected).max() > 1e-3 * np.abs(expected).max()
        assert device.begun == (count <= 8)
    if hot[0] < 100:
        assert caches[0].choosers[0].work == Work(1, 0, 0)


@pytest.mark.parametrize("raw_input", [False, True])
@pytest.mark.parametrize(("way", "score"), CHOOSING)
def test_cold_neurons_are_chosen_by_the_plan(way: Way, score: Score, raw_input: bool) -> None:
    """The oracle is the reference: hot neurons all computed, cold ones by their plan."""
    if raw_input and way is not Way.PREDICTOR:
        return
    plan = FFNPlan(way, score, cutoff=0.1, raw_input=raw_input)
    checkpoint = stored_by_neuron(plan, activation=Activation.SILU)
    spec, hot = neuron_ffn_spec(checkpoint, 0, plan), 64
    x = np.random.default_rng(1).standard_normal((15, 32)).astype(np.float32)
    host = CpuBackend(threads=1)
    device = StandInDevice()
    layer = LoneFFN(host, spec, SplitAlone(build_split(spec, hot, device, host), device))
    parts = [LoneFFN(ReferenceBackend(), part) for part in (hot_slice(spec, hot), cold_slice(spec, hot))]
    for i in range(15):
        token = x[i : i + 1]
        found, expected = np.zeros_like(token), np.zeros_like(token)
        layer.forward(token, found)
        for part in parts:
            part.forward(token, expected)
        assert_close(found, expected, 5e-3)
    counts = layer.counts()
    assert counts.rows == 15
    assert 0 < counts.read < 15 * (200 - hot)


def test_scores_of_the_device_choose_the_hosts_neurons() -> None:
    """By hand: of the cold neurons exactly those whose score the device sent reaches the cut-off."""
    plan = FFNPlan(Way.PREDICTOR, Score.GATE_Q4, cutoff=0.5)
    spec = neuron_ffn_spec(stored_by_neuron(plan, activation=Activation.SILU), 0, plan)
    host = CpuBackend(threads=1)
    scores = np.zeros((1, 136), np.float32)
    chosen = [3, 70, 135]
    scores[0, chosen] = 1
    device = StandInDevice()
    split = replace(build_split(spec, 64, device, host), predict=lambda x: scores)
    layer = LoneFFN(host, spec, SplitAlone(split, device))
    x, found = (
        np.random.default_rng(0).standard_normal((1, 32)).astype(np.float32),
        np.zeros((1, 32), np.float32),
    )
    layer.forward(x, found)
    assert layer.counts().read == 3

    rows = np.r_[0:64, [64 + j for j in chosen]]
    expected = np.zeros_like(found)
    LoneFFN(ReferenceBackend(), picked(spec, rows)).forward(x, expected)
    assert_close(found, expected)


def picked(spec: NeuronFFNSpec, rows: NDArray[np.int64]) -> NeuronFFNSpec:
    def take(linear: Linear) -> Linear:
        weight = linear.weight
        data = weight.data.reshape(weight.shape[0], -1)[rows].reshape(-1)
        return Linear(Tensor(weight.name, weight.type, (len(rows), weight.shape[1]), data))

    assert spec.gate
    plan = FFNPlan(Way.DENSE)
    return replace(spec, gate=take(spec.gate), up=take(spec.up), down_t=take(spec.down_t), plan=plan)


def test_audits_of_the_cold_neurons_move_the_cutoff() -> None:
    plan = FFNPlan(Way.PREDICTOR, Score.GATE_Q4, cutoff=3.0, kept=0.9)
    checkpoint = stored_by_neuron(plan)
    host, spec = CpuBackend(threads=1), neuron_ffn_spec(checkpoint, 0, plan)
    device = StandInDevice()
    layer = LoneFFN(host, spec, SplitAlone(build_split(spec, 64, device, host), device))
    x = np.random.default_rng(0).standard_normal((300, 32)).astype(np.float32)
    out = np.zeros_like(x)
    for i in range(300):
        layer.forward(x[i : i + 1], out[i : i + 1])
    assert layer.cutoff < 3.0
    work = layer.counts()
    assert work.audits > 10
    assert 0.6 < work.kept / work.audits < 0.95  # it started at 3, where little is kept
