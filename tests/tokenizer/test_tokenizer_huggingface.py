"""Hugging Face directories, against transformers' AutoTokenizer."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.small_tokenizers import CONTROL, byte_level, checkpoint, sentencepiece_model, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from hotset.core.errors import CheckpointError, HotsetError
from hotset.tokenizer import Tokenizer

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def open_directory(path: Path, config: dict[str, Any] | None = None) -> Tokenizer:
    return Tokenizer.from_checkpoint(checkpoint(path, config or {}))


def save_byte_level(path: Path, **options: Any) -> None:
    transformers = pytest.importorskip("transformers")
    metadata = byte_level()
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={token: id for id, token in enumerate(metadata["tokenizer.ggml.tokens"])},
        merges=[tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]],
        bos_token=CONTROL[0],
        eos_token=CONTROL[2],
        unk_token=None,
        pad_token=None,
        extra_special_tokens=CONTROL[1:2],
        **options,
    )
    tokenizer.add_tokens(["<tag>"])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)


def save_with_begin_token(path: Path) -> None:
    """As OPT and Llama 3 do: a post-processor puts a begin token before the text."""
    from tokenizers.processors import TemplateProcessing

    save_byte_level(path)
    fast = pytest.importorskip("tokenizers").Tokenizer.from_file(str(path / "tokenizer.json"))
    fast.post_processor = TemplateProcessing(single=f"{CONTROL[0]} $A", special_tokens=[(CONTROL[0], 0)])
    fast.enable_truncation(5)  # belongs to training
    fast.save(str(path / "tokenizer.json"))


def save_llama(path: Path) -> None:
    """SentencePiece with a space before the text; transformers converts the model to tokenizer.json."""
    transformers = pytest.importorskip("transformers")
    path.mkdir(exist_ok=True)
    (path / "tokenizer.model").write_bytes(sentencepiece_model(add_dummy_prefix=True))
    (path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "LlamaTokenizer", "add_bos_token": true}'
    )
    transformers.AutoTokenizer.from_pretrained(path).save_pretrained(path)


KINDS = {"byte-level": save_byte_level, "begin token": save_with_begin_token, "llama": save_llama}


@pytest.mark.parametrize("kind", KINDS)
def test_directories_equal_transformers(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path)
    ours = open_directory(tmp_path)
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)

    @settings(max_examples=80, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        for special in (False, True):
            ids = ours.encode(text, add_special=special)
            assert ids == theirs.encode(text, add_special_tokens=special, truncation=False)
            for skip in (False, True):
                assert ours.decode(ids, skip_special=skip) == theirs.decode(ids, skip_special_tokens=skip)

    check()
    assert ours.vocab_size == len(theirs)
    assert ours.bos_id == theirs.bos_token_id
    assert theirs.eos_token_id in ours.end_ids


@pytest.mark.parametrize("kind", KINDS)
def test_plain_text_gives_no_control_token(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path)
    ours = open_directory(tmp_path)
    text = "".join(CONTROL) + "<s></s><unk>"
    ids = ours.encode(text, add_special=False, parse_special=False)
    assert ours.decode(ids) == text
    assert not ours.end_ids & set(ids)


def test_conversations_equal_transformers(tmp_path: Path) -> None:
    save_byte_level(tmp_path)
    ours = open_directory(tmp_path)
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "Hello\n\nthere <b"}, {"role": "assistant", "content": "東京"}]
    assert ours.encode_chat(messages) == theirs.apply_chat_template(messages, return_dict=False)


def test_every_source_of_end_tokens_counts(tmp_path: Path) -> None:
    save_byte_level(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8, 99999999]}')
    assert open_directory(tmp_path, {"eos_token_id": 9}).end_ids == {2, 7, 8, 9}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"chat_template.jinja": "from file"}, "from file"),
        ({"tokenizer_config.json": json.dumps({"chat_template": "from string"})}, "from string"),
        (
            {
                "tokenizer_config.json": json.dumps(
                    {
                        "chat_template": [
                            {"name": "rag", "template": "no"},
                            {"name": "default", "template": "yes"},
                        ]
                    }
                )
            },
            "yes",
        ),
        ({"tokenizer_config.json": "{}"}, None),
        ({"tokenizer_config.json": "{}", "chat_template.json": '{"chat_template": "own file"}'}, "own file"),
    ],
)
def test_the_chat_template_is_found(files: dict[str, str], expected: str | None, tmp_path: Path) -> None:
    save_byte_level(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    template = open_directory(tmp_path).chat_template
    assert (template and template.source) == expected


def test_a_missing_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"expected tokenizer\.json, found none; write it with transformers"
    ):
        open_directory(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"expected tokenizer\.json, found tokenizer\.model alone"):
        open_directory(tmp_path)


def test_a_decoder_that_is_unknown_is_refused_by_name(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    fast = tokenizers.Tokenizer(tokenizers.models.WordPiece({"a": 0}, unk_token="a"))
    fast.decoder = tokenizers.decoders.WordPiece()
    fast.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="found WordPiece"):
        open_directory(tmp_path)


def test_a_prefix_within_words_is_refused(tmp_path: Path) -> None:
    save_byte_level(tmp_path)
    file = tmp_path / "tokenizer.json"
    damaged = json.loads(file.read_text())
    damaged["model"]["continuing_subword_prefix"] = "x"
    file.write_text(json.dumps(damaged))
    with pytest.raises(CheckpointError, match="continuing_subword_prefix: expected none, found 'x'"):
        open_directory(tmp_path)


def test_damaged_tokenizer_json_never_crashes(tmp_path: Path) -> None:
    save_with_begin_token(tmp_path)
    file = tmp_path / "tokenizer.json"
    whole = json.loads(file.read_text())
    spots = [
        (parent, key)
        for parent in (whole, whole["model"], *whole["added_tokens"], *children(whole["post_processor"]))
        for key in (parent if isinstance(parent, dict) else range(len(parent)))
    ]
    values = (
        st.none()
        | st.booleans()
        | st.integers(-1, 2**33)
        | st.sampled_from(["", "x", [], {}, [[]], {"a": 1}])
    )

    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from(range(len(spots))), values)
    def check(spot: int, value: Any) -> None:
        parent, key = spots[spot]
        kept, parent[key] = parent[key], value
        file.write_text(json.dumps(whole))
        parent[key] = kept
        try:
            ours = open_directory(tmp_path)
            ours.decode(ours.encode("The end. <|im_end|> 東京"))
        except HotsetError as error:
            assert "\n" not in str(error)

    check()


def children(value: Any) -> list[Any]:
    """Every object and list within a JSON value, itself included."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (
        [value, *(found for item in inner for found in children(item))]
        if isinstance(value, dict | list)
        else []
    )


def test_threads_do_not_share_what_they_allow(tmp_path: Path) -> None:
    save_byte_level(tmp_path)
    ours = open_directory(tmp_path)

    def encode(parse_special: bool) -> set[tuple[int, ...]]:
        text = "hello <|im_end|> " * 20
        return {tuple(ours.encode(text, parse_special=parse_special)) for _ in range(200)}

    with ThreadPoolExecutor(2) as pool:
        parsed, plain = pool.map(encode, [True, False])
    assert len(parsed) == len(plain) == 1
    assert ours.end_ids & set(*parsed)
    assert not ours.end_ids & set(*plain)


BROKEN = {
    "empty": "",
    "not JSON": "{",
    "a list": "[]",
    "no model": "{}",
    "a number": "7",
    "not UTF-8": b"\xff\xfe",
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_broken_files_give_one_line_that_names_them(name: str, text: str | bytes, tmp_path: Path) -> None:
    save_byte_level(tmp_path)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        open_directory(tmp_path)
    except HotsetError as error:
        assert name in str(error)
        assert "\n" not in str(error)
    else:
        assert name != "tokenizer.json"
        assert text == "{}"


def test_an_end_token_of_the_post_processor_is_added_to_texts_that_are_over(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    save_byte_level(tmp_path)
    fast = pytest.importorskip("tokenizers").Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    fast.post_processor = TemplateProcessing(single=f"$A {CONTROL[2]}", special_tokens=[(CONTROL[2], 2)])
    fast.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_directory(tmp_path)
    assert tokenizer.encode("hello", add_end=True) == [*tokenizer.encode("hello"), 2]
