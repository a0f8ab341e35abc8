"""What ends an answer: by the files' keys, and by the text of a token whatever its type."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_tokenizers import byte_level, checkpoint, from_metadata, sentencepiece_metadata

from hotset.tokenizer import Tokenizer
from hotset.tokenizer.vocabulary import end_of_turn

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<turn|>{% endfor %}"


def with_tokens(kind: str, added: dict[str, int]) -> Tokenizer:
    """A GGUF tokenizer with further tokens: type by text."""
    metadata = byte_level() if kind == "gpt2" else sentencepiece_metadata(add_dummy_prefix=False)
    made = {
        **metadata,
        "tokenizer.ggml.tokens": [*metadata["tokenizer.ggml.tokens"], *added],
        "tokenizer.ggml.token_type": np.array([*metadata["tokenizer.ggml.token_type"], *added.values()]),
        "tokenizer.chat_template": TEMPLATE,
    }
    if kind == "llama":
        made["tokenizer.ggml.scores"] = np.array([*metadata["tokenizer.ggml.scores"], *[-1e4] * len(added)])
    return from_metadata(made)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("type", [NORMAL, CONTROL, USER_DEFINED])
@pytest.mark.parametrize(
    "text",
    [
        *("<|eot_id|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<turn|>", "<|endoftext|>"),
        *("<|end_of_text|>", "<|eom_id|>", "<eos>", "<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>"),
        *("<\uff5cend\u2581of\u2581sentence\uff5c>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
        "</assistant>",
    ],
)
def test_a_token_that_ends_turns_by_its_name_does_whatever_its_type(kind: str, type: int, text: str) -> None:
    tokenizer = with_tokens(kind, {"<turn|>": CONTROL, text: type})
    id = tokenizer.vocab_size - 1
    assert id in tokenizer.end_ids
    assert tokenizer.encode(text, add_special=False) == [id]
    assert tokenizer.decode([id]) == "", "it is no part of the answer"
    ids = tokenizer.encode_chat([{"role": "user", "content": f"a {text} b"}])
    assert [id for id in ids if id in tokenizer.end_ids] == tokenizer.encode("<turn|>", add_special=False)
    assert text.replace("\u2581", " ") in tokenizer.decode(ids[:-1]).replace("\u2581", " ")


@pytest.mark.parametrize("type", [NORMAL, CONTROL, USER_DEFINED])
def test_a_token_of_another_name_keeps_its_type(type: int) -> None:
    tokenizer = with_tokens("gpt2", {"<turn|>": CONTROL, "<tool_call>": type})
    id = tokenizer.vocab_size - 1
    assert id not in tokenizer.end_ids
    assert (tokenizer.encode("<tool_call>", add_special=False) == [id]) == (type != NORMAL)
    assert (tokenizer.decode([id]) == "") == (type == CONTROL)


def test_user_defined_tokens_that_look_like_control_tokens_are_no_users_words() -> None:
    """Converters of early 2024 stored all added tokens as user-defined ones, those that begin turns too."""
    tokenizer = with_tokens("gpt2", {"<turn|>": CONTROL, "<|turn_start|>": USER_DEFINED})
    id = tokenizer.vocab_size - 1
    assert tokenizer.encode("<|turn_start|>", add_special=False) == [id]
    assert id not in tokenizer.encode_chat([{"role": "user", "content": "<|turn_start|>"}])


@pytest.mark.parametrize(
    ("texts", "ends"),
    [
        ({"<|end|>", "x"}, {"<|end|>"}),
        ({"<|end|>", "<|return|>"}, {"<|end|>", "<|return|>"}),
        ({"<|end|>", "<|return|>", "<|call|>"}, {"<|return|>", "<|call|>"}),
        ({"</s>", "<eos>"}, {"</s>", "<eos>"}),
        ({"</s>", "<eos>", "<|tool_response>"}, {"<eos>", "<|tool_response>"}),
    ],
)
def test_exceptions_of_gpt_oss_and_gemma_4(texts: set[str], ends: set[str]) -> None:
    assert end_of_turn(texts) == ends


def test_harmonys_end_of_a_message_stays_a_control_token() -> None:
    tokenizer = with_tokens("gpt2", {"<|end|>": CONTROL, "<|return|>": CONTROL, "<|call|>": CONTROL})
    end = tokenizer.encode("<|end|>", add_special=False)
    assert len(end) == 1
    assert not tokenizer.end_ids.issuperset(end)
    assert tokenizer.decode(end) == ""


def save(directory: Path, added: list[tuple[str, bool]], *, begins: bool = False, **config: Any) -> Tokenizer:
    """A Hugging Face directory whose tokenizer.json has some added tokens, special or not.

    With `begins` its post-processor puts the last of them before a text.
    """
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
    for text, special in added:
        made.add_tokens([tokenizers.AddedToken(text, special=special, normalized=False)])
    if begins:
        last = added[-1][0]
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{last} $A", special_tokens=[(last, made.token_to_id(last))]
        )
    directory.mkdir(exist_ok=True)
    made.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config})
    )
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return Tokenizer.from_checkpoint(checkpoint(directory, {}))


@pytest.mark.parametrize("special", [False, True])
def test_directories_know_ends_of_turns_by_text_too(special: bool, tmp_path: Path) -> None:
    tokenizer = save(tmp_path, [("<turn|>", True), ("<eos>", special)])
    id = tokenizer.vocab_size - 1
    assert id in tokenizer.end_ids
    assert tokenizer.decode([id]) == ""
    assert id not in tokenizer.encode_chat([{"role": "user", "content": "<eos>"}])


def test_directories_know_control_tokens_by_their_shape_too(tmp_path: Path) -> None:
    """Qwen's <|fim_prefix|> is special in no file, while <tool_call> is a word."""
    tokenizer = save(tmp_path, [("<turn|>", True), ("<|fim_prefix|>", False), ("<tool_call>", False)])
    prefix, word = (tokenizer.vocab_size - 2, tokenizer.vocab_size - 1)
    ids = tokenizer.encode_chat([{"role": "user", "content": "<|fim_prefix|><tool_call>"}])
    assert prefix not in ids
    assert word in ids
    assert tokenizer.encode("<|fim_prefix|>", add_special=False) == [prefix]


OBJECT = {"__type": "AddedToken", "normalized": False, "special": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "by id": {"added_tokens_decoder": {"1501": {"content": "<b>", "special": False, "rstrip": True}}},
    "by name": {"eos_token": "<end>", "pad_token": {"content": "<pad>", "lstrip": True, **OBJECT}},
    "a list": {"additional_special_tokens": ["<x>", "<y>"]},
    "nothing": {},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_that_only_tokenizer_config_names_count(name: str, tmp_path: Path) -> None:
    added = [("<turn|>", True)]
    tokenizer = save(tmp_path, added, **CONFIGS[name])
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a <b> c", "<end>", "x <pad> y", "<x><y>", "a<turn|>"):
        ids = theirs.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text, add_special=False) == ids
        assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert tokenizer.decode(ids, skip_special=False) == theirs.decode(ids)
    assert tokenizer.vocab_size == len(theirs)
    if name == "by name":
        assert theirs.eos_token_id in tokenizer.end_ids


@pytest.mark.parametrize("value", [None, 7, "x", [7], {"a": 7}, [None], {"5": None}, {"x": {"content": 5}}])
@pytest.mark.parametrize(
    "key", ["added_tokens_decoder", "additional_special_tokens", "bos_token", "add_bos_token"]
)
def test_a_strange_value_in_tokenizer_config_names_nothing(key: str, value: Any, tmp_path: Path) -> None:
    tokenizer = save(tmp_path, [("<turn|>", True)], **{key: value})
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("kind", ["gguf", "directory"])
def test_a_chat_begins_as_its_template_says(kind: str, asks: bool, writes: bool, tmp_path: Path) -> None:
    """As transformers does: a begin token that the file asks for belongs to plain text, not to a chat."""
    source = ("{{ bos_token }}" if writes else "") + TEMPLATE
    if kind == "gguf":
        tokenizer = from_metadata(
            {**byte_level(), "tokenizer.ggml.add_bos_token": asks, "tokenizer.chat_template": source}
        )
        bos = 0
    else:
        save(tmp_path, [("<turn|>", True), ("<bos>", True)], bos_token="<bos>", begins=asks)
        (tmp_path / "chat_template.jinja").write_text(source)
        tokenizer = Tokenizer.from_checkpoint(checkpoint(tmp_path, {}))
        bos = tokenizer.vocab_size - 1
        theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
        messages = [{"role": "user", "content": "hi"}]
        assert theirs.apply_chat_template(messages, return_dict=False).count(bos) == writes
        assert theirs.encode("hi") == tokenizer.encode("hi")
    assert tokenizer.bos_id == bos
    assert tokenizer.encode("hi").count(bos) == asks
    assert tokenizer.encode_chat([{"role": "user", "content": "hi"}]).count(bos) == writes


def test_glm_answers_end_where_another_turn_begins() -> None:
    roles = ["<|user|>", "<|assistant|>", "<|observation|>"]
    assert end_of_turn([*roles, "[gMASK]", "<sop>"]) == {"<|user|>", "<|observation|>"}
    assert end_of_turn(roles) == set()


def test_suppressed_tokens_are_known_by_their_key() -> None:
    metadata = byte_level()
    suppressed = np.array([3, 5, 1 << 20, -1], np.int32)
    assert from_metadata({**metadata, "tokenizer.ggml.suppress_tokens": suppressed}).suppressed == {3, 5}
    assert from_metadata(metadata).suppressed == set()
