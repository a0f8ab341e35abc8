"""Draws what `hotset demo` found as one page (HTML) that tells the story. Needs matplotlib."""

import html
from collections.abc import Iterator
from pathlib import Path

from hotset.activations.summary import summarise
from hotset.draw.page import document, figure, table
from hotset.draw.plots import plot_sweep
from hotset.draw.profile_page import draw_pictures
from hotset.formats.output import scratch, written
from hotset.measure.demo import Demo, Predicted, Rate
from hotset.measure.demo_predictor import TARGET

_TITLE = "Hotset on this computer"
_GAIN = 1.05
"""Times as fast from which on one speaks of a gain; less is lost in what else the machine does."""


def is_demo_page(path: Path) -> bool:
    """Whether a file is a page that was written here."""
    return f"<title>{_TITLE}".encode() in path.read_bytes()[:1000]


def write_demo_page(demo: Demo, machine: str, path: Path) -> None:
    """Write the page, whole or not at all; `machine` names the processor."""
    swapped = bool(demo.points)
    facts = f"{demo.model} · {machine} · {demo.threads} threads · kernels for {demo.level}"
    body = [
        f"<h1>{_TITLE}</h1>",
        f'<p class="facts">{html.escape(facts)}</p>',
        f"<p>{_lede(demo)}</p>",
        *_who_fires(demo),
        *(_small_left_out(demo, path) if swapped else ()),
        *_zeros(demo, swapped),
        *_predictor(demo),
        *_speed(demo, swapped),
        "<h2>And now</h2>",
        "<p><code>hotset profile</code>, <code>hotset convert</code>, <code>hotset train-predictor</code> "
        "and <code>hotset calibrate</code> do this with your model and your texts; <code>hotset bench</code> "
        "and <code>hotset eval</code> measure what comes of it. A mixture of experts needs none of that: its "
        "router says what to read.</p>",
    ]
    page = document(f"{_TITLE}: {html.escape(demo.model)}", body)
    with written(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _lede(demo: Demo) -> str:
    lede = (
        "For every token a language model multiplies with all its weights, although many of the results "
        "hardly count. Hotset finds out which neurons fire, stores each as one run of memory, and reads only "
        "those. "
    )
    if demo.points:
        lede += (
            f"This model was trained with {demo.profile.activation.value}, which has no zeros. What it gains "
            "as it is comes first; what a ReLU model gains follows, by the same weights with ReLU put in: "
            "<strong>its text is nonsense, its speed is real.</strong> "
        )
    ratio = demo.sparse.over(demo.dense).median
    lede += (
        f"With {demo.density:.0%} of the neurons computed it decodes <strong>{ratio:.2f} times</strong> as "
        "fast as with all."
    )
    if ratio < _GAIN:
        lede += (
            " That is no gain: so many neurons fire, and so short are the runs of so small a model, that "
            "reading all of them in order costs no more. Models of seven billion weights in which a tenth "
            "fires are 1.4 to 2.1 times as fast."
        )
    return lede


def _who_fires(demo: Demo) -> Iterator[str]:
    profile = demo.profile
    layers = summarise(profile)
    shares = sorted(layer.hot_share for layer in layers)
    yield "<h2>Who fires</h2>"
    meaning = (
        "A neuron counts as firing when it is among those that carry 90% of the layer's sum of |h|. "
        if profile.levels.any()
        else ""
    )
    yield (
        f"<p>The model read {profile.tokens} tokens of built-in text. {meaning}A token makes "
        f"{sum(layer.density for layer in layers) / len(layers):.0%} of the neurons fire, and in the median "
        f"layer {shares[len(shares) // 2]:.0%} of the neurons make 80% of the activations.</p>"
    )
    pictures = draw_pictures(profile, layers)
    yield from (figure(name, *pictures[name]) for name in ("heat", "power-law"))


def _small_left_out(demo: Demo, path: Path) -> Iterator[str]:
    yield "<h2>Leaving out the small</h2>"
    with scratch(path) as directory:
        picture = directory / "sweep.png"
        plot_sweep(demo.points, "Speed by the share of neurons computed", picture)
        png = picture.read_bytes()
    best = max(demo.points, key=lambda point: point.decode_tokens_per_second)
    full = max(demo.points, key=lambda point: point.density)
    yield (
        "<p>No neuron of this model is exactly zero. What is small can be left out, at the price of some "
        "quality: a threshold is held against each neuron's gate, which is computed first. At best, with "
        f"{best.density:.0%} of the neurons, it decodes {best.decode_tokens_per_second:.0f} tokens/s, with "
        f"{full.density:.0%} of them {full.decode_tokens_per_second:.0f}, each measured once; without a "
        f"threshold {demo.original.median:.0f}, as timed below. How many may go before answers suffer is "
        "measured by <code>hotset calibrate</code>, within a budget; here it is often none.</p>"
    )
    caption = (
        "Tokens/s by the share of neurons that a threshold lets through, beside what memory would allow."
    )
    yield figure("thresholds", png, caption)


def _zeros(demo: Demo, swapped: bool) -> Iterator[str]:
    divergence = demo.quality.divergence
    if swapped and divergence:
        yield "<h2>With ReLU: zeros</h2>"
        yield (
            "<p>The same weights with ReLU as the activation. Models are trained for that (ProSparse, "
            "TurboSparse); this one was not: its perplexity on the built-in text goes from "
            f"{divergence.reference_perplexity:.1f} to {demo.quality.perplexity:.0f}. "
            f"{sum(demo.relu.density) / len(demo.relu.density):.0%} of the neurons are not zero.</p>"
        )
        pictures = draw_pictures(demo.relu, summarise(demo.relu))
        yield from (figure(name, *pictures[name]) for name in ("heat", "density"))


def _predictor(demo: Demo) -> Iterator[str]:
    yield "<h2>A predictor</h2>"
    if isinstance(demo.predicted, str):
        yield f"<p>This step was left out: {html.escape(demo.predicted)}.</p>"
        return
    found, divergence = demo.predicted.predictors, demo.predicted.quality.divergence
    yield (
        "<p>To know which neurons are zero, their gates must be read. A predictor names the neurons before "
        "anything of them is read: two narrow matrices for each layer, trained here on "
        f"{found.tokens} tokens of Python's own documentation, {found.share:.0%} of the FFN's bytes. Each "
        f"chooses as many neurons as keep {TARGET:.0%} of what a layer's neurons add. "
        "What is missed is lost.</p>"
    )
    yield table(
        ["on text that was held out", "mean of the layers"],
        [
            ("of the neurons that fire, chosen (recall)", f"{found.mean(lambda c: c.recall):.0%}"),
            ("of the chosen, those that fire (precision)", f"{found.mean(lambda c: c.precision):.0%}"),
            ("of all neurons, chosen", f"{found.mean(lambda c: c.chosen):.0%}"),
            ("of what the neurons add, kept", f"{found.mean(lambda c: c.kept):.1%}"),
        ],
    )
    if divergence:
        yield (
            "<p>On the built-in text, the KL divergence from the same file with all neurons computed is "
            f"{divergence.kl_mean:.2g} nats; both find the same token likeliest in "
            f"{divergence.top1_agreement:.0%} of the places.</p>"
        )


def _speed(demo: Demo, swapped: bool) -> Iterator[str]:
    yield "<h2>Speed</h2>"
    exactness = demo.exactness.divergence
    if exactness:
        yield (
            f"<p>Stored by neuron, the model computes {demo.density:.0%} of a token's neurons: those that "
            "are not zero, found by computing each gate. Nothing is guessed: the KL divergence from the same "
            f"file with all neurons computed is {max(exactness.kl_mean, 0):.2g} nats.</p>"
        )
    rows = [
        ("all neurons, with ReLU" if swapped else "all neurons", demo.dense),
        ("those that are not zero", demo.sparse),
    ]
    if isinstance(demo.predicted, Predicted):
        rows.append((f"those that predictors name ({demo.predicted.density:.0%})", demo.predicted.rate))
    if swapped:
        rows.insert(0, (f"all neurons, as it is ({demo.profile.activation.value})", demo.original))
    yield table(
        ["", "decoded tokens/s, median", "lowest to highest", "times all neurons"],
        [
            (html.escape(name), f"{rate.median:.1f}", _span(rate, 1), f"{rate.over(demo.dense).median:.2f}")
            for name, rate in rows
        ],
    )
    if isinstance(demo.predicted, Predicted) and demo.predicted.rate.over(demo.sparse).median < 1:
        yield (
            "<p>The predictors do not pay here: asking them costs time, and of the neurons that they name "
            "many are zero. They pay where few neurons fire and rows are long.</p>"
        )
    ratio = demo.sparse.over(demo.dense)
    yield (
        f'<p class="facts">{len(ratio.rounds)} rounds in turn; ratios round by round, {_span(ratio, 2)}. '
        "Other programs that ran meanwhile took their share.</p>"
    )


def _span(rate: Rate, digits: int) -> str:
    return f"{min(rate.rounds):.{digits}f} to {max(rate.rounds):.{digits}f}"
