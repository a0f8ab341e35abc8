"""The backend, and the parts at a model's ends."""

from collections.abc import Sequence as ListOf
from itertools import zip_longest

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hotset.backends.blocks import dequantise
from hotset.backends.contract import (
    F32,
    FFN,
    AttentionSpec,
    DeltaNetSpec,
    EmbeddingSpec,
    ExpertsSpec,
    FFNSpec,
    HeadSpec,
    LatentSpec,
    LayerInputSpec,
    LayerInputsSpec,
    MambaSpec,
    Mixer,
    NeuronFFNSpec,
    RecurrentSpec,
    ShortConvSpec,
    StateShape,
)
from hotset.backends.cutoff import Cutoff
from hotset.backends.maths import gelu_tanh, layer_inputs, normalise, soft_cap
from hotset.backends.reference.attention import ReferenceAttention
from hotset.backends.reference.delta_net import ReferenceDeltaNet
from hotset.backends.reference.experts import ReferenceExperts
from hotset.backends.reference.ffn import ReferenceFFN, ReferenceNeuronFFN
from hotset.backends.reference.latent_attention import ReferenceLatentAttention
from hotset.backends.reference.linear import ReferenceLinear
from hotset.backends.reference.mamba import ReferenceMamba
from hotset.backends.reference.short_conv import ReferenceShortConv
from hotset.backends.reference.state import ReferenceChooser, ReferenceSequence
from hotset.core.batch import I32, Batch
from hotset.core.errors import HotsetError


class ReferenceEmbedding:
    """A row of the table for each token, and one for its position where there is such a table."""

    def __init__(self, spec: EmbeddingSpec) -> None:
        self.tokens = spec.tokens.to_float32()
        self.positions = None if spec.positions is None else spec.positions.to_float32()
        self.scale = np.float32(spec.scale)
        self.position_offset = spec.position_offset

    def forward(self, tokens: I32, positions: I32) -> F32:
        x: F32 = self.tokens[tokens] * self.scale
        if self.positions is not None:
            x += self.positions[positions + self.position_offset]
        return x


class ReferenceHead:
    """The final norm and the output projection."""

    def __init__(self, spec: HeadSpec) -> None:
        self.norm = spec.norm
        self.output = ReferenceLinear(spec.output)
        self.soft_cap = spec.soft_cap

    def forward(self, x: F32) -> F32:
        return soft_cap(self.output(self.normed(x)), self.soft_cap)

    def normed(self, x: F32) -> F32:
        return normalise(x, self.norm)


class ReferenceLayerInputs:
    """Each layer's own embedding of the tokens; the table's rows are read as they are wanted."""

    def __init__(self, spec: LayerInputsSpec) -> None:
        self.spec = spec
        self.rows = spec.rows
        self.project = ReferenceLinear(spec.project)

    def forward(self, tokens: I32, x: F32) -> F32:
        return layer_inputs(self.spec, dequantise(self.rows, tokens), self.project(x))


class ReferenceLayerInput:
    """What one layer's own embedding adds."""

    def __init__(self, spec: LayerInputSpec) -> None:
        self.spec = spec
        self.gate, self.up = ReferenceLinear(spec.gate), ReferenceLinear(spec.up)

    def forward(self, x: F32, e: F32, out: F32) -> None:
        out += normalise(self.up(gelu_tanh(self.gate(x)) * e), self.spec.post_norm)


class ReferenceBackend:
    """Builds the parts; see `hotset.backends.building.Backend`."""

    name = "reference"

    def copy(self, x: F32) -> F32:
        y: F32 = x.copy()
        return y

    def rows(self, x: F32, rows: NDArray[np.intp]) -> F32:
        y: F32 = x[rows]
        return y

    def view(self, batch: Batch) -> Batch:
        return batch

    def embedding(self, spec: EmbeddingSpec) -> ReferenceEmbedding:
        """Build the token embedding."""
        return ReferenceEmbedding(spec)

    def attention(self, spec: AttentionSpec, index: int = 0) -> ReferenceAttention:
        """Build one layer's attention."""
        return ReferenceAttention(spec, index)

    def latent_attention(self, spec: LatentSpec, index: int = 0) -> ReferenceLatentAttention:
        """Build one layer's multi-head latent attention."""
        return ReferenceLatentAttention(spec, index)

    def recurrent(self, spec: RecurrentSpec, index: int = 0) -> Mixer:
        """Build one layer with a recurrent state."""
        match spec:
            case DeltaNetSpec():
                return ReferenceDeltaNet(spec, index)
            case ShortConvSpec():
                return ReferenceShortConv(spec, index)
            case MambaSpec():
                return ReferenceMamba(spec, index)

    def ffn(self, spec: FFNSpec) -> ReferenceFFN:
        """Build one layer's FFN."""
        return ReferenceFFN(spec)

    def neuron_ffn(self, spec: NeuronFFNSpec, index: int = 0) -> ReferenceNeuronFFN:
        """Build one layer's FFN that is stored by neuron."""
        return ReferenceNeuronFFN(spec, index)

    def experts(self, spec: ExpertsSpec, index: int = 0) -> ReferenceExperts:
        """Build one layer's mixture of experts."""
        return ReferenceExperts(spec, index)

    def head(self, spec: HeadSpec) -> ReferenceHead:
        """Build the final norm and the output projection."""
        return ReferenceHead(spec)

    def chain(self, parts: ListOf[Mixer | FFN], hidden: int) -> None:
        """There is none: parts run one by one."""

    def layer_inputs(self, spec: LayerInputsSpec) -> ReferenceLayerInputs:
        """Build the tokens' embeddings for each layer."""
        return ReferenceLayerInputs(spec)

    def layer_input(self, spec: LayerInputSpec) -> ReferenceLayerInput:
        """Build what one of them adds."""
        return ReferenceLayerInput(spec)

    def sequence(self, shape: StateShape, capacity: int, kv_type: str) -> ReferenceSequence:
        """Room for `capacity` positions; `kv_type` is ``f32`` or ``f16``."""
        dtypes: dict[str, DTypeLike] = {"f32": np.float32, "f16": np.float16}
        if kv_type not in dtypes:
            raise HotsetError(
                f"KV cache type {kv_type!r}: the reference backend has f32 and f16; choose one of them"
            )
        keys, values = (
            [np.zeros((capacity, x.heads, x.size if kept else 0), dtypes[kv_type]) for x, kept in of]
            for of in ([(x, True) for x in shape.kv], [(x, x.values) for x in shape.kv])
        )
        sequence = ReferenceSequence(keys, values, capacity, shape.recurrent)
        sequence.choosers = [
            None if cutoff is None else ReferenceChooser(Cutoff(cutoff, kept, layer))
            for layer, (cutoff, kept) in enumerate(zip_longest(shape.cutoffs, shape.kept, fillvalue=0.0))
        ]
        return sequence
