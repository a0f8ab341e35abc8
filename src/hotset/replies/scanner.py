"""Turns a reply into events, one character after the other, so that it does not matter where it is cut."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from hotset.replies.events import CallEnd, Content, Event, Reasoning, joined
from hotset.replies.readers import Calls, Reader


class Scanner(ABC):
    """What all parsers share: marks are looked for, spaces around parts are held back, readers read calls."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._out: list[Event] = []
        self._queue: deque[str] = deque()
        self._held = ""  # may be the beginning of a mark
        self._space = ""  # spaces that may stand before something else than text
        self._trim = False  # they are not part of what comes next
        self._blank = True  # nothing but spaces since the reply, a call or reasoning began
        self._kind: type[Content] | type[Reasoning] = Content
        self._reader: Reader | None = None
        self._mark = ""  # that began the call
        self._raw: list[str] = []  # of the call, since the last one that is whole

    @property
    def answering(self) -> bool:
        """Whether what comes next belongs to the answer, and not to reasoning."""
        return self._kind is Content

    def feed(self, text: str) -> list[Event]:
        """The events that are sure with the next piece of the text."""
        self._queue.extend(text)
        self._run()
        return self._given()

    def end(self) -> list[Event]:
        """The last events: the reply is over."""
        while reader := self._reader:
            events = reader.end()
            self._took(reader, events)
            if reader.wrong:
                self._failed(reader, "")
                self._run()
        for c in self._held:
            self._text(c)
        self._held = ""
        if self._kind is Content and not self._trim:
            self._out.append(Content(self._space))
        self._space = ""
        return self._given()

    # What a family of parsers says.

    @abstractmethod
    def _marks(self) -> Collection[str]:
        """What is looked for where the parser is."""

    @abstractmethod
    def _found(self, mark: str) -> None:
        """One of them was found."""

    @abstractmethod
    def _is_shown(self, mark: str) -> bool:
        """Whether a mark that turned out to mean nothing is text."""

    def _text(self, c: str) -> None:
        """A character of no mark."""
        if c.isspace():
            self._space += c
            return
        before = "" if self._trim else self._space
        self._space, self._trim, self._blank = "", False, False
        self._out.append(self._kind(before + c))

    # The rest.

    def _run(self) -> None:
        while self._queue:
            c = self._queue.popleft()
            if self._reader:
                self._in_call(self._reader, c)
                continue
            self._held += c
            while self._held and not self._reader:
                marks = self._marks()
                if self._held in marks:
                    mark, self._held = self._held, ""
                    self._found(mark)
                elif any(mark.startswith(self._held) for mark in marks):
                    break
                else:
                    first, self._held = self._held[0], self._held[1:]
                    self._text(first)
            if self._reader:
                self._queue.extendleft(reversed(self._held))
                self._held = ""

    def _given(self) -> list[Event]:
        events, self._out = joined(self._out), []
        return events

    def _between(self) -> None:
        """A part is over: spaces around it belong to nothing."""
        self._space, self._trim, self._blank = "", True, True

    def _enter(self, reader: Reader, mark: str) -> None:
        self._reader, self._mark, self._raw = reader, mark, []

    def _begin_bare(self, make: Callable[[Calls], Reader], c: str) -> None:
        """A call without a mark begins with this character."""
        reader = make(self._calls)
        self._enter(reader, "")
        self._in_call(reader, c)

    def _in_call(self, reader: Reader, c: str) -> None:
        self._raw.append(c)
        self._took(reader, reader.push(c))
        if reader.wrong:
            self._failed(reader, c)

    def _took(self, reader: Reader, events: list[Event]) -> None:
        if events:
            self._between()
            self._out += events
        if any(isinstance(event, CallEnd) for event in events):
            self._mark, self._raw = "", []
        if reader.done:
            self._reader = None

    def _failed(self, reader: Reader, last: str) -> None:
        """What stands there is no call, with character `last`: as far as it did not begin, it is text."""
        raw, self._reader = "".join(self._raw), None
        if reader.open is not None:
            self._out.append(CallEnd(reader.open, self._mark + raw.removesuffix(last)))
            self._queue.extendleft(reversed(last))
            return
        if self._is_shown(self._mark):
            for c in self._mark:
                Scanner._text(self, c)
        self._blank = False
        self._queue.extendleft(reversed(raw))


@dataclass(frozen=True)
class Marks:
    """How a family writes reasoning and calls."""

    think: tuple[str, str] | None = None
    calls: Mapping[str, Callable[[Calls], Reader]] = field(default_factory=dict)
    """What reads a call, by the mark before it."""
    after: Collection[str] = ()
    """Marks that may follow a call."""
    around: Collection[str] = ()
    """Marks that mean nothing by themselves and are never text."""
    bare: Callable[[Calls], Reader] | None = None
    """What reads a call that begins the answer without any mark, with a brace."""

    def all(self) -> tuple[str, ...]:
        """Every mark."""
        return (*(self.think or ()), *self.calls, *self.after, *self.around)


class TagParser(Scanner):
    """Reasoning between two marks at the beginning, calls after marks of their own."""

    def __init__(self, marks: Marks, calls: Calls, *, inside: bool) -> None:
        """`inside`: the reply begins within reasoning."""
        super().__init__(calls)
        self._family = marks
        self._after_call = False
        self._texts = {*marks.calls, *marks.after, *marks.around, *(marks.think or ())}
        if inside and marks.think:
            self._kind, self._trim = Reasoning, True

    @property
    def marks(self) -> tuple[str, ...]:
        """Every mark that is looked for; where they are control tokens, the text must show them."""
        return self._family.all()

    @property
    def opening(self) -> str:
        """The mark that may begin reasoning where the text stands; empty: none may."""
        think = self._family.think
        return think[0] if think and self._blank and self._kind is Content else ""

    def _marks(self) -> Collection[str]:
        think = self._family.think
        return think[1:] if self._kind is Reasoning and think else self._texts

    def _found(self, mark: str) -> None:
        think = self._family.think
        if think and mark == think[1] and (self._kind is Reasoning or self._blank):
            self._between()
            self._kind = Content
        elif think and mark == think[0] and (self._blank or not self._is_shown(mark)):
            self._between()
            self._kind = Reasoning
        elif mark in self._family.calls:
            self._enter(self._family.calls[mark](self._calls), mark)
        elif mark in self._family.after and self._after_call:
            self._after_call = False
        elif self._is_shown(mark):
            for c in mark:
                super()._text(c)

    def _is_shown(self, mark: str) -> bool:
        return mark not in self._family.around and not (mark.startswith(("<|", "<｜", "[")) or "|>" in mark)

    def _text(self, c: str) -> None:
        if c == "{" and self._blank and self._kind is Content and self._family.bare:
            self._begin_bare(self._family.bare, c)
            return
        super()._text(c)

    def _took(self, reader: Reader, events: list[Event]) -> None:
        super()._took(reader, events)
        self._after_call = self._after_call or reader.done
