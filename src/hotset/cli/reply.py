"""A reply on stdout: the answer, reasoning dimmed, calls of tools as lines of JSON."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotset.replies import Event

_DIM, _PLAIN = "\x1b[2m", "\x1b[22m"


class Printer:
    """Writes events as they come. Reasoning is for people: it is shown in a terminal only."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._dim = False
        self._written = False
        self._at_line = True
        """What is written next begins a line."""

    def show(self, events: Sequence["Event"]) -> None:
        """Write the next events."""
        from hotset.replies import CallArguments, CallBegin, CallEnd, Content, Reasoning

        for event in events:
            match event:
                case Reasoning(text):
                    if self._terminal:
                        self._write(text if self._dim else _DIM + text)
                        self._dim = True
                case Content(text):
                    self._end_reasoning("\n\n")
                    self._write(text)
                case CallBegin():
                    self._end_reasoning("\n\n")
                    name = json.dumps(event.name, ensure_ascii=False)
                    self._write(f'{"" if self._at_line else chr(10)}{{"name": {name}, "arguments": ')
                case CallArguments():
                    self._write(event.text)
                case CallEnd():
                    self._write("\n" if event.broken else "}\n")
                    self._at_line = True
        sys.stdout.flush()

    def end(self, *, lone: bool) -> None:
        """The reply is over; `lone`: it ends a line even where nothing was written."""
        self._end_reasoning("")
        if lone if not self._written else not self._at_line:
            sys.stdout.write("\n")
        sys.stdout.flush()

    def _end_reasoning(self, after: str) -> None:
        if self._dim:
            self._dim = False
            self._write(_PLAIN + after)

    def _write(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            self._written = True
            self._at_line = False
