"""Draws an activation profile: four pictures (PNG) and one page (HTML) that holds them all.

The page has no links and no scripts: it can be mailed or kept as it is. Needs matplotlib (extra ``plots``).
"""

import contextlib
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hotset.activations.profile import ActivationProfile
from hotset.activations.summary import PART, TOP, LayerSummary, cumulated, summarise
from hotset.backends.contract import F32
from hotset.core.errors import HotsetError
from hotset.draw.page import document, figure, table
from hotset.draw.picture import check_drawing, headline, is_picture
from hotset.formats.output import check_output, written

PAGE = "index.html"
_PICTURES = ("power-law", "heat", "agreement", "density")
_DPI = 150
_HEAT_COLUMNS = 400
"""Columns of the heat map: more neurons than these share one, by their mean."""
_BLUE, _ORANGE = "#0072b2", "#d55e00"  # Okabe and Ito's, told apart by the colour-blind


def check_report(directory: Path, reading: Iterable[Path] = ()) -> None:
    """Raise `HotsetError`, before any work is done for it, if no report can be drawn into a directory."""
    check_drawing()
    if not directory.exists():
        check_output(directory)  # it is made: its parent must be there
        return
    if not directory.is_dir():
        raise HotsetError(f"{directory} is no directory: name one, or what is to become one (--report)")
    reading = list(reading)
    check_output(directory / PAGE, reading, kind="profile's page", replaces=_is_page)
    for name in _PICTURES:
        check_output(directory / f"{name}.png", reading, kind="picture", replaces=is_picture)


def _is_page(path: Path) -> bool:
    return b"<title>Activation profile of " in path.read_bytes()[:1000]


def write_report(profile: ActivationProfile, directory: Path) -> Path:
    """Draw a profile into a directory, which is made if its parent is there; the page's path.

    Written are the page and a PNG for each picture; if one cannot be written, none is left. Raises
    `HotsetError` for what the system refuses, and where matplotlib is missing.
    """
    check_drawing()
    layers = summarise(profile)
    drawn = draw_pictures(profile, layers)
    files = {f"{name}.png": data for name, (data, _) in drawn.items()}
    files[PAGE] = _page(profile, layers, drawn).encode()
    _write(directory, files)
    return directory / PAGE


def draw_pictures(profile: ActivationProfile, layers: Sequence[LayerSummary]) -> dict[str, tuple[bytes, str]]:
    """A profile's pictures by their names: a PNG each, and what it shows."""
    pictures = {
        "power-law": (_power_law(profile, layers), _POWER_LAW),
        "heat": (_heat(profile, layers), _HEAT),
    }
    if profile.halves is not None:
        pictures["agreement"] = (_agreement(profile.halves, layers), _AGREEMENT)
    pictures["density"] = (_density(layers), _DENSITY)
    for drawing, _ in pictures.values():
        _say(profile.units, drawing)
    return {name: (_png(drawing), _said(profile.units, text)) for name, (drawing, text) in pictures.items()}


def _write(directory: Path, files: dict[str, bytes]) -> None:
    """All files or none; older ones stay until all new ones stand."""
    existed = directory.exists()
    try:
        directory.mkdir(exist_ok=True)
        with contextlib.ExitStack() as stack:
            new = {name: stack.enter_context(written(directory / name)) for name in files}
            for name, temporary in new.items():
                temporary.write_bytes(files[name])
    except OSError as error:
        raise HotsetError(f"{directory}: the report cannot be written: {error.strerror or error}") from None
    finally:
        if not existed:
            with contextlib.suppress(OSError):
                directory.rmdir()  # which it refuses where the report stands


_POWER_LAW = (
    "Each line is a layer: the share of all activations that its hottest neurons make. Dots mark the neurons "
    f"that make {PART:.0%}. The further up and left a line bends, the more a few neurons do; on the dotted "
    "line all would fire equally often."
)
_HEAT = (
    "How often the neurons of each layer fire, the hottest on the left. The white line is where "
    f"{PART:.0%} of the layer's activations are reached."
)
_AGREEMENT = (
    "Would other text of this kind give the same hot neurons? Left, every neuron's frequency over the first "
    "and the second half of the text: on the dashed line they agree. Right, layer by layer, the correlation "
    f"of the two, and how many of the hottest {TOP:.0%} of the neurons in one half are so in the other."
)
_DENSITY = "The share of a layer's neurons that fire for a token, on average over the text."


def _power_law(profile: ActivationProfile, layers: Sequence[LayerSummary]) -> Any:
    figure, axes = _figure(8, 5.2)
    colours, scale = _depths(len(layers))
    for frequency, layer, colour in zip(profile.frequency, layers, colours, strict=True):
        if not frequency.any():
            continue
        y = 100 * cumulated(frequency)
        axes.plot(np.linspace(0, 100, y.size), y, color=colour, linewidth=1.3, alpha=0.85)
        axes.plot(100 * layer.hot_share, 100 * PART, "o", color=colour, markersize=4.5, zorder=3)
    axes.axhline(100 * PART, color="0.35", linewidth=0.8, linestyle=(0, (5, 4)), zorder=2.5)
    axes.plot([0, 100], [0, 100], color="0.6", linewidth=1, linestyle=":", zorder=1)
    median = float(np.median([layer.hot_share for layer in layers]))
    axes.text(
        98,
        4,
        f"{PART:.0%} of activations:\n{median:.0%} of the neurons in the median layer",
        ha="right",
        va="bottom",
        color="0.25",
    )
    axes.set(
        xlabel="neurons, hottest first (%)",
        ylabel="activations made (%)",
        xlim=(0, 100),
        ylim=(0, 100.5),
    )
    headline(axes, "Activations that the hottest neurons make")
    axes.grid(color="0.92")
    figure.colorbar(scale, ax=axes, label="layer", pad=0.02, ticks=_layer_ticks(len(layers)))
    return figure


def _heat(profile: ActivationProfile, layers: Sequence[LayerSummary]) -> Any:
    n_layers, neurons = profile.frequency.shape
    figure, axes = _figure(8.6, min(10.0, 2.4 + 0.14 * max(n_layers, 8)))
    hottest = -np.sort(-profile.frequency, axis=1)
    columns = min(neurons, _HEAT_COLUMNS)
    starts = np.arange(columns) * neurons // columns
    counts = np.diff(np.append(starts, neurons))
    means = np.add.reduceat(hottest, starts, axis=1, dtype=np.float64) / counts
    edges = 100 * np.append(starts, neurons) / neurons
    image = axes.pcolormesh(
        edges, np.arange(n_layers + 1) - 0.5, 100 * means, cmap="viridis", vmin=0, vmax=100
    )
    shares = [100 * layer.hot_share for layer in layers]
    axes.stairs(
        shares,
        np.arange(n_layers + 1) - 0.5,
        orientation="horizontal",
        baseline=None,
        color="white",
        linewidth=1.5,
    )
    headline(axes, "How often neurons fire, layer by layer")
    axes.set(
        xlabel="neurons of the layer, hottest first (%)",
        ylabel="layer",
        ylim=(n_layers - 0.5, -0.5),
        yticks=_layer_ticks(n_layers),
    )
    figure.colorbar(image, ax=axes, label="tokens for which the neuron fires (%)", pad=0.02)
    return figure


def _agreement(halves: F32, layers: Sequence[LayerSummary]) -> Any:
    figure, (left, right) = _figure(10, 4.6, columns=2)
    first, second = (100 * half.ravel() for half in halves)
    cells = left.hexbin(
        first,
        second,
        gridsize=70,
        bins="log",
        cmap="viridis",
        mincnt=1,
        extent=(0, 100, 0, 100),
        linewidths=0,
    )
    left.plot([0, 100], [0, 100], color=_ORANGE, linewidth=1, linestyle=(0, (5, 4)))
    left.set(
        xlabel="fires in the first half (% of tokens)",
        ylabel="fires in the second half (% of tokens)",
        xlim=(0, 100),
        ylim=(0, 100),
        aspect="equal",
    )
    headline(left, "Each neuron in the two halves of the text")
    figure.colorbar(cells, ax=left, label="neurons", pad=0.02, shrink=0.85)
    for name, label, colour, marker in (
        ("correlation", "correlation of frequencies", _BLUE, "o"),
        ("overlap", f"overlap of the hottest {TOP:.0%}", _ORANGE, "s"),
    ):
        values = [np.nan if (v := getattr(layer, name)) is None else v for layer in layers]
        right.plot(values, color=colour, marker=marker, markersize=4, linewidth=1.4, label=label)
    bottom = min(
        0.8, *(v for layer in layers for v in (layer.correlation, layer.overlap) if v is not None), 1
    )
    right.set(
        xlabel="layer",
        ylabel="agreement (1: the same)",
        ylim=(np.floor(bottom * 10) / 10 - 0.02, 1.02),
        xticks=_layer_ticks(len(layers)),
    )
    headline(right, "Agreement of the halves, by layer")
    right.grid(color="0.92")
    right.legend(loc="lower right", framealpha=0.9)
    return figure


def _density(layers: Sequence[LayerSummary]) -> Any:
    figure, axes = _figure(8, 3.6)
    densities = [100 * layer.density for layer in layers]
    mean = float(np.mean(densities))
    axes.bar(range(len(layers)), densities, color=_BLUE, width=0.8)
    axes.axhline(mean, color=_ORANGE, linewidth=1.4, label=f"mean: {mean:.1f}%")
    axes.set(
        xlabel="layer",
        ylabel="neurons firing (%)",
        xlim=(-0.6, len(layers) - 0.4),
        ylim=(0, min(100.0, max([*densities, 1.0]) * 1.25)),
        xticks=_layer_ticks(len(layers)),
    )
    headline(axes, "Neurons that fire for a token")
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.legend(loc="upper right", framealpha=0.9)
    return figure


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """A figure of so many inches and its axes; without pyplot, which would keep it."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    axes = figure.subplots(1, columns)
    for part in np.ravel(axes):
        part.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _depths(n_layers: int) -> tuple[Any, Any]:
    """A colour for each layer and the scale that explains them."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(0, max(1, n_layers - 1)), colormaps["viridis"])
    return scale.to_rgba(np.arange(n_layers)), scale


def _layer_ticks(n_layers: int) -> list[int]:
    step = next((step for step in (1, 2, 5, 10, 20) if n_layers <= 12 * step), 50)
    return list(range(0, n_layers, step))


def _said(units: str, text: str) -> str:
    """A text about neurons as one about these units."""
    return text.replace("neuron", units.removesuffix("s"))


def _say(units: str, figure: Any) -> None:
    for text in figure.findobj(lambda artist: hasattr(artist, "get_text")):
        text.set_text(_said(units, text.get_text()))


def _png(figure: Any) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
    return data.getvalue()


def _median(layers: Sequence[LayerSummary], name: str) -> float:
    values = [v for layer in layers if (v := getattr(layer, name)) is not None]
    return float(np.median(values)) if values else 0.0


def _page(
    profile: ActivationProfile, layers: Sequence[LayerSummary], pictures: Mapping[str, tuple[bytes, str]]
) -> str:
    shares = [layer.hot_share for layer in layers]
    n_layers, neurons = profile.frequency.shape
    facts = [f"{n_layers} layers of {neurons:,} neurons, {profile.activation.value}", profile.corpus]
    if profile.tokens:
        facts.append(f"{profile.tokens:,} tokens")
    if profile.window:
        facts.append(f"windows of {profile.window:,} tokens, the first {profile.skipped} of each not counted")
    if profile.levels.any():
        facts.append("a neuron fires when it is among those that carry 90% of the layer's sum of |h|")
    lede = (
        f"In the median layer {np.median(shares):.0%} of the neurons make {PART:.0%} of the activations "
        f"({min(shares):.0%} to {max(shares):.0%} by layer). A token makes "
        f"{np.mean([layer.density for layer in layers]):.0%} of the neurons fire."
    )
    if profile.halves is not None:
        lede += (
            f" The frequencies in the text's two halves correlate with {_median(layers, 'correlation'):.3f}, "
            f"and {_median(layers, 'overlap'):.0%} of the hottest {TOP:.0%} are the same (median layers)."
        )
    columns = ["layer", "neurons firing", f"neurons for {PART:.0%}", "never fired", "mean |h|"]
    columns += ["halves correlate", f"same top {TOP:.0%}"] if profile.halves is not None else []
    rows = []
    for i, layer in enumerate(layers):
        cells = [
            str(i),
            f"{layer.density:.1%}",
            f"{layer.hot_share:.1%}",
            f"{layer.never:.1%}",
            f"{layer.magnitude:.4g}" if profile.magnitude.any() else "–",
        ]
        if profile.halves is not None:
            cells.append("–" if layer.correlation is None else f"{layer.correlation:.4f}")
            cells.append(f"{layer.overlap:.1%}")
        rows.append(cells)
    hashes = f"model <code>{profile.model_hash}</code>"
    if profile.corpus_hash:
        hashes += f"<br>text <code>{html.escape(profile.corpus_hash)}</code>"
    title = f"Activation profile of {html.escape(profile.model)}"
    body = [
        f"<h1>{title}</h1>",
        f'<p class="facts">{html.escape(_said(profile.units, " · ".join(facts)))}</p>',
        f"<p>{html.escape(_said(profile.units, lede))}</p>",
        *(figure(name, data, caption) for name, (data, caption) in pictures.items()),
        "<h2>Layer by layer</h2>",
        table([_said(profile.units, column) for column in columns], rows),
        f'<p class="facts">{hashes}</p>',
    ]
    return document(title, body)
