"""Machine profiles as files."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.machines import machine
from hypothesis import given
from hypothesis import strategies as st

from hotset.core.errors import HotsetError
from hotset.placing.machine import find_machine, known_machines, load_machine, smallest_machine


@pytest.mark.parametrize("gpu", [True, False])
def test_a_profile_survives_its_file(tmp_path: Path, gpu: bool) -> None:
    profile = machine(gpu, cpu_stream=61.25)
    profile.save(tmp_path / "machine.json")
    assert load_machine(tmp_path / "machine.json") == profile
    assert [path.name for path in tmp_path.iterdir()] == ["machine.json"]
    text = (tmp_path / "machine.json").read_text()
    (tmp_path / "marked.json").write_text(text, encoding="utf-8-sig")  # as some editors and shells do
    assert load_machine(tmp_path / "marked.json") == profile
    stream = json.loads(text)["cpu"]["stream"]
    assert stream == {"value": 61.25, "unit": "GB/s", "source": "assumed"}


def test_an_older_profile_has_no_parts(tmp_path: Path) -> None:
    document = machine(cpu_parts=64.0).as_json()
    assert document["cpu"]["parts"] == {"value": 64.0, "unit": "parts", "source": "assumed"}
    del document["cpu"]["parts"]
    (tmp_path / "older.json").write_text(json.dumps(document))
    older = load_machine(tmp_path / "older.json")
    assert older.cpu.parts == 16
    assert "older" in older.sources["cpu.parts"]


def broken(change: dict[str, Any]) -> dict[str, Any]:
    document = machine().as_json()
    for key, value in change.items():
        *path, last = key.split(".")
        at = document
        for part in path:
            at = at[part]
        at[last] = value
    return document


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema": 2}, "schema: expected 1, found 2"),
        ({"name": ""}, "name"),
        ({"cpu": 5}, "cpu: expected numbers"),
        ({"gpu": []}, "gpu: expected numbers"),
        ({"cpu.stream": 60}, "cpu.stream: expected value, unit and source"),
        ({"cpu.stream.unit": "GiB/s"}, "cpu.stream: expected the unit GB/s"),
        ({"gpu.stream.value": 0}, "gpu.stream: expected a number over 0"),
        ({"gpu.stream.value": "fast"}, "gpu.stream: expected a number"),
        ({"gpu.stream.value": float("nan")}, "gpu.stream: expected a number"),
        ({"gpu.stream.value": 10**400}, "gpu.stream: expected a number"),
        ({"gpu.tflops.source": None}, "gpu.tflops: expected a source"),
        ({"gpu.warp": {}}, "gpu.warp: there is no such number"),
    ],
)
def test_a_broken_profile_is_named_in_one_line(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(broken(change)))
    with pytest.raises(HotsetError) as error:
        load_machine(path)
    assert named in str(error.value) and "machine.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_gpu_must_be_named_or_denied(tmp_path: Path) -> None:
    document = machine().as_json()
    del document["gpu"]
    (tmp_path / "machine.json").write_text(json.dumps(document))
    with pytest.raises(HotsetError, match="null for a machine without"):
        load_machine(tmp_path / "machine.json")


@given(
    st.binary(max_size=60) | st.from_regex(r'\{"(schema|name|cpu|gpu)": ?[0-9\[\]{}"a]*\}').map(str.encode)
)
def test_rubbish_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("machines") / "machine.json"
    path.write_bytes(content)
    with pytest.raises(HotsetError, match="machine.json"):
        load_machine(path)


def test_published_machines_load() -> None:
    for path in known_machines().values():
        profile = load_machine(path)
        assert profile.gpu
        assert {source.split(":")[0] for source in profile.sources.values()} == {"published", "assumed"}
        assert profile.sources["gpu.stream"].startswith("published: NVIDIA")


def test_machines_have_names(tmp_path: Path) -> None:
    for name in ("rtx-4090", "RTX 4090", "Rtx-4090"):
        assert find_machine(name).gpu == load_machine(known_machines()["rtx-4090"]).gpu
    machine().save(tmp_path / "mine.json")
    assert find_machine(str(tmp_path / "mine.json")) == machine()
    with pytest.raises(HotsetError, match=r"no machine rtx-9090: .* rtx-2080-ti, rtx-3060, .* rtx-4090"):
        find_machine("rtx-9090")
    with pytest.raises(HotsetError, match=r"mine\.json: cannot be read"):
        find_machine("mine.json")


@pytest.mark.parametrize(
    ("gib", "name"),
    [(8, "rtx-4060"), (9, "rtx-2080-ti"), (12, "rtx-3060"), (16, "rtx-4080"), (80, "rtx-5090")],
)
def test_the_smallest_machine_for_a_budget(gib: int, name: str) -> None:
    assert smallest_machine(gib << 30) == name
