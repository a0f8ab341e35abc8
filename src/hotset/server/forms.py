"""A conversation in forms that more and more chat templates take.

Templates refuse what their models were not trained with: two messages of one side after the other, a message
of the system, a call's id that is not of nine letters and digits. What a client sends is right all the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]


def plainer_forms(messages: Messages, tools: Messages) -> Iterator[tuple[Messages, Messages]]:
    """Messages and tools, each time plainer; the last message stays the last.

    First each message has a text, each call an id, each tool a description and parameters, and the user says
    what the system does after the beginning. Then both sides take turns; then the user says all of it.
    """
    messages, tools = _whole(messages), [_whole_tool(tool) for tool in tools]
    yield messages, tools
    yield (messages := _in_turns(messages)), tools
    if messages[0]["role"] == "system":
        yield _in_turns([_said_by_user(messages[0]), *messages[1:]]), tools


def _whole(messages: Messages) -> Messages:
    made: list[dict[str, Any]] = []
    ids: dict[str, str] = {}  # of calls, by those that were given
    waiting: list[str] = []  # for their results
    count = 0
    for i, given in enumerate(messages):
        message = {**given, "content": given.get("content") or ""}
        if i:
            message = _said_by_user(message)
        if message["role"] == "assistant" and message.get("tool_calls"):
            calls = message["tool_calls"]
            waiting = [f"call{count + n:05}" for n in range(len(calls))]
            count += len(calls)
            ids |= {str(call["id"]): id for call, id in zip(calls, waiting, strict=True) if call.get("id")}
            message["tool_calls"] = [{**call, "id": id} for call, id in zip(calls, waiting, strict=True)]
        elif message["role"] == "tool":
            id = ids.get(str(message.get("tool_call_id")), waiting[0] if waiting else None)
            if id is not None:
                message["tool_call_id"] = id
                waiting = [other for other in waiting if other != id]
        made.append(message)
    return made


def _said_by_user(message: Mapping[str, Any]) -> dict[str, Any]:
    return {**message, "role": "user"} if message["role"] == "system" else dict(message)


def _whole_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = {name: value for name, value in tool["function"].items() if value is not None}
    parameters = {"type": "object", "properties": {}, **function.get("parameters", {})}
    whole = {"name": function["name"], "description": "", **function, "parameters": parameters}
    return {**tool, "function": whole}


def _in_turns(messages: Messages) -> Messages:
    """The same, neighbours of one side that call no tools as one message."""
    made: list[Mapping[str, Any]] = []
    for message in messages:
        last = made[-1] if made else {}
        joins = message["role"] in ("user", "assistant") and message["role"] == last.get("role")
        if joins and not (last.get("tool_calls") or message.get("tool_calls")):
            texts = [text for text in (last["content"], message["content"]) if text]
            made[-1] = {**last, **message, "content": "\n\n".join(texts)}
        else:
            made.append(message)
    return made
