"""The two engines under one face, and a worker process that holds one of them ready.

`Worker` starts this file as a process that loads a model once and then answers measuring requests, each one
line of JSON. So two engines are measured in turn, A B A B, without reloading, each in a process of its own. A
worker that waits for a request sleeps in `read`; it holds no spinning threads.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hotset.core.batch import Batch
from hotset.formats.checkpoint import Checkpoint
from hotset.model.transformer import SINK_TOKENS

F32 = NDArray[np.float32]


class TokenEngine(Protocol):
    """One sequence in an engine: tokens go in, logits come out."""

    vocab_size: int

    def clear(self) -> None:
        """Forget the sequence."""

    def step(self, tokens: Sequence[int]) -> None:
        """Append tokens and compute the logits after the last."""

    def logits(self, tokens: Sequence[int]) -> F32:
        """Append T tokens: the logits (T, V) after each."""


class HotsetEngine:
    """Hotset, below its tokenizer and sampler.

    `way` (dense, exact) replaces the file's plan; `asked` keeps its predictors, but computes all neurons.
    """

    def __init__(
        self,
        model: Path,
        threads: int,
        context: int,
        kv_type: str = "f16",
        *,
        way: str | None = None,
        asked: bool = False,
    ) -> None:
        from hotset.backends.cpu import CpuBackend
        from hotset.core.config import Way
        from hotset.formats import open_checkpoint
        from hotset.model.build import build_transformer
        from hotset.serve.load import with_plan

        self.checkpoint = with_plan(open_checkpoint(model), Way(way) if way else None)
        if asked:
            self.checkpoint = _nothing_left_out(self.checkpoint)
        self.backend = CpuBackend(threads=threads)
        self.vocab_size = self.checkpoint.config.vocab_size
        self._transformer = build_transformer(self.checkpoint, self.backend)
        self._kv = self._transformer.sequence(context, kv_type)

    def density(self) -> float:
        """Share of neurons computed in decoding so far, over the layers stored by neuron; 1 without any."""
        work = [chooser.work for chooser in self._kv.choosers if chooser]
        rows = sum(w.rows for w in work)
        return sum(w.read for w in work) / rows / self.checkpoint.config.computed_neurons if rows else 1.0

    def clear(self) -> None:
        """Forget the sequence."""
        self._kv.rewind(0)

    def step(self, tokens: Sequence[int]) -> None:
        """Append tokens, several being a prompt, and compute the logits after the last."""
        self._transformer.forward(Batch.of(self._kv, np.asarray(tokens, np.int32), lossless=len(tokens) > 1))

    def logits(self, tokens: Sequence[int]) -> F32:
        """Append T tokens: the logits (T, V) after each."""
        return self._transformer.forward(Batch.of(self._kv, np.asarray(tokens, np.int32), logits=None))


def _nothing_left_out(checkpoint: Checkpoint) -> Checkpoint:
    """The same plans with cut-offs that every score reaches."""
    config = checkpoint.config
    layers = tuple(
        replace(layer, ffn=layer.ffn and replace(layer.ffn, cutoff=-1e30, kept=0.0))
        for layer in config.layers
    )
    return replace(checkpoint, config=replace(config, layers=layers))


class LlamaCppEngine:
    """llama.cpp through llama-cpp-python's low-level API, with the defaults of `llama-bench`.

    These are its best on a CPU: memory-mapped, repacked weights where it knows how, flash attention where it
    can, batches of 512.
    """

    def __init__(
        self, model: Path, threads: int, context: int, kv_type: str = "f16", *, gpu_layers: int = 0
    ) -> None:
        import llama_cpp

        self._api = api = llama_cpp
        self._silence = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self._silence, None)
        api.llama_backend_init()
        model_params = api.llama_model_default_params()
        model_params.n_gpu_layers = gpu_layers
        self._model = api.llama_model_load_from_file(str(model).encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        params = api.llama_context_default_params()
        params.n_ctx = context
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = {"f32": 0, "f16": 1, "q8_0": 8}[kv_type]
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context of {context} tokens for {model}")
        self._vocab = api.llama_model_get_vocab(self._model)
        self.vocab_size = api.llama_vocab_n_tokens(self._vocab)

    def clear(self) -> None:
        """Forget the sequence."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)

    def step(self, tokens: Sequence[int]) -> None:
        """Append tokens and compute the logits after the last."""
        ids = (self._api.llama_token * len(tokens))(*tokens)
        self._decode(self._api.llama_batch_get_one(ids, len(tokens)))

    def logits(self, tokens: Sequence[int]) -> F32:
        """Append T tokens: the logits (T, V) after each."""
        import ctypes

        ids = (self._api.llama_token * len(tokens))(*tokens)
        batch = self._api.llama_batch_get_one(ids, len(tokens))
        wanted = (ctypes.c_int8 * len(tokens))(*[1] * len(tokens))
        batch.logits = ctypes.cast(wanted, ctypes.POINTER(ctypes.c_int8))
        self._decode(batch)
        found = self._api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, (len(tokens), self.vocab_size)).copy()

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without begin or end tokens."""
        data = text.encode()
        ids = (self._api.llama_token * (len(data) + 16))()
        count = self._api.llama_tokenize(self._vocab, data, len(data), ids, len(ids), False, False)
        return list(ids[:count])

    def _decode(self, batch: Any) -> None:
        code = self._api.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode failed with {code}")
        self._api.llama_synchronize(self._context)


ENGINES: dict[str, Callable[..., TokenEngine]] = {
    "hotset": HotsetEngine,
    "hotset-dense": partial(HotsetEngine, way="dense"),
    "hotset-exact": partial(HotsetEngine, way="exact"),
    "hotset-asked": partial(HotsetEngine, asked=True),
    "llama.cpp": LlamaCppEngine,
}

PEERS = ("hotset", "llama.cpp")
"""Those that run any model as its file says."""


def prefill(engine: TokenEngine, tokens: int) -> float:
    """Tokens/s of a prompt of so many random tokens, all in one call."""
    ids = _random_tokens(engine, tokens)
    engine.clear()
    start = time.perf_counter()
    engine.step(ids)
    return tokens / (time.perf_counter() - start)


def decode(engine: TokenEngine, tokens: int, seconds: float = float("inf")) -> float:
    """Tokens/s of decoding random tokens one by one; stops early after `seconds`.

    `SINK_TOKENS` others go before, untimed: of these Hotset computes all neurons, whatever the plan.
    """
    ids = _random_tokens(engine, SINK_TOKENS + tokens)
    engine.clear()
    engine.step(ids[:SINK_TOKENS])
    start = time.perf_counter()
    done = 0
    for token in ids[SINK_TOKENS:]:
        engine.step([token])
        done += 1
        if time.perf_counter() - start > seconds:
            break
    return done / (time.perf_counter() - start)


def answer(engine: TokenEngine, prompt: int, tokens: int) -> float:
    """Tokens/s of an answer of random tokens, the time of its prompt counted."""
    ids = _random_tokens(engine, prompt + tokens)
    engine.clear()
    start = time.perf_counter()
    engine.step(ids[:prompt])
    for token in ids[prompt:]:
        engine.step([token])
    return tokens / (time.perf_counter() - start)


def memory_bandwidth(engine: TokenEngine) -> float:
    """GB/s at which Hotset's threads read memory when they do nothing else."""
    if not isinstance(engine, HotsetEngine):
        raise TypeError("only Hotset measures the memory's bandwidth")
    return engine.backend.memory_bandwidth()


def density(engine: TokenEngine) -> float:
    """Share of neurons that Hotset has computed in decoding so far."""
    if not isinstance(engine, HotsetEngine):
        raise TypeError("only Hotset chooses neurons")
    return engine.density()


def peak_bytes(engine: TokenEngine) -> int:
    """The largest resident set of the engine's process so far, mapped files included."""
    import resource  # not on Windows, where the other figures can be taken

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


MEASURES = {
    "prefill": prefill,
    "decode": decode,
    "answer": answer,
    "memory_bandwidth": memory_bandwidth,
    "density": density,
    "peak_bytes": peak_bytes,
}


def _random_tokens(engine: TokenEngine, count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(count).integers(0, engine.vocab_size, count)]


class Worker:
    """An engine in a process of its own; a context manager that ends the process."""

    def __init__(self, engine: str, model: Path, threads: int, context: int) -> None:
        self.engine = engine
        self._process = subprocess.Popen(
            [sys.executable, __file__, engine, str(model), str(threads), str(context)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, what: str, **arguments: float) -> float:
        """Have the worker make one of `MEASURES`: its result. RuntimeError if the worker fails."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            raise RuntimeError(f"{self.engine}: {answer['error']}")
        return float(answer["result"])


def serve(engine_name: str, model: Path, threads: int, context: int) -> None:
    """The worker's loop: a request a line on stdin, an answer a line on stdout, until stdin ends."""
    # Answers go where stdout went; what libraries print goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        engine = ENGINES[engine_name](model, threads, context)
        for line in sys.stdin:
            request = json.loads(line)
            answer({"result": MEASURES[request.pop("what")](engine, **request)})
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
