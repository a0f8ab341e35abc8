"""Chat templates: a conversation written out as the model was trained to read it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from hotset.core.errors import RequestError

if TYPE_CHECKING:
    import jinja2


class ChatTemplate:
    """A Jinja template as models carry it, run in a sandbox with what Hugging Face's templates expect."""

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        """``bos_token`` and ``eos_token`` are the texts that the template may write."""
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Write out ``messages``, each a mapping with ``role`` and ``content``.

        ``variables`` (such as ``tools``) go to the template. The text holds the model's own special tokens,
        so it is encoded with ``add_special=False``. Raises `RequestError` where the template fails or refuses
        the conversation.
        """
        for index, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise RequestError(
                    f"message {index} has no role: expected a mapping with 'role' and 'content'"
                )
        known = {"tools": None, "documents": None, **self._tokens, **variables}
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **known
            )
        except Exception as reason:  # a template is a program: it can fail in any way
            raise _failure(reason) from None

    @cached_property
    def _template(self) -> "jinja2.Template":
        from jinja2 import nodes
        from jinja2.exceptions import TemplateError
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class GenerationBlock(Extension):
            """``{% generation %}`` marks the assistant's words for training; here it only holds them."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser: Any) -> list[nodes.Node]:
                next(parser.stream)
                body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return body

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            return environment.from_string(self.source)
        except (TemplateError, RecursionError) as reason:
            raise _failure(reason) from None


def _failure(reason: BaseException) -> RequestError:
    if isinstance(reason, RequestError):
        return reason
    text = " ".join(str(reason).split()) or type(reason).__name__
    return RequestError(f"the model's chat template refuses this conversation: {text}")


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Plain JSON: Jinja's own filter escapes for HTML, which no model has seen."""
    import json

    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise RequestError(f"the model's chat template refuses this conversation: {message}")


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
