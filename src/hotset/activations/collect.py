"""Makes an activation profile: reads a text with a model and counts, neuron by neuron, what fires.

The sums run window by window in a fixed order, so that equal input gives equal bits, also when a run is
interrupted and continued. Nothing is kept of pairs of neurons (co-activation): placement and conversion go by
each neuron's own frequency.
"""

import contextlib
import copy
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset.activations.capture import capture
from hotset.activations.profile import SCHEMA, ActivationProfile, read_arrays, units_of, write_arrays
from hotset.backends.contract import F32
from hotset.core.errors import HotsetError
from hotset.model.transformer import Transformer

SKIP = 4
"""First tokens of a window that are not counted: there sit the attention sinks, unlike all later tokens."""
_LEVEL_SHARE = 0.9
"""Share of the sum of |h| that firing neurons carry where the activation produces no zeros."""
_LEVEL_WINDOWS = 4
"""Windows, spread over the text, from which levels are estimated."""
_SAVE_SECONDS = 30.0


def collect(
    transformer: Transformer,
    windows: Sequence[NDArray[np.int32]],
    *,
    model: str,
    corpus: str,
    fingerprint: F32,
    skip: int = SKIP,
    partial: Path | None = None,
    save_seconds: float = _SAVE_SECONDS,
    count_fired: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ActivationProfile:
    """Profile the neurons of a transformer over windows of tokens, of equal length.

    `model`, `corpus` and `fingerprint` go into the profile (`ActivationProfile`). Every `save_seconds`, and
    at an interruption, the sums of whole windows are written to `partial`; if that file is there, of the same
    model and text, its windows are not read again. Whoever saves the profile removes it.
    `count_fired` also counts which share of an expert's neurons fires, in mixtures whose activation produces
    zeros; their neurons are computed once more for that. `progress(done, total)` counts tokens. Raises
    `HotsetError` for fewer than two windows and for what the model or the system refuses.
    """
    if len(windows) < 2 or len(windows[0]) <= skip:
        raise HotsetError(
            f"the text has {len(windows)} windows of {len(windows[0]) if windows else 0} tokens: expected at "
            f"least two of more than {skip} tokens"
        )
    length = len(windows[0])
    corpus_hash = hashlib.sha256(b"".join(window.astype("<i4").tobytes() for window in windows)).hexdigest()
    identity = f"{SCHEMA} {corpus_hash} {length} {skip} {transformer.config.activation.value} {count_fired}"
    sums = partial and _Sums.load(partial, identity, fingerprint)
    if not sums:
        sums = _Sums(transformer, firing_levels(transformer, windows, skip))
    already, half = sums.windows, len(windows) // 2
    saved = time.monotonic()
    unsaved = None if already else copy.deepcopy(sums)

    counts = count_fired and counts_inside(transformer)

    def observe(layer: int, x: F32, gate: F32, h: F32) -> None:
        if counts:
            sums.inside[layer] += float(gate.sum(dtype=np.float64)), np.count_nonzero(h > 0)
        np.abs(h, out=h)
        sums.fired[int(sums.windows >= half), layer] += np.count_nonzero(h > sums.levels[layer], axis=0)
        sums.magnitude[layer] += h.sum(axis=0, dtype=np.float64)

    def done(count: int) -> None:
        nonlocal saved, unsaved
        sums.windows = already + count
        if partial and time.monotonic() - saved >= save_seconds:
            sums.save(partial, identity, fingerprint)
            saved, unsaved = time.monotonic(), None
        elif partial:
            unsaved = copy.deepcopy(sums)
        if progress:
            progress(sums.windows * length, len(windows) * length)

    try:
        capture(transformer, windows[already:], observe, skip=skip, count_fired=counts, done=done)
    except (KeyboardInterrupt, SystemExit):
        if partial and unsaved:
            with contextlib.suppress(HotsetError):
                unsaved.save(partial, identity, fingerprint)
        raise
    tokens = len(windows) * (length - skip)
    halves = half * (length - skip), (len(windows) - half) * (length - skip)
    return ActivationProfile(
        model=model,
        activation=transformer.config.activation,
        corpus=corpus,
        corpus_hash=corpus_hash,
        tokens=tokens,
        window=length,
        skipped=skip,
        fingerprint=fingerprint,
        levels=sums.levels,
        frequency=(sums.fired.sum(axis=0) / tokens).astype(np.float32),
        magnitude=(sums.magnitude / tokens).astype(np.float32),
        units=units_of(transformer.config),
        inside=_inside(transformer, sums.inside) if counts else None,
        halves=(sums.fired / np.reshape(halves, (2, 1, 1))).astype(np.float32),
    )


def firing_levels(transformer: Transformer, windows: Sequence[NDArray[np.int32]], skip: int) -> F32:
    """(L,) levels above which a neuron's |h| counts as firing: 0 where the activation produces zeros, or
    the units are experts.

    Elsewhere, over a few windows spread over the text, the values above a layer's level carry 90 % of its
    sum of |h|; levels are rounded down to eight bits of mantissa, the bins in which the sums are kept.
    """
    n_layers = transformer.config.n_layers
    if transformer.config.activation.zero_producing or transformer.config.mixture:
        return np.zeros(n_layers, np.float32)
    sums = np.zeros((n_layers, 1 << 15))

    def observe(layer: int, x: F32, gate: F32, h: F32) -> None:
        np.abs(h, out=h)
        bins = np.ascontiguousarray(h).view(np.uint32).ravel() >> 16  # a float's exponent and upper mantissa
        sums[layer] += np.bincount(bins, weights=h.ravel(), minlength=1 << 15)

    step = max(1, len(windows) // _LEVEL_WINDOWS)
    capture(transformer, windows[::step][:_LEVEL_WINDOWS], observe, skip=skip)
    from_top = sums[:, ::-1].cumsum(axis=1)
    count = (from_top < _LEVEL_SHARE * from_top[:, -1:]).sum(axis=1)
    bins = ((1 << 15) - 1 - count).astype(np.uint32)
    levels: F32 = (bins << 16).view(np.float32)
    return levels


def counts_inside(transformer: Transformer) -> bool:
    """Whether a share of each expert's neurons can be zero, so that it is worth counting."""
    config = transformer.config
    return config.mixture and config.activation.zero_producing


def _inside(transformer: Transformer, sums: NDArray[np.float64]) -> F32:
    """(L,): of the neurons of experts that were selected, those that fired; 0 in layers without experts."""
    sizes = [layer.experts.size if layer.experts else 1 for layer in transformer.config.layers]
    share: F32 = (sums[:, 0] / np.maximum(sums[:, 1] * sizes, 1)).astype(np.float32)
    return share


class _Sums:
    """What has been counted so far."""

    def __init__(self, transformer: Transformer, levels: F32) -> None:
        shape = transformer.config.n_layers, transformer.config.profiled_units
        self.windows = 0
        self.levels = levels
        self.fired = np.zeros((2, *shape), np.int64)
        self.magnitude = np.zeros(shape, np.float64)
        self.inside = np.zeros((shape[0], 2), np.float64)  # neurons that fired, and experts selected

    def save(self, path: Path, identity: str, fingerprint: F32) -> None:
        write_arrays(
            path,
            {
                "identity": np.array(identity),
                "fingerprint": fingerprint,
                "windows": np.array(self.windows),
                "levels": self.levels,
                "fired": self.fired,
                "magnitude": self.magnitude,
                "inside": self.inside,
            },
        )

    @classmethod
    def load(cls, path: Path, identity: str, fingerprint: F32) -> "_Sums | None":
        """The sums of an interrupted run; None if there are none, or they are of something else."""
        try:
            arrays = read_arrays(path)
            same = str(arrays["identity"]) == identity
            if not (same and np.array_equal(arrays["fingerprint"], fingerprint)):
                return None
            sums = cls.__new__(cls)
            sums.windows = int(arrays["windows"])
            sums.levels, sums.fired, sums.magnitude = (arrays[k] for k in ("levels", "fired", "magnitude"))
            sums.inside = arrays["inside"]
        except (HotsetError, KeyError, ValueError, TypeError):
            return None
        return sums
