"""Writes the results' pages of the documentation from the JSON files of `benchmarks/results`.

A folder of results is a machine and becomes a page: one sentence on how far to trust it, a plot for each
claim, one table. The same files give the same bytes, and a test holds the committed pages against them.

    python benchmarks/results_pages.py        # after adding or removing a result
"""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from results_plot import plot
from results_rows import READERS, Row

ROOT = Path(__file__).parents[1]
RESULTS, PAGES = ROOT / "benchmarks/results", ROOT / "docs/results"

HEAD = "| test | model | Hotset | compared with | its figure | ratio | lowest | highest | date | file |"


def pages(results: Path) -> dict[str, str]:
    """Text of every page and plot, by file name."""
    made: dict[str, str] = {}
    index = [
        "# Results",
        "",
        "Each page is a machine, made by `benchmarks/results_pages.py` from the JSON files of",
        "`benchmarks/results`. They hold every value, the versions and the model files' SHA-256.",
        "[The log](../log/2026-11.md) tells what was tried; `benchmarks/README.md` how to measure.",
        "",
    ]
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        documents = {
            file.name: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))
        }
        index += [f"- [{folder.name}]({folder.name}.md):", f"  {_machine(documents)}"]
        made |= _machine_pages(folder.name, documents)
    made["index.md"] = "\n".join([*index, ""])
    return made


def _machine_pages(name: str, documents: dict[str, Any]) -> dict[str, str]:
    rows = [
        row
        for benchmark, read in READERS.items()
        for file, document in documents.items()
        if document["benchmark"] == benchmark
        for row in read(file, document)
    ]
    others = sorted(file for file, document in documents.items() if document["benchmark"] not in READERS)
    claims = list(dict.fromkeys(row.claim for row in rows if row.claim))
    trust = textwrap.fill(f"{_machine(documents)}. {_caveat(documents)}", 100)
    lines = [f"# {name}", "", trust, ""]
    made: dict[str, str] = {}
    for number, claim in enumerate(claims, 1):
        file = f"{name}-{number}.svg"
        made[file] = plot(claim, [row for row in rows if row.claim == claim])
        lines += [f"![{claim}]({file})", ""]
    lines += [HEAD, "| " + "--- | " * HEAD.count(" | ") + "--- |", *(_line(row) for row in rows), ""]
    if others:
        lines += ["Not in the table: " + ", ".join(f"`{file}`" for file in others) + ".", ""]
    made[f"{name}.md"] = "\n".join(lines)
    return made


def _line(row: Row) -> str:
    synthetic = ", synthetic" if row.synthetic else ""
    cells = (
        f"{row.test}, {row.unit}",
        row.model + synthetic,
        number(row.ours),
        row.other,
        number(row.theirs),
        number(row.ratio, 2),
        number(row.low, 2),
        number(row.high, 2),
        row.date,
        f"`{row.file}`",
    )
    return "| " + " | ".join(cells) + " |"


def number(value: float | None, decimals: int | None = None) -> str:
    """Three significant digits, or so many decimals; nothing for None."""
    if value is None:
        return ""
    if decimals is not None:
        return f"{value:.{decimals}f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _machine(documents: dict[str, Any]) -> str:
    """Processor, cores and memory, of the first file."""
    hardware = next(iter(documents.values()))["hardware"]
    family = hardware["cpu_family_model"]
    device = next(iter(documents.values()))["results"]
    gpu = device["device"]["name"] + " with " if isinstance(device, dict) and "device" in device else ""
    return (
        f"{gpu}{hardware['cpu']} (family and model {family}), {hardware['cores_usable']} cores, "
        f"{hardware['memory_bytes'] / 1e9:.0f} GB"
    )


def _caveat(documents: dict[str, Any]) -> str:
    loads = [document["hardware"]["load_average_1min"] for document in documents.values()]
    return (
        f"The machine was shared (load average {min(loads):.0f} to {max(loads):.0f} as runs began), "
        "so ratios within a run count and absolute figures do not."
    )


def main() -> int:
    """Write the pages and delete those that no result gives any more."""
    made = pages(RESULTS)
    PAGES.mkdir(parents=True, exist_ok=True)
    for file in PAGES.iterdir():
        if file.name not in made:
            file.unlink()
    for name, text in made.items():
        (PAGES / name).write_bytes(text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
