"""Which marks a model writes, found in its chat template."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from hotset.replies import tagged
from hotset.replies.events import Event, Tool
from hotset.replies.harmony import HarmonyParser
from hotset.replies.readers import ByFirst, Calls, Mistral, NamedJSON, Reader, Whole
from hotset.replies.scanner import Marks, TagParser
from hotset.replies.written import deepseek_calls, gemma_calls, python_calls

_THINK = (
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("[THINK]", "[/THINK]"),  # Mistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    ("<think>", "</think>"),
)


_AROUND_TEXT = ("<|START_TEXT|>", "<|END_TEXT|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>")
"""Marks around Cohere's answers."""


class Parser(Protocol):
    """Turns a reply's text into events. No text makes it fail, and it loses none."""

    @property
    def marks(self) -> tuple[str, ...]:
        """What is looked for; marks that are control tokens must stand in the text (`Request.shown`)."""

    @property
    def opening(self) -> str:
        """The mark that may begin reasoning where the text stands; empty: none may."""

    @property
    def answering(self) -> bool:
        """Whether what comes next belongs to the answer, and not to reasoning."""

    def feed(self, text: str) -> list[Event]:
        """The events that are sure with the next piece of the text, of any length."""

    def end(self) -> list[Event]:
        """The last events: the reply is over."""


def parser_for(template_source: str, *, starts_inside: bool, tools: Sequence[Tool] = ()) -> Parser:
    """A parser for one reply of a model with this chat template.

    `starts_inside`: the prompt ends within reasoning (`starts_inside`). Without `tools`, calls are text.
    """
    if _is_harmony(template_source):
        return HarmonyParser(Calls(tools))
    think = _think(template_source)
    marks = _marks(template_source, think) if tools else _without_calls(template_source, think)
    return TagParser(marks, Calls(tools), inside=starts_inside)


def forced_parser_for(template_source: str, *, starts_inside: bool, tools: Sequence[Tool]) -> Parser:
    """As `parser_for`, for a model that is made to call as ``{"name": NAME, "arguments": {…}}``."""
    if _is_harmony(template_source):
        return HarmonyParser(Calls(tools), _bare)
    marks = replace(_without_calls(template_source, _think(template_source)), bare=_bare)
    return TagParser(marks, Calls(tools), inside=starts_inside)


def starts_inside(template_source: str, prompt: str) -> bool:
    """Whether a prompt, as the template wrote it, ends with the mark that begins reasoning."""
    think = _think(template_source)
    return bool(think and not _is_harmony(template_source) and prompt.rstrip().endswith(think[0]))


def _is_harmony(source: str) -> bool:
    return "<|channel|>" in source and "<|message|>" in source


def _think(source: str) -> tuple[str, str] | None:
    for begin, end in _THINK:
        if begin.removesuffix("thought") in source or end in source:
            return begin, end
    return None


def _marks(source: str, think: tuple[str, str] | None) -> Marks:
    """The marks of the one way of writing calls that a template shows."""
    for mark, make in _CALLS.items():
        if mark in source:
            return make(source, think)
    return _without_calls(source, think)


def _without_calls(source: str, think: tuple[str, str] | None) -> Marks:
    return Marks(think, around=_AROUND_TEXT if any(mark in source for mark in _AROUND_TEXT) else ())


def _tool_call(source: str, think: tuple[str, str] | None) -> Marks:
    """``<tool_call>`` with JSON (Hermes, Qwen), tags (Qwen3-Coder and 3.5, Nemotron 3) or GLM's pairs."""
    begin = "<seed:tool_call>" if "<seed:tool_call>" in source else "<tool_call>"
    end = begin.replace("<", "</")

    def body(calls: Calls) -> Reader:
        readers: dict[str | None, Callable[[], Reader]] = {
            "{": lambda: NamedJSON(calls),
            "[": lambda: NamedJSON(calls),
            "<": lambda: tagged.Tagged(calls, tagged.QWEN),
        }
        if "<arg_key>" in source:
            readers[None] = lambda: tagged.Tagged(calls, tagged.GLM)
        return ByFirst(calls, readers)

    readers: dict[str, Callable[[Calls], Reader]] = {begin: body}
    if "<function=" in source:
        readers["<function="] = lambda calls: tagged.Tagged(calls, tagged.QWEN, opened=True)
    return Marks(think, readers, after=(end,))


def _llama(source: str, think: tuple[str, str] | None) -> Marks:
    """JSON alone, or after ``<|python_tag|>``, where there may be Python as well."""
    tag = "<|python_tag|>"

    def body(calls: Calls) -> Reader:
        def code() -> Reader:
            return Whole(calls, python_calls, begin=tag, close=None)

        return ByFirst(calls, {"{": lambda: NamedJSON(calls), None: code})

    return Marks(think, {tag: body}, bare=_bare)


def _gemma(source: str, think: tuple[str, str] | None) -> Marks:
    begin, end = "<|tool_call>", "<tool_call|>"
    return Marks(
        think, {begin: lambda calls: Whole(calls, gemma_calls, begin=begin, close=end)}, around=(end,)
    )


def _lfm(source: str, think: tuple[str, str] | None) -> Marks:
    begin, end = "<|tool_call_start|>", "<|tool_call_end|>"

    def body(calls: Calls) -> Reader:
        return Whole(calls, python_calls, begin=begin, close=end)

    return Marks(think, {begin: body}, around=(end,))


def _deepseek(source: str, think: tuple[str, str] | None) -> Marks:
    begin, end = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
    around = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>", end)

    def body(calls: Calls) -> Reader:
        return Whole(calls, deepseek_calls, begin=begin, close=end)

    return Marks(think, {begin: body}, around=around)


def _mistral(source: str, think: tuple[str, str] | None) -> Marks:
    return Marks(think, {"[TOOL_CALLS]": Mistral}, around=("[ARGS]", "[CALL_ID]"))


def _nemotron(source: str, think: tuple[str, str] | None) -> Marks:
    return Marks(think, {"<TOOLCALL>": NamedJSON}, after=("</TOOLCALL>",))


def _cohere(source: str, think: tuple[str, str] | None) -> Marks:
    """A list of ``{"tool_call_id": …, "tool_name": NAME, "parameters": {…}}``."""
    begin, end = "<|START_ACTION|>", "<|END_ACTION|>"

    def body(calls: Calls) -> Reader:
        return NamedJSON(calls, name_key="tool_name")

    return Marks(think, {begin: body}, around=(end, *_AROUND_TEXT))


def _minimax(source: str, think: tuple[str, str] | None) -> Marks:
    def body(calls: Calls) -> Reader:
        return tagged.Tagged(calls, tagged.INVOKE, opened=True)

    around = ("<minimax:tool_call>", "</minimax:tool_call>")
    return Marks(think, {tagged.INVOKE.name[0]: body}, around=around)


def _bare(calls: Calls) -> Reader:
    return NamedJSON(calls, known=True)


_CALLS: Mapping[str, Callable[[str, tuple[str, str] | None], Marks]] = {
    "<seed:tool_call>": _tool_call,
    "<|tool_call_start|>": _lfm,
    "List of tools: ": _lfm,  # LFM2 as well: its template shows no calls
    "<|tool_call>": _gemma,
    "<｜tool▁call▁begin｜>": _deepseek,
    "[TOOL_CALLS]": _mistral,
    "<TOOLCALL>": _nemotron,
    "<minimax:tool_call>": _minimax,
    "<|START_ACTION|>": _cohere,
    "<tool_call>": _tool_call,
    "<|python_tag|>": _llama,
    "<|start_header_id|>": _llama,
}
"""What reads a template's calls, by a mark in it; the first that is there counts."""
