"""OpenAI's chat completions."""

import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hotset.core.version import __version__
from hotset.serve.request import Token
from hotset.server.answers import Answer, Piece
from hotset.server.ask import MOST_CHOICES, Ask, Conversation, most_tokens, sampling
from hotset.server.call import Call, Handler, Reply, fields_of
from hotset.server.conversation import check_messages, check_tools, template_variables
from hotset.server.errors import ApiError, error_body
from hotset.server.fields import Fields
from hotset.server.generation import Generation, Usage
from hotset.server.rules import one_rule, response_format, tool_choice
from hotset.server.streams import DONE, SSE, event, streamed

if TYPE_CHECKING:
    from hotset.serve.engine import Engine
    from hotset.server.app import Server

FINGERPRINT = f"hotset-{__version__}"


def read_ask(fields: Fields) -> Ask:
    """What a body asks for."""
    messages = check_messages(fields)
    top = fields.integer("top_logprobs", 0, 20)
    if top and not fields.flag("logprobs"):
        raise fields.wrong("logprobs", "true, as top_logprobs is given")
    choice = tool_choice(fields, check_tools(fields))
    return Ask(
        model=fields.text("model"),
        prompts=[Conversation(messages, choice.tools, template_variables(fields))],
        sampling=sampling(fields, logprobs=(top or 0) if fields.flag("logprobs") else None),
        max_tokens=most_tokens(fields, "max_completion_tokens", "max_tokens", "n_predict"),
        stop=fields.stops("stop"),
        choices=fields.integer("n", 1, MOST_CHOICES) or 1,
        stream=fields.flag("stream"),
        rule=one_rule(response_format(fields), choice),
        one_call=not fields.flag("parallel_tool_calls", True),
    )


async def chat(server: "Server", call: Call) -> Reply:
    """Answer a conversation."""
    fields = fields_of(call)
    ask = read_ask(fields)
    options = fields.fields("stream_options")
    with_usage = options is not None and options.flag("include_usage")
    held = await server.hold(call, ask.model)
    generation = await server.generate(call, held, ask)
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": held.known.name,
        "system_fingerprint": FINGERPRINT,
    }
    engine = held.engine
    if ask.stream:
        form = _Chunks({**head, "object": "chat.completion.chunk"}, engine, with_usage)
        return streamed(generation, form, server.limits.keep_alive)
    answers = await generation.whole()
    return {
        **head,
        "object": "chat.completion",
        "choices": [_choice(answer, engine, ask.sampling.logprobs is not None) for answer in answers],
        "usage": usage_body(generation.usage),
    }


def _choice(answer: Answer, engine: "Engine", logprobs: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["content"] = answer.content or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.text}}
            for call in answer.calls
        ]
    return {
        "index": answer.index,
        "message": message,
        "logprobs": logprobs_body(answer.logprobs, engine) if logprobs else None,
        "finish_reason": answer.finish_reason,
    }


class ChunkForm:
    """What OpenAI's two streams of chunks have in common: a comment as a sign of life, and their end."""

    media_type = SSE
    alive = b":\n\n"

    def __init__(self, head: dict[str, Any], engine: "Engine", with_usage: bool) -> None:
        self._head = head
        self._engine = engine
        self._with_usage = with_usage

    def end(self, generation: Generation) -> bytes:
        """What comes after all answers."""
        last = {**self._head, "choices": [], "usage": usage_body(generation.usage)}
        return event(last) + DONE if self._with_usage else DONE

    def failed(self, error: ApiError) -> bytes:
        """An error, which OpenAI's package raises."""
        return event(error_body("", error)) + DONE


class _Chunks(ChunkForm):
    """A chat's chunks."""

    def begin(self, generation: Generation) -> bytes:
        """The role, before anything else."""
        delta = {"role": "assistant", "content": ""}
        return b"".join([self._chunk(answer, delta) for answer in generation.answers])

    def news(self, answer: Answer, pieces: list[Piece]) -> bytes:
        """Pieces of an answer, and its end."""
        chunks = [self._chunk(answer, _delta(piece), piece.tokens) for piece in pieces]
        if answer.finish_reason:
            chunks.append(self._chunk(answer, {}, finish=answer.finish_reason))
        return b"".join(chunks)

    def _chunk(
        self,
        answer: Answer,
        delta: dict[str, Any],
        tokens: list[Token] | None = None,
        finish: str | None = None,
    ) -> bytes:
        logprobs = logprobs_body(tokens, self._engine) if tokens else None
        choice = {"index": answer.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event({**self._head, "choices": [choice]})


def _delta(piece: Piece) -> dict[str, Any]:
    block = piece.block
    if block.kind == "content":
        return {"content": piece.text}
    if block.kind == "reasoning":
        return {"reasoning_content": piece.text}
    call: dict[str, Any] = {"index": block.index, "function": {"arguments": piece.text}}
    if piece.opens:  # names are added up by clients: once, and first
        call |= {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": ""}}
    return {"tool_calls": [call]}


def usage_body(usage: Usage) -> dict[str, Any]:
    """Tokens used, as OpenAI counts them."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.answer,
        "total_tokens": usage.total,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "accepted_prediction_tokens": usage.accepted,
            "rejected_prediction_tokens": usage.drafted - usage.accepted,
        },
    }


def logprobs_body(tokens: list[Token], engine: "Engine") -> dict[str, Any]:
    """Log-probabilities of the content's tokens."""
    return {"content": logprobs_list(tokens, engine), "refusal": None}


def logprobs_list(tokens: Sequence[Token], engine: "Engine") -> list[dict[str, Any]]:
    """Log-probabilities of tokens, and of the most likely in their places."""
    content = []
    for token in tokens:
        assert token.logprobs is not None
        top = [_logprob(engine, id, value) for id, value in token.logprobs.top]
        content.append({**_logprob(engine, token.id, token.logprobs.chosen), "top_logprobs": top})
    return content


def _logprob(engine: "Engine", id: int, value: float) -> dict[str, Any]:
    text = engine.tokenizer.token_bytes(id)
    return {"token": text.decode(errors="replace"), "logprob": max(value, -9999.0), "bytes": list(text)}


ROUTES: list[tuple[str, str, Handler]] = [
    ("POST", path, chat) for path in ("/v1/chat/completions", "/chat/completions", "/api/v0/chat/completions")
]
