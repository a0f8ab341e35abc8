"""A tokenizer from a Hugging Face directory: ``tokenizer.json`` and the small JSON files beside it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotset.core.errors import CheckpointError
from hotset.formats.as_gguf import BESIDE, TOKENIZER
from hotset.formats.keys import shown
from hotset.tokenizer.chat_template import ChatTemplate
from hotset.tokenizer.fast import FastEncoder, byte_level_decoder, rust_errors
from hotset.tokenizer.sentencepiece import SPACE
from hotset.tokenizer.vocabulary import Encoder, Vocabulary, end_of_turn, looks_like_control

if TYPE_CHECKING:
    import tokenizers

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class TokenizerFiles:
    """``tokenizer.json`` and the small files beside it, wherever they are."""

    name: Callable[[str], str]
    """How messages name a file."""
    read: Callable[[str], bytes | None]
    """A file's bytes; None where there is none."""

    def json(self, file: str) -> dict[str, Any]:
        """The parsed file; empty where there is none."""
        data = self.read(file)
        if data is None:
            return {}
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as reason:
            raise CheckpointError(f"{self.name(file)} cannot be read as JSON: {reason}") from None
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.name(file)}: expected a JSON object, found {type(value).__name__}")
        return value


def directory_files(path: Path) -> TokenizerFiles:
    """The files of a Hugging Face directory; `CheckpointError` if there is no tokenizer.json."""
    if not (path / "tokenizer.json").is_file():
        found = "tokenizer.model alone" if (path / "tokenizer.model").is_file() else "none"
        raise CheckpointError(
            f"{path}: expected tokenizer.json, found {found}; "
            "write it with transformers: AutoTokenizer.from_pretrained(path).save_pretrained(path)"
        )

    def read(file: str) -> bytes | None:
        try:
            return (path / file).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as reason:
            raise CheckpointError(f"{path / file} cannot be read: {reason}") from None

    return TokenizerFiles(lambda file: str(path / file), read)


def embedded_files(name: str, metadata: Mapping[str, Any]) -> TokenizerFiles:
    """The files that GGUF's metadata hold, see `hotset.formats.as_gguf`."""

    def key(file: str) -> str:
        return TOKENIZER if file == "tokenizer.json" else BESIDE + file

    def read(file: str) -> bytes | None:
        text = metadata.get(key(file))
        return text.encode() if isinstance(text, str) else None

    return TokenizerFiles(lambda file: f"{name}: {key(file)}", read)


def read_files(
    files: TokenizerFiles, config: Mapping[str, Any]
) -> tuple[Encoder, Vocabulary, ChatTemplate | None]:
    """Build the parts of a `Tokenizer` from its files and the parsed ``config.json``."""
    from tokenizers import Tokenizer

    file = files.name("tokenizer.json")
    special = files.json("special_tokens_map.json") | files.json("tokenizer_config.json")
    _check_merges(files)
    with rust_errors(CheckpointError, f"{file} cannot be read as a tokenizer"):
        tokenizer = Tokenizer.from_buffer(files.read("tokenizer.json") or b"")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _add_tokens(tokenizer, special)
        decoder = _TokenDecoder(
            json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else None, file
        )
        plain = tokenizer.encode("a", add_special_tokens=False).ids
        whole = tokenizer.encode("a", add_special_tokens=True).ids
        added = tokenizer.get_added_tokens_decoder()
        size = max([tokenizer.get_vocab_size(with_added_tokens=False) - 1, *added]) + 1

    generation = files.json("generation_config.json")
    named = {key: text for key in _NAMED if (text := _token_text(special.get(key))) is not None}
    bos_text, eos_text = named.get("bos_token"), named.get("eos_token")
    control = {token.content: id for id, token in added.items() if token.special and token.content}
    texts = {id: token.content.encode() for id, token in added.items()}

    def token_bytes(id: int) -> bytes:
        if (text := texts.get(id)) is not None:
            return text
        token = tokenizer.id_to_token(id)
        return b"" if token is None else decoder(token)

    begins = _ids(tokenizer.token_to_id(bos_text) if bos_text else config.get("bos_token_id"))
    bos_id = next((id for id in begins if id < size), None)
    ends = [
        *_ids(generation.get("eos_token_id")),
        *_ids(config.get("eos_token_id")),
        *_ids(tokenizer.token_to_id(eos_text) if eos_text else None),
        *(tokenizer.token_to_id(text) for text in end_of_turn(tokenizer.get_vocab())),
    ]
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    vocabulary = Vocabulary(
        size=size,
        token_bytes=token_bytes,
        control=control,
        bos_id=bos_id,
        end_ids={id for id in ends if id is not None and id < size},
        prefix=whole[:start],
        suffix=whole[start + len(plain) :],
        space_prefixed=decoder.space_prefixed,
        suppressed=[id for id in _ids(generation.get("suppress_tokens")) if id < size],
    )
    template = _template(files, files.json("chat_template.json") | special, named)
    return FastEncoder(tokenizer, control.values()), vocabulary, template


def _add_tokens(tokenizer: "tokenizers.Tokenizer", special: Mapping[str, Any]) -> None:
    """Add the tokens that the small files alone name, as transformers does.

    Those with a part to play are special in any case, and so is what ends a turn or looks like control.
    """
    from tokenizers import AddedToken

    def add(text: str, flags: Mapping[str, Any]) -> None:
        tokenizer.add_tokens([AddedToken(text, **flags)])

    listed = special.get("added_tokens_decoder")
    listed = listed if isinstance(listed, dict) else {}
    lists = [special.get(key) for key in ("extra_special_tokens", "additional_special_tokens")]
    lists = [list(group.values()) if isinstance(group, dict) else group for group in lists]
    entries = [
        *(listed[id] for id in sorted(listed, key=lambda id: (len(id), id))),
        *(special.get(key) for key in _NAMED),
        *(entry for group in lists if isinstance(group, list) for entry in group),
    ]
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for entry in entries:
        text = _token_text(entry)
        if text and text not in known:
            given = entry if isinstance(entry, dict) else {}
            flags = {key: given[key] for key in _FLAGS if isinstance(given.get(key), bool)}
            add(text, {"special": True, "normalized": False} | flags)
            known.add(text)
    named = end_of_turn(known) | {_token_text(special.get(key)) for key in _NAMED}
    for token in tokenizer.get_added_tokens_decoder().values():
        if not token.special and (token.content in named or looks_like_control(token.content)):
            add(token.content, {key: getattr(token, key) for key in _FLAGS} | {"special": True})


class _TokenDecoder:
    """What a ``tokenizer.json``'s ``decoder`` makes of a token, and whether it takes away a first space."""

    def __init__(self, decoder: Mapping[str, Any] | None, file: str) -> None:
        self.space_prefixed = False
        self._byte_level = None
        self._spaces = self._bytes = False
        steps = [] if decoder is None else decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        for step in steps or [{"type": "none"}]:
            match step:
                case {"type": "ByteLevel"}:
                    self._byte_level = byte_level_decoder()
                case {"type": "Replace", "pattern": {"String": pattern}, "content": " "} if pattern == SPACE:
                    self._spaces = True
                case {"type": "Metaspace", "replacement": replacement} if replacement == SPACE:
                    self._spaces = True
                    self.space_prefixed |= step.get("prepend_scheme") != "never"
                case {"type": "ByteFallback"}:
                    self._bytes = True
                case {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
                    self.space_prefixed = True
                case {"type": "Fuse"}:
                    pass
                case _:
                    raise CheckpointError(
                        f"{file}: decoder: expected ByteLevel, or SentencePiece's Replace, Metaspace, "
                        f"ByteFallback, Fuse and Strip, found {step['type']}"
                    )

    def __call__(self, token: str) -> bytes:
        if self._byte_level:
            return self._byte_level(token)
        if self._bytes and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes.fromhex(token[3:5])
            except ValueError:
                pass
        return (token.replace(SPACE, " ") if self._spaces else token).encode()


def _check_merges(files: TokenizerFiles) -> None:
    """Refuse BPE with a prefix within words, which no decoder here has.

    With merges that lack the prefix, `tokenizers` cuts through characters and ends the process.
    """
    model = files.json("tokenizer.json").get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        return
    if (prefix := model.get("continuing_subword_prefix")) not in (None, ""):
        raise CheckpointError(
            f"{files.name('tokenizer.json')}: model.continuing_subword_prefix: expected none, "
            f"found {shown(prefix)}"
        )


def _token_text(token: Any) -> str | None:
    """A special token is given as its text or as an object that has it."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _ids(value: Any) -> list[int]:
    """A token id, a list of them or nothing."""
    values = value if isinstance(value, list) else [value]
    return [id for id in values if isinstance(id, int) and not isinstance(id, bool) and id >= 0]


def _template(
    files: TokenizerFiles, configured: Mapping[str, Any], tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """``chat_template.jinja``, else what the JSON files say: a string, or a list of named ones."""
    entry = configured.get("chat_template")
    if isinstance(entry, list):
        named = {item.get("name"): item.get("template") for item in entry if isinstance(item, dict)}
    else:
        named = {"default": entry}
    default, tool_use = (
        _text(files, file) or named.get(name)
        for file, name in (
            ("chat_template.jinja", "default"),
            ("additional_chat_templates/tool_use.jinja", "tool_use"),
        )
    )
    if not isinstance(default, str) or not default:
        return None
    tokens = {"bos_token": "", "eos_token": ""} | dict(tokens)
    return ChatTemplate(default, tokens, tool_use=tool_use if isinstance(tool_use, str) else None)


def _text(files: TokenizerFiles, file: str) -> str | None:
    data = files.read(file)
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError as reason:
        raise CheckpointError(f"{files.name(file)} cannot be read: {reason}") from None
