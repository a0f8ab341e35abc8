"""The native parts as the contract has them."""

from typing import NamedTuple

import numpy as np

from hotset import _native
from hotset.backends.blocks import dequantise
from hotset.backends.contract import F32, EmbeddingSpec, LayerInputsSpec, Norm
from hotset.backends.maths import layer_inputs, normalise
from hotset.core.batch import I32
from hotset.core.errors import RequestError

COUNTED = _native.COUNTED
"""Neighbours that are counted together where it is counted who fires."""


class CpuEmbedding:
    """The table stays as it is in the file; rows are dequantised as they are asked for."""

    def __init__(self, spec: EmbeddingSpec) -> None:
        self._tokens = spec.tokens
        self._scale = np.float32(spec.scale)
        self._positions = spec.positions
        self._position_offset = spec.position_offset

    def forward(self, tokens: I32, positions: I32) -> F32:
        try:
            x = dequantise(self._tokens, tokens)
        except IndexError as error:
            raise RequestError(
                f"token {error}: expected 0 to {self._tokens.shape[0] - 1}; is the tokenizer another model's?"
            ) from None
        if self._scale != 1:
            with np.errstate(over="ignore", invalid="ignore"):  # damage shows in what is computed
                x *= self._scale
        if self._positions is not None:
            try:
                x += dequantise(self._positions, positions + np.int32(self._position_offset))
            except IndexError:
                raise RequestError(
                    f"position {positions.max()}: the model has "
                    f"{self._positions.shape[0] - self._position_offset} positions; shorten the prompt"
                ) from None
        return x


class CpuHead:
    """The final norm and the output projection."""

    def __init__(self, native: _native.Head, vocab_size: int, norm: Norm) -> None:
        self._native = native
        self._vocab_size = vocab_size
        self._norm = norm

    def forward(self, x: F32) -> F32:
        logits = np.empty((len(x), self._vocab_size), np.float32)
        self._native.forward(x, logits)
        return logits

    def normed(self, x: F32) -> F32:
        return normalise(x, self._norm)


class CpuLayerInputs:
    """Each layer's own embedding of the tokens; the table stays as it is in the file."""

    def __init__(self, spec: LayerInputsSpec, project: CpuHead) -> None:
        self._spec = spec
        self._project = project

    def forward(self, tokens: I32, x: F32) -> F32:
        return layer_inputs(self._spec, dequantise(self._spec.rows, tokens), self._project.forward(x))


class CpuLayerInput:
    """What one layer's own embedding adds."""

    def __init__(self, native: _native.LayerInput) -> None:
        self.native = native

    def forward(self, x: F32, e: F32, out: F32) -> None:
        self.native.forward(x, np.ascontiguousarray(e), out)


# A part's forward() is the native one itself: a call of Python's less for each part of each token.


class CpuAttention:
    """One layer's attention."""

    def __init__(self, native: _native.Attention | _native.LatentAttention) -> None:
        self.native = native
        self.forward = native.forward


class CpuFFN:
    """An FFN of which every neuron is computed."""

    def __init__(self, native: _native.FFN) -> None:
        self.native = native
        self.forward = native.forward
        self.neurons = native.neurons


class Tally(NamedTuple):
    """What an FFN stored by neuron has computed for rows for which neurons were chosen."""

    rows: int
    chosen: int
    """Neurons, summed over rows."""
    fired: list[int]
    """Values that were not zero, of each `COUNTED` neighbours, summed over rows."""


class CpuNeuronFFN:
    """An FFN stored by neuron."""

    def __init__(self, native: _native.NeuronFFN) -> None:
        self.native = native
        self.forward = native.forward
        self.neurons = native.neurons
        self.parts = native.parts
        """Sums that its neurons are added up in."""

    @property
    def tally(self) -> Tally:
        """What was computed so far, for all sequences."""
        return Tally(*self.native.tally)
