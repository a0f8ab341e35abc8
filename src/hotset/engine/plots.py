"""Pictures of measurements; needs the extra ``plots`` (matplotlib)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hotset.engine.sweep import SweepPoint
from hotset.engine.trace import TracePoint
from hotset.errors import HotsetError

_MEASURED, _LIMIT, _THIRD = "#0072b2", "#999999", "#d55e00"  # told apart by the colour-blind too


def plot_sweep(points: Sequence[SweepPoint], title: str, path: Path) -> None:
    """Tokens/s against density, beside what the memory's bandwidth allows: a PNG."""
    figure, axes = _figure(1)
    (axis,) = axes
    densities = [100 * point.density for point in points]
    axis.plot(
        densities,
        [point.roofline_tokens_per_second for point in points],
        "--",
        color=_LIMIT,
        label="what the bandwidth allows",
    )
    axis.plot(
        densities,
        [point.decode_tokens_per_second for point in points],
        "o-",
        color=_MEASURED,
        label="measured",
    )
    axis.set(xlabel="neurons computed, %", ylabel="decoded tokens/s", title=title, ylim=(0, None))
    axis.legend(frameon=False)
    _save(figure, path)


def plot_trace(points: Sequence[TracePoint], title: str, path: Path) -> None:
    """Density, recall and cut-offs over the tokens decoded, the subjects marked: a PNG."""
    figure, axes = _figure(3)
    tokens = [point.tokens for point in points]
    axes[0].plot(tokens, [100 * point.density for point in points], color=_MEASURED)
    axes[0].set(ylabel="density, %", title=title)
    axes[1].plot(tokens, [100 * point.recall for point in points], color=_THIRD)
    axes[1].set(ylabel="recall, %")
    cutoffs = np.array([point.cutoffs for point in points])
    axes[2].plot(tokens, cutoffs - cutoffs[0], color=_MEASURED, alpha=0.35, linewidth=0.8)
    axes[2].set(ylabel="cut-offs' change", xlabel="tokens decoded")
    starts = [i for i, point in enumerate(points) if i == 0 or point.subject != points[i - 1].subject]
    for i in starts:
        for axis in axes:
            axis.axvline(tokens[i], color=_LIMIT, linewidth=0.8)
        axes[0].annotate(
            points[i].subject, (tokens[i], 1), (3, -3), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", fontsize=8,
        )  # fmt: skip
    _save(figure, path)


def _figure(rows: int) -> tuple[Any, Any]:
    try:
        import matplotlib.figure
    except ImportError:
        raise HotsetError("pictures need matplotlib: pip install 'hotset[plots]'") from None
    figure = matplotlib.figure.Figure(figsize=(7, 2.6 + 1.7 * rows), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        figure.savefig(partial, dpi=150, format=path.suffix.removeprefix(".") or "png")
        partial.replace(path)
    except (OSError, ValueError) as error:
        partial.unlink(missing_ok=True)
        raise HotsetError(f"{path}: cannot be written: {error}") from None
