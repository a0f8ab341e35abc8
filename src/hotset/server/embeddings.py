"""Vectors of texts, over OpenAI's API and Ollama's."""

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from hotset.backends.contract import F32
from hotset.serve.embed import check_embeds
from hotset.server.ask import Text
from hotset.server.call import Call, Handler, Reply, fields_of
from hotset.server.fields import Fields
from hotset.server.models import Held
from hotset.server.parallel import for_each
from hotset.server.prompts import read_prompts

if TYPE_CHECKING:
    from hotset.server.app import Server

_MOST_TEXTS = 2048
"""Of one request, as at OpenAI."""

_AT_A_TIME = 4
"""Texts of one request that are computed or waiting: others find a place between them."""


async def embeddings(server: "Server", call: Call) -> Reply:
    """OpenAI's form: a vector for each text, as numbers or as bytes in base64."""
    fields = fields_of(call)
    texts = read_prompts(fields, "input", _MOST_TEXTS)
    form = _FORMS[fields.choice("encoding_format", _FORMS) or "float"]
    held, vectors, tokens = await _vectors(server, call, fields, texts)
    data = [{"object": "embedding", "index": i, "embedding": form(v)} for i, v in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": held.known.name, "usage": usage}


async def embed(server: "Server", call: Call) -> Reply:
    """Ollama's form."""
    start = time.perf_counter()
    fields = fields_of(call)
    texts = read_prompts(fields, "input", _MOST_TEXTS)
    held, vectors, tokens = await _vectors(server, call, fields, texts)
    return {
        "model": held.known.name,
        "embeddings": [vector.tolist() for vector in vectors],
        "total_duration": int((time.perf_counter() - start) * 1e9),
        "load_duration": 0,
        "prompt_eval_count": tokens,
    }


async def embed_one(server: "Server", call: Call) -> Reply:
    """Ollama's older form, of one text."""
    fields = fields_of(call)
    _, vectors, _ = await _vectors(server, call, fields, [fields.need_text("prompt")])
    return {"embedding": vectors[0].tolist()}


async def _vectors(
    server: "Server", call: Call, fields: Fields, texts: Sequence[Text]
) -> tuple[Held, list[F32], int]:
    """The model, the texts' vectors, and how many tokens they have."""
    dimensions = fields.integer("dimensions", 1)
    held = await server.hold(call, fields.text("model"))
    engine = held.engine
    check_embeds(engine.model)
    size = engine.model.config.hidden_size
    if dimensions and dimensions > size:
        raise fields.wrong("dimensions", f"1 to {size}")
    found: dict[int, F32] = {}
    tokens = 0

    async def work(item: tuple[int, Text]) -> None:
        nonlocal tokens
        i, text = item
        with closing(await asyncio.to_thread(engine.embed, text)) as embedding:
            found[i] = await embedding.wait()
        tokens += embedding.prompt_tokens
        server.metrics.tokens(prompt=embedding.prompt_tokens, cached=embedding.cached_tokens)

    await for_each(enumerate(texts), work, _AT_A_TIME)
    call.facts["prompt"] = tokens
    return held, [_shortened(found[i], dimensions) for i in range(len(texts))], tokens


def _shortened(vector: F32, dimensions: int | None) -> F32:
    """The first numbers alone, of length 1 again: some models are trained for that (arXiv 2205.13147)."""
    if dimensions is None or dimensions == len(vector):
        return vector
    short: F32 = vector[:dimensions] / (np.linalg.norm(vector[:dimensions]) or np.float32(1))
    return short


_FORMS: dict[str, Callable[[F32], Any]] = {
    "float": lambda vector: vector.tolist(),
    "base64": lambda vector: base64.b64encode(vector.astype("<f4").tobytes()).decode(),
}


ROUTES: list[tuple[str, str, Handler]] = [
    ("POST", "/v1/embeddings", embeddings),
    ("POST", "/embeddings", embeddings),
    ("POST", "/api/embed", embed),
    ("POST", "/api/embeddings", embed_one),
]
