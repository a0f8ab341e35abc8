"""`hotset plan` and `hotset doctor` as a user meets them."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.machines import machine

from hotset.core.config import FFNPlan, Way
from hotset.placing import doctor
from hotset.serve import load

MIB = 1 << 20


@pytest.fixture
def gpu_machine(tmp_path: Path) -> Path:
    path = tmp_path / "gpu.json"
    machine().save(path)
    return path


def test_a_plan_as_json(hotset: Any, demo: Path, gpu_machine: Path) -> None:
    code, out, err = hotset("plan", demo, "--vram", "150MiB", "--machine", gpu_machine, "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    device = facts["device_bytes"]
    assert device["total"] <= facts["budget_bytes"] == 150 * MIB
    assert device["total"] == sum(size for part, size in device.items() if part != "total")
    assert facts["budget_for_everything_bytes"] > facts["budget_bytes"]
    predicted = facts["predicted"]
    assert predicted["tokens_per_second"] == pytest.approx(1e3 / predicted["ms_per_token"])
    assert sum(predicted["ms_by_part"].values()) == pytest.approx(predicted["ms_per_token"])
    assert facts["lower_bound_ms_per_token"] <= predicted["ms_per_token"]
    assert len(facts["layers"]) == 30


def test_a_plan_for_people(hotset: Any, demo: Path, gpu_machine: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    code, out, _ = hotset(
        "plan", demo, "--vram", "1GiB", "--context", 256, "--machine", gpu_machine, "--plot", picture
    )
    assert code == 0
    for words in (
        "predicted decode",
        "first token, 256 tokens",
        "KV cache of 256 tokens",
        "budget for everything",
    ):
        assert words in out
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--vram", "8 gigs"], "8GiB"),
        ([], "--vram"),
        (["--vram", "1GiB", "--machine", "nowhere.json"], "nowhere.json"),
        (["--vram", "1GiB", "--prompt", "300", "--context", "256"], "--prompt"),
        (["--vram", "1GiB", "--context", "100000"], "--context"),
    ],
)
def test_what_does_not_fit_is_refused(
    hotset: Any, demo: Path, gpu_machine: Path, arguments: list[str], named: str
) -> None:
    given = arguments if "--machine" in arguments else [*arguments, "--machine", gpu_machine]
    code, out, err = hotset("plan", demo, *given)
    assert (code, out) == (2, "")
    assert named in err and err.count("\n") == 1


def test_a_plan_without_a_gpu_is_for_a_known_machine(
    hotset: Any, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "no_gpu", lambda: "this machine has no GPU")
    code, out, err = hotset("plan", demo, "--vram", "8GiB", "--json")
    assert (code, err) == (0, "note: this machine has no GPU: this is a plan for --machine rtx-4060\n")
    assert json.loads(out)["machine"].startswith("RTX 4060")
    code, named, err = hotset("plan", demo, "--vram", "8GiB", "--json", "--machine", "RTX-4060")
    assert (code, err) == (0, "")
    assert json.loads(named)["layers"] == json.loads(out)["layers"]
    code, _, err = hotset("plan", demo, "--vram", "8GiB", "--machine", "rtx-1")
    assert code == 2 and "no machine rtx-1" in err and "rtx-4090" in err
    machine(gpu=False).save(tmp_path / "cpu.json")
    code, _, err = hotset("plan", demo, "--vram", "1GiB", "--machine", tmp_path / "cpu.json")
    assert code == 2 and "no GPU" in err


def test_a_file_without_a_profile_is_profiled(
    hotset: Any, demo: Path, gpu_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the demo model were stored by neuron and chose its neurons."""
    from hotset.activations import quick_profile

    checkpoint = load.open_model(demo)
    config = checkpoint.config
    layers = tuple(replace(layer, ffn=FFNPlan(Way.EXACT)) for layer in config.layers)
    tensors = {name.replace("ffn_down.", "ffn_down_t."): t for name, t in checkpoint.tensors.items()}
    by_neuron = replace(checkpoint, config=replace(config, layers=layers), tensors=tensors)
    monkeypatch.setattr(load, "open_model", lambda *_: by_neuron)
    loaded = SimpleNamespace(transformer=object(), tokenizer=object())
    monkeypatch.setattr(load, "load_model", lambda path, **options: loaded)

    def quick(transformer: Any, tokenizer: Any, opened: Any, progress: Any) -> Any:
        assert (transformer, tokenizer) == (loaded.transformer, loaded.tokenizer) and opened is by_neuron
        return np.tile(np.linspace(0.5, 0, config.ffn_size), (config.n_layers, 1))

    monkeypatch.setattr(quick_profile, "quick_frequency", quick)
    code, out, err = hotset("plan", demo, "--vram", "100MiB", "--machine", gpu_machine, "--json")
    assert code == 0
    assert "not sorted by how often they fire" in err
    assert "hotset profile and hotset convert" in err
    facts = json.loads(out)
    assert "built-in text" in facts["profile"]
    assert facts["device_bytes"]["neurons"] > 0


def test_quick_frequencies_are_shares(demo: Path) -> None:
    from hotset.activations.quick_profile import quick_frequency

    loaded = load.load_model(demo)
    seen: list[int] = []
    frequency = quick_frequency(
        loaded.transformer, loaded.tokenizer, load.open_model(demo), lambda done, total: seen.append(total)
    )
    assert frequency.shape == (30, 1536)
    assert 0.1 < frequency.mean() < 0.9 and frequency.max() <= 1
    assert seen[0] >= 256


def test_doctor(hotset: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(doctor, "no_gpu", lambda: "the GPU's part needs torch: pip install 'hotset[gpu]'")
    asked: list[Any] = []

    def measured(progress: Any, threads: int | None) -> Any:
        asked.append(threads)
        return machine(gpu=False)

    monkeypatch.setattr(doctor, "measure_machine", measured)
    code, out, err = hotset("doctor")
    assert (code, err) == (0, "")
    assert "60 GB/s" in out and "pip install 'hotset[gpu]'" in out
    assert json.loads(hotset("doctor", "--json")[1])["gpu"] is None
    assert hotset("doctor", "--again")[0] == 0
    assert hotset("doctor", "-t", "3")[0] == hotset("doctor", "--threads", "3")[0] == 0
    assert asked == [None, None, 3]


def test_a_models_parts_are_timed_once(
    hotset: Any, demo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By doctor, on a GPU of which the stand-in has the place; then plans and runs use it."""
    from hotset.placing import timing
    from hotset.testing.stand_in import StandInDevice

    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(doctor, "no_gpu", lambda: None)
    monkeypatch.setattr(doctor, "measure_machine", lambda *_: machine())
    monkeypatch.setattr(load, "gpu_device", StandInDevice)
    for name, few in (("_STEPS", 1), ("_COPIES", (2, 2)), ("_HOT", (0.5,)), ("_FILLED", (16, 64))):
        monkeypatch.setattr(timing, name, few)
    code, out, err = hotset("doctor", demo)
    assert (code, err) == (0, "")
    for words in ("hand-shake: 576 numbers", "FFN: ffn_down Q4_1", "on the device", "whole step", "stand-in"):
        assert words in out
    ((sides, times),) = json.loads(hotset("doctor", "--json")[1])["times"].items()
    monkeypatch.setattr(timing._Timer, "ffn", lambda *part: pytest.fail("timed twice"))
    facts = json.loads(hotset("plan", demo, "--vram", "1GiB", "--json")[1])
    whole = facts["predicted"]["ms_per_token"]
    other = replace(machine(), times={sides: {}})
    other.save(tmp_path / "rates.json")
    rated = json.loads(
        hotset("plan", demo, "--vram", "1GiB", "--machine", tmp_path / "rates.json", "--json")[1]
    )
    assert whole != rated["predicted"]["ms_per_token"]
    step = next(rows[0] for name, rows in times.items() if name.startswith("whole step"))
    ratio = step["us"][0] / step["n"][0]
    head = next(rows[0]["us"][0] for name, rows in times.items() if name.endswith("49152x576 on the device"))
    if facts["head_on_device"]:
        assert facts["predicted"]["ms_by_part"]["head"] == pytest.approx(ratio * head / 1e3)
    model = load.load_model(demo, vram=1 << 30, context=64, device=StandInDevice())
    assert model.plan is not None


def test_without_a_gpu_no_part_is_timed(
    hotset: Any, demo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(doctor, "no_gpu", lambda: "this machine has no GPU")
    monkeypatch.setattr(doctor, "measure_machine", lambda *_: machine(gpu=False))
    code, out, err = hotset("doctor", demo)
    assert (code, err) == (0, "note: this machine has no GPU: no parts were timed\n")
    assert "processor" in out
    assert hotset("doctor", tmp_path / "none.gguf")[0] == 2
