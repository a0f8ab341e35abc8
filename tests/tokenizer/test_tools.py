"""Tools, calls and reasoning in conversations, and the templates that models have for them."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.small_tokenizers import byte_level, checkpoint, from_metadata

from hotset.core.errors import RequestError
from hotset.tokenizer import Tokenizer
from hotset.tokenizer.chat_template import ChatTemplate

TOOLS = [{"type": "function", "function": {"name": "f", "description": "é"}}]


def calls(arguments: Any) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "hi", "name": None},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]},
    ]


OVER_A_MAPPING = (
    "{% for c in messages[1].tool_calls %}{{ c.function.name }}"
    "{% for k, v in c.function.arguments | items %} {{ k }}={{ v }}{% endfor %}{% endfor %}"
)
AS_JSON = "{{ messages[1].tool_calls[0].function.arguments | tojson }}"
JOINED_TO_TEXT = "{{ 'f(' + messages[1].tool_calls[0].function.arguments + ')' }}"


@pytest.mark.parametrize("arguments", [{"city": "Zürich", "days": 2}, '{"city":"Zürich","days":2}'])
@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (OVER_A_MAPPING, "f city=Zürich days=2"),
        (AS_JSON, '{"city": "Zürich", "days": 2}'),
    ],
)
def test_arguments_are_a_mapping_however_they_came(source: str, shown: str, arguments: Any) -> None:
    assert ChatTemplate(source).render(calls(arguments)) == shown


def test_a_template_that_wants_text_has_text() -> None:
    template = ChatTemplate(JOINED_TO_TEXT)
    assert template.render(calls('{"a": 1}')) == 'f({"a": 1})'
    assert template.render(calls({"a": "é"})) == 'f({"a": "é"})'


@pytest.mark.parametrize("arguments", ["", "no JSON", "[1]", "7", '{"a": ' * 100_000])
def test_arguments_that_are_no_mapping_stay_as_they_are(arguments: str) -> None:
    assert ChatTemplate(JOINED_TO_TEXT).render(calls(arguments)) == f"f({arguments})"


def test_a_refusal_is_that_of_the_first_try() -> None:
    with pytest.raises(RequestError, match="no calls, please"):
        ChatTemplate("{{ raise_exception('no calls, please') }}").render(calls("{}"))
    with pytest.raises(RequestError, match="unsupported operand .* 'dict'"):
        ChatTemplate(JOINED_TO_TEXT + "{{ 1 + 'x' }}").render(calls("{}"))


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_the_names_that_templates_read(field: str) -> None:
    messages = [{"role": "assistant", "content": "Yes", field: "hm"}]
    source = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }} {{ messages[0].content }}"
    assert ChatTemplate(source).render(messages) == "hm hm Yes"


def test_fields_without_a_value_are_not_there() -> None:
    messages = [{"role": "assistant", "content": None, "tool_calls": None}]
    source = "{{ 'content' in messages[0] }}{{ messages[0].tool_calls is defined }}"
    assert ChatTemplate(source).render(messages) == "FalseFalse"


def test_the_callers_objects_are_not_changed() -> None:
    messages = calls('{"a": 1}')
    before = json.dumps(messages)
    ChatTemplate(OVER_A_MAPPING).render(messages)
    assert json.dumps(messages) == before


def named(default: str | None, tool_use: str | None) -> dict[str, Any]:
    return {
        **byte_level(),
        "tokenizer.chat_template": default,
        "tokenizer.chat_template.tool_use": tool_use,
        "tokenizer.chat_templates": ["tool_use"],
    }


@pytest.mark.parametrize(
    ("default", "tool_use", "tools", "expected"),
    [
        ("plain", "with tools", None, "plain"),
        ("plain", "with tools", TOOLS, "with tools"),
        ("plain", "with tools", [], "with tools"),
        ("plain", None, TOOLS, "plain"),
        ("{{ tools[0].function.description }}", None, TOOLS, "é"),
        ("{{ tools is none }}", None, None, "True"),
    ],
)
@pytest.mark.parametrize("kind", ["gguf", "list", "files"])
def test_a_template_for_tools_is_taken_where_there_are_tools(
    kind: str, default: str, tool_use: str | None, tools: Any, expected: str, tmp_path: Path
) -> None:
    if kind == "gguf":
        tokenizer = from_metadata(named(default, tool_use))
    else:
        tokenizer = directory(tmp_path, kind, default, tool_use)
        if kind == "files":
            theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
            text = theirs.apply_chat_template([{"role": "user"}], tools=tools, tokenize=False)
            assert text == expected
    ids = tokenizer.encode_chat([{"role": "user", "content": "hi"}], tools=tools)
    assert tokenizer.decode(ids) == expected


def directory(path: Path, kind: str, default: str, tool_use: str | None) -> Tokenizer:
    transformers = pytest.importorskip("transformers")
    metadata = byte_level()
    made = transformers.Qwen2Tokenizer(
        vocab={token: id for id, token in enumerate(metadata["tokenizer.ggml.tokens"])},
        merges=[tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]],
    )
    made.save_pretrained(path)
    if kind == "files":
        (path / "chat_template.jinja").write_text(default)
        if tool_use is not None:
            (path / "additional_chat_templates").mkdir()
            (path / "additional_chat_templates" / "tool_use.jinja").write_text(tool_use)
    else:
        config = json.loads((path / "tokenizer_config.json").read_text())
        entries = [("default", default), ("tool_use", tool_use)]
        config["chat_template"] = [{"name": name, "template": text} for name, text in entries if text]
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_checkpoint(checkpoint(path, {}))


def test_a_variable_cannot_take_the_conversations_place() -> None:
    template = ChatTemplate("{{ messages[0].content }}{{ tools }}")
    variables = {"messages": [{"content": "no"}], "self": "x", "tools": ["t"]}
    assert template.render([{"role": "user", "content": "yes"}], **variables) == "yes['t']"


def test_variables_reach_the_template() -> None:
    template = ChatTemplate("{{ enable_thinking }} {{ n + 1 }} {{ words | join('-') }} {{ bos_token }}")
    variables = {"enable_thinking": False, "n": 1, "words": ["a", "b"], "bos_token": "mine"}
    assert template.render([{"role": "user"}], **variables) == "False 2 a-b mine"
