"""The GPU suite runs to its end without a GPU, on tiny sizes; and goes on where a part fails."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if not (find_spec("torch") and find_spec("triton")):
    pytest.skip("the suite needs torch and triton", allow_module_level=True)

SUITE = Path(__file__).parents[2] / "benchmarks" / "gpu_suite.py"


@pytest.mark.slow
def test_stand_in(tmp_path: Path) -> None:
    out = tmp_path / "suite"
    command = [sys.executable, str(SUITE), "--stand-in", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(out.with_suffix(".json").read_text())["results"]
    assert results["stand_in"] and not results["failures"] and results["tests"]["passed"]
    assert len(results["kernels"]["kernels"]) == 28
    assert {row["engine"] for row in results["models"]} == {"hybrid", "by layers"}
    assert all("decode_tokens_per_second" in row for row in results["models"])
    assert (
        out.with_suffix(".md").read_text().startswith("# GPU suite: stand-in: no GPU, figures mean nothing")
    )


def test_a_part_that_fails(tmp_path: Path) -> None:
    from gpu_suite import Suite, markdown

    suite = Suite(stand_in=True, directory=tmp_path)
    suite.part("device", suite.device_name)
    suite.part("kernels", lambda: 1 / 0)
    suite.part("handshake", lambda: {"us_per_layer": {4096: 12.0}})
    assert suite.failures == ["kernels"]
    text = markdown(suite.results)
    assert "kernels failed: ZeroDivisionError: division by zero" in text
    assert "Hand-shake of 4096 numbers, both ways: 12.0 us." in text
    suite.start -= 10_000
    suite.part("models", lambda: [])
    assert suite.results["models"]["failed"] == "TimeoutError: no time left"


def test_whole_layers_within_a_budget() -> None:
    from gpu_suite_models import by_layers, weight_bytes
    from helpers.random_checkpoint import random_checkpoint

    from hotset.placing.planner import working_bytes
    from hotset.placing.sizes import model_parts

    checkpoint = random_checkpoint(windows=(None,) * 4)
    whole = weight_bytes(checkpoint)
    counts = []
    working = working_bytes(model_parts(checkpoint))  # the same for both
    for budget in (0, whole // 2, 2 * whole + 10_000):
        placement = by_layers(checkpoint, working + budget, context=8)
        assert placement.fits(checkpoint.config)
        counts.append(sum(layer.attention for layer in placement.layers))
        assert all(layer.hot == (28 if layer.attention else 0) for layer in placement.layers)
    assert counts[0] == 0 < counts[1] < counts[2] == 4
