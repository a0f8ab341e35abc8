"""`hotset bench`: how fast a model runs here."""

import json

from hotset.cli import options


def bench(
    model: options.Model = None,
    *,
    threads: options.Threads = None,
    ffn: options.Neurons = None,
    as_json: options.AsJSON = False,
) -> None:
    """Time a prompt of 512 tokens and 128 single tokens; medians of three, beside the memory bandwidth."""
    from hotset.cli.console import progress, table
    from hotset.engine.load import load_model
    from hotset.engine.measure import measure

    with progress("Loading") as loading:
        loaded = load_model(model, threads=threads, ffn=ffn, progress=loading)
    with progress("Measuring") as measuring:
        speed = measure(loaded, progress=measuring)
    backend = loaded.backend
    if as_json:
        result = {
            "model": str(loaded.path),
            "threads": backend.threads,
            "level": backend.level,
            "prefill_tokens": speed.prefill_tokens,
            "decode_tokens": speed.decode_tokens,
            "prefill_tokens_per_second": speed.prefill_tokens_per_second,
            "decode_tokens_per_second": speed.decode_tokens_per_second,
            "decode_gb_per_second": speed.decode_gb_per_second,
            "memory_gb_per_second": speed.memory_gb_per_second,
            "density": speed.density,
        }
        print(json.dumps(result, indent=2))
        return
    neurons = [] if speed.density is None else [("neurons computed", f"{speed.density:.1%}")]
    table(
        [
            ("model", loaded.path.name),
            ("threads, kernels", f"{backend.threads}, {backend.level}"),
            (f"prefill, {speed.prefill_tokens} tokens", f"{speed.prefill_tokens_per_second:.1f} tokens/s"),
            (f"decode, {speed.decode_tokens} tokens", f"{speed.decode_tokens_per_second:.1f} tokens/s"),
            *neurons,
            ("decode reads weights at", f"{speed.decode_gb_per_second:.1f} GB/s"),
            ("memory bandwidth", f"{speed.memory_gb_per_second:.1f} GB/s"),
            ("share of the bandwidth", f"{speed.memory_share:.0%}"),
        ]
    )
