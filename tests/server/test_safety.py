"""Keys, hosts, origins, sizes, and what is logged."""

import logging

import httpx
import openai
import pytest
from helpers.drafts import draft_as_usual

from hotset.server.app import Limits

BODY = {"prompt": "Hello", "max_tokens": 1}


@pytest.fixture(scope="module")
def locked(run_server):
    return run_server(keys=("secret", "other"), origins=("http://page.example",))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "secret"}, 401),
        ({"authorization": "Bearer sécret".encode("latin-1")}, 401),
        ({"authorization": "Bearer secret"}, 200),
        ({"authorization": "bearer other"}, 200),
        ({"x-api-key": "secret"}, 200),
    ],
)
def test_a_key_is_asked_for(locked, headers, status):
    for path in ("/v1/completions", "/api/generate"):
        answer = locked.http.post(path, json=BODY, headers=headers)
        assert answer.status_code == status
        assert status == 200 or answer.json()["error"]
    assert locked.http.get("/health").status_code == 200
    assert locked.http.get("/metrics", headers=headers).status_code == status


def test_the_sdk_knows_a_wrong_key(locked):
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", max_retries=0).models.list()
    assert openai.OpenAI(base_url=f"{locked.url}/v1", api_key="secret").models.list().data


def test_pages_of_a_site_that_is_allowed(locked):
    headers = {
        "origin": "http://page.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    preflight = locked.http.options("/v1/chat/completions", headers=headers)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "http://page.example"
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    with_key = {"origin": "http://page.example", "authorization": "Bearer secret"}
    answer = locked.http.post("/v1/completions", json=BODY | {"stream": True}, headers=with_key)
    assert answer.headers["access-control-allow-origin"] == "http://page.example"
    other = locked.http.post(
        "/v1/completions", json=BODY, headers=with_key | {"origin": "http://evil.example"}
    )
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("192.168.1.7", 200),
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
        ("[", 403),
        ("localhost]", 403),
    ],
)
def test_without_a_key_the_host_has_to_be_this_one(server, host, status):
    assert server.http.get("/v1/models", headers={"host": host}).status_code == status


def test_a_host_that_is_no_address_is_no_fault_of_the_server(locked, server):
    headers = {"host": "[", "authorization": "Bearer secret"}
    assert locked.http.get("/v1/models", headers=headers).status_code == 200
    assert locked.http.get("/v1/nothing", headers=headers).status_code == 404
    assert server.http.post("/health", headers=headers).status_code == 405


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://[", "//[::1"]
)
def test_pages_of_other_sites_may_not_ask(server, origin):
    answer = server.http.post("/v1/completions", json=BODY, headers={"origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    own = server.http.post("/v1/completions", json=BODY, headers={"origin": server.url})
    assert own.status_code == 200


def test_a_body_may_not_be_too_long(run_server):
    server = run_server(limits=Limits(body=1000))
    long = {"prompt": "x" * 2000}
    for path in ("/v1/completions", "/v1/messages", "/api/generate"):
        answer = server.http.post(path, json=long)
        assert answer.status_code == 413
        assert answer.json()["error"]
    pieces = (b"x" * 100 for _ in range(50))  # of no length that was told
    assert server.http.post("/v1/completions", content=pieces).status_code == 413
    assert server.http.post("/v1/completions", json=BODY).status_code == 200


def test_headers_may_not_be_too_long(server):
    try:
        status = httpx.get(f"{server.url}/v1/models", headers={"x-long": "y" * 200_000}).status_code
    except httpx.TransportError:
        status = 431  # it hangs up while the rest is still being sent
    assert status in (400, 431)
    assert server.http.get("/health").status_code == 200


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/v1/models/../../etc/passwd", "/v1/models/%2fetc%2fpasswd"]
)
def test_no_path_is_opened(server, path):
    answer = server.http.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text


def test_a_line_for_each_request(server, caplog):
    with caplog.at_level(logging.INFO, "hotset.access"):
        server.http.post("/v1/completions", json=BODY, headers={"x-request-id": "mine"})
        server.until(lambda: len(caplog.messages) == 1)
        server.http.get("/a%0Ab%1b%5B31m")
        server.until(lambda: len(caplog.messages) == 2)
    asked, odd = caplog.messages
    assert asked.startswith("mine POST /v1/completions 200 ")
    for part in ("model=smollm2", "prompt=1", "answer=1", "reason=length", "first="):
        assert part in asked
    assert "\n" not in odd
    assert "\x1b" not in odd
    assert "GET /a\\nb\\x1b[31m 404" in odd


def test_requests_have_names(server):
    assert server.http.get("/health", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    assert server.http.get("/health").headers["x-request-id"].startswith("req_")


def test_errors_of_the_router_have_the_paths_shape(server):
    assert server.http.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert isinstance(server.http.get("/api/nothing").json()["error"], str)
    wrong = server.http.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.json()["error"]["message"]


def test_metrics_count(server, monkeypatch):
    draft_as_usual(monkeypatch)

    def value(name):
        lines = server.http.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    before = value('hotset_tokens_total{kind="answer"}')
    server.http.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 3, "temperature": 0})
    assert value('hotset_tokens_total{kind="answer"}') == before + 3
    assert value('hotset_state{what="models"}') == 1
    body = {"prompt": "One two three. " * 12, "max_tokens": 40, "temperature": 0}
    details = server.http.post("/v1/completions", json=body).json()["usage"]["completion_tokens_details"]
    accepted, rejected = details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]
    assert accepted > 10
    assert value('hotset_tokens_total{kind="accepted"}') >= accepted
    assert value('hotset_tokens_total{kind="drafted"}') >= accepted + rejected
    assert value('hotset_requests_total{route="/v1/completions",status="200"}') >= 1
