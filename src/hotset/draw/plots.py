"""Pictures of measurements; needs the extra ``plots`` (matplotlib)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hotset.draw.picture import check_drawing, headline, save
from hotset.measure.sweep import SweepPoint
from hotset.measure.trace import TracePoint
from hotset.placing.planner import Plan, Planner

_MEASURED, _LIMIT, _THIRD = "#0072b2", "#999999", "#d55e00"  # told apart by the colour-blind too
_FOURTH, _PALE = "#e69f00", "#d9d9d9"
_BUDGETS = 24
"""Points of a curve over budgets."""


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
    axis.set(xlabel="neurons computed, %", ylabel="decoded tokens/s", ylim=(0, None))
    headline(axis, title)
    axis.legend(frameon=False)
    save(figure, path)


def plot_trace(points: Sequence[TracePoint], title: str, path: Path) -> None:
    """Density, activation kept and cut-offs over the tokens decoded, the subjects marked: a PNG."""
    figure, axes = _figure(3)
    tokens = [point.tokens for point in points]
    axes[0].plot(tokens, [100 * point.density for point in points], color=_MEASURED)
    axes[0].set(ylabel="density, %")
    headline(axes[0], title)
    axes[1].plot(tokens, [100 * point.kept for point in points], color=_THIRD)
    axes[1].set(ylabel="activation kept, %")
    cutoffs = np.array([point.cutoffs for point in points])
    axes[2].plot(tokens, cutoffs - cutoffs[0], color=_MEASURED, alpha=0.35, linewidth=0.8)
    axes[2].set(ylabel="cut-offs' change", xlabel="tokens decoded")
    starts = [i for i, point in enumerate(points) if i == 0 or point.subject != points[i - 1].subject]
    for i in starts:
        for axis in axes:
            axis.axvline(tokens[i], color=_LIMIT, linewidth=0.8)
        axes[0].annotate(
            points[i].subject, (tokens[i], 1), (3, -3), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", fontsize=8, parse_math=False,
        )  # fmt: skip
    save(figure, path)


def plot_plan(planner: Planner, plan: Plan, title: str, path: Path) -> None:
    """What of each layer lies where, and the tokens/s that other budgets would give: a PNG."""
    figure, (bars, curve) = _figure(2, shared=False)
    layers = np.arange(len(plan.layers))
    bottom = np.zeros(len(layers))
    for label, color, values in (
        ("GPU: attention", _MEASURED, [use.attention_bytes for use in plan.layers]),
        ("GPU: KV cache", "#56b4e9", [use.kv_bytes for use in plan.layers]),
        ("GPU: hot neurons", _THIRD, [use.neuron_bytes for use in plan.layers]),
        ("GPU: predictor", _FOURTH, [use.predictor_bytes for use in plan.layers]),
        ("main memory", _PALE, [use.host_bytes for use in plan.layers]),
    ):
        heights = np.array(values) / 1e6
        if heights.any():
            bars.bar(layers, heights, bottom=bottom, color=color, width=0.85, label=label)
        bottom += heights
    bars.set(xlabel="layer", ylabel="MB", xlim=(-0.6, len(layers) - 0.4), ylim=(0, None))
    headline(bars, title)
    bars.grid(visible=False, axis="x")
    bars.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, -0.42), fontsize=8)

    most = max(planner.everything, plan.budget)
    budgets = sorted({most * i // _BUDGETS for i in range(_BUDGETS + 1)} | {plan.budget})
    speeds = [planner.plan(budget).tokens_per_second for budget in budgets]
    curve.plot([budget / 2**30 for budget in budgets], speeds, color=_MEASURED)
    curve.plot([plan.budget / 2**30], [plan.tokens_per_second], "o", color=_THIRD)
    curve.axvline(planner.everything / 2**30, color=_LIMIT, linestyle="--", linewidth=0.9)
    curve.annotate(
        "everything fits", (planner.everything / 2**30, 0), (-4, 4), textcoords="offset points", ha="right",
        fontsize=8, color="#666666",
    )  # fmt: skip
    curve.annotate(
        f"{plan.tokens_per_second:.1f}", (plan.budget / 2**30, plan.tokens_per_second), (6, -10),
        textcoords="offset points", fontsize=8,
    )  # fmt: skip
    curve.set(xlabel="budget, GiB", ylabel="predicted tokens/s", xlim=(0, None), ylim=(0, None))
    save(figure, path)


def _figure(rows: int, shared: bool = True) -> tuple[Any, Any]:
    check_drawing()
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 2.6 + 1.7 * rows), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=shared, squeeze=False)[:, 0]
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
