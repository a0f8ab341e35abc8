"""What a figure must carry to mean anything: hardware, versions and the model it was measured with."""

import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hotset.formats.output import written

VECTOR_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
)
ARM_FLAGS = ("asimd", "asimddp", "i8mm", "sve", "bf16")


def hardware() -> dict[str, Any]:
    """CPU model, cores, vector extensions, memory, operating system and the load when this was called."""
    cpuinfo = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cpu_family_model": f"{fields.get('cpu family', '?')}/{fields.get('model', '?')}",
        "cores_usable": usable,
        "vector_flags": [flag for flag in (*VECTOR_FLAGS, *ARM_FLAGS) if flag in flags],
        "system": platform.platform(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if hasattr(os, "getloadavg"):
        found["load_average_1min"] = round(os.getloadavg()[0], 2)
    return found


def versions() -> dict[str, str]:
    """Python, the packages that matter where installed, and the commit of this checkout."""
    found = {"python": platform.python_version()}
    for package in ("hotset", "llama_cpp_python", "numpy", "gguf"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        found["commit"] = commit.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    return found


def model_identity(path: Path) -> dict[str, Any]:
    """File name, size, SHA-256 and `general.name` of a GGUF file, and whether its weights are synthetic."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    name = _general_name(path)
    return {
        "file": path.name,
        "name": name,
        "bytes": path.stat().st_size,
        "sha256": digest.hexdigest(),
        "synthetic": name.startswith("synthetic"),
    }


def _general_name(path: Path) -> str:
    """`general.name` from the file's first bytes, without parsing the vocabulary that may follow; or ''."""
    key = b"general.name"
    with path.open("rb") as file:
        head = file.read(1 << 16)
    at = head.find(key)
    if at < 0:
        return ""
    start = at + len(key) + 4  # the key, then its value's type (a string), its length and its bytes
    size = int.from_bytes(head[start : start + 8], "little")
    return head[start + 8 : start + 8 + size].decode("utf-8", "replace")


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and the values themselves, in the order they were measured."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def pairwise(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Summary of the ratios ours/theirs, pair by pair."""
    return summary([a / b for a, b in zip(ours, theirs, strict=True)])


def span(figures: dict[str, Any], digits: int = 1) -> str:
    """`median (min-max)` as text."""
    return f"{figures['median']:.{digits}f} ({figures['min']:.{digits}f}-{figures['max']:.{digits}f})"


def report(benchmark: str, arguments: dict[str, Any], results: Any) -> dict[str, Any]:
    """The JSON document of one run."""
    return {
        "benchmark": benchmark,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(),
        "arguments": arguments,
        "results": results,
    }


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write the document, whole or not at all; of a path only the file's name."""
    text = json.dumps(document, indent=1, ensure_ascii=False, default=_plain) + "\n"
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def fail(program: str, message: str) -> int:
    """Print one line and return the exit code for wrong input."""
    print(f"{program}: {message}", file=sys.stderr)
    return 2
