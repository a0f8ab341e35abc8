"""What an answer may be: a JSON schema, an expression or a grammar, kept by the package llguidance.

Reasoning is free: the rule holds from where the answer itself begins. What cannot be kept is refused before
anything is computed.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hotset.core.errors import ConstraintError, ModelError
from hotset.replies import Content, Parser, Tool, parser_for, starts_inside
from hotset.serve.reply import prompt_end

if TYPE_CHECKING:
    import llguidance

    from hotset.tokenizer import Tokenizer

Allowed = NDArray[np.bool_]

_JSON = {"lenient": False, "whitespace_pattern": r"(\n {0,24}| )"}
"""Keywords that are not known are refused; a weak model cannot write spaces forever."""

_VALUES = ("const", "enum", "default", "examples")
"""Keywords of JSON schemas that hold no schemas."""
_BY_NAME = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
"""Keywords that hold schemas by names, which may be those of keywords."""


@dataclass(frozen=True)
class Constraint:
    """A rule for an answer, checked when it is made. Every way to make one raises `ConstraintError`."""

    grammar: str
    """The rule as llguidance has it."""
    reasoning: bool = True
    """The answer may begin with reasoning, by the marks of the chat template, which the rule leaves free."""

    def __post_init__(self) -> None:
        """Refuse what cannot be kept."""
        _check(self.grammar)

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool, *, reasoning: bool = True) -> "Constraint":
        """JSON by a schema, its members in the schema's order. A keyword that cannot be kept is refused."""
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            raise ConstraintError(f"the JSON schema is {json.dumps(schema)[:60]}: expected an object")
        try:
            text = json.dumps(dict(schema))
            grammar = _library().LLMatcher.grammar_from_json_schema(text, overrides=_JSON)
        except (ValueError, TypeError, RecursionError) as error:
            raise ConstraintError(f"the JSON schema cannot be read: {error}") from None
        return cls(grammar, reasoning)

    @classmethod
    def regex(cls, pattern: str, *, reasoning: bool = True) -> "Constraint":
        """A text that an expression (of Rust's crate `regex`, no look-around) matches as a whole."""
        try:
            return cls(_library().LLMatcher.grammar_from_regex(pattern), reasoning)
        except ValueError as error:  # no Unicode
            raise ConstraintError(f"the expression cannot be read: {_line(error)}") from None

    @classmethod
    def written(cls, grammar: str, *, reasoning: bool = True) -> "Constraint":
        """A grammar in llguidance's form of Lark, with a rule ``start``, or in llama.cpp's GBNF."""
        try:
            return cls(_library().grammar_from("gbnf", grammar), reasoning)
        except ConstraintError:
            raise
        except Exception as error:  # whatever its converter stumbles over
            raise ConstraintError(f"the grammar cannot be read: {_line(error)}") from None

    @classmethod
    def call(
        cls, tools: Sequence[Tool], *, otherwise: Mapping[str, Any] | None = None, reasoning: bool = True
    ) -> "Constraint":
        """One call of one of these tools, as ``{"name": NAME, "arguments": {…}}``, or JSON by another schema.

        `hotset.replies.forced_parser_for` reads it.
        """
        choices = [_call(tool) for tool in tools] + ([otherwise] if otherwise is not None else [])
        if not choices:
            raise ConstraintError("a call is asked for, but there are no tools")
        if len(choices) == 1:
            return cls.json_schema(choices[0], reasoning=reasoning)
        placed = [_placed(schema, f"/anyOf/{i}") for i, schema in enumerate(choices)]
        return cls.json_schema({"anyOf": placed}, reasoning=reasoning)


def _call(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's call."""
    arguments = {"type": "object", **_placed(tool.parameters, "/properties/arguments")}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _placed(schema: Any, place: str) -> Any:
    """A schema as a part of another one, whose references to its own parts begin there."""
    if isinstance(schema, list):
        return [_placed(part, place) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for key, part in schema.items():
        if key in _BY_NAME and isinstance(part, Mapping):
            made[key] = {name: _placed(one, place) for name, one in part.items()}
        else:
            made[key] = part if key in _VALUES else _placed(part, place)
    reference = made.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        made["$ref"] = f"#{place}{reference[1:]}"
    return made


class Enforcer:
    """Keeps one answer to its constraint, token by token."""

    def __init__(self, constraint: Constraint, tokenizer: "Tokenizer", prompt: Sequence[int]) -> None:
        """Raises `ConstraintError` where the constraint does not fit the tokenizer."""
        self._vocabulary = _vocabulary(tokenizer)
        self._matcher = _library().LLMatcher(self._vocabulary, constraint.grammar, log_level=0)
        self._fail_closed(ConstraintError)
        if not self._compute(ConstraintError).any():
            raise ConstraintError("the constraint cannot be kept: no answer fits it")
        self._tokenizer = tokenizer
        self._ends = sorted(tokenizer.end_ids)
        self._parser: Parser | None = None
        """Finds where reasoning ends; None: it has."""
        self._opening: list[int] = []
        """What is left of the mark that begins reasoning; it has to be written once its first token is."""
        self._may_open = False
        template = tokenizer.chat_template
        if constraint.reasoning and template is not None:
            self._begin(template.source, prompt)
        self._next: Future[Allowed] | None = None
        if self._parser is None:
            self._look_ahead()

    def _begin(self, template: str, prompt: Sequence[int]) -> None:
        """Whether the answer begins with reasoning, or may."""
        tail = prompt_end(self._tokenizer, prompt)
        parser = parser_for(template, starts_inside=starts_inside(template, tail))
        self._decoder = self._tokenizer.stream(parser.marks)
        if not parser.answering:
            self._parser = parser
            return
        opening = parser.opening
        if not opening or tail.rstrip().endswith(parser.marks[1]):  # the prompt has ended it already
            return
        ids = self._tokenizer.encode(opening, add_special=False)
        if len(ids) == 1 or not self._tokenizer.decode(ids[:1]):  # else it may be the beginning of a text
            self._parser, self._opening, self._may_open = parser, ids, True
            self._look_ahead()

    def allowed(self, size: int) -> Allowed:
        """Which of the `size` tokens may come next."""
        if self._parser is None or self._may_open:
            allowed: Allowed = self._allowed()[:size].copy()
            if self._may_open:
                allowed[self._opening[0]] = True
        elif self._opening:
            allowed = np.zeros(size, np.bool_)
            allowed[self._opening[0]] = True
        else:
            allowed = np.ones(size, np.bool_)
            allowed[[id for id in self._ends if id < size]] = False  # an answer has to follow
        if not allowed.any():
            raise ModelError("the answer cannot go on within its constraint: no token fits")
        return allowed

    def accept(self, token: int) -> bool:
        """A token was chosen; True: the answer is complete, and nothing may follow."""
        if self._may_open and token != self._opening[0]:
            self._parser, self._opening = None, []
        self._may_open = False
        if self._parser is not None:
            del self._opening[:1]
            events = self._parser.feed(self._decoder.push(token))
            if not self._parser.answering:
                return False
            self._parser = None
            text = "".join(event.text for event in events if isinstance(event, Content))
            if not text:
                self._look_ahead()
                return False
            self._matcher.consume_tokens(self._vocabulary.tokenize_str(text))
        else:
            self._allowed()  # nobody else may use the matcher
            self._next = None
            self._matcher.consume_token(token)
        self._fail_closed(ModelError)
        if self._matcher.is_stopped():
            return True
        self._look_ahead()
        return False

    def _look_ahead(self) -> None:
        """Find what may come next while the model computes."""
        self._next = _workers().submit(self._compute)

    def _allowed(self) -> Allowed:
        return self._compute() if self._next is None else self._next.result()

    def _compute(self, failure: type[ConstraintError] | type[ModelError] = ModelError) -> Allowed:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._fail_closed(failure)
        allowed: Allowed = np.unpackbits(bits, bitorder="little").view(np.bool_)
        return allowed

    def _fail_closed(self, kind: type[ConstraintError] | type[ModelError]) -> None:
        if self._matcher.is_error():
            error = _line(self._matcher.get_error().partition("<state>")[0])
            reason = "no answer fits it" if error.startswith("NoExtension") else error
            raise kind(f"the constraint cannot be kept: {reason}")


class _Tokens:
    """A tokenizer as llguidance asks for it."""

    bos_token_id = None

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.end_ids)
        self.tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted({*tokenizer.control_ids, *tokenizer.end_ids})
        self._longest = 64
        self._ids = {
            token: id for id, token in reversed(list(enumerate(self.tokens))) if len(token) <= self._longest
        }
        for id in self.special_token_ids:
            self._ids.pop(self.tokens[id], None)

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids of a text: as the tokenizer cuts it, or where that adds a space, the longest tokens first."""
        data = text.encode() if isinstance(text, str) else text
        ids = self._tokenizer.encode(data.decode(errors="replace"), add_special=False, parse_special=False)
        if b"".join(self.tokens[id] for id in ids) == data:
            return ids
        ids, at = [], 0
        while at < len(data):
            lengths = range(min(self._longest, len(data) - at), 0, -1)
            length = next((n for n in lengths if data[at : at + n] in self._ids), 0)
            if not length:
                return ids
            ids.append(self._ids[data[at : at + length]])
            at += length
        return ids


_lock = Lock()


@lru_cache(maxsize=4)
def _made(tokenizer: "Tokenizer") -> "llguidance.LLTokenizer":
    library = _library()
    if not tokenizer.end_ids:
        raise ConstraintError("this model has no token that ends an answer: constraints need one")
    wrapper = library.TokenizerWrapper(_Tokens(tokenizer))
    ends = sorted(tokenizer.end_ids)
    made: llguidance.LLTokenizer = library.LLTokenizer(wrapper, tokenizer.vocab_size, ends)
    return made


def _vocabulary(tokenizer: "Tokenizer") -> "llguidance.LLTokenizer":
    with _lock:
        return _made(tokenizer)


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "hotset-constraints")


@cache
def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ConstraintError(
            "constraints on answers need the package llguidance: pip install 'hotset[serve]'"
        ) from None
    return llguidance


def _check(grammar: str) -> None:
    wrong, messages = _library().LLMatcher.validate_grammar_with_warnings(grammar)
    if wrong or messages:
        raise ConstraintError(f"the constraint cannot be kept: {_line('; '.join(messages))}")


def _line(error: object) -> str:
    return " ".join(str(error).split())[:400]
