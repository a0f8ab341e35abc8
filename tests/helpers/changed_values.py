"""Values in place of those that a model's file has: near ones, other types, nothing."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

ABSENT = object()
OF_NO_COMPUTATION = frozenset(
    {
        *("architectures", "dtype", "transformers_version", "initializer_range", "use_cache", "init_std"),
        *("id2label", "label2id", "bos_token_id", "eos_token_id", "pad_token_id", "output_router_logits"),
        *("return_dict", "output_hidden_states", "output_attentions", "is_encoder_decoder", "problem_type"),
        *("chunk_size_feed_forward", "_name_or_path", "pretraining_tp", "router_aux_loss_coef"),
        *("dropout", "layerdrop", "activation_dropout", "attention_dropout", "hidden_dropout"),
    }
)
"""Keys of config.json that say nothing of how a model computes."""
_TEXTS = ["", "x", 3, "relu", "silu", "gelu", "gelu_new", "linear", "yarn", "llama3", "longrope", "default"]


def others(value: Any) -> list[Any]:
    """What could stand in place of a value, by its type; not None, which stands for an absent one."""
    if isinstance(value, bool):
        found: list[Any] = [not value, int(not value), str(value)]
    elif isinstance(value, int):
        found = [value + 1, value - 1, 2 * value, value // 2, 0, 1, -1, str(value), True, 10**20]
    elif isinstance(value, float):
        found = [2 * value, value / 2, 0, -value, "x", float("nan"), float("inf"), 1e30]
    elif isinstance(value, str):
        found = _TEXTS
    elif isinstance(value, list):
        found = [[], value[::-1], value[1:], value + value[:1], "x", 3, [None] * len(value)]
        found += [[value[0]] * len(value), [value[-1]] * len(value)] if value else []
    elif isinstance(value, dict):
        found = [[], "x"]
    else:
        found = [1, 2, 7, 0, True, False, "x", [1], {"a": 1}, 0.5]
    return [other for other in found if type(other) is not type(value) or other != value]


def changes(config: Mapping[str, Any], within: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every change of one value of a table, in tables within it too: its path and the other value."""
    for key, value in config.items():
        if within or key not in OF_NO_COMPUTATION:
            yield from (((*within, key), other) for other in (ABSENT, *others(value)))
            if isinstance(value, dict):
                yield from changes(value, (*within, key))


def changed(config: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy with one value changed, or taken out."""
    copy: dict[str, Any] = json.loads(json.dumps(config))
    table = copy
    for key in path[:-1]:
        table = table[key]
    if value is ABSENT:
        del table[path[-1]]
    else:
        table[path[-1]] = value
    return copy
