"""The tensors of an opened model by their final names, checked against its shape, built when asked for."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import numpy as np
from numpy.typing import NDArray

from hotset.architectures.row import (
    OF_ATTENTION,
    OF_DENSE,
    OF_EXPERTS,
    OF_LAYER_INPUTS,
    OF_LOW_RANK,
    OF_RECURRENT,
    SHAPES,
    Architecture,
)
from hotset.core.config import DeltaNetConfig, ExpertsConfig, MambaConfig, Recurrent
from hotset.core.errors import CheckpointError
from hotset.core.heads import LatentConfig
from hotset.formats.by_layer import LayerSizes
from hotset.formats.keys import LARGEST, Keys, shown
from hotset.formats.tensor import Tensor, TensorType

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")

ONLY_BIAS = "exp_probs_b"
"""A part of which files have a bias alone: what a router adds to select by."""

_GLOBAL = frozenset(
    {
        *("token_embd", "position_embd", "output_norm", "output"),
        *("per_layer_token_embd", "per_layer_model_proj", "per_layer_proj_norm"),
    }
)

DOWN_BY_NEURON = {"ffn_down": "ffn_down_t", "ffn_down_exps": "ffn_down_t_exps"}
"""Down, transposed: (F, D) or (E, F, D), so that a neuron's numbers lie together, takes its place."""


@dataclass(frozen=True)
class LayerKinds:
    """Which layers have which parts, in families where they differ."""

    recurrent: Recurrent | None = None
    """None: all layers have attention."""
    recurs: tuple[bool, ...] = ()
    """Which layers have a recurrent state."""
    attends: tuple[bool, ...] = ()
    """Which have attention."""
    single: bool = False
    """Layers that do neither have an FFN, and others have none."""

    def has_ffn(self, layer: int) -> bool:
        """Whether a layer has an FFN."""
        return not self.single or not (self.recurs[layer] or self.attends[layer])

    def first_ffn(self, first: int) -> int:
        """The first layer from `first` on that has an FFN."""
        return next((i for i in range(first, len(self.recurs)) if self.has_ffn(i)), first)


@dataclass(frozen=True)
class Sizes:
    """A model's sizes as its file states them, not yet held against its tensors."""

    vocab: int
    hidden: int
    ffn: int
    """0: all layers are mixtures of experts."""
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    positions: int
    experts: ExpertsConfig | None = None
    dense_layers: int = 0
    """So many layers from the first on are no mixtures, where others are."""
    kinds: LayerKinds = LayerKinds()
    own: tuple[LayerSizes, ...] = ()
    """Each layer's, in families where they differ."""
    beside: bool = False
    """Layers that are mixtures have an ordinary FFN, too."""
    layer_input: int = 0
    """Numbers of a layer's own embedding of a token; 0: there is none."""
    latent: LatentConfig | None = None
    """Attention is of this kind; `kv_heads` and `head_dim` are then what is kept of a position."""

    @property
    def rope_dim(self) -> int:
        """Numbers of a head that RoPE may turn."""
        return self.latent.rope_dim if self.latent else self.head_dim

    def experts_of(self, layer: int) -> ExpertsConfig | None:
        """A layer's mixture; None: it has one FFN."""
        return self.experts if layer >= self.dense_layers and self.kinds.has_ffn(layer) else None

    def has(self, part: str, layer: int) -> bool:
        """Whether a layer is of the kind that has such tensors."""
        if self._lacks(part):
            return False
        if self.own and (self.beside or part in self.own[layer].lacking):
            return part not in self.own[layer].lacking
        if self.experts and part in (OF_EXPERTS if layer < self.dense_layers else OF_DENSE):
            return False
        kinds = self.kinds
        if part in OF_ATTENTION:
            return not kinds.recurrent or kinds.attends[layer]
        if part in OF_RECURRENT and kinds.recurrent:
            return kinds.recurs[layer]
        return kinds.has_ffn(layer) or part not in OF_DENSE | OF_EXPERTS

    def _lacks(self, part: str) -> bool:
        """Whether no layer has such tensors."""
        if self.latent and part in (*OF_LOW_RANK, "attn_q"):
            return (part in OF_LOW_RANK) != (self.latent.query_rank > 0)
        if part.endswith("_shexp") and self.experts and not self.experts.shared_size:
            return True
        return part in OF_LAYER_INPUTS and not self.layer_input

    def dimensions(self, letters: str, layer: int | None = None) -> tuple[int, ...]:
        """Return the numbers for a shape of `SHAPES`, in a layer where they differ among them."""
        if self.own and layer is not None:
            own = self.own[layer]
            n_heads, n_kv_heads, head_dim = own.heads.n_heads, own.heads.n_kv_heads, own.heads.head_dim
            uniform = replace(
                self, own=(), heads=n_heads, kv_heads=n_kv_heads, head_dim=head_dim, ffn=own.ffn
            )
            return uniform.dimensions(letters)
        numbers = {
            "V": self.vocab,
            "P": self.positions,
            "D": self.hidden,
            "F": self.ffn,
            "H": self.head_dim,
            "Q": self.heads * self.head_dim,
            "K": self.kv_heads * self.head_dim,
            "A": self.heads,
            "1": 1,
            "L": self.layer_input,
            "J": self.layers * self.layer_input,
        }
        if self.experts:
            numbers |= {"E": self.experts.count, "X": self.experts.size, "Y": self.experts.shared_size}
        recurrent = self.kinds.recurrent
        if state := recurrent:
            numbers |= {"C": state.channels, "W": state.kernel, "U": 3 * self.hidden}
        if isinstance(net := recurrent, DeltaNetConfig):
            values = net.n_value_heads * net.head_dim
            numbers |= {"G": 2 * self.heads * self.head_dim, "B": net.head_dim, "T": net.n_value_heads}
            numbers |= {"Z": values}
        if isinstance(recurrent, MambaConfig):
            numbers |= {"T": recurrent.n_heads, "Z": recurrent.values}
            numbers |= {"I": recurrent.values + recurrent.channels + recurrent.n_heads}
        if latent := self.latent:
            numbers |= {"r": latent.query_rank, "q": self.heads * latent.query_dim, "k": latent.kept}
            numbers |= {"c": latent.rank, "n": latent.nope_dim, "v": latent.value_dim}
            numbers |= {"o": self.heads * latent.value_dim}
        return tuple(numbers[letter] for letter in letters)

    def check_heads(self, keys: Keys, key: str) -> None:
        """Refuse heads that don't share the key/value heads evenly."""
        if self.heads % self.kv_heads:
            raise keys.refuse(key, f"a divisor of the {self.heads} heads", self.kv_heads)


class TensorTable(Mapping[str, Tensor]):
    """Names to tensors. Renamed tensors are views; split and shifted ones are made again at each look-up."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._make: dict[str, Callable[[], Tensor]] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._make[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)

    def __contains__(self, name: object) -> bool:
        return name in self._make

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor of the file in under its final name."""
        self.add_made(name, tensor.shape, partial(_renamed, name, tensor))

    def add_made(self, name: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> None:
        """Take in a tensor that is made when it is looked up."""
        if name in self._make:
            raise CheckpointError(f"{self.where}: tensor {shown(name)} is there twice")
        self._shapes[name] = shape
        self._make[name] = make

    def add_plus_one(self, name: str, tensor: Tensor) -> None:
        """Take a float tensor in, one added."""
        self.add_made(name, tensor.shape, partial(_plus_one, name, tensor))

    def add_fused(self, layer: int, suffix: str, fused: Tensor, sizes: Sizes, grouped: bool) -> None:
        """Take ``attn_qkv`` (Q + 2 K rows) in as its parts.

        ``grouped``: for each key/value head come its queries' heads, its key's and its value's; otherwise all
        queries come first, then all keys, then all values.
        """
        q, k = sizes.dimensions("QK")
        source = f"blk.{layer}.attn_qkv.{suffix}"
        expected = (q + 2 * k, *((sizes.hidden,) if suffix == "weight" else ()))
        if fused.shape != expected:
            raise self.mismatch(source, expected, fused.shape)
        group = sizes.heads // sizes.kv_heads
        # Name, first row if parts follow one another, rows, first head within a group, heads of a group.
        parts = (("attn_q", 0, q, 0, group), ("attn_k", q, k, group, 1), ("attn_v", q + k, k, group + 1, 1))
        for part, begin, rows, first, count in parts:
            name = f"blk.{layer}.{part}.{suffix}"
            if grouped and sizes.kv_heads > 1:
                heads = np.arange(sizes.kv_heads)[:, None] * (group + 2) + first + np.arange(count)
                self.add_made(
                    name, (rows, *fused.shape[1:]), partial(_heads, name, fused, heads.ravel(), rows)
                )
            else:
                self.add(name, fused.rows(begin, begin + rows))

    def add_gate_up(
        self, layer: int, suffix: str, fused: Tensor, sizes: Sizes, *, shared: bool = False
    ) -> None:
        """Take gate and up in that are one tensor (2 F, D), gate's rows first; of the shared expert."""
        of, end = sizes.experts, "_shexp" if shared else ""
        size = of.shared_size if shared and of else sizes.ffn
        expected = (2 * size, *((sizes.hidden,) if suffix == "weight" else ()))
        if fused.shape != expected:
            raise self.mismatch(f"blk.{layer}.ffn_up{end}.{suffix}", expected, fused.shape)
        for i, part in enumerate(("ffn_gate", "ffn_up")):
            self.add(f"blk.{layer}.{part}{end}.{suffix}", fused.rows(i * size, (i + 1) * size))

    def check(self, architecture: Architecture, sizes: Sizes) -> None:
        """Refuse missing, unexpected and misshapen tensors, naming the first.

        A matrix of one row and a vector are the same: llama.cpp's tools write either.
        """
        parts = set(architecture.tensors)
        if architecture.fused_qkv:
            parts |= {"attn_q", "attn_k", "attn_v"}
        expected: dict[str, tuple[int, ...]] = {}  # of what is there
        for part, letters in {**SHAPES, **architecture.shapes}.items():
            if part not in parts or (part in OF_LAYER_INPUTS and not sizes.layer_input):
                continue
            for suffix, dimensions in (("weight", letters), ("bias", letters[:-1] or letters)):
                names = self._names(architecture, part, suffix, sizes)
                expected |= {name: sizes.dimensions(dimensions, split_name(name)[0]) for name in names}
        for layer in range(sizes.layers):
            expected |= self._neuron_shapes(layer, sizes)
        for name, shape in expected.items():
            found = self._shapes[name]
            if found != shape:
                if found not in ((1, *shape), shape[1:]) or prod(found) != prod(shape):
                    raise self.mismatch(name, shape, found)
                self._shapes[name] = shape
                self._make[name] = partial(_shaped, self._make[name], shape)
        for name in self._shapes:
            if name not in expected:
                raise CheckpointError(
                    f"{self.where}: tensor {shown(name)} is unexpected in a model of architecture"
                    f" {architecture.name} with {sizes.layers} layers"
                )

    def mismatch(self, name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> CheckpointError:
        """Build the error for a shape that is none of the model's."""
        return CheckpointError(
            f"{self.where}: tensor {name}: expected shape {list(expected)}, found {list(found)}"
        )

    def by_neuron(self, layer: int) -> bool:
        """Whether the layer's down is stored by neuron."""
        return any(f"blk.{layer}.{name}.weight" in self._make for name in DOWN_BY_NEURON.values())

    def _neuron_shapes(self, layer: int, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """What a layer stored by neuron has besides the architecture's tensors, as far as it is there."""
        ffn, hidden = sizes.dimensions("FD", layer)
        # Each predictor has its own width.
        width = self._shapes.get(f"blk.{layer}.fc1.weight", (1,))[0]
        shapes: dict[str, tuple[int, ...]] = {"ffn_profile": (2, ffn)}
        if not sizes.kinds.has_ffn(layer):
            return {}
        if sizes.experts_of(layer):
            shapes = {"ffn_profile": (2, *sizes.dimensions("E")), "ffn_down_t_exps": sizes.dimensions("EXD")}
        elif self.by_neuron(layer):
            shapes |= {"ffn_down_t": (ffn, hidden), "fc1": (width, hidden), "fc2": (ffn, width)}
        named = {f"blk.{layer}.{part}.weight": shape for part, shape in shapes.items()}
        return {name: shape for name, shape in named.items() if name in self._make}

    def _names(self, architecture: Architecture, part: str, suffix: str, sizes: Sizes) -> list[str]:
        """The names that a part stands for in this file: all of them, or none if it may be absent and is."""
        names = [f"{part}.{suffix}"]
        if not is_global(part):
            own = [
                i
                for i in range(sizes.layers)
                if sizes.has(part, i)
                and (suffix == "bias" or part not in DOWN_BY_NEURON or not self.by_neuron(i))
            ]
            names = [f"blk.{layer}.{part}.{suffix}" for layer in own]
            if not names:
                return []
        if part == ONLY_BIAS:
            optional = part in architecture.optional
            if suffix == "weight":
                return []
        elif suffix == "weight":
            optional = part in architecture.optional
        elif names[0].removesuffix("bias") + "weight" not in self._make and not (
            part == "ffn_down" and self.by_neuron(0)
        ):
            return []
        else:
            optional = part not in architecture.always_biased
            if optional and part not in architecture.bias_names:
                return []
        missing = [name for name in names if name not in self._make]
        if optional and len(missing) == len(names):
            return []
        if missing:
            raise CheckpointError(
                f"{self.where}: tensor {missing[0]} is missing: the file is incomplete, or not of"
                f" architecture {architecture.name}"
            )
        return names


def is_global(part: str) -> bool:
    """Whether a tensor of the table exists once, not in each layer."""
    return part in _GLOBAL


def split_name(name: str) -> tuple[int | None, str]:
    """``blk.3.ffn_up.weight`` as its layer and the rest; no layer for what is no layer's."""
    found = _LAYER.fullmatch(name)
    return (int(found[1]), found[2]) if found else (None, name)


def is_norm(part: str) -> bool:
    """Whether a tensor of the table is a normalisation's."""
    return SHAPES.get(part) in ("D", "H")


def check_layer_count(keys: Keys, key: str, tensors: int) -> int:
    """Read the number of layers; each has tensors, so that a lie cannot make us build billions of them."""
    layers = keys.integer(key, high=LARGEST)
    if layers > tensors:
        raise keys.refuse(key, f"at most {tensors}, the file's number of tensors", layers)
    return layers


def _renamed(name: str, tensor: Tensor) -> Tensor:
    return Tensor(name, tensor.type, tensor.shape, tensor.data, tensor.scale)


def _shaped(make: Callable[[], Tensor], shape: tuple[int, ...]) -> Tensor:
    return replace(make(), shape=shape)


def _heads(name: str, fused: Tensor, heads: NDArray[np.int64], rows: int) -> Tensor:
    """Gather heads of a fused tensor, `rows` rows in all, whatever its type: a copy."""
    head_bytes = fused.nbytes // fused.shape[0] * (rows // len(heads))
    data = fused.data.reshape(-1, head_bytes)[heads].reshape(-1)
    return Tensor(name, fused.type, (rows, *fused.shape[1:]), data, fused.scale)


@np.errstate(invalid="ignore")  # damage shows in what is computed
def _plus_one(name: str, tensor: Tensor) -> Tensor:
    values = tensor.to_float32() + np.float32(1)
    return Tensor(name, TensorType.F32, tensor.shape, values.reshape(-1).view(np.uint8))
