"""Writes a model stored by neuron: hottest first, down transposed, with plan, profile and predictors.

What can stay as it is stays: rows of gate and up are moved byte for byte, and so are those of a down that
lies by neuron already. Only a down that lies by output is dequantised, transposed and stored again, since its
blocks run along the other axis; by how much that changes it is measured and written into the file.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.activations.profile import ActivationProfile
from hotset.backends.blocks import dequantise, store_as
from hotset.convert.expert_layers import ExpertsLayer
from hotset.convert.stored_types import refuse_rounding_again, row_type, transposed_type
from hotset.core.config import FFNPlan, Score, Way
from hotset.core.errors import CheckpointError, HotsetError
from hotset.formats.as_gguf import as_gguf, check_config
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.ffn_plan import CUTOFF, KEPT, plan_keys
from hotset.formats.gguf_model import open_gguf
from hotset.formats.gguf_writer import NewTensor, overwrite, same_tensor, write_gguf
from hotset.formats.mapped import check_whole
from hotset.formats.output import check_output
from hotset.formats.tensor import Tensor, TensorType, tensor_from_array
from hotset.formats.tensor_table import split_name

DOWN_ERROR, KL = "hotset.convert.down_error", "hotset.convert.kl"
"""Keys: each layer's relative error of down (root mean square); KL of the dense file from its source."""
_OURS = ("hotset.ffn.", "hotset.profile.", "hotset.convert.", "powerinfer.")
_SLICE = 1 << 20
"""Numbers transposed or quantised at a time."""

_LOW_RANK = (Score.LOW_RANK, Score.LOW_RANK_RELU)

Predictor = tuple[Tensor, Tensor]
"""A low-rank score's matrices: (r, D), and (F, r) with the neurons in the source's order."""


@dataclass(frozen=True)
class Conversion:
    """What became of a model."""

    size: int
    """Bytes of the file."""
    plans: tuple[FFNPlan | None, ...]
    down_error: tuple[float, ...]
    """Relative error of each layer's down, root mean square over all its numbers; 0 where it is unchanged."""
    kl: float | None
    """Mean KL divergence of the file, all neurons computed, from its source; None where not measured."""
    changed: tuple[tuple[TensorType, TensorType], ...] = ()
    """Types of rows that were rounded again (single neurons of these cannot be computed, or the user
    asked for another type), each with the one that took its place."""


def convert(
    checkpoint: Checkpoint,
    out: Path,
    profile: ActivationProfile,
    plans: Sequence[FFNPlan | None] | None = None,
    predictors: Mapping[int, Predictor] | None = None,
    *,
    ffn_type: TensorType | None = None,
    provenance: Mapping[str, str | int | float] | None = None,
    threads: int = 1,
    measure: Callable[[Path], float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write `checkpoint` to `out` as a GGUF file stored by neuron.

    Each layer's plan decides: None leaves the layer as it is, anything else sorts it and stores it by neuron
    (`Way.DENSE` too). Without `plans` they are those of `default_plans`, with the source's predictors.
    Of a mixture the experts are sorted, and each one's down is transposed. `predictors` holds the matrices of
    layers whose plan has a low-rank score. `ffn_type` None keeps each matrix's type, or takes the nearest of
    `NEURON_TYPES`, and for a down that is transposed one of 8 bits or more; a type stores all that lies by
    neuron in it. `provenance` is written as ``hotset.convert.KEY``. `measure` is given the finished file
    under its temporary name; what it returns is stored as ``hotset.convert.kl``. `progress(done, total)`
    counts bytes.

    Nothing half-written is left, whatever happens. Raises `HotsetError` for a profile of another model, a
    type that does not fit, and a source stored by neuron that would lose accuracy.
    """
    _check_mixture(checkpoint)
    check_output(out, checkpoint.files())
    profile.check(checkpoint)
    if plans is None:
        plans, predictors = default_plans(checkpoint), source_predictors(checkpoint)
    plans = tuple(plans)
    if len(plans) != checkpoint.config.n_layers:
        raise ValueError(f"expected {checkpoint.config.n_layers} plans, found {len(plans)}")
    source_metadata, source = as_gguf(checkpoint)
    if not checkpoint.path.is_dir():
        source = _gate_apart(source)
    order = profile.order
    config = checkpoint.config
    layers: list[_Layer | ExpertsLayer] = []
    for i, plan in enumerate(plans):
        heat = np.stack([profile.frequency[i], profile.magnitude[i]])
        if experts := config.layers[i].experts:
            facts = experts, config.hidden_size, config.gated
            layers.append(ExpertsLayer(i, plan, *facts, source, order[i], heat, ffn_type, threads))
        elif config.layers[i].feeds and not config.mixture:
            predictor = (predictors or {}).get(i)
            layers.append(_Layer(i, plan, source, order[i], heat, ffn_type, predictor, threads))
    of_number = {layer.number: layer for layer in layers}
    tensors: list[NewTensor] = []
    for name in source:
        number, part = split_name(name)
        layer = None if number is None else of_number.get(number)
        rewritten = layer.rewritten(part, source[name]) if layer else None
        tensors += [_as_it_is(source, name)] if rewritten is None else rewritten
    for layer in layers:
        tensors += layer.additions()

    metadata = {key: value for key, value in source_metadata.items() if not key.startswith(_OURS)}
    metadata |= _keys(plans, profile, {"source": checkpoint.path.name, **(provenance or {})})
    _keep_errors(checkpoint, layers)

    def down_errors() -> list[float]:
        return [of_number[i].down_error if i in of_number else 0.0 for i in range(config.n_layers)]

    if measure:
        metadata[KL] = math.nan
    kl: list[float] = []

    def finish(path: Path) -> None:
        check_whole()
        overwrite(path, {DOWN_ERROR: np.array(down_errors(), np.float32)})
        check_config(checkpoint.config, open_gguf(path).config)
        if measure:
            kl.append(measure(path))
            overwrite(path, {KL: kl[0]})

    size = write_gguf(out, metadata, tensors, progress, finish)
    changed = sorted({pair for layer in layers for pair in layer.changed})
    return Conversion(size, plans, tuple(down_errors()), kl[0] if kl else None, tuple(changed))


def default_plans(checkpoint: Checkpoint) -> list[FFNPlan | None]:
    """A file's own plans where it is stored by neuron; otherwise exact where that is lossless, else dense."""
    config = checkpoint.config
    usual = FFNPlan(Way.EXACT if config.activation.zero_producing else Way.DENSE)
    plans = [layer.ffn for layer in config.layers]
    if any(plans):
        return plans
    chosen = (layer.feeds and (layer.experts or not config.mixture) for layer in config.layers)
    return [usual if own else None for own in chosen]


def source_predictors(checkpoint: Checkpoint) -> dict[int, Predictor]:
    """The low-rank predictors that a file stored by neuron has."""
    names = ((f"blk.{i}.fc1.weight", f"blk.{i}.fc2.weight") for i in range(checkpoint.config.n_layers))
    tensors = checkpoint.tensors
    return {i: (tensors[a], tensors[b]) for i, (a, b) in enumerate(names) if a in tensors and b in tensors}


def _check_mixture(checkpoint: Checkpoint) -> None:
    """Refuse mixtures that gain nothing."""
    config = checkpoint.config
    if config.mixture and not config.activation.zero_producing:
        raise CheckpointError(
            f"{checkpoint.path}: inside its experts nothing is exactly zero ({config.activation.value}): run "
            "the file as it is, of which each token reads its own experts only"
        )


def _gate_apart(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A GGUF file's tensors, gate and up apart where they are one, gate's rows first (Phi-3, GLM-4)."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in source.items():
        layer, _, suffix = name.partition(".ffn_up.")
        down = source.get(f"{layer}.ffn_down.weight")
        size = down.shape[-1] if down else 0
        fused = suffix and size and source[f"{layer}.ffn_up.weight"].shape[0] == 2 * size
        if not fused:
            tensors[name] = tensor
            continue
        both = tensor, tensor  # a factor on either
        if suffix in ("weight", "bias"):
            both = tensor.rows(0, size), tensor.rows(size, 2 * size)
        gate = f"{layer}.ffn_gate.{suffix}"
        tensors |= {gate: replace(both[0], name=gate), name: both[1]}
    return tensors


class _Layer:
    """One layer's FFN, from the source's tensors to the new ones."""

    def __init__(
        self,
        number: int,
        plan: FFNPlan | None,
        source: Mapping[str, Tensor],
        order: NDArray[np.int64],
        heat: NDArray[np.float32],
        ffn_type: TensorType | None,
        predictor: Predictor | None,
        threads: int,
    ) -> None:
        self.number = number
        self.order = order if plan else np.arange(len(order))
        self.stored = plan is not None
        self.heat = heat[:, self.order]
        self.predictor = predictor if plan and plan.score in _LOW_RANK else None
        self.threads = threads
        self.down_error = 0.0
        up = source[f"blk.{number}.ffn_up.weight"]
        self.hidden = up.shape[1]
        self.ffn_type = ffn_type
        # Where only rows of down are skipped, gate and up are read whole: any type will do.
        self.keeps_types = bool(plan and plan.score is Score.DOWN and not ffn_type)
        self.changed: set[tuple[TensorType, TensorType]] = set()
        transposed = source.get(f"blk.{number}.ffn_down_t.weight")
        if transposed is not None:
            refuse_rounding_again(number, transposed.type, ffn_type, stays=plan is not None)
        if ffn_type and self.hidden % ffn_type.block_size:
            raise HotsetError(
                f"--ffn {ffn_type.name.lower()} needs a hidden size of a multiple of {ffn_type.block_size}, "
                f"and the model's is {self.hidden}: use --ffn f16"
            )

    def rewritten(self, part: str, tensor: Tensor) -> list[NewTensor] | None:
        """What takes the place of one of the source's tensors; None: itself."""
        if part in ("fc1.weight", "fc2.weight", "ffn_profile.weight"):
            return []
        if not self.stored or part == "ffn_down.bias":
            return None
        if part == "ffn_down.weight":
            return [self._transposed(tensor)]
        if part in ("ffn_gate.bias", "ffn_up.bias"):
            return [_reordered(tensor, self.order, tensor.type)]
        if part in ("ffn_gate.weight", "ffn_up.weight", "ffn_down_t.weight"):
            return [self._sorted(tensor, is_down=part == "ffn_down_t.weight")]
        return None

    def _sorted(self, tensor: Tensor, *, is_down: bool) -> NewTensor:
        """A matrix (F, D) whose rows are put in order, in a type of which single ones can be computed."""
        keeps = self.keeps_types and not is_down
        kind = tensor.type if keeps else row_type(tensor.type, self.hidden, self.ffn_type)
        if kind is not tensor.type:
            self.changed.add((tensor.type, kind))
        if kind is tensor.type or not is_down:
            return _reordered(tensor, self.order, kind, threads=self.threads)
        ffn = len(self.order)
        return self._down(
            tensor.name,
            kind,
            lambda: (dequantise(tensor, self.order[part]) for part in _slices(ffn, self.hidden)),
        )

    def additions(self) -> list[NewTensor]:
        """Tensors that the source has no place for."""
        prefix = f"blk.{self.number}."
        added = [same_tensor(tensor_from_array(f"{prefix}ffn_profile.weight", self.heat))]
        if self.predictor:
            fc1, fc2 = self.predictor
            added.append(same_tensor(fc1, f"{prefix}fc1.weight"))
            added.append(_reordered(fc2, self.order, fc2.type, f"{prefix}fc2.weight"))
        return added

    def _transposed(self, down: Tensor) -> NewTensor:
        """Down (D, F) as (F, D): the one matrix that is held as float32 while it is written."""
        ffn = down.shape[1]

        def rows() -> Iterator[NDArray[np.float32]]:
            values = dequantise(down)
            for part in _slices(ffn, self.hidden):
                yield np.ascontiguousarray(values[:, self.order[part]].T)

        return self._down(down.name, transposed_type(down.type, self.hidden, self.ffn_type), rows)

    def _down(
        self, source: str, kind: TensorType, rows: Callable[[], Iterator[NDArray[np.float32]]]
    ) -> NewTensor:
        """Down by neuron, rounded again, and by how much that changed it; `source` names it in errors."""

        def chunks() -> Iterator[NDArray[np.uint8]]:
            error = total = 0.0
            for exact in rows():
                stored = store_as(source, exact, kind, self.threads)
                difference = dequantise(stored) - exact
                error += float(np.square(difference).sum(dtype=np.float64))
                total += float(np.square(exact).sum(dtype=np.float64))
                yield stored.data
            self.down_error = math.hypot(self.down_error, math.sqrt(error / total) if total else 0.0)

        name = f"blk.{self.number}.ffn_down_t.weight"
        return NewTensor(name, (len(self.order), self.hidden), kind, chunks)


def _reordered(
    tensor: Tensor, order: NDArray[np.int64], kind: TensorType, name: str | None = None, threads: int = 1
) -> NewTensor:
    """A tensor with its rows in another order, as their bytes where the type stays."""

    def chunks() -> Iterator[NDArray[np.uint8]]:
        rows = tensor.data.reshape(tensor.shape[0], -1)
        for part in _slices(tensor.shape[0], math.prod(tensor.shape[1:])):
            if kind is tensor.type:
                yield rows[order[part]].reshape(-1)
            else:
                yield store_as(tensor.name, dequantise(tensor, order[part]), kind, threads).data

    return NewTensor(name or tensor.name, tensor.shape, kind, chunks)


def _as_it_is(source: Mapping[str, Tensor], name: str) -> NewTensor:
    tensor = source[name]  # some are made at look-up: none is kept
    return NewTensor(name, tensor.shape, tensor.type, lambda: (source[name].data,))


def _slices(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _SLICE // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _keys(
    plans: Sequence[FFNPlan | None],
    profile: ActivationProfile,
    provenance: Mapping[str, str | int | float],
) -> dict[str, Any]:
    keys = plan_keys([plan or FFNPlan(Way.DENSE) for plan in plans])
    keys |= {key: np.array(keys[key], np.float32) for key in (CUTOFF, KEPT)}
    keys |= {
        "hotset.profile.model": profile.model,
        "hotset.profile.model_hash": profile.model_hash,
        "hotset.profile.corpus": profile.corpus,
        "hotset.profile.corpus_hash": profile.corpus_hash,
        "hotset.profile.tokens": profile.tokens,
    }
    keys |= {f"hotset.convert.{key}": value for key, value in provenance.items()}
    keys[DOWN_ERROR] = np.zeros(len(plans), np.float32)
    return keys


def _keep_errors(checkpoint: Checkpoint, layers: Sequence[_Layer | ExpertsLayer]) -> None:
    """Layers that were stored by neuron before keep what that had cost."""
    errors = checkpoint.metadata.get(DOWN_ERROR)
    if isinstance(errors, np.ndarray) and errors.shape == (checkpoint.config.n_layers,):
        for layer in layers:
            layer.down_error = float(errors[layer.number])
