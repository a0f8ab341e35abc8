"""`--override KEY=VALUE`: its values, on every command that opens a model, and the notes that name it."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.powerinfer_files import PowerInferFile, converted
from helpers.random_gguf import FFN

from hotset.cli import options
from hotset.cli.app import app
from hotset.core.errors import RequestError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("-7", -7),
        ("7.0", 7.0),
        ("1e6", 1e6),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("falcon", "falcon"),
        ("", ""),
        ("a=b", "a=b"),
        ("nan", "nan"),
        ("1_000", "1_000"),
        ("str:7", "7"),
        ("str:", ""),
        ("float:7", 7.0),
        ("int:7", 7),
        ("bool:true", True),
        ("http://x", "http://x"),
    ],
)
def test_values(text: str, value: Any) -> None:
    (found,) = options.overrides([f"a.b={text}"]).values()
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["", "a", "=7", "a=int:x", "a=bool:1", "a=float:"])
def test_what_has_another_form(text: str) -> None:
    with pytest.raises(RequestError, match="--override"):
        options.overrides([text])


def test_the_last_one_counts() -> None:
    assert options.overrides(["a=1", "b=2", "a=3"]) == {"a": 3, "b": 2}
    assert options.overrides(None) == {}


def test_every_command_that_opens_a_model_has_it() -> None:
    import typer

    group = typer.main.get_command(app)
    names = {
        name
        for name, command in group.commands.items()  # type: ignore[attr-defined]
        if any(parameter.name == "model" for parameter in command.params)
    }
    assert {"run", "chat", "bench", "eval", "profile", "convert", "quantize", "inspect", "plan"} <= names
    for name in names - {"pull", "rm", "list"}:
        flags = [flag for parameter in group.commands[name].params for flag in parameter.opts]  # type: ignore[attr-defined]
        assert "--override" in flags, name


def _predictor(layer: int, hidden: int) -> Any:
    import numpy as np

    rng = np.random.default_rng(layer)
    fc1, fc2 = rng.standard_normal((8, hidden)), rng.standard_normal((FFN, 8))
    return fc1.astype(np.float32), fc2.astype(np.float32)


@pytest.fixture
def unnamed(tmp_path: Path) -> Path:
    """A Llama whose byte-level tokenizer does not say how it cuts words."""
    file = converted("falcon", predictor=_predictor)
    tokenizer = {key: value for key, value in file.keys.items() if key.startswith("tokenizer.")}
    llama = converted("llama", predictor=_predictor)
    keys = {key: value for key, value in llama.keys.items() if not key.startswith("tokenizer.")}
    rows = tuple(
        (n, v[:300] if n in ("token_embd.weight", "output.weight") else v, k) for n, v, k in llama.tensors
    )
    return PowerInferFile(llama.model, keys | tokenizer, rows).write(tmp_path / "m.gguf")


def test_a_guess_is_noted_and_can_be_overridden(hotset: Any, unnamed: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello 12345 " * 40)
    commands = {
        "run": ("--raw", "-p", "hello", "-n", "2"),
        "inspect": (),
        "eval": ("--text", tmp_path / "text", "--context", "16"),
        "profile": ("--text", tmp_path / "text", "--context", "16", "-o", tmp_path / "a.npz"),
        "convert": ("--profile", tmp_path / "a.npz", "-o", tmp_path / "c.gguf"),
        "quantize": ("--type", "q8_0", "-o", tmp_path / "q.gguf"),
    }
    for name, arguments in commands.items():
        code, _, err = hotset(name, unnamed, *arguments)
        assert (code, "--override tokenizer.ggml.pre=NAME" in err) == (0, True), (name, err)
        code, _, err = hotset(name, unnamed, *arguments, "--override", "tokenizer.ggml.pre=gpt-2")
        assert (code, "note:" in err) == (0, False), (name, err)
    code, out, _ = hotset("inspect", tmp_path / "c.gguf", "--json")
    assert code == 0
    assert json.loads(out)["neurons"]["ways"] == {"predictor": 2}
    # What was overridden is in the file that was written.
    code, _, err = hotset("run", tmp_path / "c.gguf", "--raw", "-p", "hello", "-n", "2")
    assert "pre=NAME" not in err


def test_overrides_that_are_wrong(hotset: Any, unnamed: Path) -> None:
    for override, message in {
        "x": "'x': expected KEY=VALUE (--override)",
        "falcon.block_count=2": "nothing reads this key of a model of architecture llama",
        "llama.block_count=x": "llama.block_count: expected an integer",
        "tokenizer.ggml.pre=nonsense": "tokenizer.ggml.pre: expected one of",
    }.items():
        code, _, err = hotset("run", unnamed, "--raw", "-p", "hello", "--override", override)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
