"""How many sequences a model may have at the same time, and how much memory."""

from hotset.core.config import ModelConfig
from hotset.core.errors import RequestError
from hotset.core.limits import available_memory
from hotset.serve.loaded import Model, check_context
from hotset.state.kv_types import SAVED_STATES, check_kv_type, kv_cache_bytes, state_bytes
from hotset.state.pool import Pool

PARALLEL = 8
"""Sequences of a batch, unless asked otherwise: on a CPU more rows gain little."""

_SHARE_OF_MEMORY = 0.5
"""Of what is free beside the model, for keys and values, unless the user says."""


def check_parallel(model: Model, parallel: int | None) -> int:
    """The requests to compute at the same time, or `RequestError`; None: 8, or 1 where a GPU computes too.

    There, a sequence takes the memory of its whole context, for which a model's placement leaves room once.
    """
    if parallel is None:
        return 1 if model.plan else PARALLEL
    if parallel < 1:
        raise RequestError(f"parallel is {parallel}: expected 1 or more")
    return parallel


def check_room(config: ModelConfig, context: int | None, kv_type: str, kv_room: int | None) -> int:
    """The bytes that one sequence of `context` tokens takes; `RequestError` if `kv_room` has none for it."""
    capacity = check_context(config, context)
    # Two states: the present one, and the one that is being written.
    whole = kv_cache_bytes(config, capacity, kv_type) + 2 * state_bytes(config)
    if kv_room is not None and kv_room < whole:
        raise RequestError(
            f"keys and values may take {kv_room / 1e6:.1f} MB, but a context of {capacity} tokens takes "
            f"{whole / 1e6:.1f} MB: give more room (--cache-ram) or ask for a smaller --context"
        )
    return whole


def make_pool(model: Model, context: int | None, kv_type: str, parallel: int, kv_room: int | None) -> Pool:
    """Room for sequences of `context` tokens each, of `kv_room` bytes in all; None: see `Engine.load`."""
    config = model.config
    capacity = check_context(config, context)
    kv_type = check_kv_type(kv_type, config)
    check_room(config, context, kv_type, kv_room)
    layers = model.plan.placement.layers if model.plan else ()
    state = state_bytes(config, [i for i, layer in enumerate(layers) if layer.attention])
    whole = kv_cache_bytes(config, capacity, kv_type) + 2 * state
    usual = parallel * (whole + SAVED_STATES * state)
    if model.plan:  # which has room for these on the GPU
        kv_room = usual if kv_room is None else min(usual, kv_room)
    elif kv_room is None:
        kv_room = min(usual, int(_SHARE_OF_MEMORY * available_memory().free))

    def bytes_at(positions: int) -> int:
        """On the CPU memory is taken as it is written, on a GPU all at once."""
        return whole if model.plan else kv_cache_bytes(config, positions, kv_type) + 2 * state

    return Pool(
        lambda: model.transformer.sequence(capacity, kv_type),
        capacity=capacity,
        bytes_at=bytes_at,
        room=kv_room,
        saved_room=SAVED_STATES * state,
        approximate=any(layer.ffn is not None and layer.ffn.way.approximate for layer in config.layers),
    )
