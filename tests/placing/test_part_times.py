"""Times of parts: between the numbers that were timed, in files, and in plans."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.machines import machine
from helpers.shape_only import shape_only

from hotset.core.config import FFNPlan, LayerPlacement, Placement, Score, Way
from hotset.core.errors import HotsetError
from hotset.placing.costs import SIDES, handshake_name
from hotset.placing.machine import load_machine
from hotset.placing.part_times import Row, TimedParts, ffn_us
from hotset.placing.planner import Planner
from hotset.placing.sizes import model_parts

BOTH = "2 threads, avx2; a GPU"


def test_times_lie_on_lines_between_and_beyond_what_was_timed() -> None:
    row = Row(0, (10.0, 20.0, 40.0), (5.0, 15.0, 25.0))
    assert row.at(np.array([10, 15, 30, 60, 0])).tolist() == [5, 10, 20, 35, 0]
    assert Row(0, (7.0,), (3.0,)).at(100.0) == 3


def test_an_ffns_time_depends_on_what_is_hot_and_what_the_host_computes() -> None:
    time = (
        Row(0, (0.0, 100.0), (10.0, 110.0)),
        Row(64, (0.0, 100.0), (30.0, 80.0)),
        Row(192, (0.0, 50.0), (90.0, 95.0)),
        Row(256, (0.0,), (70.0,)),
    )
    hot, n = np.array([0, 64, 128, 192, 256]), np.array([50.0, 50.0, 50.0, 25.0, 0.0])
    assert ffn_us(time, 256, hot, n).tolist() == [60, 55, 75, 92.5, 70]
    mixture = (Row(0, (2.0,), (50.0,)), Row(1, (0.0, 2.0), (20.0, 60.0)), Row(8, (0.0,), (15.0,)))
    found = ffn_us(mixture, 8, np.array([0, 3, 6, 8]), np.array([2, 1.0, 0.5, 0]))
    assert found.tolist() == [50, 40, 30, 15]
    # What the device had no room for lies on the line of what it had.
    assert ffn_us(time[:3], 256, np.array([256]), np.array([0.0])).tolist() == [120]


def test_audits_are_part_of_a_plan() -> None:
    """Of a quarter of the ReGLU neurons that do not fire, an audit reads one of three rows."""
    ms = []
    for kept in (0.0, 0.95):
        plan = FFNPlan(Way.PREDICTOR, Score.LOW_RANK, 0.0, kept)
        frequency = np.full((1, 256), 0.25)
        model = shape_only(n_layers=1, hidden=64, ffn=256, frequency=frequency, plan=plan, predictor_rank=16)
        name = model_parts(model).layers[0].ffn.name
        time = (Row(0, (0.0, 256.0), (10.0, 1034.0)),)
        profile = replace(machine(), times={BOTH: {name: time}})
        planner = Planner(model, profile, context=128, prompt=50)
        ms.append(planner.predicted(Placement((LayerPlacement(False, 0),), False)).times.ffn)
    fires, audited = 64, 64 + 192 / 4 / 3
    assert ms[0] == pytest.approx((10 + 4 * fires) / 1e3)
    assert ms[1] - ms[0] == pytest.approx(4 * (audited - fires) / 64 / 1e3)


def some_times() -> dict[str, TimedParts]:
    return {BOTH: {"a part": (Row(0, (1.0, 2.0), (3.5, 4.0)), Row(64, (0.0,), (1.0,)))}}


def test_times_survive_their_file(tmp_path: Path) -> None:
    profile = replace(machine(), times=some_times())
    profile.save(tmp_path / "machine.json")
    assert load_machine(tmp_path / "machine.json") == profile
    assert profile.times_of(BOTH) == profile.times_of(None) == some_times()[BOTH]
    assert profile.times_of("1 threads, avx2; a GPU") == machine().times_of(None) == {}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ([], "times: expected those of parts"),
        ({BOTH: 5}, "expected times by part"),
        ({BOTH: {"a part": []}}, "a part: expected rows"),
        ({BOTH: {"a part": [{"hot": 0}]}}, "expected hot, n, us"),
        ({BOTH: {"a part": [{"hot": -1, "n": [0], "us": [1]}]}}, "hot: expected an integer"),
        ({BOTH: {"a part": [{"hot": 0, "n": [0, 1], "us": [1]}]}}, "found 2 and 1"),
        ({BOTH: {"a part": [{"hot": 0, "n": [1, 1], "us": [1, 2]}]}}, "ascending"),
        ({BOTH: {"a part": [{"hot": 0, "n": [1], "us": [-2]}]}}, "us: expected numbers from 0"),
        ({BOTH: {"a part": [{"hot": 0, "n": [1], "us": [float("nan")]}]}}, "us: expected numbers from 0"),
        ({BOTH: {"a part": [{"hot": 0, "n": [1], "us": [1]}] * 2}}, "ever more hot units"),
    ],
)
def test_broken_times_are_named_in_one_line(tmp_path: Path, change: Any, named: str) -> None:
    document = machine().as_json() | {"times": change}
    (tmp_path / "machine.json").write_text(json.dumps(document))
    with pytest.raises(HotsetError) as error:
        load_machine(tmp_path / "machine.json")
    assert named in str(error.value) and "machine.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_plan_adds_the_times_of_parts() -> None:
    """Of two layers, 256 neurons each, a tenth of which fires."""
    frequency = np.full((2, 256), 0.1)
    model = shape_only(n_layers=2, hidden=64, ffn=256, frequency=frequency, plan=FFNPlan(Way.EXACT))
    parts = model_parts(model)
    layer = parts.layers[0]
    times = {
        handshake_name(64): (Row(0, (0.0,), (8.0,)),),
        f"{parts.head_name} {SIDES[0]}": (Row(0, (0.0,), (500.0,)),),
        f"{parts.head_name} {SIDES[1]}": (Row(0, (0.0,), (100.0,)),),
        f"{layer.name} {SIDES[0]}": (Row(0, (0.0, 100.0), (200.0, 300.0)),),
        f"{layer.name} {SIDES[1]}": (Row(0, (0.0, 100.0), (20.0, 30.0)),),
        layer.ffn.name: (
            Row(0, (0.0, 256.0), (50.0, 306.0)),
            Row(64, (0.0, 192.0), (40.0, 232.0)),
            Row(256, (0.0,), (33.0,)),
        ),
    }

    def us(timed: TimedParts, first: tuple[bool, int], second: tuple[bool, int], head: bool) -> float:
        profile = replace(machine(), times={BOTH: timed})
        planner = Planner(model, profile, context=128, prompt=50, sides=BOTH)
        placement = Placement((LayerPlacement(*first), LayerPlacement(*second)), head)
        return planner.predicted(placement).ms * 1e3

    host, split, whole = 250 + 50 + 25.6, 25 + 40 + 19.2, 25 + 33
    assert us(times, (False, 0), (False, 0), False) == pytest.approx(2 * host + 500)
    assert us(times, (True, 64), (True, 256), True) == pytest.approx(4 + split + whole + 100)
    # A hand-shake of a split FFN is in its time; that of its attention across from it is not.
    assert us(times, (False, 64), (True, 256), True) == pytest.approx(250 + 40 + 19.2 + 8 + 4 + whole + 100)
    longer = times | {parts.step_name: (Row(0, (1000.0,), (1200.0,)),)}
    assert us(longer, (True, 64), (True, 256), True) == pytest.approx(1.2 * (4 + split + whole + 100))
    # A part that was never timed is predicted from the rates.
    rated = us({}, (True, 64), (True, 256), True)
    del times[layer.ffn.name]
    assert us(times, (True, 64), (True, 256), True) != pytest.approx(4 + split + whole + 100)
    assert us({"other": (Row(0, (0.0,), (1.0,)),)}, (True, 64), (True, 256), True) == rated
