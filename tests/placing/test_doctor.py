"""Measuring a machine: the processor's part on small layers, the GPU's on a stand-in for torch."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hotset.cli import main
from hotset.core.limits import available_cores, physical_cores
from hotset.placing import doctor, doctor_cpu, doctor_gpu
from hotset.placing.machine import load_machine


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor_cpu, "_HIDDEN", 256)
    monkeypatch.setattr(doctor_cpu, "_FFN", 512)
    monkeypatch.setattr(doctor_cpu, "_CALLS", 4)
    monkeypatch.setattr(doctor_gpu, "_COPY_BYTES", 1 << 16)
    monkeypatch.setattr(doctor_gpu, "_MATRIX", 64)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


def test_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "no_gpu", lambda: "none here")
    steps: list[tuple[int, int]] = []
    first = doctor.this_machine(progress=lambda done, total: steps.append((done, total)))
    assert steps == [(i, len(steps)) for i in range(1, len(steps) + 1)]
    assert first.gpu is None
    assert first.cpu.parts == max(16, 4 * physical_cores())
    assert first.sources["cpu.parts"] == f"measured: of {physical_cores()} cores"
    assert first.cpu.stream_contended == first.cpu.stream
    assert "no GPU" in first.sources["cpu.stream_contended"]
    assert load_machine(doctor.cache_path()) == first
    monkeypatch.setattr(doctor, "measure_machine", lambda *_: pytest.fail("measured twice"))
    assert doctor.this_machine() == first
    with pytest.raises(pytest.fail.Exception):
        doctor.this_machine(again=True)
    monkeypatch.setattr(doctor, "__version__", "another")
    with pytest.raises(pytest.fail.Exception):
        doctor.this_machine()


def test_each_number_of_threads_is_measured_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "no_gpu", lambda: "none here")
    for threads in (1, 3):
        source = doctor.this_machine(threads=threads).sources["cpu.stream"]
        assert source.startswith(f"measured with {threads} threads"), source
        assert load_machine(doctor.cache_path(threads)).sources["cpu.stream"] == source
    assert doctor.cache_path() == doctor.cache_path(available_cores())


def test_caches_are_where_the_user_wants_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.cache_path().parent == tmp_path / ".cache" / "hotset"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert doctor.cache_path().parent == tmp_path / "caches" / "hotset"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to ignore
    assert doctor.cache_path().parent == tmp_path / ".cache" / "hotset"

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert doctor.cache_path().parent.is_absolute()


def test_a_cache_that_cannot_be_written_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "no_gpu", lambda: "none here")
    (tmp_path / ".cache").write_text("a file, where a directory should be")
    machine = doctor.this_machine()
    assert machine.cpu.stream > 0
    monkeypatch.setattr(doctor, "measure_machine", lambda *_: machine)
    with pytest.raises(SystemExit) as exit:
        main(["doctor"])
    assert exit.value.code == 0
    assert "not kept: " in capsys.readouterr().out


def test_a_damaged_cache_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "no_gpu", lambda: "none here")
    doctor.cache_path().parent.mkdir(parents=True)
    doctor.cache_path().write_text("{}")
    assert doctor.this_machine() == load_machine(doctor.cache_path())


class FakeTensor:
    """Enough of a tensor to be copied and multiplied."""

    def pin_memory(self) -> "FakeTensor":
        return self

    def copy_(self, other: "FakeTensor", non_blocking: bool = False) -> "FakeTensor":
        assert isinstance(other, FakeTensor) and non_blocking
        return self

    def __matmul__(self, other: "FakeTensor") -> "FakeTensor":
        return other


def fake_torch() -> Any:
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    return SimpleNamespace(
        zeros=lambda *shape, dtype=None, device=None: FakeTensor(),
        uint8="uint8",
        float16="float16",
        cuda=SimpleNamespace(
            Event=lambda: event,
            synchronize=lambda: None,
            get_device_name=lambda index: "a GPU",
            get_device_properties=lambda index: SimpleNamespace(total_memory=8 << 30),
            is_available=lambda: True,
        ),
    )


def test_a_gpu_is_measured_quiet_and_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", fake_torch())
    monkeypatch.setattr(doctor, "no_gpu", lambda: None)
    monkeypatch.setattr(doctor_gpu, "executor_handshake_us", lambda: 7.0)
    monkeypatch.setattr(doctor_gpu, "kernel_rates", lambda: (1e-3, 11.0))
    found = doctor.measure_machine()
    assert found.gpu and found.gpu.vram_bytes == 8 << 30
    assert found.gpu.to_device_contended <= found.gpu.to_device
    assert found.cpu.gather_contended <= found.cpu.gather
    assert found.sources["gpu.stream"] == "measured on a GPU"
    assert found.gpu.kernel_share == pytest.approx(1e-3 / found.gpu.stream)
    assert set(found.sources) == {
        f"{side}.{name}" for side in ("cpu", "gpu") for name in found.as_json()[side]
    }
