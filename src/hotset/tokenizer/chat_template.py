"""Chat templates: a conversation written out as the model was trained to read it."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hotset.core.errors import RequestError
from hotset.tokenizer.written import Written, anybody_wrote, by_template, named

if TYPE_CHECKING:
    import jinja2

_NAME = re.compile(r"\w[\w.-]*")
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""What callers name an assistant's reasoning; templates read the first, gpt-oss's the second."""


class ChatTemplate:
    """A Jinja template as models carry it, run in a sandbox with what Hugging Face's templates expect."""

    def __init__(
        self, source: str, tokens: Mapping[str, str] | None = None, *, tool_use: str | None = None
    ) -> None:
        """``tokens`` are the texts of tokens that the template may write, by name, such as ``bos_token``.

        ``tool_use`` is the template that takes this one's place where tools are given.
        """
        self.source = source
        self.tool_use = tool_use
        self._tokens = {name: by_template(text) for name, text in (tokens or {}).items()}

    @property
    def shows_tools(self) -> bool:
        """Whether the model is told of tools."""
        return self.tool_use is not None or "tools" in self.source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_last: bool = False,
        **variables: Any,
    ) -> str:
        """Write out ``messages``, each a mapping with ``role`` and ``content``.

        A message may have ``tool_calls`` (a call's arguments as a mapping or as JSON) and
        ``reasoning_content``. ``tools`` are JSON schemas of functions; ``variables`` go to the template as
        they are. The text holds the model's own special tokens, so it is encoded with ``add_special=False``.
        With ``continue_last`` the text ends with the last message's content, for the model to go on there.
        Raises `RequestError` where the template fails or refuses the conversation.
        """
        text = self.write(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_last=continue_last,
            **variables,
        )
        return str.__str__(text)

    def write(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_last: bool = False,
        **variables: Any,
    ) -> Written:
        """As `render`; the text knows which of its characters the template wrote."""
        text = self._write(messages, tools, add_generation_prompt, variables)
        return _until_last(text, messages) if continue_last else text

    def _write(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> Written:
        template = self._tool_use if tools is not None and self.tool_use is not None else self._template
        conversation = [_message(index, message) for index, message in enumerate(messages)]
        known = {"tools": _plain(tools), "documents": None, "add_generation_prompt": add_generation_prompt}
        given = {name: _named(_plain(value)) for name, value in variables.items()}
        values = {**known, **self._tokens, **given}
        with_mappings = _with_arguments(conversation, _as_mapping)
        try:
            return _rendered(template, with_mappings, values)
        except RequestError as refusal:
            # DeepSeek's templates join a call's arguments to text and fail at a mapping.
            with_texts = _with_arguments(conversation, _as_text)
            if with_texts == with_mappings:
                raise
            try:
                return _rendered(template, with_texts, values)
            except RequestError:
                raise refusal from None

    @cached_property
    def _template(self) -> "jinja2.Template":
        return _compiled(self.source)

    @cached_property
    def _tool_use(self) -> "jinja2.Template":
        return _compiled(self.tool_use or "")


def _compiled(source: str) -> "jinja2.Template":
    from jinja2.exceptions import TemplateError

    from hotset.tokenizer.jinja import compiled

    try:
        return compiled(source)
    except (TemplateError, RecursionError) as reason:
        raise _failure(reason) from None


def _rendered(
    template: "jinja2.Template", messages: Sequence[Mapping[str, Any]], values: Mapping[str, Any]
) -> Written:
    try:
        text = template.render(values, messages=messages)
    except Exception as reason:  # a template is a program: it can fail in any way
        raise _failure(reason) from None
    return text if isinstance(text, Written) else Written(text)


def _failure(reason: BaseException) -> RequestError:
    if isinstance(reason, RequestError):
        return reason
    from hotset.tokenizer.jinja import REFUSES

    text = " ".join(str(reason).split()) or type(reason).__name__
    return RequestError(f"{REFUSES}: {text}")


def _until_last(text: Written, messages: Sequence[Mapping[str, Any]]) -> Written:
    """The text up to the end of the last message's content, which the model is to continue."""
    content = str(messages[-1].get("content") or "").strip()
    start = text.rfind(content) if content else -1
    while start >= 0 and not anybody_wrote(text, start, start + len(content)):
        start = text.rfind(content, 0, start + len(content) - 1)
    if start < 0:
        raise RequestError(
            "the last message cannot be continued: its text is not in what the template writes"
        )
    return text[: start + len(content)]


def _plain(value: Any) -> Any:
    """A copy of strings, mappings and sequences in Python's plain types: whatever wrote them, nobody did."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item) for item in value]
    return value


def _named(value: Any) -> Any:
    return named(value) if isinstance(value, str) and _NAME.fullmatch(value) else value


def _message(index: int, message: Any) -> dict[str, Any]:
    """A message as templates read it: without empty fields, and its reasoning by the names they know."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError(f"message {index} has no role: expected a mapping with 'role' and 'content'")
    made = {key: value for key, value in _plain(message).items() if value is not None}
    made["role"] = _named(made["role"])
    reasoning = next((made[key] for key in _REASONING if key in made), None)
    return made if reasoning is None else {"thinking": reasoning, **made, "reasoning_content": reasoning}


def _with_arguments(messages: Sequence[dict[str, Any]], form: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """The messages with the arguments of all tool calls in another form."""

    def changed(call: Any) -> Any:
        if not isinstance(call, dict):
            return call
        parts = {"arguments": form, "function": changed}
        return {key: parts[key](value) if key in parts else value for key, value in call.items()}

    return [
        {**message, "tool_calls": [changed(call) for call in message["tool_calls"]]}
        if isinstance(message.get("tool_calls"), list)
        else message
        for message in messages
    ]


def _as_mapping(arguments: Any) -> Any:
    """A call's arguments as most templates read them; clients send JSON."""
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _as_text(arguments: Any) -> Any:
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments
