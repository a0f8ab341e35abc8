"""`hotset run`: answer one prompt."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hotset.cli import options
from hotset.cli.chat import TEMPERATURE, TOP_P, check_template, converse
from hotset.cli.loading import load_speaker
from hotset.cli.terminal import interactive
from hotset.cli.text import read_text
from hotset.core.errors import RequestError


def run(
    model: options.Model = None,
    words: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt.", show_default=False)
    ] = None,
    *,
    prompt: Annotated[
        str | None,
        typer.Option(
            "-p",
            "--prompt",
            help="The prompt; standard input if none is given, or a conversation in a terminal.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="Read the prompt from a file.", show_default=False)
    ] = None,
    temperature: Annotated[float | None, options.temperature(f"0 (in a conversation {TEMPERATURE})")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help=f"Choose among the likeliest tokens that add up to P (conversation: {TOP_P})."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt, without the chat template.")
    ] = False,
    json_schema: options.Schema = None,
    grammar: options.Grammar = None,
    asked: options.Answering,
) -> None:
    """Answer a prompt, by the model's chat template if it has one; without a prompt, hold a conversation."""
    if model and " " in model and (words, prompt, file) == (None, None, None) and not Path(model).exists():
        raise RequestError(f"there is no model {model[:60]!r}: ask the demo model with hotset run -p PROMPT")
    text = _prompt(words, prompt, file)
    own = (asked.system, asked.tools, asked.think, asked.template_var or None)
    templated = any(option is not None for option in own)
    if raw and (text is None or templated):
        raise RequestError(
            "--raw continues a prompt without the chat template: it needs a prompt, and goes with none of "
            "--system, --tools, --think and --template-var"
        )
    speaker = load_speaker(
        model,
        asked,
        temperature=temperature if temperature is not None else TEMPERATURE if text is None else 0.0,
        top_p=top_p if top_p is not None else TOP_P if text is None else 1.0,
        constraint=options.read_constraint(json_schema, grammar, reasoning=not raw),
    )
    engine = speaker.engine
    if text is None:
        converse(speaker, asked.system)
        return
    if templated:
        check_template(engine)
    if raw or engine.tokenizer.chat_template is None:
        speaker.say(engine.tokenizer.encode(text), raw=True)
    else:
        opening = [] if asked.system is None else [{"role": "system", "content": asked.system}]
        speaker.say(speaker.ids([*opening, {"role": "user", "content": text}]))


def _prompt(words: str | None, prompt: str | None, file: Path | None) -> str | None:
    """The prompt, wherever it stands; None where a user is there to converse with."""
    given = {"PROMPT": words, "-p": prompt, "-f": file}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise RequestError(f"{' and '.join(names)}: expected one prompt")
    if file is not None:
        text = _without_line_end(read_text(file))
    elif prompt is not None:
        text = prompt
    elif words is not None:
        text = words
    elif interactive():
        return None
    else:
        text = _without_line_end(_read_stdin())
    if not text.strip():
        raise RequestError("the prompt is empty: give one as hotset run MODEL PROMPT, or on standard input")
    return text


def _without_line_end(text: str) -> str:
    """A file's last line ends with a line feed that is not the prompt's."""
    return text.removesuffix("\n").removesuffix("\r")


def _read_stdin() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise RequestError("no prompt: give one as hotset run MODEL PROMPT, or on standard input")
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not UTF-8 text: byte {error.start} cannot be read") from None
