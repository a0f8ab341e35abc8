"""The command: what it says, how it ends, and what it refuses at once."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading

import pytest
from helpers.systems import on_posix

from hotset.core.errors import HotsetError
from hotset.server.run import bind

COMMAND = [sys.executable, "-c", "from hotset.cli import main; main()", "serve"]


@pytest.fixture
def start():
    started = []

    def start(*arguments):
        process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def port_of(process):
    """The port that it says it listens at, once it is loaded."""
    line = process.stderr.readline()
    assert "http://127.0.0.1:" in line, line
    assert "is loaded" in process.stderr.readline()
    return int(line.split("127.0.0.1:")[1].split()[0])


@on_posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_come_to_their_ends(start, model, number):
    process = start("--port", "0", "--threads", "2")
    port = port_of(process)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = {"prompt": "Once", "max_tokens": 150, "stream": True, "logit_bias": {"0": -100, "2": -100}}
    connection.request("POST", "/v1/completions", json.dumps(body))
    stream = connection.getresponse()
    stream.read(200)
    process.send_signal(number)
    rest = stream.read()
    assert rest.endswith(b"data: [DONE]\n\n")
    assert rest.count(b"data: ") > 3
    assert process.wait(20) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=2)
    line = process.stderr.read()
    assert "POST /v1/completions 200" in line
    assert "answer=150" in line


@on_posix
def test_a_second_signal_ends_it_at_once(start, model):
    process = start("--port", "0", "--threads", "2", "--quiet")
    line = process.stderr.readline()
    port = int(line.split("127.0.0.1:")[1].split()[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = {"prompt": "Once", "max_tokens": 4000, "stream": True, "logit_bias": {"0": -100, "2": -100}}
    connection.request("POST", "/v1/completions", json.dumps(body))
    connection.getresponse().read(200)
    process.send_signal(signal.SIGINT)
    timer = threading.Timer(0.5, process.send_signal, (signal.SIGINT,))
    timer.start()
    process.wait(20)
    timer.join()


def test_what_cannot_be_served_is_one_line(start, model, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, words in (
            (("--port", port), ("cannot listen", "another program uses it", "--port")),
            ((str(tmp_path / "none.gguf"),), ("none.gguf",)),
            (("--port", "0", "--context", "999999"), ("999999",)),
            (("--ram", "much"), ("much",)),
            (("--port", "0", "--cache-ram", "1"), ("0.0 MB", "--cache-ram")),
            (("--port", "0", "--cache-ram", "0"), ("0.0 MB", "--cache-ram")),
            (("--ram", "100MB"), ("SmolLM2", "100 MB", "--ram")),
            (("--cors-origin", "localhost"), ("--cors-origin localhost", "http://localhost:3000")),
        ):
            process = start(*arguments)
            error = process.stderr.read()
            assert process.wait(20) == 2
            assert error.count("\n") == 1, error
            assert error.startswith("error: ")
            assert all(word in error for word in words)


def test_a_gpu_that_is_not_there_is_said_before_the_address(monkeypatch, capsys, model):
    from hotset.cli import main
    from hotset.placing import doctor

    monkeypatch.setattr(doctor, "no_gpu", lambda: "no GPU")
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", "0", "--vram", "1GiB"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: no GPU; without --vram the CPU does all\n"


def test_a_model_that_does_not_fit_is_said_before_the_address(monkeypatch, capsys, model):
    from hotset.cli import main
    from hotset.core.limits import Memory

    monkeypatch.setattr("hotset.serve.memory.available_memory", lambda: Memory(1000, "on this machine"))
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", "0"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "of memory" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("given", ["\u00e4 b=m.gguf", "=m.gguf", "name="])
def test_a_name_that_is_none(capsys, given):
    from hotset.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["serve", given])
    assert ended.value.code == 2
    assert f"{given} is no file and no NAME=MODEL: names have letters" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys):
    from hotset.cli import main, serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(SystemExit) as ended:
        main(["serve"])
    assert ended.value.code == 2
    assert "pip install 'hotset[serve]'" in capsys.readouterr().err


def test_names_of_models(tmp_path, model):
    from hotset.cli.serve import known_model

    assert known_model(None, None, "f16", None).name.startswith("SmolLM2")
    named = known_model(f"small={model.path}", None, "f16", None)
    assert (named.name, named.source) == ("small", str(model.path))
    assert named.bytes > 80e6
    assert named.trained_context == 8192


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_addresses_that_are_not_of_this_machine(host):
    with pytest.raises(HotsetError, match="--host"):
        bind(host, 0)


def test_no_port_is_taken_over_on_windows(monkeypatch):
    """There SO_REUSEADDR would do so."""
    monkeypatch.setattr(sys, "platform", "win32")
    with bind("127.0.0.1", 0) as bound:
        assert bound.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
