"""Two commits' speeds compared: in turn, round by round, and what counts as too slow."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from compare import Commit, compare, slower

SCRIPT = Path(__file__).parents[2] / "benchmarks/compare.py"


class Fake(Commit):
    """A commit with a speed, on a machine that is slower round by round."""

    def __init__(self, name: str, speed: float, calls: list[str]) -> None:
        self.name, self.speed, self.calls = name, speed, calls

    def measure(self, model: Path | None, args: argparse.Namespace) -> dict[str, float]:
        self.calls.append(self.name)
        return {"prefill": 100.0 / len(self.calls), "decode": self.speed}


@pytest.mark.parametrize(("speed", "too_slow"), [(9.4, ["demo decode"]), (9.5, []), (12.0, [])])
def test_below_095_is_too_slow(speed: float, too_slow: list[str]) -> None:
    calls: list[str] = []
    args = argparse.Namespace(rounds=3)
    results = compare(Fake("old", 10.0, calls), Fake("new", speed, calls), None, args)
    assert calls == ["old", "new", "new", "old", "old", "new"]
    assert results["decode"]["ratio"]["values"] == [speed / 10] * 3
    results["prefill"]["ratio"]["median"] = 1.0
    assert slower({"demo": results}) == too_slow


def test_a_commit_is_measured_by_the_bench_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(*command: object, **_: object) -> str:
        assert command[3:5] == ("bench", "--json")
        return json.dumps({"prefill_tokens_per_second": 5.0, "decode_tokens_per_second": 2.0, "model": ""})

    monkeypatch.setattr("compare.run", lambda *_, **__: "0123456789ab\n")
    commit = Commit("HEAD", tmp_path)
    monkeypatch.setattr("compare.run", run)
    args = argparse.Namespace(prompt_tokens=8, tokens=4, threads=1)
    assert commit.sha == "0123456789ab"
    assert commit.measure(None, args) == {"prefill": 5.0, "decode": 2.0}


def test_a_commit_that_is_not_there_is_named() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "no-such-commit", "HEAD", "--model", "x.gguf"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "no-such-commit" in done.stderr
