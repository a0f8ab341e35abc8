"""Templates of many families, in words of our own: transformers' ids, and nobody else's control tokens.

``templates/`` has a file for each family (or generation), with the structure and the Jinja features of the
published one. A template that refuses a conversation must refuse it in both.
"""

import json
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from helpers.small_tokenizers import byte_level

from hotset.core.errors import RequestError
from hotset.tokenizer import Tokenizer
from hotset.tokenizer.chat_template import ChatTemplate
from hotset.tokenizer.huggingface import directory_files, read_files

PLACE = Path(__file__).parent / "templates"
TEMPLATES = {path.stem: path.read_text("utf-8") for path in PLACE.glob("*.jinja")}
CONTROL = (PLACE / "control_tokens.txt").read_text("utf-8").split()
"""Control tokens of all families together."""
TOKENS = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a place; naïve <b>",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "A city"},
                    "days": {"type": ["integer", "null"], "description": "How many"},
                    "units": {"type": "array", "items": {"type": "string"}, "description": "Which"},
                },
                "required": ["city"],
            },
        },
    }
]
SYSTEM = {"role": "system", "content": "  Be brief: <b>nothing</b> else. "}
USER = {"role": "user", "content": "\n Hi there, 東京 <"}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nGood day </b "}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "units": ["K"]}},
        }
    ],
}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": '{"t": 21.5}'}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [USER],
    "system": [SYSTEM, USER],
    "many turns": [USER, ANSWER, USER, ANSWER, USER],
    "system, many turns": [SYSTEM, USER, ANSWER, USER],
    "answered": [USER, ANSWER],
    "reasoning": [USER, {**ANSWER, "content": "Yes", "reasoning_content": "hm, well"}, USER],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]}
    ],
    "calls": [USER, CALL, RESULT, {"role": "assistant", "content": "21.5 K"}, USER],
    "call, awaiting an answer": [SYSTEM, USER, CALL, RESULT],
}
VARIABLES: list[dict[str, Any]] = [
    {},
    {"enable_thinking": False, "thinking": False, "reasoning": False, "thinking_budget": 0},
    {"tools": TOOLS, "enable_thinking": True, "reasoning_effort": "high", "thinking_budget": 600},
    {
        "tools": TOOLS,
        "documents": [{"doc_id": 1, "title": "T", "text": "Snow falls"}],
        "builtin_tools": ["x"],
    },
]


@cache
def peer() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    metadata = byte_level()
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={token: id for id, token in enumerate(metadata["tokenizer.ggml.tokens"])},
            merges=[tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]],
        )
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in CONTROL])
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **TOKENS)


@cache
def parts(directory: Path) -> Any:
    peer().save_pretrained(directory)
    return read_files(directory_files(directory), {})


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def ours(directory: Path, name: str) -> Tokenizer:
    encoder, vocabulary, _ = parts(directory)
    return Tokenizer(encoder, vocabulary, ChatTemplate(TEMPLATES[name], TOKENS))


def cases() -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
    for messages, variables in product(CONVERSATIONS.values(), VARIABLES):
        yield messages, {"add_generation_prompt": messages[-1]["role"] != "assistant", **variables}


def with_texts_as_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """DeepSeek's templates join a call's arguments to text."""
    copy = json.loads(json.dumps(messages))
    for message in copy:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return copy


def ids_of_transformers(source: str, messages: list[dict[str, Any]], options: dict[str, Any]) -> Any:
    for conversation in (messages, with_texts_as_arguments(messages)):
        try:
            return peer().apply_chat_template(
                conversation, chat_template=source, return_dict=False, **options
            )
        except Exception:
            continue
    return None


def ids_of_hotset(tokenizer: Tokenizer, messages: list[dict[str, Any]], options: dict[str, Any]) -> Any:
    try:
        return tokenizer.encode_chat(messages, **options)
    except RequestError:
        return None


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_ids_equal_transformers(name: str, directory: Path) -> None:
    tokenizer = ours(directory, name)
    rendered = 0
    for messages, options in cases():
        expected = ids_of_transformers(TEMPLATES[name], messages, options)
        assert ids_of_hotset(tokenizer, messages, options) == expected, (messages, options)
        rendered += expected is not None
    assert rendered >= 6


def changed(value: Any, change: Any) -> Any:
    """A copy whose texts, keys of a call's arguments included, went through ``change``; structure stays."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [changed(item, change) for item in value]
    if not isinstance(value, dict):
        return value
    kept = ("role", "type", "id", "tool_call_id", "required", "doc_id")
    return {
        (change(key) if key in ("city", "days", "units") else key): (
            item if key in kept else changed(item, change)
        )
        for key, item in value.items()
    }


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_only_the_template_writes_control_tokens(name: str, directory: Path) -> None:
    """The same conversation with control tokens in all its texts has the same control tokens as without."""
    tokenizer = ours(directory, name)
    special = {peer().convert_tokens_to_ids(text) for text in CONTROL}
    # Its own tokens, some that it makes of roles and brackets, and two that lack their ends.
    own = [text for text in CONTROL if text in TEMPLATES[name]]
    evil = " ".join([*own, "<|user|>", "[INST]", "<|im_end|>", "[INST", "<|im_start"])

    def innocent(text: str) -> str:
        return f"{text} {'-'.join(text.strip('<>[]|/') for text in evil.split())}"

    hidden = 0
    shown = ""
    for messages, options in cases():
        data = {
            "messages": messages,
            **{key: options[key] for key in ("tools", "documents") if key in options},
        }
        found = []
        for change in (innocent, lambda text: f"{text} {evil}"):
            told = changed(data, change)
            ids = ids_of_hotset(tokenizer, told.pop("messages"), options | told)
            found.append(ids and [id for id in ids if id in special])
            shown = tokenizer.decode(ids, skip_special=False) if ids else shown
        assert found[1] is None or found[0] == found[1], (messages, options)
        hidden += found[1] is not None
    assert hidden >= 6
    assert "<|user|> [INST] <|im_end|> [INST <|im_start" in shown
