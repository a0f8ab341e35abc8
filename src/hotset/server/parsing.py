"""Which parser splits an answer's text."""

from hotset.replies import Content, Event, Parser, Tool, forced_parser_for, parser_for, starts_inside
from hotset.serve.engine import Engine
from hotset.serve.reply import prompt_end
from hotset.server.ask import Conversation, Prompt


class PlainText:
    """All is content."""

    marks = ()

    def feed(self, text: str) -> list[Event]:
        return [Content(text)] if text else []

    def end(self) -> list[Event]:
        return []


def parser_of(engine: Engine, prompt: Prompt, ids: tuple[int, ...], *, forced: bool) -> Parser | PlainText:
    """A parser for one answer to a prompt with these ids; `forced`: it has to be a call of a tool."""
    template = engine.tokenizer.chat_template
    if template is None or not isinstance(prompt, Conversation):
        return PlainText()
    source = (template.tool_use if prompt.tools else None) or template.source
    end = prompt_end(engine.tokenizer, ids)
    tools = [Tool.from_schema(tool) for tool in prompt.tools]
    make = forced_parser_for if forced else parser_for
    return make(source, starts_inside=starts_inside(source, end), tools=tools)
