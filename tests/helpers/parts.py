"""Single parts of a decoder with a sequence of their own."""

from typing import Any

import numpy as np

from hotset.backends.contract import F32, AttentionSpec, NeuronFFNSpec, StateShape
from hotset.core.batch import Batch, Chooser, Work


def attention_state(backend: Any, spec: AttentionSpec, capacity: int, kv_type: str = "f32") -> Any:
    """A sequence for one layer's attention."""
    return backend.sequence(StateShape(1, spec.n_kv_heads, spec.head_dim), capacity, kv_type)


def attend(backend: Any, layer: Any, x: Any, out: Any, sequence: Any) -> None:
    """Append the rows x to the sequence."""
    layer.forward(x, out, backend.view(Batch.of(sequence, np.zeros(len(x), np.int32))))
    sequence.advance(len(x))


class LoneFFN:
    """A layer's FFN, stored by neuron; `backend` is where its chooser is."""

    def __init__(self, backend: Any, spec: NeuronFFNSpec, layer: Any = None) -> None:
        self.backend = backend
        self.layer = layer or backend.neuron_ffn(spec)
        self.sequence = backend.sequence(
            StateShape(1, 1, 32, (spec.plan.cutoff,), (spec.plan.kept,)), 4096, "f16"
        )

    def forward(self, x: Any, out: Any, dense: bool = False) -> None:
        """Append the rows to the sequence, see `FFN`; `dense`: they are lossless."""
        batch = Batch.of(self.sequence, np.zeros(len(x), np.int32), lossless=dense)
        self.layer.forward(x, out, self.backend.view(batch))
        self.sequence.advance(len(x))

    def neurons(self, x: Any, gate: F32, h: F32) -> None:
        """See `FFN`."""
        self.layer.neurons(x, gate, h)

    @property
    def chooser(self) -> Chooser:
        """What the layer has learnt of the sequence."""
        chooser: Chooser = self.sequence.choosers[0]
        return chooser

    @property
    def cutoff(self) -> float:
        """See `Chooser`."""
        return self.chooser.cutoff

    def counts(self) -> Work:
        """What was computed so far."""
        return self.chooser.work
