"""A tokenizer from GGUF's ``tokenizer.*`` metadata (github.com/ggml-org/ggml, docs/gguf.md)."""

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hotset.core.errors import CheckpointError
from hotset.formats.keys import shown
from hotset.tokenizer.chat_template import ChatTemplate
from hotset.tokenizer.fast import byte_level_bpe, byte_level_decoder
from hotset.tokenizer.pretokenizers import PRE_TOKENIZERS
from hotset.tokenizer.sentencepiece import SPACE, SentencePieceEncoder
from hotset.tokenizer.vocabulary import END_OF_TURN, Encoder, Vocabulary

_T = TypeVar("_T")


class TokenType(IntEnum):
    """Values of ``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def read_metadata(name: str, metadata: Mapping[str, Any]) -> tuple[Encoder, Vocabulary, ChatTemplate | None]:
    """Build the parts of a `Tokenizer`; errors begin with ``name``, the file's."""
    return _Reader(name, metadata).read()


class _Reader:
    def __init__(self, name: str, metadata: Mapping[str, Any]) -> None:
        self._name = name
        self._metadata = metadata

    def read(self) -> tuple[Encoder, Vocabulary, ChatTemplate | None]:
        model = self._get("model", str)
        if model is None:
            raise self._error(
                "missing key tokenizer.ggml.model: the file has no tokenizer; convert the model again"
            )
        if model not in ("gpt2", "llama"):
            raise self._error(f"tokenizer.ggml.model: expected gpt2 or llama, found {shown(model)}")
        self._tokens = self._strings("tokens")
        self._ids = dict(zip(self._tokens, range(len(self._tokens)), strict=True))
        if len(self._ids) < len(self._tokens):
            second = next(id for id, token in enumerate(self._tokens) if self._ids[token] != id)
            first = self._ids[self._tokens[second]]
            raise self._error(
                f"tokenizer.ggml.tokens: {second} and {first} are both {shown(self._tokens[first])}"
            )
        self._types = self._token_types()
        return self._byte_level() if model == "gpt2" else self._sentencepiece()

    def _byte_level(self) -> tuple[Encoder, Vocabulary, ChatTemplate | None]:
        pre = self._get("pre", str)
        if pre is None:
            raise self._error(
                "missing key tokenizer.ggml.pre: convert the model again with a newer converter"
            )
        if pre not in PRE_TOKENIZERS:
            raise self._error(
                f"tokenizer.ggml.pre: expected one of {', '.join(PRE_TOKENIZERS)}, found {shown(pre)}"
            )
        pre_tokenizer = PRE_TOKENIZERS[pre]
        encoder = byte_level_bpe(
            self._ids,
            self._strings("merges"),
            pre_tokenizer,
            control=list(self._control()),
            user_defined=list(self._of_type(TokenType.USER_DEFINED)),
            name=self._name,
        )
        decode = byte_level_decoder()
        return self._finish(encoder, decode, add_bos=pre_tokenizer.add_bos, space_prefixed=False)

    def _sentencepiece(self) -> tuple[Encoder, Vocabulary, ChatTemplate | None]:
        space_prefixed = self._flag("add_space_prefix", True)
        byte_of = {f"<0x{byte:02X}>": byte for byte in range(256)}
        byte_ids = [self._ids[text] for text in byte_of if text in self._ids]
        if len(byte_ids) < len(byte_of):
            raise self._error(
                f"tokenizer.ggml.tokens: expected 256 byte tokens <0x00> to <0xFF>, found {len(byte_ids)}; "
                "Hotset needs byte fallback"
            )
        pieces = self._ids.copy()
        for text in self._control().keys() | self._of_type(TokenType.BYTE).keys() | byte_of.keys():
            pieces.pop(text, None)
        encoder = SentencePieceEncoder(
            pieces=pieces,
            scores=self._scores(),
            byte_ids=byte_ids,
            control=self._control(),
            user_defined=self._of_type(TokenType.USER_DEFINED),
            add_space_prefix=space_prefixed,
            remove_extra_whitespaces=self._flag("remove_extra_whitespaces", False),
        )

        def decode(token: str) -> bytes:
            byte = byte_of.get(token)
            return token.replace(SPACE, " ").encode() if byte is None else bytes([byte])

        return self._finish(encoder, decode, add_bos=True, bos=1, eos=2, space_prefixed=space_prefixed)

    def _finish(
        self,
        encoder: Encoder,
        decode: Callable[[str], bytes],
        *,
        add_bos: bool,
        bos: int | None = None,
        eos: int | None = None,
        space_prefixed: bool,
    ) -> tuple[Encoder, Vocabulary, ChatTemplate | None]:
        """``add_bos``, ``bos`` and ``eos`` are the model's defaults where the file has no such key."""
        control = self._control()
        verbatim = frozenset(control.values()) | frozenset(self._of_type(TokenType.USER_DEFINED).values())
        tokens = self._tokens

        def token_bytes(id: int) -> bytes:
            return tokens[id].encode() if id in verbatim else decode(tokens[id])

        bos_id, eos_id = self._id("bos_token_id", bos), self._id("eos_token_id", eos)
        ends = {eos_id, self._id("eot_token_id"), self._id("eom_token_id")} - {None}
        vocabulary = Vocabulary(
            size=len(tokens),
            token_bytes=token_bytes,
            control=control,
            bos_id=bos_id,
            end_ids={id for id in ends if id is not None}
            | {control[text] for text in END_OF_TURN & control.keys()},
            prefix=self._added("add_bos_token", add_bos, "bos_token_id", bos_id),
            suffix=self._added("add_eos_token", False, "eos_token_id", eos_id),
            space_prefixed=space_prefixed,
        )
        source = self._metadata.get("tokenizer.chat_template")
        if source is None:
            return encoder, vocabulary, None
        if not isinstance(source, str):
            raise self._error(f"tokenizer.chat_template: expected a string, found {type(source).__name__}")
        return (
            encoder,
            vocabulary,
            ChatTemplate(
                source,
                bos_token="" if bos_id is None else tokens[bos_id],
                eos_token="" if eos_id is None else tokens[eos_id],
            ),
        )

    def _control(self) -> dict[str, int]:
        return self._of_type(TokenType.CONTROL) | self._of_type(TokenType.UNKNOWN)

    def _of_type(self, type: TokenType) -> dict[str, int]:
        """The tokens of a type, id by text; an empty text cannot be found in any other and is left out."""
        ids = np.flatnonzero(self._types == type).tolist()
        return {self._tokens[id]: id for id in ids if self._tokens[id]}

    def _added(self, flag: str, default: bool, key: str, id: int | None) -> list[int]:
        if not self._flag(flag, default):
            return []
        if id is None:
            raise self._error(f"missing key tokenizer.ggml.{key}: tokenizer.ggml.{flag} asks for that token")
        return [id]

    def _error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self._name}: {text}")

    def _get(self, key: str, kind: type[_T]) -> _T | None:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is not None and not isinstance(value, kind):
            raise self._error(f"tokenizer.ggml.{key}: expected {kind.__name__}, found {type(value).__name__}")
        return value

    def _flag(self, key: str, default: bool) -> bool:
        value = self._get(key, bool)
        return default if value is None else value

    def _id(self, key: str, default: int | None = None) -> int | None:
        value = self._get(key, int)
        if value is None:
            return default if default is not None and default < len(self._tokens) else None
        if not 0 <= value < len(self._tokens):
            raise self._error(
                f"tokenizer.ggml.{key}: expected an id below {len(self._tokens)}, found {value}"
            )
        return value

    def _strings(self, key: str) -> list[str]:
        values = self._get(key, list)
        if not values or set(map(type, values)) != {str}:
            raise self._error(f"tokenizer.ggml.{key}: expected a list of strings; convert the model again")
        return values

    def _numbers(self, key: str) -> NDArray[Any] | None:
        values = self._metadata.get(f"tokenizer.ggml.{key}")
        if values is None:
            return None
        numbers = np.asarray(values)
        if numbers.shape != (len(self._tokens),) or numbers.dtype.kind not in "iuf":
            raise self._error(
                f"tokenizer.ggml.{key}: expected a number a token ({len(self._tokens)}), found {numbers.size}"
            )
        return numbers

    def _token_types(self) -> NDArray[Any]:
        types = self._numbers("token_type")
        return np.full(len(self._tokens), TokenType.NORMAL) if types is None else types

    def _scores(self) -> NDArray[Any]:
        scores = self._numbers("scores")
        if scores is None:
            raise self._error("missing key tokenizer.ggml.scores, which a llama tokenizer needs")
        if not np.isfinite(scores).all():
            raise self._error("tokenizer.ggml.scores: expected finite numbers")
        return scores
