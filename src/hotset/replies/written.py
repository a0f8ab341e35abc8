"""Calls that are read in one piece: Gemma 4's, Python's (LFM2, Llama's built-in tools), DeepSeek's."""

import ast
import re
from typing import Any

from hotset.replies.json_text import dumps, loads

Found = list[tuple[str, dict[str, Any]]]

_LONGEST = 1_000_000
_DEEPEST = 50
_QUOTE = '<|"|>'
_GEMMA = re.compile(
    r'\s*(?:<\|"\|>(?P<text>.*?)<\|"\|>|(?P<mark>[{}\[\]:,])|(?P<word>[^\s{}\[\]:,<]+))', re.DOTALL
)
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_PYTHON_TEXT = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_DEEPSEEK = re.compile(
    r"\s*(?:function<｜tool▁sep｜>\s*(?P<old>[\w.:/-]+)\s*```json\s*(?P<json>.*?)\s*```"
    r"|(?P<name>[\w.:/-]+)<｜tool▁sep｜>(?P<arguments>.*?))\s*",
    re.DOTALL,
)


def gemma_calls(text: str) -> Found | None:
    """``call:NAME{key:<|"|>text<|"|>,other:1}``."""
    head = re.match(r"\s*call:([\w.:/-]+)(?=\{)", text)
    if not head or len(text) > _LONGEST:
        return None
    parts: list[tuple[str, str]] = []
    at, end = head.end(), len(text.rstrip())
    while at < end:
        part = _GEMMA.match(text, at, end)
        if not part:
            return None
        parts.append((part.lastgroup or "", part[part.lastgroup or ""]))
        at = part.end()
    try:
        value, after = _gemma_value(parts, 0, 0)
    except (IndexError, ValueError):
        return None
    return [(head[1], value)] if isinstance(value, dict) and after == len(parts) else None


def _gemma_value(parts: list[tuple[str, str]], at: int, depth: int) -> tuple[Any, int]:
    """A value, and the part after it; ValueError or IndexError where there is none."""
    kind, text = parts[at]
    if kind == "text":
        return text, at + 1
    if kind == "word":
        if text in ("true", "false", "null") or _NUMBER.fullmatch(text):
            return loads(text), at + 1
        return text, at + 1
    if text not in "{[" or depth > _DEEPEST:
        raise ValueError(text)
    close = {"{": "}", "[": "]"}[text]
    members: dict[str, Any] = {}
    items: list[Any] = []
    at += 1
    while parts[at] != ("mark", close):
        if members or items:
            if parts[at] != ("mark", ","):
                raise ValueError(parts[at])
            at += 1
        if close == "]":
            item, at = _gemma_value(parts, at, depth + 1)
            items.append(item)
        else:
            key = parts[at]
            if key[0] == "mark" or parts[at + 1] != ("mark", ":"):
                raise ValueError(key)
            members[key[1]], at = _gemma_value(parts, at + 2, depth + 1)
    return (members if close == "}" else items), at + 1


def python_calls(text: str) -> Found | None:
    """``[name(key="text", other=1), …]``, or one such call; ``name.call(…)`` is Llama's for ``name(…)``."""
    if len(text) > _LONGEST:
        return None
    try:
        tree = ast.parse(_PYTHON_TEXT.sub(_on_one_line, text.strip()), mode="eval").body
        calls = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
        return [_python_call(call) for call in calls]
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def _on_one_line(text: re.Match[str]) -> str:
    """A string with its line ends escaped: LFM2's template writes them as they are."""
    return text[0].replace("\n", "\\n")


def _python_call(call: ast.expr) -> tuple[str, dict[str, Any]]:
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError("no call, or arguments without names")
    name = ast.unparse(call.func)
    if not re.fullmatch(r"\w+(\.\w+)*", name):
        raise ValueError(name)
    arguments = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError("**")
        arguments[keyword.arg] = ast.literal_eval(_JSONNames().visit(keyword.value))
    dumps(arguments)  # raises for what JSON does not have
    return name.removesuffix(".call"), arguments


class _JSONNames(ast.NodeTransformer):
    """JSON's names for Python's."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """One of JSON's names as the constant that it is."""
        names = {"true": True, "false": False, "null": None}
        return ast.Constant(names[node.id]) if node.id in names else node


def deepseek_calls(text: str) -> Found | None:
    """``function<｜tool▁sep｜>NAME`` and a block of JSON (V3, R1), or ``NAME<｜tool▁sep｜>{…}`` (V3.1)."""
    found = _DEEPSEEK.fullmatch(text) if len(text) <= _LONGEST else None
    if not found:
        return None
    try:
        arguments = loads(found["json"] or found["arguments"] or "")
    except ValueError:
        return None
    return [(found["old"] or found["name"], arguments)] if isinstance(arguments, dict) else None
