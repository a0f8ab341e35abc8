"""Batches: the server's answers, line by line, and what is left of a run that was cut off."""

import json

import pytest

from hotset.cli import main


def line(id, **fields):
    body = {"messages": [{"role": "user", "content": "Where is the Eiffel Tower?"}], "max_tokens": 12}
    return {
        "custom_id": id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body | {"temperature": 0} | fields,
    }


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["batch", *map(str, arguments)])
    return ended.value.code


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_batch_and_its_rest(server, tmp_path, capsys):
    asked = [line("a"), line("b", temperature=-1), line("c", stream=True), line("d", seed=3, temperature=1)]
    source, out = write(tmp_path / "in.jsonl", asked), tmp_path / "out.jsonl"
    assert run(source, "-o", out, "--threads", 2) == 0
    assert "4 answered, 1 of them with an error" in capsys.readouterr().err
    answers = {one["custom_id"]: one["response"] for one in map(json.loads, out.read_text().splitlines())}
    assert {id: one["status_code"] for id, one in answers.items()} == {"a": 200, "b": 400, "c": 200, "d": 200}
    over_http = server.http.post("/v1/chat/completions", json=asked[3]["body"]).json()
    assert answers["d"]["body"]["choices"] == over_http["choices"]

    first, *_ = out.read_text().splitlines(keepends=True)
    out.write_text(first + '{"custom_id": "c", "resp')  # killed while it wrote
    assert run(source, "-o", out, "--threads", 2) == 0
    assert "3 answered, 1 were there" in capsys.readouterr().err
    ids = [json.loads(one)["custom_id"] for one in out.read_text().splitlines()]
    assert sorted(ids) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "line 1 is no JSON"),
        ('{"custom_id": "a"}', "line 1: expected"),
        (json.dumps(line("a")) + "\n" + json.dumps(line("a")), "line 2: custom_id 'a' is there twice"),
        (json.dumps(line("a") | {"url": "/etc/passwd"}), "line 1: expected"),
        ("[]", "line 1: expected"),
    ],
)
def test_a_wrong_line_is_named_before_anything_is_computed(tmp_path, capsys, text, words):
    source = tmp_path / "in.jsonl"
    source.write_text(text)
    assert run(source, "-o", tmp_path / "out.jsonl") == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_other_files_stay_as_they_are(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [line("a")])
    assert run(source, "-o", source) == 2
    other = tmp_path / "notes.txt"
    other.write_text("my notes\n")
    assert run(source, "-o", other) == 2
    assert other.read_text() == "my notes\n"
    assert "name another file" in capsys.readouterr().err
