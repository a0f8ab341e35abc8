"""What a backend is: it builds the parts that `hotset.backends.contract` describes."""

from collections.abc import Sequence as ListOf
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hotset.backends.contract import (
    FFN,
    Array,
    AttentionSpec,
    BatchView,
    Embedding,
    EmbeddingSpec,
    Experts,
    ExpertsSpec,
    FFNSpec,
    Head,
    HeadSpec,
    LatentSpec,
    LayerInput,
    LayerInputs,
    LayerInputSpec,
    LayerInputsSpec,
    Mixer,
    NeuronFFNSpec,
    RecurrentSpec,
    StateShape,
)
from hotset.core.batch import Batch, Sequence


class Chain(Protocol):
    """Parts that run one after another, each of which reads what those before it have added."""

    def forward(self, x: Array, view: BatchView) -> None:
        """Each adds to x (T, D)."""


class Backend(Protocol):
    """Builds the parts. Tensors may be released once their part is built."""

    name: str

    def copy(self, x: Array) -> Array:
        """A copy of one of its arrays."""

    def rows(self, x: Array, rows: NDArray[np.intp]) -> Array:
        """Those rows of x (T, D), in that order."""

    def view(self, batch: Batch) -> BatchView:
        """The batch as this backend's parts take it, for one call of each."""

    def sequence(self, shape: StateShape, capacity: int, kv_type: str) -> Sequence:
        """Room for `capacity` positions; `kv_type` is ``f16``, ``q8_0`` or ``f32``."""

    def embedding(self, spec: EmbeddingSpec) -> Embedding:
        """Build the token embedding."""

    def attention(self, spec: AttentionSpec, index: int = 0) -> Mixer:
        """Build one layer's attention, which keeps its keys and values under number `index`."""

    def latent_attention(self, spec: LatentSpec, index: int = 0) -> Mixer:
        """Build one layer's multi-head latent attention; `index` as in `attention`."""

    def recurrent(self, spec: RecurrentSpec, index: int = 0) -> Mixer:
        """Build one layer with a recurrent state, which it keeps under number `index`."""

    def ffn(self, spec: FFNSpec) -> FFN:
        """Build one layer's FFN."""

    def neuron_ffn(self, spec: NeuronFFNSpec, index: int = 0) -> FFN:
        """Build one layer's FFN that is stored by neuron, whose chooser has number `index`."""

    def experts(self, spec: ExpertsSpec, index: int = 0) -> Experts:
        """Build one layer's mixture of experts, whose chooser of neurons, if any, has number `index`."""

    def head(self, spec: HeadSpec) -> Head:
        """Build the final norm and the output projection."""

    def chain(self, parts: ListOf[Mixer | FFN], hidden: int) -> Chain | None:
        """Those parts, of rows of `hidden` numbers, as one that is faster; None where there is none."""

    def layer_inputs(self, spec: LayerInputsSpec) -> LayerInputs:
        """Build the tokens' embeddings for each layer."""

    def layer_input(self, spec: LayerInputSpec) -> LayerInput:
        """Build what one of them adds."""
