"""`hotset inspect`: what is in a model, and what memory it needs."""

import json
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from hotset.cli import options

if TYPE_CHECKING:
    from hotset.formats.checkpoint import Checkpoint


def inspect(
    model: options.Model = None, context: options.Context = None, as_json: options.AsJSON = False
) -> None:
    """Architecture, tensors by type and size, and the memory needed for a context. Reads no weights."""
    from hotset.engine.load import open_model

    facts = _facts(open_model(model), context)
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)


def _facts(checkpoint: "Checkpoint", context: int | None) -> dict[str, Any]:
    from hotset.engine.load import KV_TYPES, check_context, kv_cache_bytes

    config = checkpoint.config
    context = check_context(config, context)
    by_type: dict[str, dict[str, int]] = defaultdict(lambda: {"tensors": 0, "parameters": 0, "bytes": 0})
    for tensor in checkpoint.tensors.values():
        group = by_type[tensor.type.name]
        group["tensors"] += 1
        group["parameters"] += math.prod(tensor.shape)
        group["bytes"] += tensor.nbytes
    weights = sum(group["bytes"] for group in by_type.values())
    kv_bytes = {kv_type: kv_cache_bytes(config, context, kv_type) for kv_type in KV_TYPES}
    return {
        "model": str(checkpoint.path),
        "architecture": config.architecture,
        "parameters": sum(group["parameters"] for group in by_type.values()),
        "layers": config.n_layers,
        "hidden_size": config.hidden_size,
        "ffn_size": config.ffn_size,
        "activation": config.activation.value,
        "gated": config.gated,
        "heads": config.n_heads,
        "kv_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
        "tensors_by_type": dict(sorted(by_type.items(), key=lambda item: -item[1]["bytes"])),
        "memory": {
            "context": context,
            "weights_bytes": weights,
            "kv_cache_bytes": kv_bytes,
            "total_bytes": {kv_type: weights + size for kv_type, size in kv_bytes.items()},
        },
    }


def _print(facts: dict[str, Any]) -> None:
    from hotset.cli.console import count, size, table

    table(
        [
            ("model", facts["model"]),
            ("architecture", facts["architecture"]),
            ("parameters", count(facts["parameters"])),
            ("layers", str(facts["layers"])),
            ("hidden size", str(facts["hidden_size"])),
            ("FFN size", f"{facts['ffn_size']}, {facts['activation']}{', gated' if facts['gated'] else ''}"),
            ("heads", f"{facts['heads']} of {facts['head_dim']}, {facts['kv_heads']} for keys and values"),
            ("vocabulary", str(facts["vocab_size"])),
            ("context", str(facts["context_length"])),
        ]
    )
    print()
    table(
        [
            (name, str(group["tensors"]), count(group["parameters"]), size(group["bytes"]))
            for name, group in facts["tensors_by_type"].items()
        ],
        header=("type", "tensors", "parameters", "size"),
    )
    memory = facts["memory"]
    print()
    table(
        [
            (kv_type, size(memory["weights_bytes"]), size(kv), size(memory["total_bytes"][kv_type]))
            for kv_type, kv in memory["kv_cache_bytes"].items()
        ],
        header=("KV cache", "weights", f"cache of {memory['context']} tokens", "together"),
    )
