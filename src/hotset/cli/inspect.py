"""`hotset inspect`: what is in a model, and what memory it needs."""

import json
import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from hotset.cli import options

if TYPE_CHECKING:
    from hotset.formats.checkpoint import Checkpoint


def inspect(
    model: options.Model = None,
    *,
    context: options.Context = None,
    override: options.Override = None,
    as_json: options.AsJSON = False,
) -> None:
    """Architecture, tensors by type and size, and the memory needed for a context. Reads no weights."""
    from hotset.cli.console import notes
    from hotset.serve.load import open_model

    checkpoint = open_model(model, options.overrides(override))
    notes(checkpoint)
    facts = _facts(checkpoint, context)
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)


def _facts(checkpoint: "Checkpoint", context: int | None) -> dict[str, Any]:
    from hotset.backends.blocks import memory_bytes
    from hotset.serve.loaded import check_context
    from hotset.state.kv_types import KV_TYPES, kv_cache_bytes, kv_types

    config = checkpoint.config
    context = check_context(config, context)
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    for tensor in checkpoint.tensors.values():
        group = by_type[tensor.type.name]
        group["tensors"] += 1
        group["parameters"] += math.prod(tensor.shape)
        group["bytes"] += tensor.nbytes
        group["memory_bytes"] += memory_bytes(tensor)
    weights = sum(group["memory_bytes"] for group in by_type.values())
    fitting = kv_types(config)
    kv_bytes = {t: kv_cache_bytes(config, context, t) if t in fitting else None for t in KV_TYPES}
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
        "experts": _experts(checkpoint, weights, kv_bytes["f16"] or 0),
        "neurons": _neurons(checkpoint),
        "tensors_by_type": dict(sorted(by_type.items(), key=lambda item: -item[1]["bytes"])),
        "memory": {
            "context": context,
            "weights_bytes": weights,
            "kv_cache_bytes": kv_bytes,
            "total_bytes": {t: None if size is None else weights + size for t, size in kv_bytes.items()},
        },
    }


def _experts(checkpoint: "Checkpoint", weights: int, cache: int) -> dict[str, Any] | None:
    """A mixture's parts, and how much of it this machine's free memory holds; None for other models."""
    from hotset.core.limits import available_memory
    from hotset.model.reading import expert_bytes

    mixtures = [layer.experts for layer in checkpoint.config.layers if layer.experts]
    if not mixtures:
        return None
    read = expert_bytes(checkpoint)
    free = available_memory().free
    left = free - cache - (weights - read.all)
    return {
        "layers": len(mixtures),
        "count": mixtures[0].count,
        "used": mixtures[0].used,
        "size": mixtures[0].size,
        "shared_size": mixtures[0].shared_size,
        "always_bytes": weights - read.all,
        "expert_bytes": read.all // sum(mixture.count for mixture in mixtures),
        "all_bytes": read.all,
        "token_bytes": read.chosen,
        "free_memory_bytes": free,
        "share_that_fits": min(max(left / read.all, 0.0), 1.0),
    }


def _expert_rows(experts: dict[str, Any]) -> list[tuple[str, str]]:
    from hotset.cli.console import size

    shared = f", and one of {experts['shared_size']} that all tokens use" if experts["shared_size"] else ""
    rows = [
        (
            "experts",
            f"{experts['count']} of {experts['size']} neurons in each of {experts['layers']} layers, "
            f"{experts['used']} a token{shared}",
        ),
        ("used by all tokens", size(experts["always_bytes"])),
        ("all experts", f"{size(experts['all_bytes'])}, {size(experts['expert_bytes'])} each"),
        ("experts of a token", size(experts["token_bytes"])),
    ]
    share = experts["share_that_fits"]
    what = "the model" if share == 1 else f"what all tokens use and {share:.0%} of the experts"
    if share == 0:
        what = "not even what all tokens use"
    rows.append(("free memory", f"{size(experts['free_memory_bytes'])}: holds {what}, with an f16 cache"))
    return rows


def _neurons(checkpoint: "Checkpoint") -> dict[str, Any] | None:
    """What a file stored by neuron says of its neurons; None for other files."""
    import numpy as np

    config, tensors = checkpoint.config, checkpoint.tensors
    plans = [layer.ffn for layer in config.layers]
    if not any(plans):
        return None
    profiles = [f"blk.{i}.ffn_profile.weight" for i, plan in enumerate(plans) if plan]
    counts = [tensors[name].to_float32()[0] for name in profiles if name in tensors]
    ways = Counter(plan.way.value if plan else "dense, by output" for plan in plans)
    cutoffs = [plan.cutoff for plan in plans if plan and plan.score]
    predictors = [f"blk.{i}.{part}.weight" for i in range(config.n_layers) for part in ("fc1", "fc2")]
    provenance = {
        key.removeprefix("hotset."): value if isinstance(value, str | int | float) else float(np.max(value))
        for key in checkpoint.metadata
        if key.startswith(("hotset.profile.", "hotset.convert."))
        for value in [checkpoint.metadata[key]]
    }
    return {
        "hottest_first": bool(counts) and all((np.diff(frequency) <= 0).all() for frequency in counts),
        "ways": dict(ways),
        "scores": dict(Counter(plan.score.value for plan in plans if plan and plan.score)),
        "cutoffs": [min(cutoffs), max(cutoffs)] if cutoffs else None,
        "kept": max(plan.kept for plan in plans if plan),
        "predictor_bytes": sum(tensors[name].nbytes for name in predictors if name in tensors),
        **provenance,
    }


def _neuron_rows(neurons: dict[str, Any], n_layers: int) -> list[tuple[str, str]]:
    from hotset.cli.console import size

    rows = [
        ("neurons", "stored by neuron" + (", hottest first" if neurons["hottest_first"] else "")),
        (
            "plan",
            ", ".join(f"{way} in {count} of {n_layers} layers" for way, count in neurons["ways"].items()),
        ),
    ]
    if neurons["cutoffs"]:
        low, high = neurons["cutoffs"]
        scores = ", ".join(neurons["scores"])
        rows.append(("cut-offs", f"{low:.4g} to {high:.4g} on {scores}"))
    if neurons["kept"]:
        rows.append(("activation kept", f"{neurons['kept']:.1%}, by audits"))
    if neurons["predictor_bytes"]:
        rows.append(("predictors", size(neurons["predictor_bytes"])))
    if "profile.tokens" in neurons:
        rows.append(("profile", f"{neurons['profile.tokens']} tokens of {neurons['profile.corpus']}"))
    if "convert.down_error" in neurons:
        rows.append(
            ("error of down, stored again", f"at most {neurons['convert.down_error']:.2%} in a layer")
        )
    if "convert.kl" in neurons:
        rows.append(("KL divergence from the source", f"{neurons['convert.kl']:.6f} nats"))
    return rows


def _print(facts: dict[str, Any]) -> None:
    from hotset.cli.console import count, size, table

    neurons, experts = facts["neurons"], facts["experts"]
    width = str(facts["ffn_size"] or (experts and experts["size"]))
    table(
        [
            ("model", facts["model"]),
            ("architecture", facts["architecture"]),
            ("parameters", count(facts["parameters"])),
            ("layers", str(facts["layers"])),
            ("hidden size", str(facts["hidden_size"])),
            ("FFN size", f"{width}, {facts['activation']}{', gated' if facts['gated'] else ''}"),
            ("heads", f"{facts['heads']} of {facts['head_dim']}, {facts['kv_heads']} for keys and values"),
            ("vocabulary", str(facts["vocab_size"])),
            ("context", str(facts["context_length"])),
            *(_expert_rows(experts) if experts else []),
            *(_neuron_rows(neurons, facts["layers"]) if neurons else []),
        ]
    )
    print()
    types = facts["tensors_by_type"]
    columns = {"size": "bytes"}
    if any(group["bytes"] != group["memory_bytes"] for group in types.values()):
        columns["in memory, without loss"] = "memory_bytes"
    table(
        [
            (
                *(name, str(group["tensors"]), count(group["parameters"])),
                *(size(group[key]) for key in columns.values()),
            )
            for name, group in types.items()
        ],
        header=("type", "tensors", "parameters", *columns),
    )
    memory = facts["memory"]
    print()
    table(
        [
            (kv_type, size(memory["weights_bytes"]), size(kv), size(memory["total_bytes"][kv_type]))
            if kv is not None
            else (kv_type, "", f"not for heads of {facts['head_dim']}", "")
            for kv_type, kv in memory["kv_cache_bytes"].items()
        ],
        header=("KV cache", "weights", f"cache of {memory['context']} tokens", "together"),
    )
