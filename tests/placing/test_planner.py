"""Plans keep their budget, are close to the best there is, and never get slower with more memory."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers.machines import machine
from helpers.milp import checked
from helpers.random_checkpoint import by_neuron, quantised, random_checkpoint
from helpers.shape_only import shape_only
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.backends.cpu import CpuBackend
from hotset.core.config import FFNPlan, LayerPlacement, Placement, Score, Way
from hotset.core.errors import HotsetError
from hotset.formats.tensor import TensorType
from hotset.hybrid.build import build_hybrid
from hotset.placing.machine import MachineProfile
from hotset.placing.planner import Plan, Planner
from hotset.placing.prefill import ColdPrefill
from hotset.testing.stand_in import StandInDevice

PLANS = (
    None,
    FFNPlan(Way.EXACT),
    FFNPlan(Way.DENSE),
    FFNPlan(Way.THRESHOLD, Score.GATE, 0.1),
    FFNPlan(Way.THRESHOLD, Score.DOWN, 0.1),
    FFNPlan(Way.PREDICTOR, Score.LOW_RANK, 0.0, 0.95),
    FFNPlan(Way.PREDICTOR, Score.GATE_Q2, 0.0, 0.95),
)


@st.composite
def machines(draw: st.DrawFn) -> MachineProfile:
    """From a weak GPU beside a strong processor to the reverse."""
    cpu, gpu = draw(st.floats(10, 400)), draw(st.floats(100, 3000))
    gather, contended = draw(st.floats(0.2, 1.0)), draw(st.floats(0.5, 1.0))
    return machine(
        cpu_stream=cpu,
        cpu_stream_contended=cpu * contended,
        cpu_gather=cpu * gather,
        cpu_gather_contended=cpu * gather * contended,
        cpu_gather_f16=cpu * gather,
        cpu_gather_f16_contended=cpu * gather * contended,
        gpu_stream=gpu,
        gpu_stream_contended=gpu,
        gpu_handshake_us=draw(st.floats(0, 40)),
        gpu_part_us=draw(st.floats(0, 20)),
    )


@st.composite
def planners(draw: st.DrawFn) -> Planner:
    """Models of 1 to 8 layers, whose neurons fire by clipped power laws."""
    n_layers, slabs = draw(st.integers(1, 8)), draw(st.integers(1, 24))
    ffn = slabs * 64 + draw(st.sampled_from([0, 32]))
    ffn += -ffn % 32
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    ranks = (np.arange(ffn) + 1) / ffn
    exponents = rng.uniform(0, 2, (n_layers, 1))
    frequency = np.minimum(1, rng.uniform(0.01, 0.3) * ranks**-exponents)
    plan = draw(st.sampled_from(PLANS))
    model = shape_only(
        n_layers=n_layers,
        hidden=draw(st.sampled_from([512, 1024, 2048])),
        ffn=ffn,
        kind=draw(st.sampled_from([TensorType.F16, TensorType.Q8_0, TensorType.Q4_0])),
        frequency=frequency,
        plan=plan,
        predictor_rank=64 if plan and plan.score is Score.LOW_RANK else 0,
        parallel=draw(st.booleans()),
    )
    context = draw(st.sampled_from([128, 2048]))
    return Planner(model, draw(machines()), context=context, prompt=64)


def bytes_by_hand(planner: Planner, plan: Plan) -> int:
    """On the GPU, from the model's tensors."""
    parts = planner.parts
    total = 0
    for layer, placed in zip(parts.layers, plan.placement.layers, strict=True):
        if placed.attention:
            total += layer.attention_bytes + layer.kv_position_bytes * planner.context
        total += placed.hot * round(layer.ffn.unit_bytes * 64) // 64
        if 0 < placed.hot < layer.ffn.size:
            own = layer.ffn.predictor_unit_bytes * placed.hot  # the cold neurons' alone is there
            total += math.ceil(layer.ffn.predictor_bytes - own)
        if placed.gates:
            assert layer.ffn.exact and 0 < placed.hot < layer.ffn.size
            total += math.ceil((layer.ffn.size - placed.hot) * layer.ffn.scanned)
    return total + parts.head_bytes * plan.placement.head


@settings(max_examples=100, deadline=None)
@given(planners(), st.floats(0, 1.1))
def test_a_plan_keeps_its_budget(planner: Planner, share: float) -> None:
    plan = planner.plan(int(share * planner.everything))
    assert plan.device_bytes <= plan.budget
    by_hand = bytes_by_hand(planner, plan)
    assert plan.device_bytes == by_hand + plan.working_bytes
    assert bool(plan.working_bytes) == bool(by_hand)
    assert plan.placement.fits(planner.parts.config)
    for layer, placed in zip(planner.parts.layers, plan.placement.layers, strict=True):
        assert placed.hot % layer.ffn.slab == 0 or placed.hot == layer.ffn.size
    times = plan.times
    assert times.attention + times.ffn + times.handshakes + times.head == pytest.approx(plan.ms)


@settings(max_examples=50, deadline=None)
@given(planners(), st.integers(0, 1000).map(lambda n: n / 1000))
def test_a_plan_is_within_one_percent_of_the_milp(planner: Planner, share: float) -> None:
    """Shares are in steps, as HiGHS takes a budget that is short by less than a millionth for kept."""
    plan = planner.plan(planner.everything - int(share * (planner.everything - planner.working_bytes)))
    best = checked(planner, plan, seconds=20)
    assert best is not None
    assert best.device_bytes <= plan.budget
    assert plan.ms <= 1.01 * best.ms
    assert best.ms >= plan.bound_ms * (1 - 1e-6)
    assert plan.ms >= best.bound_ms * (1 - 1e-6)


@settings(max_examples=50, deadline=None)
@given(planners(), st.lists(st.floats(0, 1.1), min_size=2, max_size=6))
def test_more_memory_is_never_predicted_slower(planner: Planner, shares: list[float]) -> None:
    plans = [planner.plan(int(share * planner.everything)) for share in sorted(shares)]
    for less, more in pairwise(plans):
        assert more.ms <= less.ms


def test_working_memory_is_small() -> None:
    """Beside a Llama-2-7B's 3.8 GB: at most 60 MB, so that a budget goes to weights."""
    llama = {"n_heads": 32, "n_kv_heads": 32, "head_dim": 128, "vocab_size": 32000}
    checkpoint = shape_only(n_layers=32, hidden=4096, ffn=11008, kind=TensorType.Q4_0, **llama)
    planner = Planner(checkpoint, machine(), context=1024, prompt=512)
    assert 40e6 < planner.working_bytes < 60e6


def model() -> Planner:
    ffn = 1024
    frequency = np.tile(np.linspace(1, 0, ffn), (4, 1))
    checkpoint = shape_only(n_layers=4, hidden=1024, ffn=ffn, frequency=frequency, plan=FFNPlan(Way.EXACT))
    return Planner(checkpoint, machine(), context=512, prompt=128)


def test_nothing_and_everything() -> None:
    planner = model()
    nothing = planner.plan(0)
    assert nothing.device_bytes == 0 and not nothing.placement.head
    assert {(layer.attention, layer.hot) for layer in nothing.placement.layers} == {(False, 0)}
    assert nothing.cold_prefill is ColdPrefill.CPU and nothing.times.handshakes == 0
    everything = planner.plan(planner.everything)
    assert everything.placement.head
    assert {(layer.attention, layer.hot) for layer in everything.placement.layers} == {(True, 1024)}
    assert everything.device_bytes == planner.everything
    assert everything.host_bytes == 0
    assert planner.plan(10 * planner.everything).placement == everything.placement
    assert planner.plan(planner.everything - 1).placement != everything.placement
    assert planner.plan(planner.working_bytes).device_bytes == 0


@pytest.mark.parametrize(
    ("kind", "laid_out", "here"),
    [
        (TensorType.MXFP4, 36 / 17, 1.0),
        (TensorType.Q5_K, 276 / 176, 1.0),
        (TensorType.IQ2_XXS, 512 / 66, 106 / 66),
    ],
)
def test_bytes_are_those_of_either_sides_layouts(kind: TensorType, laid_out: float, here: float) -> None:
    checkpoint = shape_only(n_layers=3, hidden=1024, ffn=2048, kind=kind, plan=FFNPlan(Way.DENSE))
    planner = Planner(checkpoint, machine(), context=256, prompt=64)
    weights = round(laid_out * sum(tensor.nbytes for tensor in checkpoint.tensors.values()))
    kept = 3 * 256 * 2 * 2 * 256 * 2
    plan = planner.plan(planner.everything)
    assert plan.device_bytes - plan.working_bytes == weights + kept
    assert plan.host_bytes == 0
    half = planner.plan(planner.working_bytes + weights // 2)
    assert any(layer.hot > 0 for layer in half.placement.layers) and half.device_bytes <= half.budget
    rest = sum(use.attention_bytes + use.neuron_bytes for use in half.layers) / laid_out * here
    kept_here = sum(256 * 2 * 2 * 256 * 2 for layer in half.placement.layers if not layer.attention)
    rest += half.head_bytes / laid_out * here
    in_file = sum(tensor.nbytes for tensor in checkpoint.tensors.values())  # the embedding is the head
    assert rest + half.host_bytes == pytest.approx(here * in_file + kept_here)


def test_keys_are_padded_as_on_the_gpu() -> None:
    one_head = {"n_heads": 4, "n_kv_heads": 1, "head_dim": 64}
    checkpoint = shape_only(n_layers=2, hidden=256, ffn=256, **one_head)
    taken = {2.0: 2 * 128, 34 / 32: 2 * 80, 4.0: 2 * 256}
    for number, nbytes in taken.items():
        planner = Planner(checkpoint, machine(), context=64, prompt=8, kv_number_bytes=number)
        assert sum(use.kv_bytes for use in planner.plan(planner.everything).layers) == 2 * 64 * nbytes


def test_times_of_the_processor_alone() -> None:
    """Against the sum written out: gate streamed, up and down of those that fire gathered."""
    planner = model()
    rates = machine().cpu
    matrix = 1024 * 1024 * 2
    stream, gather = rates.stream * rates.kernel_share * 1e6, rates.gather_f16 * 1e6
    attention = (2 * matrix + 2 * matrix // 2 + 2 * 2 * 256 * 2 * 128) / stream + 0.002
    fires = np.linspace(1, 0, 1024).astype(np.float32).sum()
    ffn = matrix / stream + fires * 2 * 1024 * 2 / gather + 0.002
    head = 256 * 1024 * 2 / stream + 0.002
    assert planner.plan(0).ms == pytest.approx(4 * (attention + ffn) + head)


def test_hot_neurons_before_ones_that_hardly_fire() -> None:
    """With all attention on the GPU and half of the neurons' bytes left, every layer has some hot ones."""
    planner = model()
    plan = planner.plan(planner.working_bytes + 40 * 2**20)
    hot = [layer.hot for layer in plan.placement.layers]
    assert plan.placement.head
    assert all(layer.attention for layer in plan.placement.layers)
    assert sum(hot) < 4 * 1024


def test_gates_are_on_the_device_where_that_pays() -> None:
    """Their bytes are within the budget, and a slow device would take longer to read them than the host."""
    of_exact = shape_only(
        n_layers=8,
        hidden=1024,
        ffn=4096,
        frequency=np.full((8, 4096), 0.05),
        plan=FFNPlan(Way.EXACT),
        kind=TensorType.Q4_0,
    )
    planner = Planner(of_exact, machine(), context=256, prompt=64)
    plan = planner.plan(planner.working_bytes + (30 << 20))
    layers = plan.placement.layers
    assert any(layer.gates for layer in layers)
    assert plan.device_bytes <= plan.budget
    without = Placement(tuple(replace(layer, gates=False) for layer in layers), plan.placement.head)
    assert plan.ms < 0.8 * planner.predicted(without).ms
    assert plan.ms == pytest.approx(planner.predicted(plan.placement).ms)
    for use, layer in zip(plan.layers, layers, strict=True):
        assert use.predictor_bytes == (4096 - layer.hot) * 1024 // 32 * 18 * layer.gates
    slow = machine(gpu_stream=70.0, gpu_stream_contended=70.0, gpu_handshake_us=100.0)
    planner = Planner(of_exact, slow, context=256, prompt=64)
    plan = planner.plan(planner.working_bytes + (30 << 20))
    assert not any(layer.gates for layer in plan.placement.layers)


def test_gates_take_what_is_counted() -> None:
    usual = random_checkpoint(hidden_size=32, ffn_size=256)
    checkpoint = quantised(by_neuron(usual, FFNPlan(Way.EXACT), [np.arange(256)] * 2), TensorType.F16)
    used = []
    for gates in (False, True):
        device = StandInDevice()
        placement = Placement((LayerPlacement(True, 64, gates=gates), LayerPlacement(True, 256)), True)
        built = build_hybrid(checkpoint, placement, device, CpuBackend(threads=1))
        used.append(device.memory.used)
        built.close()
    assert used[1] - used[0] == 192 * 32 * 2


def test_ordinary_layers_are_cut_between_blocks() -> None:
    kind = TensorType.Q6_K
    checkpoint = shape_only(n_layers=3, hidden=1024, ffn=2048, kind=kind)
    planner = Planner(checkpoint, machine(gpu_handshake_us=0.0), context=64, prompt=64)
    room = planner.everything - planner.working_bytes
    for share in np.linspace(0, 1, 9):
        plan = planner.plan(planner.working_bytes + int(share * room))
        assert all(layer.hot % 256 == 0 for layer in plan.placement.layers)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"context": 64, "prompt": 65}, "--prompt"),
        ({"context": 64, "prompt": 0}, "--prompt"),
    ],
)
def test_bad_requests(options: dict[str, int], named: str) -> None:
    checkpoint = shape_only(n_layers=1, hidden=64, ffn=64)
    with pytest.raises(HotsetError, match=named):
        Planner(checkpoint, machine(), **options)


def test_what_cannot_be_planned() -> None:
    by_neuron = shape_only(n_layers=1, hidden=64, ffn=64, plan=FFNPlan(Way.EXACT))
    with pytest.raises(HotsetError, match="how often"):
        Planner(by_neuron, machine(), context=64, prompt=1)
    Planner(by_neuron, machine(), context=64, prompt=1, frequency=np.full((1, 64), 0.5))
    with pytest.raises(HotsetError, match="no GPU"):
        Planner(shape_only(n_layers=1, hidden=64, ffn=64), machine(gpu=False), context=64, prompt=1)
    with pytest.raises(HotsetError, match="--vram"):
        model().plan(-1)
