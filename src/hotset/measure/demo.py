"""The whole idea on one model: who fires, the model stored by neuron, a predictor, and how fast it decodes.

A model whose activation has no zeros is shown twice: as it is, with neurons left out by thresholds, and with
ReLU in its activation's place. It was not trained for that and writes nonsense then, but its speed is that of
a ReLU model of its shape in which as many neurons fire.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from hotset.activations.collect import collect
from hotset.activations.corpus import corpus_windows
from hotset.activations.profile import ActivationProfile, fingerprint
from hotset.activations.sample_text import SUBJECTS, sample_text
from hotset.convert.by_neuron import convert
from hotset.core.config import Activation, Way
from hotset.core.errors import HotsetError
from hotset.formats.checkpoint import Checkpoint, refuse_mixture
from hotset.measure.demo_predictor import Predictors, obstacle, store_with_predictors
from hotset.measure.perplexity import Evaluation, evaluate, tokenize
from hotset.measure.speed import Sizes, Speed, measure
from hotset.measure.sweep import PLAN, SweepPoint, sweep
from hotset.serve.load import load_model
from hotset.serve.loaded import Model
from hotset.sparsify.study import Stage

_WINDOW = 64
"""Tokens read at a time: several windows of each subject of the built-in text."""
_SIZES = Sizes(prompt_tokens=0, tokens=96, repeats=1)
_ROUNDS = 5
_DENSITIES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


@dataclass(frozen=True)
class Rate:
    """Decoded tokens/s over the rounds."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The rounds' median."""
        return median(self.rounds)

    def over(self, other: "Rate") -> "Rate":
        """Ratios, round by round."""
        return Rate(tuple(a / b for a, b in zip(self.rounds, other.rounds, strict=True)))


@dataclass(frozen=True)
class Predicted:
    """With ReLU, stored by neuron, those computed that predictors name."""

    predictors: Predictors
    rate: Rate
    density: float
    """Share of neurons that were chosen."""
    quality: Evaluation
    """Against the same file with all neurons computed."""


@dataclass(frozen=True)
class Demo:
    """What was found; a GB is 10^9 bytes."""

    model: str
    threads: int
    level: str
    """Instruction set of the kernels."""
    profile: ActivationProfile
    """Of the model as it is."""
    relu: ActivationProfile
    """With ReLU; the same where the model has zeros of its own."""
    points: tuple[SweepPoint, ...]
    """The model as it is, at densities that thresholds give; empty where it has zeros."""
    original: Rate
    """The model as it is, all neurons computed."""
    dense: Rate
    """With ReLU, stored as the model is."""
    sparse: Rate
    """With ReLU, stored by neuron, those that are not zero computed."""
    density: float
    """Share of neurons that `sparse` computed."""
    quality: Evaluation
    """Of the dense model with ReLU, against the model as it is."""
    exactness: Evaluation
    """Of the one stored by neuron, against the same file with all neurons computed."""
    predicted: Predicted | str
    """Or why no predictors were trained."""


def run_demo(checkpoint: Checkpoint, directory: Path, *, threads: int | None, stage: Stage) -> Demo:
    """Run the demo; files are written into `directory` and needed only by it.

    Raises `HotsetError` for a model that is a mixture, or stored by neuron already.
    """
    refuse_mixture(checkpoint, "name a dense model")
    if any(layer.ffn for layer in checkpoint.config.layers):
        raise HotsetError(f"{checkpoint.path} is stored by neuron already: name what it was converted from")
    original = _load(checkpoint, threads, stage)
    profile = _profile(original, checkpoint, stage)
    points: Sequence[SweepPoint] = ()
    with_zeros, dense, relu = checkpoint, original, profile
    if not checkpoint.config.activation.zero_producing:
        points = _by_threshold(checkpoint, profile, directory / "threshold.gguf", threads, stage)
        with_zeros = replace(checkpoint, config=replace(checkpoint.config, activation=Activation.RELU))
        dense = _load(with_zeros, threads, stage)
        relu = _profile(dense, with_zeros, stage)
    path = directory / "by-neuron.gguf"
    with stage("Storing by neuron") as bar:
        convert(with_zeros, path, relu, threads=original.backend.threads, progress=bar)
    sparse, stored_dense = (load_model(path, threads=threads, ffn=way) for way in (None, Way.DENSE))
    racing = [original, dense, sparse]
    found: Predictors | str = obstacle(checkpoint)
    if not found:
        path = directory / "predictors.gguf"
        found = store_with_predictors(with_zeros, dense, relu, path, stage)
        racing.append(load_model(path, threads=threads))
    ids = tokenize(sample_text(), original)
    window = min(2 * _WINDOW, len(ids), checkpoint.config.context_length)
    with stage("Reading with each") as bar:
        quality = evaluate(dense, ids, against=original, window=window, progress=bar)
        exactness, *guessed = (
            evaluate(model, ids, against=stored_dense, window=window, progress=bar) for model in racing[2:]
        )
    (as_it_is, _), (all_neurons, _), (not_zero, density), *named = _race(racing, stage)
    return Demo(
        model=checkpoint.path.name,
        threads=original.backend.threads,
        level=original.backend.level,
        profile=profile,
        relu=relu,
        points=tuple(points),
        original=as_it_is,
        dense=all_neurons,
        sparse=not_zero,
        density=density,
        quality=quality,
        exactness=exactness,
        predicted=found if isinstance(found, str) else Predicted(found, *named[0], guessed[0]),
    )


def _load(checkpoint: Checkpoint, threads: int | None, stage: Stage) -> Model:
    with stage("Loading") as bar:
        return load_model(checkpoint, threads=threads, progress=bar)


def _profile(model: Model, checkpoint: Checkpoint, stage: Stage) -> ActivationProfile:
    texts = list(SUBJECTS.values())
    with stage("Watching who fires") as bar:
        return collect(
            model.transformer,
            corpus_windows(model.tokenizer, texts, min(_WINDOW, model.config.context_length)),
            model=checkpoint.path.name,
            corpus="built-in text",
            fingerprint=fingerprint(checkpoint),
            progress=bar,
        )


def _by_threshold(
    checkpoint: Checkpoint, profile: ActivationProfile, path: Path, threads: int | None, stage: Stage
) -> list[SweepPoint]:
    with stage("Storing by neuron") as bar:
        convert(checkpoint, path, profile, progress=bar)
    model = load_model(path, threads=threads, ffn=PLAN)
    with stage("Leaving out the small") as bar:
        return sweep(model, _DENSITIES, progress=bar)


def _race(models: Sequence[Model], stage: Stage) -> list[tuple[Rate, float]]:
    """Decode with each in turn: rates, and the share of neurons computed."""
    found: list[list[Speed]] = [[] for _ in models]
    with stage("Timing in turn") as bar:
        for done in range(_ROUNDS):
            for model, speeds in zip(models, found, strict=True):
                speeds.append(measure(model, _SIZES))
            if bar:
                bar(done + 1, _ROUNDS)
    return [
        (
            Rate(tuple(speed.decode_tokens_per_second or 0.0 for speed in speeds)),
            1.0 if speeds[-1].density is None else speeds[-1].density,
        )
        for speeds in found
    ]
