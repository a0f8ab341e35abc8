"""What a model's reply is made of: reasoning, text and tool calls. Pure text, no tokens

A model writes all three as one text, with marks that its chat template shows. `parser_for` finds the marks
and gives a parser, which turns the text, in pieces of any size, into events.
"""

from hotset.replies.events import (
    Call,
    CallArguments,
    CallBegin,
    CallEnd,
    Content,
    Event,
    Reasoning,
    Reply,
    Tool,
    collect,
    joined,
)
from hotset.replies.families import Parser, forced_parser_for, parser_for, starts_inside

__all__ = [
    "Call",
    "CallArguments",
    "CallBegin",
    "CallEnd",
    "Content",
    "Event",
    "Parser",
    "Reasoning",
    "Reply",
    "Tool",
    "collect",
    "forced_parser_for",
    "joined",
    "parser_for",
    "starts_inside",
]
