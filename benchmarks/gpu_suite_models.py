"""The GPU suite's second part: decoding and prompts over VRAM budgets, against offloading by layers."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sparse_models
import synthetic
from numpy.typing import NDArray

from hotset.backends.cpu import CpuBackend
from hotset.core.batch import Batch
from hotset.core.config import LayerPlacement, Placement, Way
from hotset.formats import open_checkpoint
from hotset.formats.checkpoint import Checkpoint
from hotset.hybrid.build import build_hybrid
from hotset.hybrid.device import Device
from hotset.model.transformer import Transformer
from hotset.placing.machine import MachineProfile
from hotset.placing.place import place
from hotset.placing.planner import Planner, working_bytes
from hotset.placing.sizes import model_parts
from hotset.placing.timing import sides, timed
from hotset.serve.load import with_plan

BUDGETS = (0.4, 1.0, 0.25, 0.5, 0.75)
"""Shares of the weights, the one that the issue asks for first."""
WARM = 32
"""Tokens decoded before those that are timed."""


@dataclass(frozen=True)
class Size:
    """A shape of `synthetic.SHAPES`, with fewer layers where the real number would take too long."""

    name: str
    layers: int | None


SIZES = (Size("llama-2-7b", None), Size("llama-2-13b", 12), Size("falcon-40b", 6))


@dataclass(frozen=True)
class Run:
    """What every measurement of a model has in common."""

    device: Device
    machine: MachineProfile
    simulated: bool
    """The device has more memory than the budgets: the rest is only not used."""
    context: int = 1024
    prompt: int = 512
    tokens: int = 64
    threads: int | None = None


def write_models(size: Size, directory: Path, *, plain: bool) -> tuple[Path, Path | None]:
    """ReGLU Q4_0 by neuron, one in ten firing; and for llama.cpp one of the same shape without neurons."""
    sparse = directory / f"{size.name}-by-neuron.gguf"
    sparse_models.write(sparse, size.name, "q4_0", density=0.1, activation="relu", layers=size.layers, seed=0)
    if not plain:
        return sparse, None
    dense = directory / f"{size.name}.gguf"
    synthetic.write(dense, size.name, "q4_0", size.layers)
    return sparse, dense


def weight_bytes(checkpoint: Checkpoint) -> int:
    """What a placement can put on a device: all but the embedding and predictors."""
    left_out = ("token_embd", "position_embd", "fc1", "fc2", "ffn_profile")
    tensors = checkpoint.tensors.items()
    return sum(t.nbytes for name, t in tensors if not any(part in name for part in left_out))


def fire_rates(checkpoint: Checkpoint, name: str) -> NDArray[np.float64]:
    """How often neurons fire (L, F), as `sparse_models` has made them."""
    c = checkpoint.config
    middle = sparse_models.HOT_SHARE[c.gated]
    shares = middle + np.linspace(-sparse_models.SPREAD, sparse_models.SPREAD, sparse_models.VARIANTS)
    laws = [sparse_models.probabilities(c.ffn_size, 0.1, share) for share in shares]
    return np.stack([laws[i * len(laws) // c.n_layers] for i in range(c.n_layers)])


def by_layers(checkpoint: Checkpoint, budget: int, context: int) -> Placement:
    """Whole layers on the device while they fit, the last first, as llama.cpp's ``-ngl`` takes them.

    The budget has the same working memory in it as the hybrid's.
    """
    c = checkpoint.config
    kv = 2 * c.n_kv_heads * c.head_dim * context * 2
    output = "output.weight" if "output.weight" in checkpoint.tensors else "token_embd.weight"
    left = budget - working_bytes(model_parts(checkpoint)) - checkpoint.tensors[output].nbytes
    head, on_device = left >= 0, 0
    for i in range(c.n_layers - 1, -1, -1) if head else ():
        names = [n for n in checkpoint.tensors if n.startswith(f"blk.{i}.") and ".fc" not in n]
        left -= kv + sum(checkpoint.tensors[n].nbytes for n in names)
        if left < 0:
            break
        on_device += 1
    host = LayerPlacement(attention=False, hot=0)
    device = LayerPlacement(attention=True, hot=c.ffn_size)
    return Placement((host,) * (c.n_layers - on_device) + (device,) * on_device, head=head)


def speeds(model: Transformer, run: Run) -> dict[str, float]:
    """Tokens/s of a prompt and of single tokens after 32 others; the best of two prompts, all of decoding."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, model.config.vocab_size, run.context).astype(np.int32)
    kv = model.sequence(run.context)
    seconds = math.inf
    for _ in range(2):
        kv.rewind(0)
        start = time.perf_counter()
        model.forward(Batch.of(kv, ids[: run.prompt], lossless=True))
        seconds = min(seconds, time.perf_counter() - start)
    kv.rewind(0)
    warm = min(WARM, run.context // 2)
    for i in range(warm):
        model.forward(Batch.of(kv, ids[i : i + 1]))
    start = time.perf_counter()
    for i in range(warm, warm + run.tokens):
        model.forward(Batch.of(kv, ids[i : i + 1]))
    return {
        "prefill_tokens_per_second": run.prompt / seconds,
        "decode_tokens_per_second": run.tokens / (time.perf_counter() - start),
    }


def budgets(
    size: Size, path: Path, plain: Path | None, run: Run, late: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """A row for every budget and engine; those that there is no time for are not begun."""
    checkpoint = open_checkpoint(path)
    dense = with_plan(checkpoint, Way.DENSE)
    weights, frequency = weight_bytes(checkpoint), fire_rates(checkpoint, size.name)
    machine = timed(checkpoint, run.device, CpuBackend(threads=run.threads), run.machine)
    c = checkpoint.config
    common = {
        "model": size.name,
        "layers": c.n_layers,
        "all_layers": size.layers is None,
        "simulated_budget": run.simulated,
        "weights_gb": weights / 1e9,
    }
    for share in BUDGETS:
        budget = int(share * weights) + 2 * c.n_layers * c.n_kv_heads * c.head_dim * run.context * 2
        if share == 1.0:
            budget = int(1.2 * budget)  # and what a step works with
        row = common | {"budget": share, "budget_gb": budget / 1e9}
        host = CpuBackend(threads=run.threads)

        def hybrid(budget: int = budget, host: CpuBackend = host) -> dict[str, Any]:
            placed = place(
                checkpoint,
                run.device,
                host,
                budget,
                machine=machine,
                context=run.context,
                kv_type="f16",
                frequency=frequency,
            )
            found = speeds(placed.transformer, run)
            at_measured = Planner(
                checkpoint,
                machine,
                context=run.context,
                prompt=min(WARM + run.tokens // 2, run.context),
                frequency=frequency,
                sides=sides(host, run.device),
            )
            predicted = 1e3 / at_measured.predicted(placed.plan.placement).ms
            return found | {
                "predicted_decode_tokens_per_second": predicted,
                "measured_over_predicted": found["decode_tokens_per_second"] / predicted,
                "device_gb": placed.plan.device_bytes / 1e9,
                "notes": list(placed.notes),
            }

        def layer_wise(budget: int = budget, host: CpuBackend = host) -> dict[str, Any]:
            placement = by_layers(dense, budget, run.context)
            model = build_hybrid(dense, placement, run.device, host)
            on_device = sum(layer.attention for layer in placement.layers)
            return speeds(model, run) | {"layers_on_device": on_device}

        def llama_cpp(budget: int = budget, host: CpuBackend = host) -> dict[str, Any]:
            from engines import LlamaCppEngine, decode, prefill

            assert plain is not None
            plain_checkpoint = open_checkpoint(plain)
            placement = by_layers(plain_checkpoint, budget, run.context)
            layers = sum(layer.attention for layer in placement.layers) + int(placement.head)
            engine = LlamaCppEngine(plain, run.threads or host.threads, run.context, gpu_layers=layers)
            decode(engine, 8)
            return {
                "prefill_tokens_per_second": prefill(engine, run.prompt),
                "decode_tokens_per_second": decode(engine, run.tokens),
                "layers_on_device": layers,
            }

        engines: dict[str, Callable[[], dict[str, Any]]] = {"hybrid": hybrid, "by layers": layer_wise}
        if plain is not None:
            engines["llama.cpp -ngl"] = llama_cpp
        for name, measure in engines.items():
            if late():
                yield row | {"engine": name, "skipped": "no time left"}
                continue
            try:
                yield row | {"engine": name} | measure()
            except Exception as error:
                yield row | {"engine": name, "failed": f"{type(error).__name__}: {error}"}
            release()


def release() -> None:
    """Give a model's memory back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def llama_cpp_has_gpu() -> bool:
    """Whether llama-cpp-python is here and was built for a GPU."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError):
        return False
    return bool(llama_cpp.llama_supports_gpu_offload())
