"""LangChain's classes for OpenAI as clients."""

import pytest
from helpers.running_server import Running
from scripted import say, scripted_engine

from hotset.formats.pooling import Pooling
from hotset.server.models import Known

langchain = pytest.importorskip("langchain_openai", reason="needs LangChain (pip install langchain-openai)")

EIFFEL = "Where is the Eiffel Tower?"


def given(server, **options):
    return {"base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0, "model": "m"} | options


def chat(server, **options):
    return langchain.ChatOpenAI(**given(server, temperature=0, max_tokens=60) | options)


def test_a_chat_and_its_stream(server):
    answer = chat(server).invoke(EIFFEL)
    assert "Paris" in answer.content
    assert answer.usage_metadata["output_tokens"] > 3
    pieces = list(chat(server, stream_usage=True).stream(EIFFEL))
    assert "".join(piece.content for piece in pieces) == answer.content
    assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) > 3
    responses = chat(server, use_responses_api=True).invoke(EIFFEL)
    assert responses.content[0]["text"] == answer.content


def test_several_at_once(server):
    answers = chat(server).batch([EIFFEL, "Say hello.", EIFFEL])
    assert answers[0].content == answers[2].content


def test_an_answer_by_a_schema(server):
    schema = {
        "title": "place",
        "description": "Where it is.",
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    for method in ("json_schema", "function_calling"):
        asked = chat(server).with_structured_output(schema, method=method)
        assert asked.invoke(EIFFEL)["city"] in ("Paris", "Rome")


def test_calls_of_tools(model):
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool

    @tool
    def weather(city: str) -> str:
        """Tells the weather."""
        return f"sun in {city}"

    server = Running([Known("h", None)], lambda _: scripted_engine(model, "hermes_tools"))
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Nice"}}\n</tool_call>'
    say(server, call, call, "Sun.")
    asked = chat(server).bind_tools([weather])
    answer = asked.invoke("Weather?")
    (called,) = answer.tool_calls
    assert (called["name"], called["args"]) == ("weather", {"city": "Nice"})
    streamed = None
    for piece in asked.stream("Weather?"):
        streamed = piece if streamed is None else streamed + piece
    assert streamed.tool_calls[0]["args"] == {"city": "Nice"}
    result = ToolMessage(weather.invoke(called["args"]), tool_call_id=called["id"])
    assert asked.invoke([HumanMessage("Weather?"), answer, result]).content == "Sun."
    server.close()


def test_texts_and_vectors(server, run_server):
    assert "Paris" in langchain.OpenAI(**given(server, temperature=0)).invoke("The capital of France is")
    embedder = run_server(engine={"pooling": Pooling.MEAN})
    client = langchain.OpenAIEmbeddings(**given(embedder), check_embedding_ctx_length=False)
    assert len(client.embed_documents(["a text", "another"])) == 2
