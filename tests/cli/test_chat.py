"""The conversation, with an engine that answers from a list."""

import json
from collections.abc import Generator, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.small_disk import small_disk

from hotset.cli.answer import Speaker
from hotset.cli.chat import converse
from hotset.core.batch import Work
from hotset.core.errors import HotsetError, RequestError
from hotset.serve.sampler import Sampling


class Engine:
    """Answers each question as `answers` says; a prompt's ids are the bytes of its messages, as JSON."""

    def __init__(
        self,
        answers: Sequence[str | HotsetError] = (),
        context: int = 10_000,
        template: str = "{{ messages }}",
    ) -> None:
        self.answers = list(answers)
        self.context = context
        self.asked: list[list[dict[str, str]]] = []
        self.variables: list[dict[str, Any]] = []
        self.samplings: list[Sampling] = []
        config = SimpleNamespace(layers=())
        self.model = SimpleNamespace(path="m.gguf", config=config, chooses_neurons=False)
        self.tokenizer = SimpleNamespace(
            chat_template=SimpleNamespace(source=template),
            encode_chat=self._encode,
            decode=lambda ids, skip_special: bytes(ids).decode(errors="replace"),
        )

    def _encode(self, messages: Sequence[dict[str, str]], **variables: Any) -> list[int]:
        self.variables.append(variables)
        return list(json.dumps(messages).encode())

    def generate(self, ids: list[int], *, sampling: Sampling, **options: Any) -> "Answering":
        self.asked.append(json.loads(bytes(ids)))
        self.samplings.append(sampling)
        answer = self.answers.pop(0) if self.answers else "ok"
        if isinstance(answer, HotsetError):
            raise answer
        return Answering(answer.split(" "))


class Answering:
    """A stream of words."""

    work = list
    drafted_tokens = accepted_tokens = 0

    def __init__(self, words: list[str]) -> None:
        self._tokens = self._each(words)
        self.close = self._tokens.close

    def __iter__(self) -> Iterator[Any]:
        return self._tokens

    def _each(self, words: list[str]) -> Generator[Any, None, None]:
        for i, word in enumerate(words):
            if word == "^C":
                raise KeyboardInterrupt
            reason = "stop" if i == len(words) - 1 else None
            yield SimpleNamespace(text=word + " ", finish_reason=reason)


def talk(
    monkeypatch: pytest.MonkeyPatch,
    lines: Sequence[str | BaseException],
    engine: Engine,
    system: str | None = None,
    **options: Any,
) -> list[list[str]]:
    """What the model was asked, by the messages' contents."""
    script = iter(lines)

    def read() -> str:
        line = next(script, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    converse(Speaker(engine, **{"sampling": Sampling()} | options), system)  # type: ignore[arg-type]
    return [[m["content"] for m in messages] for messages in engine.asked]


def test_history_clear_and_exit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["one", "", "two", "/clear", "three", "/help", "/exit", "never"]
    engine = Engine(["1", "2", "3"])
    asked = talk(monkeypatch, lines, engine, "be")
    assert asked == [["be", "one"], ["be", "one", "1 ", "two"], ["be", "three"]]
    assert [m["role"] for m in engine.asked[1]] == ["system", "user", "assistant", "user"]
    out, err = capsys.readouterr()
    assert out.startswith("1 \n2 \n3 \n/help ")
    assert all(word in out for word in ("/system", "/regenerate", "/save", "/clear", "/exit", '"""'))
    assert err.count("prompt: ") == 3 and err.count("answer: 1 token") == 3


@pytest.mark.parametrize("leave", ["/exit", "/bye", "/quit"])
def test_ways_to_leave(monkeypatch: pytest.MonkeyPatch, leave: str) -> None:
    assert talk(monkeypatch, [leave, "never"], Engine()) == []


def test_system_text_changes_and_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["/system", "one", "/system be brief", "two", "/system", "/clear", "three"]
    asked = talk(monkeypatch, lines, Engine(["1", "2", "3"]))
    assert asked == [["one"], ["be brief", "one", "1 ", "two"], ["be brief", "three"]]
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("no system text")
    assert "be brief" in out


def test_regenerate_answers_the_last_message_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["/regenerate", "one", "two", "/regenerate", "/regenerate", "three"]
    engine = Engine(["1", "2", "2b", "2c", "3"])
    asked = talk(monkeypatch, lines, engine, sampling=Sampling(temperature=1.0, seed=7))
    assert asked[1:4] == [["one", "1 ", "two"]] * 3
    assert asked[4] == ["one", "1 ", "two", "2c ", "three"]
    assert [sampling.seed for sampling in engine.samplings] == [7, 7, 8, 9, 7]
    assert "error: there is no answer yet" in capsys.readouterr().err


def test_save_writes_a_new_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        "one",
        "/save talk.json",
        "/save talk.md",
        "/save talk.md",
        f"/save {Path('no/such.json')}",
        "/save",
    ]
    talk(monkeypatch, lines, Engine(["é"]), "be")
    messages = [
        {"role": "system", "content": "be"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "é "},
    ]
    assert json.loads((tmp_path / "talk.json").read_text(encoding="utf-8")) == messages
    assert (tmp_path / "talk.md").read_text(
        encoding="utf-8"
    ) == "system:\nbe\n\nuser:\none\n\nassistant:\né \n"
    err = capsys.readouterr().err
    assert "error: talk.md: cannot be written: File exists" in err
    assert f"error: {Path('no/such.json')}: cannot be written" in err
    assert len(list(tmp_path.glob("chat-*.json"))) == 1


def test_what_cannot_be_saved_ends_no_chat_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["one", "/save a\0b.json", "/save ~no-such-user/a.json", "/save surrogate.json", "/save full.md"]
    with small_disk(100):
        talk(monkeypatch, [*lines, "two"], engine := Engine(["long " * 100, "2"]), "\udcff")
    assert len(engine.asked) == 2
    assert capsys.readouterr().err.count("cannot be written: ") == 4
    assert list(tmp_path.iterdir()) == []


def test_unknown_words_with_a_slash_are_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = talk(monkeypatch, ["/usr/bin/env is missing", "/hepl", "/a/b"], Engine(["1", "2", "3"]))
    assert [messages[-1] for messages in asked] == ["/usr/bin/env is missing", "/hepl", "/a/b"]
    assert capsys.readouterr().err.count("/hepl is no command (/help lists them)") == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['"""one', "", '  two"""'], "one\n\n  two"),
        (['"""', "one", '"""'], "one"),
        (['"""one"""'], "one"),
        (['"""Adds."""\ndef f(): ...'], '"""Adds."""\ndef f(): ...'),
        (["    indented\n    code\n"], "    indented\n    code"),
        (['say """x'], 'say """x'),
    ],
)
def test_messages_of_several_lines(monkeypatch: pytest.MonkeyPatch, lines: list[str], message: str) -> None:
    assert talk(monkeypatch, lines, Engine()) == [[message]]


def test_system_text_of_several_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert talk(monkeypatch, ['/system """be', 'brief"""', "one"], Engine()) == [["be\nbrief", "one"]]


def test_ctrl_c_stops_the_answer_and_keeps_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = talk(monkeypatch, ["one", "two", "three"], Engine(["a b ^C c", "^C", "3"]))
    assert asked == [["one"], ["one", "a b ", "two"], ["one", "a b ", "three"]]


def test_a_refused_question_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine([RequestError("too long"), "2"])
    assert talk(monkeypatch, ["one", "two"], engine) == [["one"], ["two"]]
    assert capsys.readouterr().err.startswith("error: too long\nprompt: ")


def test_other_errors_end_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HotsetError, match="standard output"):
        talk(monkeypatch, ["one", "two"], Engine([HotsetError("standard output cannot be written")]))


def test_ctrl_c_at_a_piped_prompt_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        talk(monkeypatch, [KeyboardInterrupt()], Engine())


def test_a_full_context_loses_the_oldest_turns_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = [f"question {i}" for i in range(40)] + [f"/save {tmp_path / 'all.json'}"]
    engine = Engine([f"answer {i}" for i in range(40)], context=1000)
    asked = talk(monkeypatch, lines, engine, "be")
    sizes = [len(json.dumps(messages)) for messages in engine.asked]
    assert max(sizes) <= 750  # a quarter is left for the answer
    for i, messages in enumerate(asked):
        assert messages[0] == "be"
        assert messages[-1] == f"question {i}"
        first = int(messages[1].removeprefix("question "))
        turns = [text for j in range(first, i) for text in (f"question {j}", f"answer {j} ")]
        assert [text.split() for text in messages[1:-1]] == [text.split() for text in turns]
    drops = sum(a[1] != b[1] for a, b in pairwise(asked))
    assert 1 < drops < 15  # several go at a time
    assert capsys.readouterr().err.count("the context of 1000 tokens is full") == 1
    assert len(json.loads((tmp_path / "all.json").read_text())) == 81  # nothing is lost


def test_template_variables_and_tools_reach_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    tools = [{"type": "function", "function": {"name": "f"}}]
    talk(monkeypatch, ["one"], engine, tools=tools, variables={"enable_thinking": False})
    assert engine.variables == [{"enable_thinking": False, "tools": tools}]


def test_the_speed_line_has_the_share_of_neurons_computed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine(["1 2 3"])
    config = SimpleNamespace(layers=(SimpleNamespace(ffn=object()),) * 2, computed_neurons=100)
    engine.model = SimpleNamespace(path="m.gguf", config=config, chooses_neurons=True)
    # In two tokens 40 and 20 of a layer's 100 neurons each.
    counts = [[Work(5, chosen=90), Work(5, chosen=7)], [Work(7, chosen=130), Work(7, chosen=27)]]
    monkeypatch.setattr(Answering, "work", lambda stream: counts.pop(0))
    talk(monkeypatch, ["one"], engine)
    assert capsys.readouterr().err.endswith("; computed: 15.0% of the neurons\n")
    engine.answers = ["1 2 3"]  # at first positions, which are not counted
    monkeypatch.setattr(Answering, "work", lambda stream: [Work(), Work()])
    talk(monkeypatch, ["one"], engine)
    err = capsys.readouterr().err
    assert err.startswith("prompt: ") and "computed" not in err


def test_quiet_and_verbose(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    talk(monkeypatch, ["one"], Engine(["1 2"]), quiet=True)
    assert capsys.readouterr() == ("1 2 \n", "")
    talk(monkeypatch, ["one"], Engine(["1 2"]), verbose=True)
    assert capsys.readouterr().err.endswith("computed: all neurons; ended by: stop\n")


THINKS = "{{ messages }}<think></think><tool_call>"


def test_reasoning_is_kept_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(["<think> well </think> yes"], template=THINKS)
    talk(monkeypatch, ["one", "two"], engine)
    assert engine.asked[1][1] == {"role": "assistant", "content": "yes ", "reasoning_content": "well"}
    assert capsys.readouterr().out.startswith("yes \n")  # no terminal: no reasoning


def test_reasoning_is_dimmed_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hotset.cli.reply import Printer
    from hotset.replies import Content, Reasoning

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    printer = Printer()
    printer.show([Reasoning("so"), Reasoning(" so")])
    printer.show([Content("yes")])
    printer.end(lone=True)
    assert capsys.readouterr().out == "\x1b[2mso so\x1b[22m\n\nyes\n"


def test_calls_are_lines_of_json_and_stay_in_the_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'
    engine = Engine([f"Wait. {call}"], template=THINKS)
    talk(monkeypatch, ["one", "two"], engine, tools=[{"function": {"name": "weather"}}])
    out = capsys.readouterr().out
    assert out.startswith('Wait.\n{"name": "weather", "arguments": {"city": "Bern"}}\n')
    (kept,) = engine.asked[1][1]["tool_calls"]  # type: ignore[misc]
    assert kept["function"] == {"name": "weather", "arguments": {"city": "Bern"}}  # type: ignore[index]


@pytest.mark.parametrize(
    ("template", "variables"),
    [
        ("{{ messages }}", {"enable_thinking": False}),
        ("{{ enable_thinking }}", {"enable_thinking": False}),
        ("<|START_THINKING|>{{ reasoning_effort }}", {"reasoning": False}),
        ("{% if thinking %}", {"thinking": False}),
        ("{{ reasoning_effort }}", {"reasoning_effort": "low"}),
    ],
)
def test_no_think(monkeypatch: pytest.MonkeyPatch, template: str, variables: dict[str, Any]) -> None:
    engine = Engine(template=template)
    talk(monkeypatch, ["one"], engine, think=False)
    assert engine.variables == [variables]
