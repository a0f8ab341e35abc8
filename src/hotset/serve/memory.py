"""Whether a model fits into the memory that there is: looked at before it is loaded."""

from hotset.backends.blocks import gpu_bytes, memory_bytes
from hotset.core.errors import HotsetError
from hotset.core.limits import available_memory
from hotset.formats.checkpoint import Checkpoint
from hotset.model.reading import traffic
from hotset.state.kv_types import kv_cache_bytes, kv_types


def check_memory(
    checkpoint: Checkpoint,
    context: int,
    kv_type: str,
    *,
    vram: int = 0,
    ram: int | None = None,
    parallel: int = 1,
) -> None:
    """Raise `HotsetError` if the weights and the KV cache of `context` tokens do not fit into main memory.

    `vram` bytes lie on a GPU, which lays some types out in more, and experts of a mixture take at most `ram`
    bytes. Beside a GPU there is room for `parallel` KV caches; without one for what memory is left. What is
    needed besides, some tens of megabytes, is not counted.
    """
    available = available_memory()
    caches = parallel if vram else 1
    read, cache = traffic(checkpoint), caches * kv_cache_bytes(checkpoint.config, context, kv_type)
    weights = read.weights if ram is None else read.weights - max(0, read.experts - ram)
    spared = _spared(checkpoint, vram)
    needed = weights + cache - spared
    if needed <= available.free:
        return
    remedies = ["a smaller quantisation (hotset quantize)", "a smaller --context"]
    if caches > 1:
        remedies.append("a smaller --parallel")
    if kv_type != "q8_0" and "q8_0" in kv_types(checkpoint.config):
        remedies.append("--kv-type q8_0")
    if read.experts and not vram:
        remedies.append(f"a {'smaller ' if ram else ''}--ram, which leaves experts in the file")
    raise HotsetError(
        f"{checkpoint.path} needs {_size(needed)} of memory (weights {_size(weights)}, "
        f"{f'{caches} KV caches' if caches > 1 else 'KV cache'} of {context} tokens {_size(cache)}"
        f"{f', {_size(spared)} of them on the GPU' if vram else ''}), but "
        f"{_size(available.free)} are free {available.bound}: try {' or '.join(remedies)}"
    )


def _spared(checkpoint: Checkpoint, vram: int) -> int:
    """Bytes that main memory need not have of what so many bytes of a GPU's hold."""
    if not vram:
        return 0
    tensors = [checkpoint.tensors[name] for name in checkpoint.tensors]
    here, there = sum(map(memory_bytes, tensors)), sum(map(gpu_bytes, tensors))
    return vram * min(here, there) // there


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
