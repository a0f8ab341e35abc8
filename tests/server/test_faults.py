"""What users of other servers reported, each by its number: clients that leave, prompts, queues, caches."""

import http.client
import json
import socket
import threading
import time

import openai
import pytest

from hotset.server.app import Limits

EIFFEL = [{"role": "user", "content": "Where is the Eiffel Tower?"}]
LONG = [{"role": "user", "content": "many words " * 300}]  # read in two steps
APIS = {
    "/v1/chat/completions": {"messages": EIFFEL, "max_tokens": 900},
    "/v1/completions": {"prompt": "Once", "max_tokens": 900},
    "/v1/responses": {"input": "Once", "max_output_tokens": 900},
    "/v1/messages": {"messages": EIFFEL, "max_tokens": 900},
    "/api/chat": {"messages": EIFFEL, "options": {"num_predict": 900}},
    "/api/generate": {"prompt": "Once", "options": {"num_predict": 900}},
}
ENDLESS = {"logit_bias": {"2": -100, "0": -100}, "temperature": 0}


class Slow:
    """Makes each step of a server's model take so long; counts them."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.steps = 0
        self.rows = 0

    def __call__(self, batch):
        self.steps += 1
        self.rows += len(batch.tokens)
        time.sleep(self.seconds)


@pytest.fixture
def slow(server):
    server.transformer.hook = Slow(0.03)
    return server.transformer.hook


def begin(server, path, body):
    """Send a request by hand; the connection, to be closed at any time."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    return connection


def endless(path):
    """What asks for a long answer, always the same one."""
    return {"options": {"num_predict": 900, "temperature": 0}} if path.startswith("/api") else ENDLESS


def is_over(server, slow):
    """Nothing runs any more, within a step or two of now."""
    end = time.monotonic() + 5
    steps = slow.steps
    while server.engine.running or server.engine.waiting:
        assert time.monotonic() < end
        time.sleep(0.005)
    assert slow.steps - steps <= 4


@pytest.mark.parametrize("path", APIS)
def test_fault_1_a_reader_of_a_stream_leaves(server, slow, path):
    connection = begin(server, path, APIS[path] | endless(path) | {"stream": True})
    response = connection.getresponse()
    response.read(300 if path.startswith("/v1") else 100)
    server.until(lambda: server.engine.running == 1)
    response.close()
    connection.close()
    is_over(server, slow)


@pytest.mark.parametrize("stream", [False, True])
def test_fault_2_a_client_leaves_during_a_long_prompt(server, stream):
    slow = server.transformer.hook = Slow(0.2)
    text = f"{stream} words and more words " * 160
    connection = begin(server, "/v1/completions", {"prompt": text, "max_tokens": 5, "stream": stream})
    server.until(lambda: slow.steps == 1)
    connection.close()
    is_over(server, slow)
    assert slow.rows <= 512  # of more than 640


@pytest.mark.parametrize("path", APIS)
def test_fault_3_a_client_of_a_whole_answer_leaves(server, slow, path):
    connection = begin(server, path, APIS[path] | {"stream": False} | endless(path))
    server.until(lambda: slow.steps > 2)
    connection.close()
    is_over(server, slow)


def test_a_client_leaves_the_queue(run_server):
    server = run_server(engine={"parallel": 1})
    slow = server.transformer.hook = Slow(0.03)
    first = begin(server, "/v1/completions", APIS["/v1/completions"] | ENDLESS)
    server.until(lambda: server.engine.running == 1)
    second = begin(server, "/v1/completions", APIS["/v1/completions"] | ENDLESS)
    server.until(lambda: server.engine.waiting == 1)
    second.close()
    server.until(lambda: server.engine.waiting == 0)
    assert server.engine.running == 1
    first.close()
    is_over(server, slow)


def test_fault_4_a_second_request_while_one_streams(server, slow):
    body = APIS["/v1/completions"] | ENDLESS | {"stream": True}
    first = begin(server, "/v1/completions", body)
    stream = first.getresponse()
    stream.read(100)
    answer = server.http.post("/v1/chat/completions", json={"messages": EIFFEL, "max_tokens": 3})
    assert answer.status_code == 200
    assert stream.read(100)
    first.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", APIS)
def test_fault_5_6_7_a_prompt_longer_than_the_context(server, path, stream):
    long = "many words " * 1500
    for field in ("prompt", "input", "messages"):
        if field in APIS[path]:
            body = {field: [{"role": "user", "content": long}] if field == "messages" else long}
    answer = server.http.post(path, json=APIS[path] | body | {"stream": stream})
    assert answer.status_code == 400
    assert "1024" in answer.text
    assert answer.json()["error"]


def test_fault_8_max_completion_tokens_is_max_tokens(server):
    for name in ("max_tokens", "max_completion_tokens", "n_predict"):
        body = {"messages": EIFFEL, name: 3, "temperature": 0}
        answer = server.http.post("/v1/chat/completions", json=body).json()
        assert answer["usage"]["completion_tokens"] == 3


def test_fault_19_system_messages_anywhere(server):
    two = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "Be kind."},
        *EIFFEL,
        {"role": "system", "content": "Hurry."},
    ]

    def prompt(messages):
        return server.http.post("/apply-template", json={"messages": messages}).json()["prompt"]

    assert prompt(two).startswith("<|im_start|>system\nBe brief.\n\nBe kind.<|im_end|>\n")
    assert "system\nHurry." in prompt(two)
    messages = [*EIFFEL, {"role": "system", "content": "Hurry."}]
    body = {"messages": messages, "max_tokens": 3, "system": "Be brief."}
    assert server.http.post("/v1/messages", json=body).status_code == 200


def test_fault_19_a_template_that_refuses_later_system_messages(model):
    from scripted import scripted_engine

    from hotset.server.ask import Conversation
    from hotset.server.conversation import written
    from hotset.tokenizer.chat_template import ChatTemplate

    engine = scripted_engine(model, "smollm2")
    engine.tokenizer.chat_template = ChatTemplate(
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
        "{{ raise_exception('System message must be at the beginning') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    messages = [*EIFFEL, {"role": "system", "content": "Hurry."}]
    assert written(engine, Conversation(messages)).endswith("[user]Hurry.")


def test_fault_20_a_line_that_differs_each_time_is_dropped(server):
    def ask(number):
        system = [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1; cch={number};"},
            {"type": "text", "text": "You are an agent that reads files and writes files. " * 5},
        ]
        body = {"system": system, "messages": EIFFEL, "max_tokens": 3}
        return server.http.post("/v1/messages", json=body).json()["usage"]

    ask("a1b2")
    usage = ask("c3d4")
    assert usage["cache_read_input_tokens"] > 60
    assert usage["input_tokens"] < 10


def test_fault_22_a_response_has_annotations(server):
    response = server.http.post("/v1/responses", json={"input": "Hi", "max_output_tokens": 3}).json()
    assert response["output"][0]["content"][0]["annotations"] == []


@pytest.mark.parametrize("stop", [" in Paris", "Tower is lo", ["xyz", "s, F"], "France, France.?"])
def test_fault_23_stop_strings_of_several_tokens(server, stop):
    def ask(path, **fields):
        body = {"temperature": 0, "max_tokens": 20, "stop": stop} | fields
        return server.http.post(path, json=body).json()["choices"][0]

    whole = ask("/v1/chat/completions", messages=EIFFEL, stop=None)["message"]["content"]
    ends = [whole.find(one) for one in ([stop] if isinstance(stop, str) else stop) if one in whole]
    expected = whole[: min(ends)] if ends else whole
    assert ask("/v1/chat/completions", messages=EIFFEL)["message"]["content"] == expected
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    options = {"model": "m", "temperature": 0, "max_tokens": 20, "stop": stop, "stream": True}
    chunks = client.chat.completions.create(messages=EIFFEL, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    prompt = server.http.post("/apply-template", json={"messages": EIFFEL}).json()["prompt"]
    chunks = client.completions.create(prompt=prompt, **options)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected


def test_fault_25_logprobs_everywhere(server):
    body = {"prompt": "Hello", "max_tokens": 2, "logprobs": 1}
    old = server.http.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    assert len(old["token_logprobs"]) == 2
    tools = [{"type": "function", "function": {"name": "f", "description": ""}}]
    body = {"messages": EIFFEL, "max_tokens": 2, "logprobs": True, "tools": tools, "stream": True}
    text = server.http.post("/v1/chat/completions", json=body).text
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    found = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert sum(len(one["content"]) for one in found) == 2


def test_fault_26_the_context_is_each_requests_own(run_server):
    server = run_server(engine={"parallel": 4, "context": 256})
    assert server.http.get("/props").json()["default_generation_settings"]["n_ctx"] == 256
    text = " ".join(str(n) for n in range(100))
    answers = [None] * 4

    def ask(i):
        body = {"prompt": f"{i}: {text}"[:250], "max_tokens": 40, "temperature": 0}
        answers[i] = server.http.post("/v1/completions", json=body).json()["usage"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(usage["prompt_tokens"] > 100 for usage in answers)


def test_fault_27_a_long_prompt_does_not_stop_a_running_answer(server):
    """Beside a prompt's rows the running answer has its own: a token, or a draft once it repeats itself."""
    batches = []
    server.transformer.hook = lambda batch: batches.append([span.lossless for span in batch.spans])
    first = begin(server, "/v1/completions", APIS["/v1/completions"] | ENDLESS | {"stream": True})
    first.getresponse().read(100)
    long = server.http.post("/v1/completions", json={"prompt": "a word or two " * 150, "max_tokens": 1})
    assert long.status_code == 200
    first.close()
    mixed = [batch for batch in batches if any(batch)][1:]
    assert mixed
    assert not any(all(batch) for batch in mixed)


def test_fault_28_health_answers_during_a_prompt(server):
    server.transformer.hook = Slow(0.5)
    connection = begin(server, "/v1/completions", {"prompt": "word " * 900, "max_tokens": 2})
    server.until(lambda: server.engine.running)
    times = []
    while server.engine.running and len(times) < 10:
        start = time.perf_counter()
        assert server.http.get("/health").json() == {"status": "ok"}
        times.append(time.perf_counter() - start)
    connection.close()
    assert sorted(times)[len(times) // 2] < 0.05


def test_answers_on_a_connection_that_stays_open_are_sent_at_once(server):
    """Where small pieces wait for the client's receipt, each answer but the first takes 40 ms."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        assert server.http.get("/health").status_code == 200
        times.append(time.perf_counter() - start)
    assert min(times[2:]) < 0.03


def test_fault_28_health_answers_while_a_long_text_is_cut_into_tokens(server):
    connection = begin(server, "/v1/completions", {"prompt": "words of text, and more. " * 40_000})
    times = []
    end = time.monotonic() + 1
    while time.monotonic() < end:
        start = time.perf_counter()
        assert server.http.get("/health").status_code == 200
        times.append(time.perf_counter() - start)
        time.sleep(0.005)
    assert connection.getresponse().status == 400
    connection.close()
    assert max(times) < 0.5


def test_fault_29_a_full_queue_says_so(run_server):
    server = run_server(engine={"parallel": 1, "queue": 1})
    server.transformer.hook = Slow(0.05)
    body = APIS["/v1/completions"] | ENDLESS
    held = [begin(server, "/v1/completions", body)]
    server.until(lambda: server.engine.running == 1)
    held.append(begin(server, "/v1/completions", body))
    server.until(lambda: server.engine.waiting == 1)
    for path, fields in APIS.items():
        answer = server.http.post(path, json=fields | {"stream": True})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]
    for connection in held:
        connection.close()


def test_fault_30_a_silent_stream_says_that_it_is_alive(run_server):
    server = run_server(limits=Limits(keep_alive=0.05))
    server.transformer.hook = Slow(0.4)
    start = time.monotonic()
    body = {"messages": EIFFEL, "max_tokens": 2, "stream": True}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        assert '"role":"assistant"' in next(lines)
        assert time.monotonic() - start < 0.4
        rest = list(lines)
    assert rest.count(":") > 3
    chunks = openai.OpenAI(base_url=f"{server.url}/v1", api_key="n").chat.completions.create(
        model="m", messages=EIFFEL, max_tokens=2, stream=True
    )
    assert list(chunks)[-1].choices[0].finish_reason == "length"
    with server.http.stream("POST", "/v1/messages", json=body) as response:
        assert "event: ping" in list(response.iter_lines())


def test_fault_31_another_request_does_not_cost_the_chats_prefix(server):
    chat = [{"role": "user", "content": "Let us speak of the sea and of its fish. " * 10}]
    title = [{"role": "user", "content": "Give a title, and tags, to a conversation. " * 10}]
    answers = []
    for messages in (chat, title, chat, title):
        body = {"messages": messages, "max_tokens": 2}
        usage = server.http.post("/v1/chat/completions", json=body).json()["usage"]
        answers.append(usage["prompt_tokens_details"]["cached_tokens"])
    assert min(answers[2:]) > 90


def test_fault_32_message_start_has_the_prompts_tokens(server):
    body = {"messages": EIFFEL, "max_tokens": 2, "stream": True}
    text = server.http.post("/v1/messages", json=body).text
    events = [json.loads(part.split("\n")[0]) for part in text.split("data: ")[1:]]
    start = next(event for event in events if event["type"] == "message_start")
    usage = start["message"]["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] > 20


def test_a_slow_reader_stops_nobody(server):
    """A client that does not read leaves others alone, and gets all in the end."""
    asked = {"prompt": "Once", "max_tokens": 300, "logprobs": 20, "stream": True}
    body = json.dumps({**asked, "stream_options": {"include_usage": True}} | ENDLESS)
    host, port = server.url.removeprefix("http://").split(":")
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    slow.connect((host, int(port)))
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
    slow.sendall((head + body).encode())
    quick = server.http.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 5})
    assert quick.status_code == 200
    server.idle()
    got = b""
    while b"[DONE]" not in got[-400:]:
        got += slow.recv(1 << 20)
    slow.close()
    assert b'"completion_tokens":300' in got
    assert got.count(b"data: ") > 10  # in many pieces


def test_a_model_that_fails_ends_a_stream_with_an_error(server):
    calls = []

    def fail(batch):
        calls.append(batch)
        if len(calls) == 4:
            raise ValueError("broken")

    server.transformer.hook = fail
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.APIError, match="model failed"):
        list(client.completions.create(model="m", prompt="Once", stream=True, max_tokens=50))
    calls.clear()
    answer = server.http.post("/v1/completions", json={"prompt": "Twice", "max_tokens": 50})
    assert answer.status_code == 500
    assert answer.headers["x-should-retry"] == "false"
    server.transformer.hook = None
    assert server.http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 2}).status_code == 200
