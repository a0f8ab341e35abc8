"""The activation profile of a model: how often each neuron fires on a text, and how strongly.

Of a mixture of experts the units are experts: one fires for a token that selects it, its weight taking the
place of ``h``. In layers that are no mixtures nothing is counted.

A profile is made by `hotset.activations.collect` and stored as an ``.npz`` file: a zip of plain NumPy arrays,
without pickles, with the facts in one string of JSON (``meta``). The same profile always has the same bytes.
"""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotset.backends.blocks import dequantise
from hotset.backends.contract import F32
from hotset.core.config import Activation, ModelConfig
from hotset.core.errors import HotsetError
from hotset.formats.checkpoint import Checkpoint
from hotset.formats.output import written

SCHEMA = 1
_SAMPLES = 64
"""Numbers a layer in a fingerprint."""
_ALIKE = 0.9
"""Least cosine between fingerprints of one model: four bits a weight keep 0.99, other orders give about 0."""


@dataclasses.dataclass(frozen=True, eq=False)
class ActivationProfile:
    """How L layers of F neurons fired while the model read a text.

    A neuron fires for a token when its value ``h`` (`hotset.backends.contract.FFN.neurons`) is larger than
    its layer's level: ``|h| > level``. Where the activation produces zeros, levels are 0: firing means not to
    be zero. Elsewhere (SiLU, GELU) every neuron is a little active, and the level is such that the
    firing ones carry 90 % of the layer's sum of ``|h|``. Raises `HotsetError` for arrays that do not fit
    together.
    """

    model: str
    """Name of the model's file or directory."""
    activation: Activation
    corpus: str
    """What was read, for people."""
    corpus_hash: str
    """SHA-256 of the token ids read, as little-endian int32, window after window; empty where unknown."""
    tokens: int
    """Tokens counted, skipped ones not among them; 0 where unknown."""
    window: int
    """Tokens read at a time, each window from an empty context; 0 where unknown."""
    skipped: int
    """First tokens of each window that are not counted."""
    fingerprint: F32
    """(L, 64): samples of each layer's ``ffn_up``, by which a profile knows its model."""
    levels: F32
    """(L,): values that a firing neuron exceeds."""
    frequency: F32
    """(L, F): share of the tokens for which the neuron fires, neurons in the model's order."""
    magnitude: F32
    """(L, F): mean of ``|h|`` over all tokens; 0 where unknown."""
    halves: F32 | None = None
    """(2, L, F): the frequency over the first and the second half of the windows; None where unknown."""
    units: str = "neurons"
    """Or ``experts``."""
    inside: F32 | None = None
    """(L,), of experts: share of a selected expert's neurons that are not zero, mean over tokens and experts;
    None where it was not counted."""

    def __post_init__(self) -> None:
        if self.frequency.ndim != 2 or not self.frequency.size:
            raise HotsetError(f"frequency: expected layers x neurons, found {list(self.frequency.shape)}")
        layers, neurons = self.frequency.shape
        arrays: dict[str, tuple[F32 | None, tuple[int, ...], float]] = {
            "fingerprint": (self.fingerprint, (layers, _SAMPLES), np.inf),
            "levels": (self.levels, (layers,), np.inf),
            "frequency": (self.frequency, (layers, neurons), 1.0),
            "magnitude": (self.magnitude, (layers, neurons), np.inf),
            "halves": (self.halves, (2, layers, neurons), 1.0),
            "inside": (self.inside, (layers,), 1.0),
        }
        for name, (values, shape, most) in arrays.items():
            if values is None:
                continue
            if values.shape != shape or values.dtype != np.float32:
                raise HotsetError(
                    f"{name}: expected float32 {list(shape)}, found {values.dtype} {list(values.shape)}"
                )
            least = -np.inf if name == "fingerprint" else 0.0
            if not (np.isfinite(values).all() and values.min() >= least and values.max() <= most):
                raise HotsetError(f"{name}: expected finite numbers from {least:g} to {most:g}")
        for name in ("tokens", "window", "skipped"):
            if getattr(self, name) < 0:
                raise HotsetError(f"{name}: expected 0 or more, found {getattr(self, name)}")

    @property
    def model_hash(self) -> str:
        """SHA-256 that names the model: its activation, its FFNs' shape and the fingerprint."""
        experts = [] if self.units == "neurons" else [self.units]
        facts = json.dumps([self.activation.value, *self.frequency.shape, *experts]).encode()
        return hashlib.sha256(facts + self.fingerprint.astype("<f4").tobytes()).hexdigest()

    @property
    def order(self) -> NDArray[np.int64]:
        """(L, F): each layer's neurons hottest first; equally frequent ones by magnitude, then by place."""
        return np.lexsort((-self.magnitude, -self.frequency), axis=-1)

    @property
    def density(self) -> F32:
        """(L,): mean share of a layer's neurons that fire for a token."""
        density: F32 = self.frequency.mean(axis=1, dtype=np.float64).astype(np.float32)
        return density

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise `HotsetError` unless the profile is of this model, its neurons in this order.

        Another quantisation of the same weights will do.
        """
        config = checkpoint.config
        expected = (config.activation.value, config.n_layers, config.profiled_units, units_of(config))
        found = (self.activation.value, *self.frequency.shape, self.units)
        if found != expected:
            raise HotsetError(
                f"the profile is of {self.model} ({_shape(*found)}) and does not belong to {checkpoint.path} "
                f"({_shape(*expected)}): profile this model with hotset profile"
            )
        own = fingerprint(checkpoint)
        product = (own * self.fingerprint).sum(axis=1)
        lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(self.fingerprint, axis=1)
        if (product < _ALIKE * lengths).any():
            raise HotsetError(
                f"the profile is of {self.model}, whose weights are not those of {checkpoint.path}, or its "
                "neurons lie in another order: profile this model with hotset profile"
            )

    def save(self, path: Path) -> None:
        """Write the profile, whole or not at all; `HotsetError` for what the system refuses."""
        meta = {"schema": SCHEMA, "model_hash": self.model_hash}
        arrays = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                arrays[field.name] = value
            elif value is not None:
                meta[field.name] = value
        write_arrays(path, {"meta": np.array(json.dumps(meta, sort_keys=True)), **arrays})


def load_profile(path: Path) -> ActivationProfile:
    """Read a profile that was saved; `HotsetError`, which names the file, for anything else."""
    arrays: dict[str, Any] = read_arrays(path)
    try:
        meta = json.loads(str(arrays.pop("meta")))
        schema = meta.pop("schema")
        if schema != SCHEMA:
            raise HotsetError(f"schema: expected {SCHEMA}, found {schema}; profile the model again")
        model_hash = meta.pop("model_hash")
        meta.setdefault("units", "neurons")  # older profiles
        for field in dataclasses.fields(ActivationProfile):
            if field.type in (str, int) and type(meta[field.name]) is not field.type:
                raise HotsetError(f"{field.name}: expected {field.type}, found {meta[field.name]!r}")
        meta["activation"] = Activation(meta["activation"])
        if meta["units"] not in ("neurons", "experts"):
            raise HotsetError(f"units: expected neurons or experts, found {meta['units']!r}")
        profile = ActivationProfile(**meta, **arrays)
    except HotsetError as error:
        raise HotsetError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise HotsetError(f"{path} is no activation profile: {error!r}") from None
    if profile.model_hash != model_hash:
        raise HotsetError(f"{path} is damaged: its model hash is not that of its contents")
    return profile


def fingerprint(checkpoint: Checkpoint) -> F32:
    """(L, 64) numbers of a model's ``ffn_up`` matrices that tell it, and its neurons' order, from others.

    Of mixtures, those of their routers; zeros of layers without an FFN.
    """
    config = checkpoint.config
    samples = np.zeros((config.n_layers, _SAMPLES), np.float32)
    k = np.arange(_SAMPLES)
    for i, row in enumerate(samples):
        if not config.layers[i].feeds:
            continue
        part = "ffn_gate_inp" if config.layers[i].experts else "ffn_up"
        up = dequantise(checkpoint.tensors[f"blk.{i}.{part}.weight"], k * config.units(i) // _SAMPLES)
        row[:] = up[k, k * config.hidden_size // _SAMPLES]
    return samples


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an ``.npz`` file, whole or not at all; equal arrays give equal bytes."""
    with written(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, values in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # of 1980: a zip's dates would tell runs apart
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(values), allow_pickle=False)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read an ``.npz`` file that `write_arrays` wrote; `HotsetError` for anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            for name in archive.namelist():
                with archive.open(name) as file:
                    arrays[name.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
            return arrays
    except OSError as error:
        raise HotsetError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # whatever zip and NumPy make of other files
        raise HotsetError(f"{path} is no activation profile, or is damaged: {error}") from None


def is_arrays_file(path: Path) -> bool:
    """Whether a file looks like one of `write_arrays`: a profile, or the sums of an unfinished one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(name.endswith(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def units_of(config: ModelConfig) -> str:
    """What a profile of such a model counts: neurons or experts."""
    return "experts" if config.mixture else "neurons"


def _shape(activation: str, layers: int, count: int, units: str) -> str:
    return f"{layers} layers of {count} {units}, {activation}"
