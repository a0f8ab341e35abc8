"""What choosing neurons starts from: a model, the same stored by neuron, and texts cut into three parts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset.activations.capture import capture, windows_of
from hotset.activations.profile import ActivationProfile
from hotset.backends.alone import view_alone
from hotset.backends.contract import F32, FFN, BatchView, Linear, NeuronFFNSpec
from hotset.convert.by_neuron import convert
from hotset.core.config import FFNPlan, Way
from hotset.core.errors import HotsetError, RequestError
from hotset.formats import open_checkpoint
from hotset.formats.checkpoint import Checkpoint, refuse_mixture
from hotset.formats.output import scratch
from hotset.formats.tensor import TensorType
from hotset.model.build import neuron_ffn_spec
from hotset.model.transformer import Transformer

WINDOW = 512
SKIPPED = 16
"""First tokens of each window that are not learnt from: attention sinks, which are computed densely
(`hotset.model.transformer.SINK_TOKENS`)."""

Window = NDArray[np.int32]
Progress = Callable[[int, int], None]
"""Told (done, total)."""
Stage = Callable[[str], AbstractContextManager[Progress | None]]
"""Given the name of what begins, a context in which its progress is told."""


@dataclass(frozen=True)
class Windows:
    """Windows of tokens to learn from, to set cut-offs by, and to judge with."""

    train: list[Window]
    tune: list[Window]
    held_out: list[Window]


def split(
    texts: Sequence[Sequence[int]],
    judging: Sequence[Sequence[int]],
    window: int,
    bos: int | None,
    limit: int,
) -> Windows:
    """Cut token ids into windows, at most `limit` tokens of all texts together, each text giving alike.

    Without texts for `judging`, each text's last fifth is held out. Another fifth, before it, sets cut-offs,
    so that neighbouring passages are not on both sides. Raises `RequestError` for texts that are too short.
    """
    parts = Windows([], [], [])
    for ids in texts:
        windows = windows_of(ids[: limit // len(texts)], window, bos)
        fifth = len(windows) // 5
        last = len(windows) if judging else len(windows) - fifth
        parts.train.extend(windows[: last - fifth])
        parts.tune.extend(windows[last - fifth : last])
        parts.held_out.extend(windows[last:])
    for ids in judging:
        parts.held_out.extend(windows_of(ids[: limit // len(judging)], window, bos))
    if not parts.tune or not parts.held_out:
        needed, given = (5 * window, texts) if not parts.tune else (window, judging)
        raise RequestError(
            f"too little text: expected a file of {needed} tokens or more, found "
            f"{max(map(len, given))}, of which --tokens allows {limit // len(given)}"
        )
    return parts


def inputs(transformer: Transformer, windows: Sequence[Window], stage: Stage) -> list[F32]:
    """What every layer's FFN reads, (T, D) each, without the windows' first tokens."""
    found: list[list[F32]] = [[] for _ in transformer.layers]
    with stage("Reading text") as bar:
        capture(
            transformer,
            windows,
            lambda layer, x, gate, h: found[layer].append(x.copy()),
            skip=SKIPPED,
            done=(lambda count: bar(count, len(windows))) if bar else None,
        )
    return [np.concatenate(rows) for rows in found]


@dataclass(frozen=True)
class Study:
    """A dense model, and its FFNs stored by neuron, hottest first."""

    transformer: Transformer
    specs: list[NeuronFFNSpec]
    """Of each layer, with a dense plan."""
    order: NDArray[np.int64]
    """(L, F): where each stored neuron is in the model."""

    def dense_ffns(self) -> list[FFN]:
        """The model's own FFNs."""
        return [layer.ffn for layer in self.transformer.layers]

    def build(self, layer: int, plan: FFNPlan | None = None, predictor: tuple[Linear, ...] = ()) -> FFN:
        """A layer's FFN under a plan, for single rows and without a sequence, as in decoding; None: dense."""
        spec = self.specs[layer]
        spec = replace(spec, plan=plan, predictor=predictor) if plan else spec
        backend = self.transformer.backend
        return _AloneFFN(backend.neuron_ffn(spec), view_alone(backend, 1, [spec.plan.cutoff]))


@dataclass(frozen=True)
class _AloneFFN:
    """An FFN that sees a row of a sequence of its own, whatever the caller's."""

    ffn: FFN
    view: BatchView

    def forward(self, x: F32, out: F32, view: BatchView = None) -> None:
        self.ffn.forward(x, out, self.view)

    def neurons(self, x: F32, gate: F32, h: F32) -> None:
        self.ffn.neurons(x, gate, h)


@contextmanager
def study(
    checkpoint: Checkpoint,
    transformer: Transformer,
    profile: ActivationProfile,
    out: Path,
    ffn_type: TensorType | None,
    plan: FFNPlan,
    stage: Stage,
) -> Iterator[Study]:
    """Store a model by neuron, for the time being in a directory beside `out`, as `plan` asks for.

    Raises `HotsetError` as `hotset.convert.by_neuron.convert` does, and for a model stored so already.
    """
    refuse_mixture(checkpoint, "run the file as it is: its router chooses experts already")
    if any(layer.ffn for layer in checkpoint.config.layers):
        raise HotsetError(
            f"{checkpoint.path} is stored by neuron already: name the model that it was converted from"
        )
    with scratch(out) as directory:
        path = directory / "by-neuron.gguf"
        plans = [plan] * checkpoint.config.n_layers
        with stage("Storing by neuron") as bar:
            convert(checkpoint, path, profile, plans, ffn_type=ffn_type, progress=bar)
        stored = open_checkpoint(path)
        specs = [neuron_ffn_spec(stored, i, FFNPlan(Way.DENSE)) for i in range(len(plans))]
        yield Study(transformer, specs, profile.order)
