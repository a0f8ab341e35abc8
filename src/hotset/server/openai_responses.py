"""OpenAI's responses, as Codex sends them. Nothing is kept: each request has its whole conversation."""

import time
import uuid
from typing import TYPE_CHECKING, Any

from hotset.server.answers import Answer, Block, Piece
from hotset.server.ask import Ask, Conversation, most_tokens, sampling
from hotset.server.call import Call, Handler, Reply, fields_of
from hotset.server.conversation import check_function, effort_variables, part_text, text_of
from hotset.server.errors import ApiError, wrong
from hotset.server.fields import Fields
from hotset.server.generation import Generation, Usage
from hotset.server.rules import flat_format, one_rule, tool_choice
from hotset.server.streams import SSE, event, streamed

if TYPE_CHECKING:
    from hotset.server.app import Server

_KINDS = {"content": "message", "reasoning": "reasoning", "call": "function_call"}
_IDS = {"content": "msg", "reasoning": "rs", "call": "fc"}


def read_ask(fields: Fields) -> Ask:
    """What a body asks for."""
    for name in ("previous_response_id", "conversation", "prompt"):
        if name in fields:
            raise fields.wrong(name, "nothing: this server keeps no responses, send the whole conversation")
    if fields.flag("background"):
        raise fields.wrong("background", "false: answers come at once")
    choice = tool_choice(fields, _tools(fields))
    text = fields.fields("text")
    return Ask(
        model=fields.text("model"),
        prompts=[Conversation(_messages(fields), choice.tools, _variables(fields))],
        sampling=sampling(fields),
        max_tokens=most_tokens(fields, "max_output_tokens"),
        stream=fields.flag("stream"),
        rule=one_rule(flat_format(text, "format") if text else None, choice),
        one_call=not fields.flag("parallel_tool_calls", True),
    )


def _variables(fields: Fields) -> dict[str, Any]:
    reasoning = fields.fields("reasoning")
    return effort_variables(reasoning.text("effort") if reasoning else None)


def _tools(fields: Fields) -> list[dict[str, Any]]:
    """Functions; tools that only OpenAI runs, and those of Codex's own kinds, are left out."""
    tools = []
    for tool in fields.objects("tools"):
        if tool.get("type") == "function":
            names = ("name", "description", "parameters", "strict")
            function = {name: tool.get(name) for name in names if name in tool}
            tools.append(check_function(tool, Fields(function, tool.place)))
    return tools


def _messages(fields: Fields) -> list[dict[str, Any]]:
    instructions = fields.text("instructions")
    messages = [{"role": "system", "content": instructions}] if instructions else []
    given = fields.get("input")
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    for item in fields.objects("input"):
        _add_item(item, messages)
    if not any(message["role"] != "system" for message in messages):
        messages.append({"role": "user", "content": ""})  # Codex asks so whether a server is there
    return messages


def _add_item(item: Fields, messages: list[dict[str, Any]]) -> None:
    """Add an item: calls and reasoning belong to the assistant's message before them or after them."""
    match item.get("type"):
        case None | "message":
            role = item.choice("role", ("system", "developer", "user", "assistant"))
            if role is None:
                raise item.wrong("role", "user, assistant, system or developer")
            text = text_of(item, "content")
            if text is None:
                raise item.wrong("content", "a text or a list of parts")
            role = "system" if role == "developer" else role
            if role == "assistant" and (own := _open(messages)) and own["content"] is None:
                own["content"] = text
            else:
                messages.append({"role": role, "content": text})
        case "function_call":
            function = {"name": item.need_text("name"), "arguments": item.text("arguments") or "{}"}
            call = {"id": item.need_text("call_id"), "type": "function", "function": function}
            own = _open(messages) or _assistant(messages)
            own.setdefault("tool_calls", []).append(call)
        case "function_call_output":
            text = text_of(item, "output") or ""
            messages.append({"role": "tool", "tool_call_id": item.need_text("call_id"), "content": text})
        case "reasoning":
            texts = item.list("content") or item.list("summary") or []
            parts = [Fields(part, item.place).text("text") or "" for part in texts]
            if any(parts):
                _assistant(messages)["reasoning_content"] = "\n".join(parts)
        case str(kind) if kind.startswith("input_"):  # a part of a message without the message
            messages.append({"role": "user", "content": part_text(item)})
        case "item_reference":
            raise wrong(item.name("type"), f"{item.name('type')}: this server keeps no items to refer to")


def _open(messages: list[dict[str, Any]]) -> dict[str, Any] | None:
    return messages[-1] if messages and messages[-1]["role"] == "assistant" else None


def _assistant(messages: list[dict[str, Any]]) -> dict[str, Any]:
    messages.append({"role": "assistant", "content": None})
    return messages[-1]


async def respond(server: "Server", call: Call) -> Reply:
    """Answer a conversation."""
    fields = fields_of(call)
    ask = read_ask(fields)
    held = await server.hold(call, ask.model)
    generation = await server.generate(call, held, ask)
    head = {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "model": held.known.name,
        "instructions": fields.text("instructions"),
        "max_output_tokens": ask.max_tokens,
        "parallel_tool_calls": fields.flag("parallel_tool_calls", True),
        "previous_response_id": None,
        "temperature": ask.sampling.temperature,
        "top_p": ask.sampling.top_p,
        "tool_choice": fields.get("tool_choice") or "auto",
        "tools": [{"type": "function", **tool["function"]} for tool in _tools(fields)],
        "text": fields.get("text") or {"format": {"type": "text"}},
        "reasoning": fields.get("reasoning") or {"effort": None, "summary": None},
        "metadata": fields.get("metadata") or {},
        "store": False,
        "truncation": "disabled",
        "error": None,
    }
    if ask.stream:
        return streamed(generation, _Events(head), server.limits.keep_alive)
    (answer,) = await generation.whole()
    output = [_item(block, _id(block), _status(answer, block)) for block in answer.parts]
    return _whole(head, answer, generation.usage, output)


def _whole(
    head: dict[str, Any], answer: Answer, usage: Usage, output: list[dict[str, Any]]
) -> dict[str, Any]:
    cut = answer.finish_reason == "length"
    return {
        **head,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": output,
        "usage": {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
            "output_tokens": usage.answer,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.total,
        },
    }


def _id(block: Block) -> str:
    return f"{_IDS[block.kind]}_{uuid.uuid4().hex}"


def _status(answer: Answer, block: Block) -> str:
    """How a block ended that is over."""
    cut = answer.finish_reason == "length" and block is answer.blocks[-1]
    return "incomplete" if cut or block.broken else "completed"


def _part(block: Block, text: str) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item(block: Block, id: str, status: str) -> dict[str, Any]:
    """A block as an item of the output; without its text while it is in progress."""
    item: dict[str, Any] = {"id": id, "type": _KINDS[block.kind], "status": status}
    text = "" if status == "in_progress" else block.text
    if block.kind == "call":
        return item | {"call_id": block.id, "name": block.name, "arguments": text}
    item["content"] = [] if status == "in_progress" else [_part(block, text)]
    more: dict[str, Any] = {"role": "assistant"} if block.kind == "content" else {"summary": []}
    return item | more


class _Events:
    """A stream's events, numbered."""

    media_type = SSE
    alive = b":\n\n"

    def __init__(self, head: dict[str, Any]) -> None:
        self._head = head
        self._number = 0
        self._output: list[dict[str, Any]] = []  # items that are over
        self._open: Block | None = None
        self._id = ""  # of the item that is open

    def begin(self, generation: Generation) -> bytes:
        """The response, before anything of it is there."""
        response = {**self._head, "status": "in_progress", "output": [], "usage": None}
        response["incomplete_details"] = None
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def news(self, answer: Answer, pieces: list[Piece]) -> bytes:
        """Items as they open, grow and close."""
        made: list[bytes] = []
        for piece in pieces:
            if piece.opens:
                made += [self._close(answer), self._begin(piece.block)]
            if piece.text:
                made.append(self._of_block(piece.block, "delta", delta=piece.text))
        if answer.finish_reason:
            made.append(self._close(answer))
        return b"".join(made)

    def end(self, generation: Generation) -> bytes:
        """The whole response."""
        response = _whole(self._head, generation.answers[0], generation.usage, self._output)
        return self._event(f"response.{response['status']}", response=response)

    def failed(self, error: ApiError) -> bytes:
        """The response with the error."""
        told = {"code": error.code or "server_error", "message": error.message}
        response = {**self._head, "status": "failed", "error": told, "output": [], "usage": None}
        return self._event("response.failed", response=response)

    def _begin(self, block: Block) -> bytes:
        self._open = block
        self._id = _id(block)
        item = _item(block, self._id, "in_progress")
        added = self._event("response.output_item.added", output_index=len(self._output), item=item)
        if block.kind == "call":
            return added
        return added + self._of_item("response.content_part.added", content_index=0, part=_part(block, ""))

    def _close(self, answer: Answer) -> bytes:
        block, self._open = self._open, None
        if block is None:
            return b""
        whole = (
            {"arguments": block.text, "name": block.name} if block.kind == "call" else {"text": block.text}
        )
        done = self._of_block(block, "done", **whole)
        if block.kind != "call":
            part = _part(block, block.text)
            done += self._of_item("response.content_part.done", content_index=0, part=part)
        item = _item(block, self._id, _status(answer, block))
        done += self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        return done

    def _of_block(self, block: Block, what: str, **data: Any) -> bytes:
        if block.kind == "call":
            return self._of_item(f"response.function_call_arguments.{what}", **data)
        name = "reasoning_text" if block.kind == "reasoning" else "output_text"
        more: dict[str, Any] = {} if block.kind == "reasoning" else {"logprobs": []}
        return self._of_item(f"response.{name}.{what}", content_index=0, **data, **more)

    def _of_item(self, kind: str, **data: Any) -> bytes:
        return self._event(kind, item_id=self._id, output_index=len(self._output), **data)

    def _event(self, kind: str, **data: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **data}, kind)


ROUTES: list[tuple[str, str, Handler]] = [("POST", "/v1/responses", respond), ("POST", "/responses", respond)]
