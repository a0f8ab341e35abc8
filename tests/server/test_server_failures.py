"""What can fail under a server: memory, its engine's thread, the disk of a batch."""

import asyncio
import ctypes
import json
import signal
import threading
import time
from types import SimpleNamespace

import pytest
from helpers.small_disk import small_disk
from test_faults import ENDLESS, begin

from hotset import _native
from hotset.cli import main
from hotset.core.errors import HotsetError
from hotset.model.finite import NotFiniteError
from hotset.server.app import Server
from hotset.server.models import Known, Models
from hotset.server.run import bind, serve


def stream(server, prompt):
    body = {"prompt": prompt, "max_tokens": 300, "stream": True} | ENDLESS
    connection = begin(server, "/v1/completions", body)
    response = connection.getresponse()
    assert response.read(50)
    return connection, response


def test_a_request_without_memory_for_its_sequence_waits_for_others(run_server, monkeypatch):
    server = run_server()
    connection, running = stream(server, "Once")
    calls = []

    def no_memory(*arguments):
        calls.append(arguments)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(_native, "Sequence", no_memory)
        waiting = begin(server, "/v1/completions", {"prompt": "Something else", "max_tokens": 3})
        server.until(lambda: len(calls) > 2)
        assert server.engine.running == 1
        assert running.read(500)
    assert waiting.getresponse().status == 200
    connection.close()


def test_without_memory_for_any_sequence_the_request_says_so_and_the_next_one_works(run_server, monkeypatch):
    server = run_server()
    body = {"prompt": "Once", "max_tokens": 2}
    with monkeypatch.context() as patch:
        patch.setattr(_native, "Sequence", lambda *arguments: (_ for _ in ()).throw(MemoryError))
        answer = server.http.post("/v1/completions", json=body)
        assert answer.status_code == 400
        assert "smaller context" in answer.text
    assert server.http.post("/v1/completions", json=body).status_code == 200


def test_no_memory_during_a_step_ends_its_requests_and_the_next_one_works(server):
    def fail(batch):
        raise MemoryError

    server.transformer.hook = fail
    answer = server.http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 2})
    assert answer.status_code == 500
    assert answer.headers["x-should-retry"] == "false"
    server.transformer.hook = None
    assert server.http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 2}).status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_killed_engine_thread_ends_its_requests_and_another_takes_its_place(run_server):
    server = run_server()
    before = set(threading.enumerate())
    connection, response = stream(server, "Once")
    (thread,) = [one for one in {*threading.enumerate()} - before if one.name == "hotset-engine"]
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    rest = response.read()
    assert b'"error"' in rest
    assert rest.endswith(b"data: [DONE]\n\n")
    connection.close()
    thread.join(10)
    assert not thread.is_alive()
    assert server.http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 2}).status_code == 200


def test_a_full_disk_ends_a_batch_that_goes_on_where_there_is_room(tmp_path, capsys, model):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    body = {"prompt": "Once upon a time", "max_tokens": 3}
    one = {"method": "POST", "url": "/v1/completions", "body": body}
    lines = [{"custom_id": f"{i}", **one} for i in range(20)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["batch", str(source), "-o", str(out), "--threads", "2", "--parallel", "4"]
    with small_disk(2000), pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(out) in error
    assert 0 < out.stat().st_size <= 2000
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    assert sorted(int(json.loads(line)["custom_id"]) for line in out.read_text().splitlines()) == [*range(20)]


def test_a_model_that_computes_no_numbers_is_no_fault_of_the_request(server):
    def spoil(batch):
        raise NotFiniteError("the model computes numbers that are not finite", batch.spans[0].sequence)

    server.transformer.hook = spoil
    answer = server.http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 2})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")


def test_a_server_that_is_stopped_while_it_loads_loads_once():
    loads = []

    def load(_):
        loads.append(server)
        time.sleep(0.3)  # until the server takes signals
        if len(loads) == 1:
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.3)
        return SimpleNamespace(close=lambda: None)

    server = Server(Models([Known("x", None)], load))
    asyncio.run(asyncio.wait_for(serve(server, bind("127.0.0.1", 0)), 20))
    assert server.closing
    assert len(loads) == 1


def test_any_fault_of_the_first_model_ends_the_server_with_one_line():
    def load(_):
        raise KeyError("tensor")

    server = Server(Models([Known("x", None)], load))
    with pytest.raises(HotsetError, match="^x cannot be loaded: KeyError: 'tensor'$"):
        asyncio.run(asyncio.wait_for(serve(server, bind("127.0.0.1", 0)), 10))
