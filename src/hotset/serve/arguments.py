"""Arguments of the API: one of a wrong type is a `RequestError` that names it, no traceback from within."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hotset.core.config import FFNPlan, Way
from hotset.core.errors import RequestError

_SHOWN = 60
"""Characters of a wrong value that are shown."""


def check_integer(name: str, value: Any, low: int | None = None, *, optional: bool = False) -> None:
    """Raise `RequestError` unless a value is an integer of at least `low` or, if `optional`, None."""
    if optional and value is None:
        return
    wrong = not isinstance(value, int | np.integer) or isinstance(value, bool)
    if wrong or (low is not None and value < low):
        raise _wrong(name, value, "an integer" + ("" if low is None else f" of {low} or more"))


def check_type(name: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raise `RequestError` unless a value is one of some types."""
    if not isinstance(value, kinds):
        raise _wrong(name, value, expected)


def check_load(model: Any, *, kv_type: Any, ffn: Any, **integers: Any) -> None:
    """Raise `RequestError` for what `hotset.serve.load.load_model` cannot be given."""
    if model is not None:
        check_type("model", model, (str, Path), "a path or a name")
    check_type("kv_type", kv_type, str, "f16, q8_0 or f32")
    if ffn is not None:
        check_type("ffn", ffn, (Way, FFNPlan), "Way.DENSE or Way.EXACT")
    for name, value in integers.items():
        check_integer(name, value, 1 if name in ("threads", "parallel", "ram") else None, optional=True)


def token_ids(prompt: Any) -> tuple[int, ...]:
    """Token ids as integers of Python's."""
    if not isinstance(prompt, Iterable) or isinstance(prompt, str | bytes | bytearray | Mapping):
        raise _wrong("the prompt", prompt, "a text or token ids")
    tokens = tuple(prompt)
    for token in tokens:
        if not isinstance(token, int | np.integer) or isinstance(token, bool):
            raise RequestError(f"the prompt holds {shown(token)}: expected token ids, which are integers")
    return tuple(map(int, tokens))


def check_messages(messages: Any, tools: Any, template_variables: Any) -> None:
    """Raise `RequestError` unless these are messages, tools and variables for a chat template."""
    for name, entries in (("messages", messages), ("tools", tools or ())):
        if not isinstance(entries, Sequence) or isinstance(entries, str | bytes):
            raise _wrong(name, entries, "a list of mappings")
        for entry in entries:
            if not isinstance(entry, Mapping):
                raise RequestError(f"{name} hold {shown(entry)}: expected mappings")
    for message in messages:
        if not isinstance(message.get("role"), str):
            raise RequestError(f"messages hold {shown(message)}: expected each to have a role, such as user")
        if not isinstance(message.get("content"), str | list | None):
            raise RequestError(f"messages hold {shown(message)}: expected the content to be a text")
    variables = template_variables or {}
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        raise _wrong("template_variables", variables, "a mapping of names to values")


def _wrong(name: str, value: Any, expected: str) -> RequestError:
    return RequestError(f"{name} is {shown(value)}: expected {expected}")


def shown(value: Any) -> str:
    """A value for an error's message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
