"""How a model's weights are read: bytes of each token, and what the user should know about neurons."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hotset.backends.blocks import memory_bytes, neuron_type
from hotset.core.config import FFNPlan, Score, Way
from hotset.formats.checkpoint import Checkpoint

_EXPERTS = ("ffn_gate", "ffn_up", "ffn_down", "ffn_down_t")
COPY_BITS = {Score.GATE_Q2: 2.5, Score.GATE_Q4: 4.5}
"""Bits a weight with the blocks' scales."""


def skipped_matrices(plan: FFNPlan, gated: bool) -> tuple[str, ...]:
    """Names of the matrices of which a neuron's row is read only where the neuron is computed."""
    gate = ("ffn_gate",) if gated else ()
    if plan.way is Way.DENSE:
        return ()
    if plan.way is Way.PREDICTOR:
        return (*gate, "ffn_up", "ffn_down_t")
    if gated and plan.score is not Score.DOWN:
        return ("ffn_up", "ffn_down_t")
    return ("ffn_down_t",)


class Neurons(NamedTuple):
    """Neurons that one layer computes for a token, on average."""

    chosen: float
    """Those that were chosen; where a predictor chooses, the row of gate is read of each."""
    read: float
    """Those of which every row is read, as they turn out not to be zero."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that every token reads, and for each layer those of one neuron that may be left out."""

    always: int
    by_neuron: tuple[int, ...]
    ffn_size: int
    """Neurons of a layer; in a mixture, those of a token's experts."""
    predicted: tuple[int, ...]
    """Of each layer's `by_neuron`, what is read of a chosen neuron before it is known to be zero."""
    experts: int = 0
    """Bytes of all experts of mixtures, the shared ones left out."""
    idle: int = 0
    """Bytes of those experts that a token does not use."""

    @property
    def weights(self) -> int:
        """Bytes that lie in memory."""
        return self.dense + self.idle

    @property
    def dense(self) -> int:
        """Bytes of a token for which every neuron is computed."""
        return self.always + self.ffn_size * sum(self.by_neuron)

    def bytes_per_token(self, neurons: Sequence[Neurons]) -> float:
        """Bytes of a token for which each layer computes so many neurons."""
        layers = zip(self.by_neuron, self.predicted, neurons, strict=True)
        return self.always + sum(first * n.chosen + (size - first) * n.read for size, first, n in layers)


class ExpertBytes(NamedTuple):
    """Bytes of the experts of a model's mixtures, the shared ones left out."""

    all: int
    chosen: int
    """Those of a token."""


def expert_bytes(checkpoint: Checkpoint) -> ExpertBytes:
    """How much of a model its experts are; zeros for a model without mixtures."""
    total = chosen = 0
    for i, layer in enumerate(checkpoint.config.layers):
        if layer.experts:
            names = [f"blk.{i}.{part}_exps.{suffix}" for part in _EXPERTS for suffix in ("weight", "bias")]
            own = sum(memory_bytes(checkpoint.tensors[name]) for name in names if name in checkpoint.tensors)
            total += own
            chosen += own * layer.experts.used // layer.experts.count
    return ExpertBytes(total, chosen)


def traffic(checkpoint: Checkpoint) -> Traffic:
    """What the model's plan lets a token leave out."""
    tensors, config = checkpoint.tensors, checkpoint.config
    unread = {"position_embd.weight"} | ({"token_embd.weight"} if "output.weight" in tensors else set())
    experts = expert_bytes(checkpoint)
    always = experts.chosen - experts.all
    by_neuron = []
    predicted = []
    for i, layer in enumerate(config.layers):
        block = f"blk.{i}"
        unread.add(f"{block}.ffn_profile.weight")
        if layer.ffn is None or layer.ffn.score not in (Score.LOW_RANK, Score.LOW_RANK_RELU):
            unread |= {f"{block}.fc1.weight", f"{block}.fc2.weight"}
        rows = skipped_matrices(layer.ffn, config.gated) if layer.ffn else ()
        experts_of, suffix = (layer.experts, "_exps") if layer.experts else (None, "")
        nbytes = sum(memory_bytes(tensors[f"{block}.{name}{suffix}.weight"]) for name in rows)
        if experts_of:
            nbytes = nbytes * experts_of.used // experts_of.count
        by_neuron.append(nbytes // config.computed_neurons if nbytes else 0)
        first = rows[0] if layer.ffn and layer.ffn.way is Way.PREDICTOR else None
        predicted.append(memory_bytes(tensors[f"{block}.{first}.weight"]) // config.ffn_size if first else 0)
        always -= nbytes
        if layer.ffn and layer.ffn.score in COPY_BITS:
            always += int(COPY_BITS[layer.ffn.score] * config.ffn_size * config.hidden_size / 8)
    always += sum(memory_bytes(tensor) for name, tensor in tensors.items() if name not in unread)
    idle = experts.all - experts.chosen
    return Traffic(always, tuple(by_neuron), config.computed_neurons, tuple(predicted), experts.all, idle)


def rounding_notes(checkpoint: Checkpoint) -> list[str]:
    """A line about neurons in types of which single ones cannot be computed (in PowerInfer's files)."""
    rounded = set()
    for i, layer in enumerate(checkpoint.config.layers):
        if layer.ffn:
            name = "ffn_down_t_exps" if layer.experts else "ffn_down_t"
            tensor = checkpoint.tensors[f"blk.{i}.{name}.weight"]
            if (nearest := neuron_type(tensor.type, tensor.shape[-1])) is not tensor.type:
                rounded.add(f"{tensor.type.name} as {nearest.name}")
    if not rounded:
        return []
    return [
        f"single neurons are computed in other types than the file's ({', '.join(sorted(rounded))}), rounded "
        "again at each start: hotset convert stores them so"
    ]


def order_notes(checkpoint: Checkpoint) -> list[str]:
    """A line where what is taken for the hottest neurons is no hotter than others: they are not sorted."""
    unsorted = 0
    for i, layer in enumerate(checkpoint.config.layers):
        if layer.ffn and layer.ffn.way is not Way.DENSE and not layer.experts:
            name = f"blk.{i}.ffn_profile.weight"
            profile = checkpoint.tensors.get(name)
            unsorted += profile is None or bool((np.diff(profile.to_float32()[0]) > 0).any())
    if not unsorted:
        return []
    return [
        f"the neurons of {unsorted} layers are not sorted by how often they fire, so those on the GPU are no "
        "hotter than the others: sort them with hotset profile and hotset convert"
    ]
