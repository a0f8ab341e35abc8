"""Types that keys and values may be kept in, and the bytes that they take."""

from hotset.core.config import ModelConfig
from hotset.core.errors import RequestError

KV_TYPES = {"f16": 2.0, "q8_0": 34 / 32, "f32": 4.0}
"""Types of the KV cache and the bytes of one number."""


def kv_cache_bytes(config: ModelConfig, context: int, kv_type: str) -> int:
    """Bytes of a KV cache of `context` tokens."""
    numbers = 2 * config.n_layers * config.n_kv_heads * config.head_dim * context
    return int(numbers * KV_TYPES[check_kv_type(kv_type)])


def check_kv_type(kv_type: str) -> str:
    """The type as `KV_TYPES` has it, however it was capitalised; or `RequestError`."""
    if kv_type.lower() not in KV_TYPES:
        raise RequestError(f"kv_type is {kv_type!r}: expected {', '.join(KV_TYPES)} (--kv-type)")
    return kv_type.lower()
