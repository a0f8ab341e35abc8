"""The conversation loop, over an engine that answers from a list."""

import json
from types import SimpleNamespace

import pytest

from hotset.cli import chat as module
from hotset.core.errors import RequestError
from hotset.serve.sampler import Sampling


class Engine:
    """Answers each question with the messages it was given, as JSON, or as `answers` says."""

    def __init__(self, answers=()):
        self.answers = list(answers)
        self.asked = []

    def chat(self, messages, *, max_tokens, sampling):
        self.asked.append(json.loads(json.dumps(messages)))
        answer = self.answers.pop(0) if self.answers else "ok"
        if isinstance(answer, RequestError):
            raise answer
        for word in answer.split(" "):
            if word == "^C":
                raise KeyboardInterrupt
            yield SimpleNamespace(text=word + " ")


def converse(monkeypatch, lines, engine, opening=()):
    script = iter(lines)

    def read(prompt):
        line = next(script, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    module._converse(engine, list(opening), None, Sampling())
    return [[m["content"] for m in messages] for messages in engine.asked]


def test_history_clear_and_exit(monkeypatch, capsys):
    lines = ["one", "", "two", "/clear", "three", "/help", "/exit", "never"]
    engine = Engine(["1", "2", "3"])
    opening = [{"role": "system", "content": "be"}]
    asked = converse(monkeypatch, lines, engine, opening)
    assert asked == [["be", "one"], ["be", "one", "1 ", "two"], ["be", "three"]]
    assert [m["role"] for m in engine.asked[1]] == ["system", "user", "assistant", "user"]
    assert capsys.readouterr().out == f"1 \n2 \n3 \n{module._HELP}\n"


def test_ctrl_c_stops_the_answer_and_keeps_its_beginning(monkeypatch):
    asked = converse(monkeypatch, ["one", "two"], Engine(["a b ^C c", "2"]))
    assert asked == [["one"], ["one", "a b ", "two"]]


def test_a_refused_question_is_forgotten(monkeypatch, capsys):
    asked = converse(monkeypatch, ["one", "two"], Engine([RequestError("too long"), "2"]))
    assert asked == [["one"], ["two"]]
    assert capsys.readouterr().err == "error: too long; /clear makes room\n"


def test_ctrl_c_at_a_piped_prompt_leaves(monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        converse(monkeypatch, [KeyboardInterrupt()], Engine())
