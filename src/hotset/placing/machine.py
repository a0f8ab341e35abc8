"""What a machine can do, in the numbers that a placement is computed from; a JSON file.

Every number is stored with its unit and with where it comes from: ``measured …``, ``published …`` or
``assumed …``. `hotset doctor` measures a profile of the machine it runs on; those of some PCs, from published
figures and assumptions, come with Hotset (``machines/``); others can be written by hand.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from hotset.core.errors import HotsetError
from hotset.formats.output import written
from hotset.placing.part_times import TimedParts, read_times, times_as_json

SCHEMA = 1


def _number(unit: str) -> Any:
    return field(metadata={"unit": unit})


def _later(unit: str, value: float) -> Any:
    """A number that older profiles do not have, and what held for them."""
    return field(default=value, metadata={"unit": unit})


@dataclass(frozen=True)
class CpuRates:
    """The processor and its memory. One GB is 10^9 bytes."""

    stream: float = _number("GB/s")
    """Memory read from start to end by all worker threads."""
    stream_contended: float = _number("GB/s")
    """The same while the GPU computes and copies."""
    gather: float = _number("GB/s")
    """Scattered rows of 4- and 8-bit neurons, as the sparse kernels read them."""
    gather_contended: float = _number("GB/s")
    gather_f16: float = _number("GB/s")
    """Scattered rows of F16 neurons."""
    gather_f16_contended: float = _number("GB/s")
    kernel_share: float = _number("share")
    """Share of ``stream`` at which whole matrices are multiplied with one token."""
    part_us: float = _number("us")
    """Time that an attention or an FFN takes however few bytes it reads."""
    tflops: float = _number("TFLOP/s")
    """Matrices times the tokens of a prompt; a multiplication and an addition are two."""
    ram_bytes: float = _number("bytes")
    parts: float = _later("parts", 16)
    """Sums that a sparse layer's neurons are added up in at most, chosen from the machine's cores."""


@dataclass(frozen=True)
class GpuRates:
    """The GPU, and the bus to it."""

    stream: float = _number("GB/s")
    """A copy within the GPU's memory, read and written bytes together."""
    stream_contended: float = _number("GB/s")
    """The same while the processor computes and the bus copies."""
    kernel_share: float = _number("share")
    """Share of ``stream`` at which whole matrices are multiplied with one token."""
    part_us: float = _number("us")
    """Time that an attention or an FFN takes however few bytes it reads."""
    tflops: float = _number("TFLOP/s")
    to_device: float = _number("GB/s")
    """Pinned main memory to the GPU's."""
    to_device_contended: float = _number("GB/s")
    to_host: float = _number("GB/s")
    to_host_contended: float = _number("GB/s")
    handshake_us: float = _number("us")
    """One task for the processor, and back: input sent and taken, answer sent and taken."""
    vram_bytes: float = _number("bytes")


_Rates = TypeVar("_Rates", CpuRates, GpuRates)


@dataclass(frozen=True)
class MachineProfile:
    """A machine. ``sources`` has a text for each number, by ``cpu.stream`` and so on.

    A plan adds up the times of parts; those of parts that were never timed it predicts from the rates.
    """

    name: str
    cpu: CpuRates
    gpu: GpuRates | None
    """None: the machine has none that Hotset can use."""
    sources: Mapping[str, str]
    times: Mapping[str, TimedParts] = field(default_factory=dict)
    """Of parts of models, measured; by the two sides (threads and device) that they were timed on."""

    def times_of(self, sides: str | None) -> TimedParts:
        """Those of these two sides; None: of any, as for a machine that is not this one."""
        return self.times.get(sides, {}) if sides else next(iter(self.times.values()), {})

    def save(self, path: Path) -> None:
        """Write the profile, whole or not at all; `HotsetError` for what the system refuses."""
        text = json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n"
        with written(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def as_json(self) -> dict[str, Any]:
        """The document that `load_machine` reads."""
        document: dict[str, Any] = {"schema": SCHEMA, "name": self.name}
        for side, rates in (("cpu", self.cpu), ("gpu", self.gpu)):
            document[side] = rates and {
                f.name: {
                    "value": getattr(rates, f.name),
                    "unit": f.metadata["unit"],
                    "source": self.sources[f"{side}.{f.name}"],
                }
                for f in fields(rates)
            }
        if self.times:
            document["times"] = {sides: times_as_json(times) for sides, times in self.times.items()}
        return document


def known_machines() -> dict[str, Path]:
    """The profiles that come with Hotset, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "machines").glob("*.json"))}


def find_machine(name: str) -> MachineProfile:
    """The profile of that name among those that come with Hotset, or in a file; else `HotsetError`."""
    known = known_machines()
    path = known.get(name.lower().replace(" ", "-"), Path(name))
    if not path.exists() and path.suffix != ".json":
        raise HotsetError(
            f"there is no machine {name}: expected a profile's file (hotset doctor --json), or one of "
            f"{', '.join(known)}"
        )
    return load_machine(path)


def smallest_machine(vram: int) -> str:
    """The known machine whose GPU has the least memory that holds `vram` bytes; else the one with most."""
    profiles = {name: load_machine(path) for name, path in known_machines().items()}
    memories = {name: profile.gpu.vram_bytes for name, profile in profiles.items() if profile.gpu}
    enough = {name: memory for name, memory in memories.items() if memory >= vram}
    return min(enough, key=enough.__getitem__) if enough else max(memories, key=memories.__getitem__)


def load_machine(path: Path) -> MachineProfile:
    """Read a profile; `HotsetError`, which names the file and the key, for anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise HotsetError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise HotsetError(f"{path} is no machine profile: expected JSON; {error}") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise HotsetError(
            f"{path} is no machine profile: schema: expected {SCHEMA}, found {found!r}; measure one with "
            "hotset doctor"
        )
    name = document.get("name")
    if not isinstance(name, str) or not name:
        raise HotsetError(f"{path}: name: expected a text, found {name!r}")
    sources: dict[str, str] = {}
    cpu = _rates(CpuRates, document.get("cpu"), f"{path}: cpu", sources)
    if "gpu" not in document:
        raise HotsetError(f"{path}: gpu: expected numbers, or null for a machine without a GPU")
    gpu = document["gpu"]
    if gpu is not None:
        gpu = _rates(GpuRates, gpu, f"{path}: gpu", sources)
    times = document.get("times", {})
    if not isinstance(times, dict):
        raise HotsetError(f"{path}: times: expected those of parts by two sides, found {times!r}")
    timed = {sides: read_times(parts, f"{path}: times.{sides}") for sides, parts in times.items()}
    return MachineProfile(name, cpu, gpu, sources, timed)


def _rates(kind: type[_Rates], entries: Any, where: str, sources: dict[str, str]) -> _Rates:
    if not isinstance(entries, dict):
        raise HotsetError(f"{where}: expected numbers by name, found {entries!r}")
    known = {f.name: f.metadata["unit"] for f in fields(kind)}
    defaults = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    for name in entries:
        if name not in known:
            raise HotsetError(f"{where}.{name}: there is no such number; expected {', '.join(known)}")
    numbers = {}
    for name, unit in known.items():
        entry = entries.get(name)
        key = f"{where}.{name}"
        if entry is None and name in defaults:
            entry = {"value": defaults[name], "unit": unit, "source": "assumed: the profile is an older one"}
        if not isinstance(entry, dict):
            raise HotsetError(f"{key}: expected value, unit and source, found {entry!r}")
        value, source = entry.get("value"), entry.get("source")
        if entry.get("unit") != unit:
            raise HotsetError(f"{key}: expected the unit {unit}, found {entry.get('unit')!r}")
        if not isinstance(source, str) or not source:
            raise HotsetError(f"{key}: expected a source, such as 'measured', found {source!r}")
        if not isinstance(value, int | float) or isinstance(value, bool) or not _sensible(value, unit):
            raise HotsetError(f"{key}: expected a number over 0, found {value!r}")
        numbers[name] = float(value)
        sources[f"{where.rsplit(' ', 1)[-1]}.{name}"] = source
    return kind(**numbers)


def _sensible(value: float, unit: str) -> bool:
    return 0 < value < 1e18 or (value == 0 and unit == "us")
