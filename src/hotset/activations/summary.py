"""What a profile says of each layer, in a few numbers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotset.activations.profile import ActivationProfile
from hotset.backends.contract import F32

PART = 0.8
"""The part of all activations by whose neurons locality is judged, as in PowerInfer's paper."""
TOP = 0.2
"""The part of the neurons whose agreement between halves is judged."""


@dataclass(frozen=True)
class LayerSummary:
    """One layer; all shares are from 0 to 1."""

    density: float
    """Neurons that fire for a token, on average."""
    hot_share: float
    """Neurons, the hottest first, that make 80 % of the activations; 0 where nothing fires."""
    never: float
    """Neurons that never fired."""
    magnitude: float
    """Mean of |h| over all neurons and tokens; 0 where unknown."""
    correlation: float | None
    """Pearson's, of the neurons' frequencies in the corpus's two halves; None where it is not defined."""
    overlap: float | None
    """Of the hottest fifth of the neurons in the first half, those that are so in the second as well."""
    inside: float | None = None
    """Neurons of a selected expert that fire; None where that was not counted."""


def summarise(profile: ActivationProfile) -> list[LayerSummary]:
    """A summary for every layer."""
    halves = profile.halves
    return [
        LayerSummary(
            density=float(profile.density[i]),
            hot_share=hot_share(frequency),
            never=float((frequency == 0).mean()),
            magnitude=float(profile.magnitude[i].mean(dtype=np.float64)),
            correlation=None if halves is None else _correlation(halves[0, i], halves[1, i]),
            overlap=None if halves is None else _overlap(halves[0, i], halves[1, i]),
            inside=None if profile.inside is None else float(profile.inside[i]),
        )
        for i, frequency in enumerate(profile.frequency)
    ]


def cumulated(frequency: F32) -> NDArray[np.float64]:
    """(F + 1,): the share of a layer's activations that its 0, 1 … F hottest neurons make."""
    sums = np.concatenate([[0.0], np.cumsum(np.sort(frequency)[::-1], dtype=np.float64)])
    return sums / sums[-1] if sums[-1] else sums


def hot_share(frequency: F32, part: float = PART) -> float:
    """Share of a layer's neurons, the hottest first, that make `part` of its activations."""
    if not frequency.any():
        return 0.0
    return float(np.searchsorted(cumulated(frequency), part - 1e-9) / frequency.size)


def _correlation(first: F32, second: F32) -> float | None:
    if first.min() == first.max() or second.min() == second.max():
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _overlap(first: F32, second: F32) -> float:
    count = max(1, round(TOP * first.size))
    one, other = (np.argsort(-half, kind="stable")[:count] for half in (first, second))
    return np.intersect1d(one, other).size / count
