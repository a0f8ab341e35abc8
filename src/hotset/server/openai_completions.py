"""OpenAI's older completions: texts, or token ids, to be continued."""

import time
import uuid
from typing import TYPE_CHECKING, Any

from hotset.serve.engine import QUEUE, Engine
from hotset.serve.request import Token
from hotset.server.answers import Answer, Piece
from hotset.server.ask import MOST_CHOICES, Ask, most_tokens, sampling
from hotset.server.call import Call, Handler, Reply, fields_of
from hotset.server.fields import Fields
from hotset.server.generation import Generation
from hotset.server.openai_chat import FINGERPRINT, ChunkForm, usage_body
from hotset.server.prompts import around, read_prompts
from hotset.server.rules import response_format
from hotset.server.streams import event, streamed

if TYPE_CHECKING:
    from hotset.server.app import Server

_MOST_ANSWERS = QUEUE
"""To all prompts of a request: more would never find room in the queue."""


def read_ask(fields: Fields) -> Ask:
    """What a body asks for."""
    choices = fields.integer("n", 1, MOST_CHOICES) or 1
    if (fields.integer("best_of", 1) or choices) != choices:
        raise fields.wrong("best_of", "the same as n")
    texts, suffix = read_prompts(fields, "prompt", _MOST_ANSWERS), fields.text("suffix")
    if len(texts) * choices > _MOST_ANSWERS:
        raise fields.wrong("n", f"at most {_MOST_ANSWERS} answers to all {len(texts)} prompts together")
    logprobs = fields.integer("logprobs", 0, 20)
    if suffix and fields.flag("echo"):
        raise fields.wrong("echo", "false, as suffix is given")
    if fields.flag("echo") and logprobs is not None:
        raise fields.wrong("logprobs", "nothing beside echo: prompts have no log-probabilities here")
    return Ask(
        model=fields.text("model"),
        prompts=around(fields, texts, suffix) if suffix else texts,
        sampling=sampling(fields, logprobs=logprobs),
        max_tokens=most_tokens(fields, "max_tokens", "max_completion_tokens", "n_predict"),
        stop=fields.stops("stop"),
        choices=choices,
        stream=fields.flag("stream"),
        rule=response_format(fields),
    )


async def complete(server: "Server", call: Call) -> Reply:
    """Continue texts."""
    fields = fields_of(call)
    ask = read_ask(fields)
    options = fields.fields("stream_options")
    held = await server.hold(call, ask.model)
    engine = held.engine
    echo = [""] * len(ask.prompts)
    if fields.flag("echo"):
        echo = [p if isinstance(p, str) else engine.tokenizer.decode(p) for p in ask.prompts]  # type: ignore[arg-type]
    generation = await server.generate(call, held, ask)
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": held.known.name,
        "system_fingerprint": FINGERPRINT,
    }
    echoes = [text for text in echo for _ in range(ask.choices)]
    if ask.stream:
        with_usage = options is not None and options.flag("include_usage")
        return streamed(generation, _Chunks(head, engine, echoes, with_usage), server.limits.keep_alive)
    wanted = ask.sampling.logprobs is not None
    choices = [
        {
            "index": answer.index,
            "text": echoes[answer.index] + answer.content,
            "logprobs": _logprobs(answer.logprobs, engine) if wanted else None,
            "finish_reason": answer.finish_reason,
        }
        for answer in await generation.whole()
    ]
    return {**head, "choices": choices, "usage": usage_body(generation.usage)}


class _Chunks(ChunkForm):
    """Chunks of texts that are continued."""

    def __init__(self, head: dict[str, Any], engine: Engine, echoes: list[str], with_usage: bool) -> None:
        super().__init__(head, engine, with_usage)
        self._echoes = echoes
        self._offsets = [len(text) for text in echoes]

    def begin(self, generation: Generation) -> bytes:
        """The prompts, where they were asked for."""
        return b"".join([self._chunk(i, text) for i, text in enumerate(self._echoes) if text])

    def news(self, answer: Answer, pieces: list[Piece]) -> bytes:
        """Pieces of an answer, and its end."""
        chunks = [self._chunk(answer.index, piece.text, piece.tokens) for piece in pieces]
        if answer.finish_reason:
            chunks.append(self._chunk(answer.index, "", finish=answer.finish_reason))
        return b"".join(chunks)

    def _chunk(
        self, index: int, text: str, tokens: list[Token] | None = None, finish: str | None = None
    ) -> bytes:
        logprobs = _logprobs(tokens, self._engine, self._offsets[index]) if tokens else None
        self._offsets[index] += len(text)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return event({**self._head, "choices": [choice]})


def _logprobs(tokens: list[Token], engine: Engine, offset: int = 0) -> dict[str, Any]:
    """The older shape; `offset`: characters before."""
    body: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in tokens:
        assert token.logprobs is not None
        text = _text(engine, token.id)
        body["tokens"].append(text)
        body["token_logprobs"].append(max(token.logprobs.chosen, -9999.0))
        top = {_text(engine, id): max(value, -9999.0) for id, value in token.logprobs.top}
        body["top_logprobs"].append(top)
        body["text_offset"].append(offset)
        offset += len(token.text)
    return body


def _text(engine: Engine, id: int) -> str:
    return engine.tokenizer.token_bytes(id).decode(errors="replace")


ROUTES: list[tuple[str, str, Handler]] = [
    ("POST", "/v1/completions", complete),
    ("POST", "/completions", complete),
]
