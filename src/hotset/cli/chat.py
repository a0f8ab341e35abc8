"""`hotset chat`: a conversation in the terminal."""

import json
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from hotset.cli import options
from hotset.cli.answer import Speaker, note
from hotset.cli.loading import load_speaker
from hotset.cli.terminal import Read, interactive, read_message, reader
from hotset.core.errors import RequestError

if TYPE_CHECKING:
    from hotset.serve.engine import Engine
    from hotset.serve.sampler import Sampling

Message = dict[str, Any]

TEMPERATURE, TOP_P = 0.7, 0.95

_COMMANDS = {
    "/help": "show this",
    "/system": "TEXT: tell the model TEXT before the conversation, from now on; alone: show it",
    "/regenerate": "answer the last message again",
    "/save": "FILE: write the conversation to a new file, as JSON if it ends in .json, else as text",
    "/clear": "forget the conversation",
    "/exit": "leave; so does Ctrl-D",
}
_OTHER_NAMES = {"/?": "/help", "/bye": "/exit", "/quit": "/exit"}
_HINT = "/help lists the commands, Ctrl-D leaves, Ctrl-C stops an answer."
_HELP = "\n".join(
    [
        *(f"{name:<12} {text}" for name, text in _COMMANDS.items()),
        'Pasted lines are one message. Alt-Enter begins a new line, """ a text up to the next """.',
        "Ctrl-C stops an answer.",
    ]
)


def chat(
    model: options.Model = None,
    *,
    temperature: Annotated[float, options.temperature(str(TEMPERATURE))] = TEMPERATURE,
    top_p: options.TopP = TOP_P,
    asked: options.Answering,
) -> None:
    """Talk with a model. /help lists the commands, Ctrl-D leaves, Ctrl-C stops an answer."""
    converse(load_speaker(model, asked, temperature=temperature, top_p=top_p), asked.system)


def converse(speaker: Speaker, system: str | None = None) -> None:
    """Read, answer and remember, until the user leaves."""
    check_template(speaker.engine)
    talk = Conversation(speaker, system)
    if interactive() and not speaker.quiet:
        print(_HINT)
    read = reader([*_COMMANDS, *_OTHER_NAMES])
    while talk.turn(read):
        pass


def check_template(engine: "Engine") -> None:
    """`RequestError` for a model that cannot hold conversations."""
    if engine.tokenizer.chat_template is None:
        raise RequestError(
            f"{engine.model.path}: this model has no chat template: give it a text to continue, as in "
            'hotset run MODEL "Once upon a time"'
        )


class Conversation:
    """What was said. The oldest turns are left out of the prompt once the context is full."""

    def __init__(self, speaker: Speaker, system: str | None = None) -> None:
        self._speaker = speaker
        self._system = system
        self._turns: list[Message] = []
        self._first = 0
        """The first turn that the model still reads."""
        self._regenerated = 0

    def turn(self, read: Read) -> bool:
        """Read a message and answer it, or do what it commands; whether the conversation goes on."""
        terminal = interactive()
        try:
            text = read_message(read)
            name, _, rest = text.partition(" ")
            name = _OTHER_NAMES.get(name, name)
            if name == "/exit" and not rest:
                return False
            if name in _COMMANDS:
                self._command(name, rest.strip())
            elif text:
                if name.startswith("/") and not rest and name.count("/") == 1:
                    note(f"{name} is no command (/help lists them): it goes to the model as text")
                self._ask(text)
        except EOFError:
            if terminal:
                print()
            return False
        except KeyboardInterrupt:
            if not terminal:
                raise
            print(f"\n{_HINT}")
        except RequestError as error:
            print(f"error: {error}", file=sys.stderr)
        return True

    def _command(self, name: str, rest: str) -> None:
        if name == "/help":
            print(_HELP)
        elif name == "/clear":
            self._turns, self._first = [], 0
        elif name == "/system":
            if rest:
                self._system = rest
            else:
                print(self._system or "no system text: /system TEXT sets one")
        elif name == "/save":
            self._save(rest)
        else:
            self._regenerate()

    def _ask(self, text: str) -> None:
        self._answer([*self._turns, {"role": "user", "content": text}])

    def _regenerate(self) -> None:
        if not self._turns:
            raise RequestError("there is no answer yet that could be given again")
        sampling = self._speaker.sampling
        self._regenerated += 1
        if sampling.seed is not None:  # the same draws would be the same answer
            sampling = replace(sampling, seed=sampling.seed + self._regenerated)
        self._answer(self._turns[:-1], sampling)

    def _answer(self, turns: list[Message], sampling: "Sampling | None" = None) -> None:
        """Answer the last of `turns`; an error, or Ctrl-C before the first token, leaves all as it was."""
        ids, first = self._fitting(turns)
        answer = self._speaker.say(ids, sampling=sampling, stoppable=True)
        if answer.speed is None:
            return
        if first and not self._first:
            note(
                f"the context of {self._speaker.engine.context} tokens is full: from now on the model no "
                "longer reads the oldest messages (--context makes room)"
            )
        self._turns, self._first = [*turns, answer.message()], first

    def _fitting(self, turns: list[Message]) -> tuple[list[int], int]:
        """The ids of the prompt and its first turn, such that a quarter of the context is left to answer.

        When there is too little, oldest turns go until half is: the prompt's rest changes its place then and
        is read again, which should be seldom.
        """
        context, limit = self._speaker.engine.context, self._speaker.max_tokens
        first = min(self._first, len(turns) - 1)
        ids = self._ids(turns[first:])
        if len(ids) + min(limit or context, context // 4) > context:
            while len(ids) > context // 2 and first + 2 < len(turns):
                first += 2
                ids = self._ids(turns[first:])
        return ids, first

    def _ids(self, turns: list[Message]) -> list[int]:
        opening = [] if self._system is None else [{"role": "system", "content": self._system}]
        return self._speaker.ids([*opening, *turns])

    def _save(self, name: str) -> None:
        opening = [] if self._system is None else [{"role": "system", "content": self._system}]
        print(f"written: {_write([*opening, *self._turns], name)}")


def _write(messages: list[Message], name: str) -> Path:
    """Write a conversation to a new file, whole or not at all; `RequestError` where that cannot be."""
    path = Path(name or f"chat-{datetime.now():%Y-%m-%d-%H%M%S}.json")
    if path.suffix == ".json":
        text = json.dumps(messages, ensure_ascii=False, indent=1) + "\n"
    else:
        text = "\n".join(f"{message['role']}:\n{message['content']}\n" for message in messages)
    try:
        path = path.expanduser()
        file = path.open("x", encoding="utf-8")
        try:
            with file:
                file.write(text)
        except BaseException:
            path.unlink()
            raise
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: nobody has that home
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{path}: cannot be written: {reason}") from None
    return path
