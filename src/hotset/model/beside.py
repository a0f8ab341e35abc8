"""Layers with an ordinary FFN and a mixture of experts side by side (Gemma 4 26B-A4B)."""

from dataclasses import dataclass

import numpy as np

from hotset.backends.contract import F32, FFN, Array, BatchView, Experts, Norm
from hotset.backends.maths import normalise


@dataclass(frozen=True)
class Beside:
    """What such a layer has besides its two parts."""

    router_norm: Norm
    """Of what the router reads: the FFN's input."""
    factors: F32
    """(E,), on what each expert gives; positive."""
    post_norm: Norm
    """Of both parts' sum."""


class FFNBesideExperts:
    """``out += post_norm(ffn(x) + experts(x))``, each part with norms of its own; arrays are NumPy's."""

    def __init__(self, ffn: FFN, experts: Experts, beside: Beside) -> None:
        self.ffn, self.experts, self.beside = ffn, experts, beside

    def forward(self, x: Array, out: Array, view: BatchView) -> None:
        """See `FFN`."""
        both = np.zeros_like(x)
        self.ffn.forward(x, both, view)
        logits = self.experts.route(normalise(x, self.beside.router_norm))
        weights = self.experts.select(x, logits)
        self.experts.add(x, both, weights * self.beside.factors)
        out += normalise(both, self.beside.post_norm)

    def neurons(self, x: Array, gate: F32, h: F32) -> None:
        """See `FFN`: those of the ordinary one."""
        self.ffn.neurons(x, gate, h)
