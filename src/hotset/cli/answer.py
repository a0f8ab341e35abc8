"""One answer in the terminal: progress while the prompt is read, the text as it comes, and its speed."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hotset.cli.reply import Printer

if TYPE_CHECKING:
    from hotset.core.batch import Work
    from hotset.replies import Event, Reply
    from hotset.serve.constraint import Constraint
    from hotset.serve.engine import Engine
    from hotset.serve.loaded import Model
    from hotset.serve.sampler import Sampling
    from hotset.serve.stream import Stream

_LONG_PROMPT = 256
"""Tokens to read from which on a progress bar is shown."""


@dataclass(frozen=True)
class Speed:
    """What an answer took."""

    prompt_tokens: int
    read_tokens: int
    """The prompt's tokens that were computed; the others were still in the cache."""
    prompt_seconds: float
    """Until the first token."""
    answer_tokens: int
    answer_seconds: float
    """From the first token to the last."""
    density: float | None
    """Share of neurons computed while answering: 1 where a model computes all; None where none of its tokens
    was counted, as a text's first positions are not."""
    drafted: int = 0
    """Tokens computed at once with others, as the text may repeat itself."""
    accepted: int = 0
    """Those of them that were right."""

    def __str__(self) -> str:
        """One line for people."""
        read = f"{self.read_tokens} of " if self.read_tokens < self.prompt_tokens else ""
        parts = [f"prompt: {read}{_tokens(self.prompt_tokens)}{_rate(self.read_tokens, self.prompt_seconds)}"]
        parts.append(
            f"answer: {_tokens(self.answer_tokens)}{_rate(self.answer_tokens - 1, self.answer_seconds)}"
        )
        if self.drafted:
            parts.append(f"drafts: {self.accepted} of {_tokens(self.drafted)} accepted")
        if self.density is not None:
            computed = "all neurons" if self.density == 1 else f"{self.density:.1%} of the neurons"
            parts.append(f"computed: {computed}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    reply: "Reply"
    speed: Speed | None
    """None where not even the first token came."""
    ended: str
    """``stop``, ``limit`` (as many tokens as were asked for), ``context`` (it is full) or ``Ctrl-C``."""

    def message(self) -> dict[str, Any]:
        """What the conversation keeps of it; its template says what the model reads again."""
        message: dict[str, Any] = {"role": "assistant", "content": self.reply.content}
        if self.reply.reasoning:
            message["reasoning_content"] = self.reply.reasoning
        if self.reply.calls:
            message["tool_calls"] = [
                {
                    "type": "function",
                    "id": call.id,
                    "function": {"name": call.name, "arguments": json.loads(call.arguments)},
                }
                for call in self.reply.calls
            ]
        return message


@dataclass(frozen=True)
class Speaker:
    """A model that answers on stdout."""

    engine: "Engine"
    sampling: "Sampling"
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    tools: Sequence[Any] | None = None
    think: bool | None = None
    """Whether the model reasons before it answers; None: as its template has it."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    constraint: "Constraint | None" = None
    quiet: bool = False
    verbose: bool = False

    def ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """A conversation as the model reads it."""
        from hotset.serve.reply import thinking_variables

        variables = dict(self.variables)
        if self.think is not None and (template := self.engine.tokenizer.chat_template):
            variables = {**thinking_variables(template.source, self.think), **variables}
        if self.tools is not None:
            variables["tools"] = self.tools
        return self.engine.tokenizer.encode_chat(messages, **variables)

    def say(
        self,
        ids: Sequence[int],
        *,
        sampling: "Sampling | None" = None,
        raw: bool = False,
        stoppable: bool = False,
    ) -> Answer:
        """Print the answer to a prompt's ids as it comes, and a line on stderr about its speed.

        A `raw` prompt is continued, without looking for reasoning and calls. Where it is `stoppable`, Ctrl-C
        ends the answer and is no error. Raises `RequestError`.
        """
        from hotset.cli.console import progress
        from hotset.replies import Tool, collect, parser_for
        from hotset.serve.reply import parts, reply_parser

        if raw:
            parser = parser_for("", starts_inside=False)
        else:
            tools = [Tool.from_schema(tool) for tool in self.tools or ()]
            parser = reply_parser(self.engine.tokenizer, ids, tools)
        printer = Printer()
        events: list[Event] = []

        watch = _Watch(self.engine.model, len(ids))
        reason = None
        with progress("Reading the prompt", patience=0.0) as bar:

            def read(done: int, total: int) -> None:
                watch.read = total
                if bar and not self.quiet:
                    if total > _LONG_PROMPT:
                        bar(done, total)
                    if done == total:  # `total` falls to what the cache lacks, once that is known
                        bar.close()

            tokens = self.engine.generate(
                ids,
                max_tokens=self.max_tokens,
                sampling=sampling or self.sampling,
                stop=self.stop,
                constraint=self.constraint,
                shown=parser.marks,
                progress=read,
            )
            try:
                for token, found in parts(tokens, parser):
                    watch.token(tokens)
                    printer.show(found)
                    events += found
                    reason = token.finish_reason
            except KeyboardInterrupt:
                if not stoppable:
                    raise
            finally:
                tokens.close()
                printer.end(lone=stoppable or bool(watch.tokens))
        if reason is None:
            events += parser.end()
        full = self.max_tokens is None or watch.tokens < self.max_tokens
        ended = {"stop": "stop", "length": "context" if full else "limit", None: "Ctrl-C"}[reason]
        answer = Answer(collect(events), watch.speed(tokens), ended)
        self._report(answer)
        return answer

    def _report(self, answer: Answer) -> None:
        if self.quiet:
            return
        if answer.ended == "context":
            note(f"the context of {self.engine.context} tokens is full: the answer is cut (--context)")
        if answer.speed:
            ended = f"; ended by: {answer.ended}" if self.verbose else ""
            print(f"{answer.speed}{ended}", file=sys.stderr)


class _Watch:
    """Counts and times one answer's tokens."""

    def __init__(self, model: "Model", prompt_tokens: int) -> None:
        self._model = model
        self._prompt_tokens = self.read = prompt_tokens
        self.tokens = 0
        self._start = self._first = self._last = time.perf_counter()
        self._before: list[Work | None] = []

    def token(self, stream: "Stream") -> None:
        self.tokens += 1
        self._last = time.perf_counter()
        if self.tokens == 1:
            self._first = self._last
            self._before = stream.work()

    def speed(self, stream: "Stream") -> Speed | None:
        if not self.tokens:
            return None
        return Speed(
            self._prompt_tokens,
            self.read,
            self._first - self._start,
            self.tokens,
            self._last - self._first,
            self._density(stream.work()),
            stream.drafted_tokens,
            stream.accepted_tokens,
        )

    def _density(self, after: "list[Work | None]") -> float | None:
        from hotset.measure.speed import density, neurons_per_token

        if not self._model.chooses_neurons:
            return 1.0
        if not any(a and b and b.rows > a.rows for a, b in zip(self._before, after, strict=True)):
            return None
        return density(self._model, neurons_per_token(self._before, after))


def note(text: str) -> None:
    """Something the user should know, on stderr."""
    print(f"note: {text}", file=sys.stderr)


def _tokens(count: int) -> str:
    return f"{count} token" + "s" * (count != 1)


def _rate(count: int, seconds: float) -> str:
    return f", {count / seconds:.1f} tokens/s" if count > 0 and seconds > 0 else ""
