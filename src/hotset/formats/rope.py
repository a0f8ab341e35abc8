"""RoPE frequencies, resolved to numbers in float32 exactly as transformers' ``modeling_rope_utils`` does.

Scalings: linear (position interpolation, arXiv 2306.15595), Llama 3 (Meta's ``apply_scaling``), YaRN (arXiv
2309.00071).
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotset.core.config import RopeConfig
from hotset.core.errors import CheckpointError
from hotset.formats.keys import LARGEST, Keys
from hotset.formats.tensor import Tensor, TensorType

F32 = NDArray[np.float32]
_LEAST_FACTOR = 1e-3
ROPE_FACTORS = "rope_freqs.weight"
"""GGUF's tensor of Llama 3's divisors of frequencies."""
LONG_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")
"""LongRoPE's: for sequences within the original context, and for longer ones."""


def rope(dim: int, interleaved: bool, frequencies: F32, magnitude: float = 1.0) -> RopeConfig:
    """Put frequencies (dim / 2,) into a `RopeConfig`."""
    return RopeConfig(dim, interleaved, tuple(frequencies.tolist()), magnitude)


def plain_frequencies(theta: float, dim: int) -> F32:
    """``theta ** (-2i / dim)``, (dim / 2,)."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.asarray(1 / np.float32(theta) ** exponents, dtype=np.float32)


def llama3_frequencies(plain: F32, factor: float, low: float, high: float, context: int) -> F32:
    """Divide low frequencies by ``factor``; the ramp is from wavelength context / low to context / high."""
    wavelength = np.float32(2 * math.pi) / plain
    smooth = (np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low)
    blended = (1 - smooth) * plain / np.float32(factor) + smooth * plain
    scaled = np.where(wavelength > context / low, plain / np.float32(factor), blended)
    return np.where(wavelength < context / high, plain, scaled).astype(np.float32)


def yarn_frequencies(
    theta: float,
    dim: int,
    factor: float,
    context: int,
    *,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> F32:
    """Interpolate slow dimensions by ``factor``, keep fast ones; the ramp is between two numbers of turns."""

    def dimension(turns: float) -> float:
        return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(beta_fast), dimension(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # no division by zero
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1).astype(np.float32)
    wavelengths = np.float32(theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    extrapolated = np.float32(1.0) / wavelengths
    interpolated = np.float32(1.0) / (np.float32(factor) * wavelengths)
    keep = 1 - ramp
    return np.asarray(interpolated * (1 - keep) + extrapolated * keep, dtype=np.float32)


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    """YaRN's attention factor, which multiplies cosine and sine."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_from_config(
    keys: Keys,
    head_dim: int,
    theta: float | None,
    factor: float,
    context: int,
    *,
    interleaved: bool = False,
) -> RopeConfig:
    """Resolve one of config.json's RoPE tables (``rope_parameters`` or ``rope_scaling``).

    ``theta`` (None: the table must say it) and the rotated share ``factor`` of a head are defaults of the
    table's own keys, the model's whole `context` that of the original one.
    """
    found = _from_config(keys, head_dim, theta, factor, context)
    return replace(found, interleaved=interleaved)


def _from_config(keys: Keys, head_dim: int, theta: float | None, factor: float, context: int) -> RopeConfig:
    theta = keys.number("rope_theta", theta, low=1.001, high=1e12)
    if keys.get("rope_type") == "proportional":
        rotary = int(keys.number("partial_rotary_factor", factor, high=1.0) * head_dim // 2)
        divisor = np.float32(keys.number("factor", 1.0, low=1e-3, high=1e6))
        frequencies = plain_frequencies(theta, head_dim) / divisor
        frequencies[rotary:] = 0
        return rope(head_dim, False, frequencies)
    dim = int(head_dim * keys.number("partial_rotary_factor", factor, high=1.0))
    if dim < 2 or dim % 2:
        raise keys.refuse("partial_rotary_factor", f"an even number of a head's {head_dim} rotated", dim)
    plain = plain_frequencies(theta, dim)
    kind = keys.text("rope_type", keys.get("type", "default"))
    if kind == "default":
        return rope(dim, False, plain)
    original = keys.integer("original_max_position_embeddings", context)
    if kind == "linear":
        return rope(dim, False, plain / np.float32(keys.number("factor", low=1e-3, high=1e6)))
    if kind == "llama3":
        low = keys.number("low_freq_factor", low=1e-3, high=1e6)
        high = keys.number("high_freq_factor", low=low * (1 + 1e-6), high=1e7)
        scaled = llama3_frequencies(plain, keys.number("factor", low=1e-3, high=1e6), low, high, original)
        return rope(dim, False, scaled)
    if kind == "yarn":
        return _yarn_from_config(keys, dim, theta, original)
    if kind in ("longrope", "su"):
        return _long_from_config(keys, dim, plain, original, context)
    raise keys.refuse("rope_type", "default, linear, llama3, longrope or yarn", kind)


def _long_from_config(keys: Keys, dim: int, plain: F32, context: int, longest: int) -> RopeConfig:
    """Divisors for sequences within the original context, and for longer ones (arXiv 2402.13753)."""
    frequencies: list[F32] = []
    for key in ("short_factor", "long_factor"):
        stated = keys.get(key)
        numbers = isinstance(stated, list) and all(
            isinstance(x, int | float) and 1e-6 < x < 1e6 for x in stated
        )
        if not numbers or len(stated) != dim // 2:
            raise keys.refuse(key, f"{dim // 2} positive numbers", stated)
        frequencies.append((plain / np.array(stated, np.float32)).astype(np.float32))
    factor = keys.number("factor", longest / context, high=1e6)
    default = math.sqrt(1 + math.log(factor) / math.log(context)) if factor > 1 and context > 1 else 1.0
    short = rope(dim, False, frequencies[0], keys.number("attention_factor", default))
    return replace(short, long_frequencies=tuple(frequencies[1].tolist()), long_from=context)


def _yarn_from_config(keys: Keys, dim: int, theta: float, context: int) -> RopeConfig:
    factor = keys.number("factor", low=1e-3, high=1e6)
    scales = keys.number("mscale", 0.0, high=1e3), keys.number("mscale_all_dim", 0.0, high=1e3)
    if all(scales):
        default = yarn_magnitude(factor, scales[0]) / yarn_magnitude(factor, scales[1])
    else:
        default = yarn_magnitude(factor)
    frequencies = yarn_frequencies(
        theta,
        dim,
        factor,
        context,
        beta_fast=keys.number("beta_fast", 32.0, low=1e-3, high=1e6),
        beta_slow=keys.number("beta_slow", 1.0, low=1e-3, high=1e6),
        truncate=keys.flag(
            "truncate", not keys.stated("truncate")
        ),  # null: false, as `transformers` takes it
    )
    return rope(dim, False, frequencies, keys.number("attention_factor", default))


def rope_from_gguf(
    keys: Keys,
    dim: int,
    *,
    interleaved: bool,
    theta: float,
    context: int,
    factors: tuple[F32, ...],
    rounded: bool = True,
    scored: bool = False,
) -> RopeConfig:
    """Resolve GGUF's ``rope.scaling.*`` keys; ``factors`` (dim / 2,) divide.

    Those are the tensor ``rope_freqs``, or two, for sequences within the original context and for longer
    ones. `rounded`: YaRN begins and ends at whole dimensions; `scored`: its multiplier, where there is one,
    acts on attention's scores instead of cosines and sines.
    """
    kind = keys.text("rope.scaling.type", "linear")
    legacy = keys.number("rope.scale_linear", 1.0, high=1e6)
    factor = keys.number("rope.scaling.factor", legacy, high=1e6) or 1.0  # 0: none is stated
    if factor < _LEAST_FACTOR:
        raise keys.refuse("rope.scaling.factor", f"0 or a number from {_LEAST_FACTOR:g} to 1e+06", factor)
    magnitude = keys.number("rope.scaling.attn_factor", 1.0)
    if kind == "none":
        frequencies = plain_frequencies(theta, dim)
    elif kind == "linear":
        frequencies = plain_frequencies(theta, dim) / np.float32(factor)
    elif kind == "yarn":
        if (extra := keys.number("rope.scaling.yarn_ext_factor", 1.0, low=-1e30)) != 1:
            raise keys.refuse("rope.scaling.yarn_ext_factor", "1.0", extra)
        context = keys.integer("rope.scaling.original_context_length", context, high=LARGEST)
        fast = keys.number("rope.scaling.yarn_beta_fast", 32.0, low=1e-3, high=1e6)
        slow = keys.number("rope.scaling.yarn_beta_slow", 1.0, low=1e-3, high=1e6)
        frequencies = yarn_frequencies(
            theta, dim, factor, context, beta_fast=fast, beta_slow=slow, truncate=rounded
        )
        # config.json's attention_factor, as converters write it; llama.cpp takes the usual one all the same.
        magnitude *= keys.number("rope.scaling.yarn_attn_factor", yarn_magnitude(factor))
        if multiplier := keys.number("rope.scaling.yarn_log_multiplier", 0.0, high=1e3):
            magnitude /= yarn_magnitude(factor, 1.0 if scored else multiplier)
    else:
        raise keys.refuse("rope.scaling.type", "none, linear or yarn", kind)
    if not factors:
        return rope(dim, interleaved, frequencies, magnitude)
    resolved = rope(dim, interleaved, frequencies / factors[0], magnitude)
    if len(factors) == 1:
        return resolved
    original = keys.integer("rope.scaling.original_context_length", context, high=LARGEST)
    long = tuple((frequencies / factors[-1]).tolist())
    return replace(resolved, long_frequencies=long, long_from=original)


def rotated(period: int, layers: int) -> list[bool]:
    """Which layers have RoPE, where the last of each `period` has none; 0: all have it."""
    return [not period or (layer + 1) % period != 0 for layer in range(layers)]


def read_factors(path: Path, tensors: dict[str, Tensor]) -> tuple[F32, ...]:
    """Take out of a GGUF file's tensors the divisors of RoPE's frequencies, (dim / 2,) each.

    Llama 3's scaling is one tensor; LongRoPE has two, for short contexts and for long ones. Raises
    `CheckpointError` for one alone of these, and for others than positive numbers.
    """
    short, long = (tensors.pop(name, None) for name in LONG_FACTORS)
    if (short is None) != (long is None):
        missing = LONG_FACTORS[0] if short is None else LONG_FACTORS[1]
        raise CheckpointError(f"{path}: tensor {missing} is missing: the file is incomplete")
    found = (tensors.pop(ROPE_FACTORS, None), short, long)
    return tuple(_factors(path, tensor) for tensor in found if tensor)


def _factors(path: Path, tensor: Tensor) -> F32:
    values = tensor.data.view(np.float32) if tensor.type is TensorType.F32 else np.zeros(1, np.float32)
    if not np.all((values > 1e-6) & (values < 2e30)):  # 1e30: a frequency of 0
        raise CheckpointError(
            f"{path}: tensor {tensor.name}: expected positive numbers of type F32, found others"
        )
    return values
