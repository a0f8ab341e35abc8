"""Messages as clients send them to messages that chat templates read, and to token ids."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from hotset.core.errors import RequestError
from hotset.serve.arguments import shown
from hotset.serve.engine import Engine
from hotset.server.ask import Conversation, Gap, Prompt
from hotset.server.errors import ApiError, wrong
from hotset.server.fields import Fields
from hotset.server.forms import plainer_forms

T = TypeVar("T")

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_VOLATILE = re.compile(r"x-anthropic-billing-header:[^\n]*\n?")
"""Claude Code begins its system prompt with a line that differs in every request: no prefix would match."""


def check_messages(fields: Fields, name: str = "messages") -> list[dict[str, Any]]:
    """The messages of a body in OpenAI's form, with their texts in one piece."""
    messages = fields.objects(name)
    if not messages:
        raise fields.wrong(name, "a list of at least one message")
    return [_message(message) for message in messages]


def _message(message: Fields) -> dict[str, Any]:
    role = message.choice("role", _ROLES)
    if role is None:
        raise message.wrong("role", f"one of {', '.join(_ROLES)}")
    made = {**message.all, "role": "system" if role == "developer" else role}
    made["content"] = text_of(message, "content")
    if role == "assistant" and "tool_calls" in message:
        made["tool_calls"] = [_tool_call(call) for call in message.objects("tool_calls")]
    if made["content"] is None and role != "assistant":
        raise message.wrong("content", "a text or a list of parts")
    return made


def _tool_call(call: Fields) -> dict[str, Any]:
    function = call.fields("function")
    if function is None:
        raise call.wrong("function", "an object with name and arguments")
    function.need_text("name")
    arguments = function.get("arguments")
    if not isinstance(arguments, str | dict | None):
        raise function.wrong("arguments", "JSON as a text")
    return {**call.all, "type": "function", "function": {**function.all, "arguments": arguments or "{}"}}


def text_of(fields: Fields, name: str) -> str | None:
    """A content's text: as it is, or of its parts a line each."""
    content = fields.get(name)
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise fields.wrong(name, "a text or a list of parts")
    return "\n".join(part_text(part) for part in fields.objects(name))


def part_text(part: Fields) -> str:
    """The text of a part; pictures, sound and files are a 400."""
    kind = part.get("type")
    if kind in (None, "text", "input_text", "output_text"):
        return part.need_text("text")
    if kind == "refusal":
        return part.need_text("refusal")
    raise wrong(part.name("type"), f"{part.name('type')} is {shown(kind)}: this model reads text only")


def check_tools(fields: Fields) -> list[dict[str, Any]]:
    """Functions that the model may call. Tools of other types, which only their vendors run, are left out."""
    return [
        check_function(tool, tool.fields("function"))
        for tool in fields.objects("tools")
        if tool.get("type") in (None, "function")
    ]


def check_function(tool: Fields, function: Fields | None) -> dict[str, Any]:
    """A tool in OpenAI's form."""
    if function is None:
        raise tool.wrong("function", "an object with name and parameters")
    function.need_text("name")
    function.text("description")
    function.fields("parameters")
    return {"type": "function", "function": function.all}


def template_variables(fields: Fields) -> dict[str, Any]:
    """What a request sets for the chat template: its own variables, and how much to think."""
    given = fields.fields("chat_template_kwargs")
    variables = {} if given is None else dict(given.all)
    for name in ("messages", "tools", "add_generation_prompt", "continue_last"):
        variables.pop(name, None)
    variables = effort_variables(fields.text("reasoning_effort")) | variables
    if "enable_thinking" in fields:
        variables |= thinking_switches(fields.flag("enable_thinking"))
    return variables


def thinking_switches(think: bool) -> dict[str, Any]:
    """Whether to think, by the names that chat templates have for it."""
    return {"enable_thinking": think, "reasoning": think}


def effort_variables(effort: str | None) -> dict[str, Any]:
    """How much to think, by the names that chat templates have for it; None: they decide."""
    if effort is None:
        return {}
    return {"reasoning_effort": effort, **thinking_switches(effort not in ("none", "minimal"))}


def token_ids(engine: Engine, prompt: Prompt) -> tuple[int, ...]:
    """The token ids of a prompt. Takes long for long ones: not for the event loop."""
    if isinstance(prompt, tuple):
        return prompt
    if isinstance(prompt, str):
        return tuple(engine.tokenizer.encode(prompt))
    if isinstance(prompt, Gap):
        return tuple(engine.tokenizer.encode_gap(prompt.before, prompt.after, prompt.files))
    return tuple(_as_it_can(engine.tokenizer.encode_chat, prompt))


def written(engine: Engine, conversation: Conversation) -> str:
    """A conversation as the model reads it."""
    template = engine.tokenizer.chat_template
    if template is None:
        raise RequestError("this model has no chat template: use /v1/completions")
    return _as_it_can(template.render, conversation)


def _as_it_can(write: Callable[..., T], conversation: Conversation) -> T:
    """Write a conversation by a template, in a plainer form where that refuses it."""
    messages = _with_names(_one_system(conversation.messages))
    options = dict(conversation.variables)
    last = messages[-1]
    if last["role"] == "assistant" and not last.get("tool_calls"):
        if (last.get("content") or "").strip():
            options |= {"add_generation_prompt": False, "continue_last": True}
        elif len(messages) > 1:  # nothing is there that could be continued
            messages.pop()
    try:
        return write(messages, **options, tools=list(conversation.tools) or None)
    except RequestError:
        for form, tools in plainer_forms(messages, conversation.tools):
            with suppress(RequestError):
                return write(form, **options, tools=list(tools) or None)
        raise


def _one_system(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages, those of the system at the beginning as one, without what differs in each request."""
    opening: list[str] = []
    for message in messages:
        if message["role"] != "system":
            break
        opening.append(message["content"] or "")
    rest = [dict(message) for message in messages[len(opening) :]]
    if not opening:
        return rest
    system = _VOLATILE.sub("", "\n\n".join(opening), count=1) if _VOLATILE.match(opening[0]) else None
    text = "\n\n".join(opening) if system is None else system.lstrip("\n")
    return [*([{"role": "system", "content": text}] if text or not rest else []), *rest]


def _with_names(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, tools' results with the tools' names: clients tell them by ids, or in Ollama's field."""
    names: dict[str, str] = {}
    for message in messages:
        if message["role"] == "assistant":
            names |= {
                str(call.get("id")): call["function"]["name"] for call in message.get("tool_calls") or ()
            }
        elif message["role"] == "tool" and not message.get("name"):
            name = message.get("tool_name") or names.get(str(message.get("tool_call_id")))
            if name:
                message["name"] = name
    return messages


def check_fits(engine: Engine, ids: Sequence[int]) -> None:
    """Raise a 400 for a prompt that the context has no room for: nothing of it is ever left out."""
    if len(ids) >= engine.context:
        raise ApiError(
            400,
            f"the prompt has {len(ids)} tokens, but the context has room for {engine.context}, the answer's "
            "among them: shorten it, or start the server with a larger --context",
            kind="exceed_context_size_error",
            code="context_length_exceeded",
            param="messages",
            n_prompt_tokens=len(ids),
            n_ctx=engine.context,
        )
