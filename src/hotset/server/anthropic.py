"""Anthropic's messages, as Claude Code sends them."""

import asyncio
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hotset.server.answers import Answer, Block, Piece
from hotset.server.ask import Ask, Conversation, most_tokens, sampling
from hotset.server.call import Call, Handler, Reply, fields_of
from hotset.server.conversation import check_function, part_text, text_of, thinking_switches, token_ids
from hotset.server.errors import ApiError, error_body
from hotset.server.fields import Fields
from hotset.server.generation import Generation, Usage
from hotset.server.rules import flat_format, one_rule, tool_choice
from hotset.server.streams import SSE, event, streamed

if TYPE_CHECKING:
    from hotset.server.app import Server

_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def read_ask(fields: Fields) -> Ask:
    """What a body asks for."""
    conversation = read_conversation(fields)
    choice = tool_choice(fields, conversation.tools)
    chosen = fields.fields("tool_choice")
    output = fields.fields("output_config")
    format = flat_format(fields, "output_format") or (flat_format(output, "format") if output else None)
    return Ask(
        model=fields.text("model"),
        prompts=[replace(conversation, tools=choice.tools)],
        sampling=sampling(fields),
        max_tokens=most_tokens(fields, "max_tokens"),
        stop=fields.stops("stop_sequences"),
        stream=fields.flag("stream"),
        rule=one_rule(format, choice),
        one_call=chosen is not None and chosen.flag("disable_parallel_tool_use"),
    )


def read_conversation(fields: Fields) -> Conversation:
    """Messages and tools in OpenAI's form."""
    given = fields.objects("messages")
    if not given:
        raise fields.wrong("messages", "a list of at least one message")
    system = text_of(fields, "system")
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for message in given:
        messages += _messages(message)
    tools = []
    for tool in fields.objects("tools"):
        if tool.get("type") in (None, "custom"):  # others are run by Anthropic alone
            schema = tool.fields("input_schema")
            function = {"name": tool.get("name"), "description": tool.get("description") or ""}
            function["parameters"] = schema.all if schema else {}
            tools.append(check_function(tool, Fields(function, tool.place)))
    variables: dict[str, Any] = {}
    thinking = fields.fields("thinking")
    if thinking is not None:
        variables |= thinking_switches(thinking.get("type") != "disabled")
    output = fields.fields("output_config")
    effort = output.text("effort") if output else None
    if effort is not None:
        variables["reasoning_effort"] = effort
    return Conversation(messages, tools, variables)


def _messages(message: Fields) -> list[dict[str, Any]]:
    """One message may hold what are several in OpenAI's form: results of tools, then a text."""
    role = message.choice("role", ("user", "assistant", "system"))
    if role is None:
        raise message.wrong("role", "user or assistant")
    if not isinstance(message.get("content"), list):
        text = message.need_text("content")
        return [{"role": role, "content": text}]
    results: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    texts: list[str] = []
    thoughts: list[str] = []
    for block in message.objects("content"):
        match block.get("type"):
            case "tool_result":
                results.append(_result(block))
            case "tool_use":
                calls.append(_call(block))
            case "thinking":
                thoughts.append(block.need_text("thinking"))
            case "redacted_thinking":
                pass
            case _:
                texts.append(part_text(block))
    made: dict[str, Any] = {"role": role, "content": "\n".join(texts) if texts else None}
    if calls:
        made["tool_calls"] = calls
    if thoughts:
        made["reasoning_content"] = "\n".join(thoughts)
    return [*results, *([made] if texts or calls or thoughts or not results else [])]


def _result(block: Fields) -> dict[str, Any]:
    text = text_of(block, "content") or ""
    if block.flag("is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": block.need_text("tool_use_id"), "content": text}


def _call(block: Fields) -> dict[str, Any]:
    arguments = block.fields("input")
    function = {"name": block.need_text("name"), "arguments": arguments.all if arguments else {}}
    return {"id": block.need_text("id"), "type": "function", "function": function}


async def messages(server: "Server", call: Call) -> Reply:
    """Answer a conversation."""
    ask = read_ask(fields_of(call))
    held = await server.hold(call, ask.model)
    generation = await server.generate(call, held, ask)
    head = {
        "id": f"msg_{uuid.uuid4().hex[:24]}",
        "type": "message",
        "role": "assistant",
        "model": held.known.name,
    }
    if ask.stream:
        return streamed(generation, _Events(head), server.limits.keep_alive)
    (answer,) = await generation.whole()
    content = [_block(block, whole=True) for block in answer.parts]
    return {**head, "content": content, **_ending(answer), "usage": _usage(generation.usage)}


async def count_tokens(server: "Server", call: Call) -> Reply:
    """How many tokens a conversation is."""
    fields = fields_of(call)
    conversation = read_conversation(fields)
    held = await server.hold(call, fields.text("model"))
    return {"input_tokens": len(await asyncio.to_thread(token_ids, held.engine, conversation))}


def _block(block: Block, *, whole: bool) -> dict[str, Any]:
    text = block.text if whole else ""
    if block.kind == "content":
        return {"type": "text", "text": text}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": text, "signature": ""}
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": block.arguments if whole else {}}


def _ending(answer: Answer) -> dict[str, Any]:
    reason = "stop_sequence" if answer.stop is not None else _STOPS[answer.finish_reason or "stop"]
    return {"stop_reason": reason, "stop_sequence": answer.stop}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.answer,
    }


class _Events:
    """A stream's events."""

    media_type = SSE
    alive = event({"type": "ping"}, "ping")

    def __init__(self, head: dict[str, Any]) -> None:
        self._head = head
        self._index = -1  # of the block that is open
        self._open: Block | None = None

    def begin(self, generation: Generation) -> bytes:
        """The message, with the prompt's tokens: how many are cached is not known yet."""
        ending = {"stop_reason": None, "stop_sequence": None}
        message = {**self._head, "content": [], **ending, "usage": _usage(generation.usage)}
        return event({"type": "message_start", "message": message}, "message_start")

    def news(self, answer: Answer, pieces: list[Piece]) -> bytes:
        """Blocks as they open, grow and close."""
        made: list[bytes] = []
        for piece in pieces:
            if piece.opens:
                made.append(self._close())
                self._index += 1
                self._open = piece.block
                made.append(
                    self._event("content_block_start", content_block=_block(piece.block, whole=False))
                )
            if piece.text:
                made.append(self._event("content_block_delta", delta=_delta(piece)))
        if answer.finish_reason:
            made.append(self._close())
        return b"".join(made)

    def end(self, generation: Generation) -> bytes:
        """Why it ended, and what was used."""
        delta = _ending(generation.answers[0])
        usage = _usage(generation.usage)
        last = event({"type": "message_delta", "delta": delta, "usage": usage}, "message_delta")
        return last + event({"type": "message_stop"}, "message_stop")

    def failed(self, error: ApiError) -> bytes:
        """An error, which Anthropic's package raises."""
        return event(error_body("/v1/messages", error), "error")

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        signed = b""
        if self._open.kind == "reasoning":
            signed = self._event("content_block_delta", delta={"type": "signature_delta", "signature": ""})
        self._open = None
        return signed + self._event("content_block_stop")

    def _event(self, kind: str, **data: Any) -> bytes:
        return event({"type": kind, "index": self._index, **data}, kind)


def _delta(piece: Piece) -> dict[str, Any]:
    if piece.block.kind == "content":
        return {"type": "text_delta", "text": piece.text}
    if piece.block.kind == "reasoning":
        return {"type": "thinking_delta", "thinking": piece.text}
    return {"type": "input_json_delta", "partial_json": piece.text}


ROUTES: list[tuple[str, str, Handler]] = [
    ("POST", "/v1/messages", messages),
    ("POST", "/v1/messages/count_tokens", count_tokens),
]
