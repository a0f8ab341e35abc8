"""What stands between a conversation's prompt and the parts of its reply."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hotset.replies import Event, Parser, Tool, parser_for, starts_inside

if TYPE_CHECKING:
    from hotset.serve.request import Token
    from hotset.tokenizer import Tokenizer

_END = 32
"""Tokens of a prompt's end."""

_SWITCHES = ("enable_thinking", "reasoning_effort", "thinking")
"""What templates call the variable that turns reasoning on and off; the first that one knows counts."""


def reply_parser(tokenizer: "Tokenizer", prompt: Sequence[int], tools: Sequence[Tool] = ()) -> Parser:
    """The parser of the reply to a conversation's prompt, by the model's chat template.

    The request needs its marks (`Request.shown`). Without a template all is content.
    """
    source = tokenizer.chat_template.source if tokenizer.chat_template else ""
    return parser_for(source, starts_inside=starts_inside(source, prompt_end(tokenizer, prompt)), tools=tools)


def prompt_end(tokenizer: "Tokenizer", prompt: Sequence[int]) -> str:
    """The end of a prompt's text, with control tokens: it says whether the prompt ends within reasoning."""
    return tokenizer.decode(prompt[-_END:], skip_special=False)


def parts(tokens: "Iterator[Token]", parser: Parser) -> "Iterator[tuple[Token, list[Event]]]":
    """An answer's tokens as they come, each with the parts of the reply that are sure with it."""
    for token in tokens:
        events = parser.feed(token.text)
        yield token, events + parser.end() if token.finish_reason else events


def thinking_variables(template_source: str, think: bool) -> Mapping[str, Any]:
    """What to give to a chat template to turn reasoning on or off; where it knows no switch, the usual one.

    gpt-oss always reasons: off is its least effort. Cohere's switch has the name of what it switches.
    """
    if "<|START_THINKING|>" in template_source:
        return {"reasoning": think}
    name = next((name for name in _SWITCHES if name in template_source), _SWITCHES[0])
    if name == "reasoning_effort":
        return {name: "medium" if think else "low"}
    return {name: think}
