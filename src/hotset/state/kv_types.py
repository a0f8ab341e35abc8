"""Types that keys and values may be kept in, and the bytes that they take."""

from collections.abc import Collection

from hotset.core.config import ModelConfig
from hotset.core.errors import RequestError

KV_TYPES = {"f16": 2.0, "q8_0": 34 / 32, "f32": 4.0}
"""Types of the KV cache and the bytes of one number."""
_BLOCK = 32
"""Numbers of a head that share a scale in q8_0."""


def kv_types(config: ModelConfig) -> list[str]:
    """The types that a model's keys and values may be kept in: its heads must be whole blocks of the type."""
    return [name for name in KV_TYPES if name != "q8_0" or not _unfit(config)]


def _unfit(config: ModelConfig) -> int:
    """The size of a head that is no multiple of a block; 0: there is none such."""
    sizes = (config.heads(i).head_dim for i in config.kv_layers)
    return next((size for size in sizes if size % _BLOCK), 0)


SAVED_STATES = 6
"""Recurrent states that a sequence keeps to come back to, at most."""
STATES = 2 + SAVED_STATES
"""And the present one, and the one that is being written."""
_CHUNK = 16
"""Positions beside which a recurrent layer's state is kept on the CPU."""
_LINE = 16
"""Numbers that rows are padded to there."""


def kv_cache_bytes(config: ModelConfig, context: int, kv_type: str) -> int:
    """Bytes of a KV cache of `context` tokens."""
    numbers = context * sum(config.kv_shape(layer).numbers for layer in config.kv_layers)
    return int(numbers * KV_TYPES[check_kv_type(kv_type, config)])


def state_bytes(config: ModelConfig, on_gpu: Collection[int] = ()) -> int:
    """Bytes of one state of all recurrent layers; 0: there are none.

    As the CPU keeps it, but for the layers `on_gpu`.
    """
    numbers = 0
    for i, own in enumerate(config.layers):
        layer = own.recurrent
        if layer is None:
            continue
        if i in on_gpu:
            numbers += layer.state_size
            continue
        sums = layer.sums
        width = -(-sums.value_dim // _LINE) * _LINE
        numbers += sums.n_value_heads * (sums.key_dim * width + _CHUNK * width + _CHUNK)
        numbers += sums.n_key_heads * sums.key_dim * _CHUNK
        numbers += -(-(_CHUNK + layer.kernel - 1) * layer.channels // _LINE) * _LINE
    return 4 * numbers


def check_kv_type(kv_type: str, config: ModelConfig) -> str:
    """The type as `KV_TYPES` has it, however it was capitalised.

    Raises `RequestError` if there is none such, or the model's heads do not take it.
    """
    name = kv_type.lower()
    if name not in KV_TYPES:
        raise RequestError(f"kv_type is {kv_type!r}: expected {', '.join(KV_TYPES)} (--kv-type)")
    if name == "q8_0" and name not in kv_types(config):
        raise RequestError(
            f"kv_type q8_0 needs heads of a multiple of {_BLOCK} numbers, and this model's have "
            f"{_unfit(config)}: use f16 (--kv-type)"
        )
    return name
