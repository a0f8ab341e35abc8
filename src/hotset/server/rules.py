"""What an answer has to be: JSON, a schema, an expression, a grammar, or a call of a tool."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hotset.core.errors import ConstraintError
from hotset.replies import Tool
from hotset.serve.arguments import shown
from hotset.serve.constraint import Constraint
from hotset.server.errors import wrong
from hotset.server.fields import Fields

_MOST_TEXT = 1 << 18
"""Characters of an expression or a grammar."""


@dataclass(frozen=True)
class Rule:
    """A constraint that is still to be made, which takes long for large ones: not for the event loop."""

    param: str
    """The field that asks for it."""
    make: Callable[[bool], Constraint]
    """Told whether the answer may begin with reasoning."""
    call: bool = False
    """It asks for a call of a tool, in one form for all models."""
    schema: Mapping[str, Any] | None = None
    """It is this JSON schema."""

    def constraint(self, *, reasoning: bool) -> Constraint:
        """The constraint, before which there may be `reasoning`; `ApiError` 400 where it cannot be kept."""
        try:
            return self.make(reasoning)
        except ConstraintError as error:
            raise wrong(self.param, str(error)) from None


@dataclass(frozen=True)
class Choice:
    """The tools that a model may call, and whether it has to."""

    tools: Sequence[Mapping[str, Any]]
    rule: Rule | None = None


def response_format(fields: Fields) -> Rule | None:
    """JSON, or JSON by a schema; also the fields ``grammar``, ``guided_regex`` and ``json_schema``."""
    if fields.text("grammar"):
        grammar = _short(fields, "grammar")
        return Rule("grammar", lambda reasoning: Constraint.written(grammar, reasoning=reasoning))
    if fields.text("guided_regex"):
        pattern = _short(fields, "guided_regex")
        return Rule("guided_regex", lambda reasoning: Constraint.regex(pattern, reasoning=reasoning))
    if (given := fields.fields("json_schema")) is not None:
        return _schema("json_schema", given.all)
    format = fields.fields("response_format")
    return None if format is None else _by_type(format)


def flat_format(fields: Fields, name: str) -> Rule | None:
    """The same where the schema stands beside its type, as in OpenAI's responses and Anthropic's messages."""
    format = fields.fields(name)
    if format is None:
        return None
    if format.get("type") == "json_schema" and format.fields("schema") is None:
        raise format.wrong("schema", "a JSON schema")
    return _by_type(format)


def _by_type(format: Fields) -> Rule | None:
    kind = format.choice("type", ("text", "json_object", "json_schema"))
    if kind is None:
        raise format.wrong("type", "text, json_object or json_schema")
    if kind == "text":
        return None
    inner = format.fields("json_schema") or format
    schema = inner.fields("schema") or format.fields("schema")  # llama.cpp's clients put it beside the type
    if schema is not None:
        return _schema(schema.place, schema.all)
    if kind == "json_object":
        return _schema(format.name("type"), {"type": "object"})
    raise (
        format.wrong("json_schema", "an object with a schema")
        if inner is format
        else inner.wrong("schema", "a JSON schema")
    )


def schema_of(fields: Fields, name: str) -> Rule | None:
    """Ollama's ``format``: "json", or a schema."""
    given = fields.get(name)
    if given in (None, ""):
        return None
    if given == "json":
        return _schema(name, {"type": "object"})
    if not isinstance(given, dict):
        raise fields.wrong(name, "json or a JSON schema")
    return _schema(name, given)


def tool_choice(fields: Fields, tools: Sequence[Mapping[str, Any]]) -> Choice:
    """By ``tool_choice``, of OpenAI's or of Anthropic's form."""
    given = fields.get("tool_choice")
    kind, chosen = given, None
    if isinstance(given, dict):
        choice = Fields(given, "tool_choice")
        kind = given.get("type")
        if kind in ("function", "tool"):
            inner = choice.fields("function") or choice
            kind, chosen = "required", inner.need_text("name")
    if kind in (None, "auto"):
        return Choice(tools)
    if kind == "none":
        return Choice(())
    if kind not in ("required", "any"):
        raise fields.wrong("tool_choice", "none, auto, required or a function's name")
    named = [tool for tool in tools if chosen in (None, tool["function"]["name"])]
    if not named:
        found = f"no function {shown(chosen)}" if chosen else "no functions"
        raise wrong("tool_choice", f"tool_choice asks for a call, but there are {found} among the tools")
    allowed = [Tool.from_schema(tool) for tool in named]
    return Choice(
        tools, Rule("tool_choice", lambda reasoning: Constraint.call(allowed, reasoning=reasoning), call=True)
    )


def one_rule(format: Rule | None, choice: Choice) -> Rule | None:
    """The one rule for an answer: a call where one is asked for, or text of a form, or of either.

    Where a form stands beside tools, the answer is JSON by the form's schema, or a call.
    """
    if choice.rule or not format or not choice.tools:
        return choice.rule or format
    schema = format.schema
    if schema is None:
        raise wrong(
            format.param,
            f"{format.param} leaves no room for calls of tools: give a JSON schema, or tool_choice none or "
            "required beside it",
        )
    tools = [Tool.from_schema(tool) for tool in choice.tools]

    def make(reasoning: bool) -> Constraint:
        return Constraint.call(tools, otherwise=schema, reasoning=reasoning)

    return Rule(format.param, make, call=True)


def _schema(param: str, schema: Mapping[str, Any]) -> Rule:
    def make(reasoning: bool) -> Constraint:
        return Constraint.json_schema(schema, reasoning=reasoning)

    return Rule(param, make, schema=schema)


def _short(fields: Fields, name: str) -> str:
    text = fields.need_text(name)
    if len(text) > _MOST_TEXT:
        raise wrong(name, f"{name} has {len(text)} characters: expected at most {_MOST_TEXT}")
    return text
