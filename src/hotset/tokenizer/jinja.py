"""Jinja as chat templates expect it, in a sandbox, and with literals that know who wrote them."""

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from string import Formatter
from typing import Any, NoReturn

from jinja2 import Template, nodes, pass_eval_context
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from hotset.core.errors import RequestError
from hotset.tokenizer.written import Written, by_template, joined, template_wrote

REFUSES = "the model's chat template refuses this conversation"


def compiled(source: str) -> Template:
    """A template whose `render` gives `Written` text; Jinja's own errors where it cannot be read."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    tree = environment.parse(source)
    literals = _Literals()
    literals.visit(tree)
    environment.written = literals.texts
    return environment.from_string(tree)


class _Environment(ImmutableSandboxedEnvironment):
    written: list[Written]
    """The template's literals; its code refers to them by their place."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.concat = joined  # type: ignore[method-assign]
        self.filters["join"] = _join
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format`` as the sandbox allows it; what stands between the fields keeps its author."""
        inner = super().wrap_str_format(value)
        text = getattr(value, "__self__", None)
        if inner is None or not isinstance(text, Written):
            return inner
        plain, of_one = inner, super().wrap_str_format

        def tracked(*args: Any, **values: Any) -> str:
            whole = plain(*args, **values)
            if not template_wrote(text, 0, len(text)) or value.__name__ != "format":
                return whole
            parts: list[str] = []
            place = 0
            for literal, field, spec, conversion in Formatter().parse(text):
                parts.append(by_template(literal))
                if field is None:
                    continue
                name = field or str(place)
                place += not field
                one = "{" + name + (f"!{conversion}" if conversion else "") + ":" + (spec or "") + "}"
                show = of_one(one.format)
                parts.append(show(*args, **values) if show else "")
            made = joined(parts)
            return made if made == whole else whole

        return tracked


class _Literals(NodeTransformer):
    """Puts each literal text of a template where its code finds it as `Written`."""

    def __init__(self) -> None:
        self.texts: list[Written] = []

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Expr:  # noqa: N802
        return self._literal(node.data, node.lineno)

    def visit_Const(self, node: nodes.Const) -> nodes.Expr:  # noqa: N802
        return self._literal(node.value, node.lineno) if isinstance(node.value, str) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:  # noqa: N802
        """``a ~ b`` joins by a function of Jinja's own: make it a sum of texts."""
        self.generic_visit(node)
        texts = [nodes.Filter(part, "string", [], [], None, None, lineno=node.lineno) for part in node.nodes]
        whole: nodes.Expr = texts[0]
        for text in texts[1:]:
            whole = nodes.Add(whole, text, lineno=node.lineno)
        return whole

    def _literal(self, text: str, line: int) -> nodes.Expr:
        self.texts.append(by_template(text))
        place = nodes.Const(len(self.texts) - 1, lineno=line)
        return nodes.Getitem(nodes.EnvironmentAttribute("written"), place, "load", lineno=line)


class _GenerationBlock(Extension):
    """``{% generation %}`` marks the assistant's words for training; here it only holds them."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


@pass_eval_context
def _join(context: Any, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    """Jinja's filter, whose separator is a plain text if the template gives none."""
    text: str = do_join(context, value, d if isinstance(d, Written) else Written(str(d)), attribute)
    return text


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Plain JSON: Jinja's own filter escapes for HTML, which no model has seen."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise RequestError(f"{REFUSES}: {message}")


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
