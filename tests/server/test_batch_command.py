"""Batches: the server's answers, line by line, and what is left of a run that was cut off."""

import json

import pytest

from hotset.cli import main
from hotset.server.batch import resume


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
    failed = json.loads(first)["response"]["status_code"] != 200
    told = f"3 answered, {1 - failed} of them with an error; 1 kept, {failed:d} of them with an error"
    assert told in capsys.readouterr().err
    ids = [json.loads(one)["custom_id"] for one in out.read_text().splitlines()]
    assert sorted(ids) == ["a", "b", "c", "d"]


def test_an_output_that_cannot_be_opened_is_named(tmp_path, capsys, monkeypatch):
    """Where only opening it shows that, as on some network drives."""
    monkeypatch.setattr("hotset.formats.output.check_output", lambda *_: None)
    source, out = write(tmp_path / "in.jsonl", [line("a")]), tmp_path / "gone" / "out.jsonl"
    assert run(source, "-o", out, "--threads", 2) == 2
    assert capsys.readouterr().err == f"error: {out}: cannot be written: No such file or directory\n"


def test_no_line_is_refused_as_others_wait(tmp_path, capsys):
    """Together they ask for more answers than a server would let wait."""
    asked = [line(str(i), n=16, max_tokens=1) for i in range(7)]
    source, out = write(tmp_path / "in.jsonl", asked), tmp_path / "out.jsonl"
    assert run(source, "-o", out, "--threads", 2) == 0
    assert "7 answered, 0 of them with an error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "line 1 is no JSON"),
        ('{"custom_id": "a"}', "line 1: expected"),
        (json.dumps(line("a")) + "\n" + json.dumps(line("a")), "line 2: custom_id 'a' is there twice"),
        (json.dumps(line("a") | {"url": "/etc/passwd"}), "line 1: expected"),
        ("[]", "line 1: expected"),
        ("\n", "in.jsonl has no requests"),
    ],
)
def test_a_wrong_line_is_named_before_anything_is_computed(tmp_path, capsys, text, words):
    source = tmp_path / "in.jsonl"
    source.write_text(text)
    assert run(source, "-o", tmp_path / "out.jsonl") == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    "text",
    [
        "my notes\n",
        "my notes",
        '{"a": 1}',
        json.dumps(line("b")) + "\n",
        '{"custom_id": "a", "response": null, "error": null}\n',
        "[" * 100_000 + "\n",
        "\n",
    ],
)
def test_other_files_stay_as_they_are(tmp_path, capsys, text):
    source = write(tmp_path / "in.jsonl", [line("a")])
    other = tmp_path / "notes.txt"
    other.write_text(text)
    assert run(source, "-o", other) == 2
    assert other.read_text() == text
    error = capsys.readouterr().err
    assert "name another file" in error
    assert error.count("\n") == 1


def test_a_model_that_cannot_be_loaded_is_no_answer(monkeypatch, tmp_path, capsys):
    from hotset.placing import doctor

    monkeypatch.setattr(doctor, "no_gpu", lambda: "no GPU")
    source, out = write(tmp_path / "in.jsonl", [line("a"), line("b")]), tmp_path / "out.jsonl"
    assert run(source, "-o", out, "--vram", "1GiB") == 2
    assert capsys.readouterr().err == "error: no GPU; without --vram the CPU does all\n"
    assert not out.exists()


def test_where_all_is_answered_nothing_is_loaded(monkeypatch, tmp_path, capsys):
    monkeypatch.delattr("hotset.serve.engine.Engine.load")
    source, out = write(tmp_path / "in.jsonl", [line("a")]), tmp_path / "out.jsonl"
    write(out, [{"custom_id": "a", "response": {"status_code": 400, "body": {}}, "error": None}])
    before = out.read_text()
    assert run(source, "-o", out) == 0
    told = "0 answered, 0 of them with an error; 1 kept, 1 of them with an error"
    assert told in capsys.readouterr().err
    assert out.read_text() == before


def test_a_first_line_that_was_cut_off_is_written_again(tmp_path):
    out = tmp_path / "out.jsonl"
    for text in ("", '{"id":"bat', '{"id":"batch_req_1","custom_id":"a","resp'):
        out.write_text(text)
        assert not resume(out)
        assert out.read_text() == ""


def test_files_that_cannot_be_read_or_written_are_named(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [line("a")])
    for asked, out, words in (
        (tmp_path / "none", tmp_path / "out.jsonl", "none cannot be read: No such file"),
        (tmp_path, tmp_path / "out.jsonl", f"{tmp_path} cannot be read: "),
        (source, source, "one of the files to be read: name another file"),
        (source, tmp_path / "none" / "x", f"x: cannot be written: there is no directory {tmp_path / 'none'}"),
        (source, tmp_path, "cannot be written: expected a file, found a directory"),
    ):
        assert run(asked, "-o", out) == 2
        error = capsys.readouterr().err
        assert words in error
        assert "Errno" not in error
        assert error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]
