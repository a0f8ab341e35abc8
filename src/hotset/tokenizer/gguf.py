"""A tokenizer from GGUF's ``tokenizer.*`` metadata (github.com/ggml-org/ggml, docs/gguf.md)."""

import logging
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hotset.core.errors import CheckpointError
from hotset.formats.keys import shown
from hotset.tokenizer.chat_template import ChatTemplate
from hotset.tokenizer.fast import byte_fallback_bpe, byte_level_bpe, byte_level_decoder
from hotset.tokenizer.pretokenizers import PRE_TOKENIZERS
from hotset.tokenizer.sentencepiece import SPACE, SentencePieceEncoder
from hotset.tokenizer.vocabulary import Encoder, Vocabulary, end_of_turn, looks_like_control

_T = TypeVar("_T")
_BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
_log = logging.getLogger(__name__)


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


def _piece(token: str) -> bytes:
    """What a piece of SentencePiece's shows."""
    byte = _BYTES.get(token)
    return token.replace(SPACE, " ").encode() if byte is None else bytes([byte])


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
        kinds = {
            "gpt2": self._byte_level,
            "llama": self._sentencepiece,
            "gemma4": self._byte_fallback,
        }
        if model not in kinds:
            raise self._error(
                f"tokenizer.ggml.model: expected one of {', '.join(kinds)}, found {shown(model)}"
            )
        self._tokens = self._strings("tokens")
        self._types = self._token_types()
        self._ends = end_of_turn(self._tokens)
        self._control = self._control_tokens()
        self._user_defined = {
            text: id
            for text, id in self._of_type(TokenType.USER_DEFINED).items()
            if text not in self._control
        }
        # Of several tokens with one text the last is met in text; a text that is empty is met nowhere.
        self._ids = {text: id for id, text in enumerate(self._tokens) if text} | self._control
        return kinds[model]()

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
            control=list(self._control),
            user_defined=list(self._user_defined),
            name=self._name,
        )
        decode = byte_level_decoder()
        return self._finish(encoder, decode, add_bos=pre_tokenizer.add_bos, space_prefixed=False)

    def _sentencepiece(self) -> tuple[Encoder, Vocabulary, ChatTemplate | None]:
        space_prefixed = self._flag("add_space_prefix", True)
        byte_ids = self._byte_ids()
        pieces = self._ids.copy()
        for text in self._control.keys() | self._of_type(TokenType.BYTE).keys() | _BYTES.keys():
            pieces.pop(text, None)
        encoder = SentencePieceEncoder(
            pieces=pieces,
            scores=self._scores(),
            byte_ids=byte_ids,
            control=self._control,
            user_defined=self._user_defined,
            add_space_prefix=space_prefixed,
            remove_extra_whitespaces=self._flag("remove_extra_whitespaces", False),
            swallow_spaces=self._swallow_spaces(),
        )
        return self._finish(encoder, _piece, add_bos=True, bos=1, eos=2, space_prefixed=space_prefixed)

    def _byte_fallback(self) -> tuple[Encoder, Vocabulary, ChatTemplate | None]:
        self._byte_ids()
        encoder = byte_fallback_bpe(
            self._ids,
            self._strings("merges"),
            control=list(self._control),
            user_defined=list(self._user_defined),
            name=self._name,
        )
        return self._finish(encoder, _piece, add_bos=True, space_prefixed=False)

    def _byte_ids(self) -> list[int]:
        ids = [self._ids[text] for text in _BYTES if text in self._ids]
        if len(ids) < len(_BYTES):
            raise self._error(
                f"tokenizer.ggml.tokens: expected 256 byte tokens <0x00> to <0xFF>, found {len(ids)}; "
                "Hotset needs byte fallback"
            )
        return ids

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
        verbatim = {*self._control.values(), *self._user_defined.values()}
        tokens = self._tokens

        def token_bytes(id: int) -> bytes:
            return tokens[id].encode() if id in verbatim else decode(tokens[id])

        bos_id, eos_id = self._id("bos_token_id", bos), self._id("eos_token_id", eos)
        ends = (eos_id, self._id("eot_token_id"), self._id("eom_token_id"))
        vocabulary = Vocabulary(
            size=len(tokens),
            token_bytes=token_bytes,
            control=self._control,
            bos_id=bos_id,
            end_ids={id for id in ends if id is not None}
            | {id for id, text in enumerate(tokens) if text in self._ends},
            prefix=self._begin(bos_id, add_bos),
            suffix=[eos_id] if eos_id is not None and self._flag("add_eos_token", False) else [],
            space_prefixed=space_prefixed,
            suppressed=self._suppressed(),
        )
        return encoder, vocabulary, self._template(bos_id, eos_id)

    def _suppressed(self) -> list[int]:
        """Ids that are never to be chosen; others than the vocabulary's are left out."""
        stated = self._metadata.get("tokenizer.ggml.suppress_tokens")
        if stated is None:
            return []
        ids = np.asarray(stated)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise self._error(f"tokenizer.ggml.suppress_tokens: expected token ids, found {shown(stated)}")
        return [int(id) for id in ids if 0 <= id < len(self._tokens)]

    def _template(self, bos: int | None, eos: int | None) -> ChatTemplate | None:
        source, tool_use = (self._text(f"tokenizer.chat_template{name}") for name in ("", ".tool_use"))
        if source is None:
            return None
        ids = {
            "bos_token": bos,
            "eos_token": eos,
            "unk_token": self._id("unknown_token_id"),
            "pad_token": self._id("padding_token_id"),
        }
        tokens = {name: "" if id is None else self._tokens[id] for name, id in ids.items()}
        return ChatTemplate(source, tokens, tool_use=tool_use)

    def _control_tokens(self) -> dict[str, int]:
        """Id by text. Converters of early 2024 stored control tokens as user-defined or normal ones."""
        by_name = {text: id for id, text in enumerate(self._tokens) if text in self._ends}
        by_shape = {
            text: id for text, id in self._of_type(TokenType.USER_DEFINED).items() if looks_like_control(text)
        }
        return by_name | by_shape | self._of_type(TokenType.UNKNOWN) | self._of_type(TokenType.CONTROL)

    def _swallow_spaces(self) -> set[str]:
        """Tokens with spaces after them: GGUF cannot say it, and only Phi-3's of this kind have any."""
        name = str(self._metadata.get("general.name", "")).lower()
        if "phi-3" not in name and "phi3" not in name:
            return set()
        return {*self._control, *self._user_defined} - {"<unk>", "<s>", "<|endoftext|>"}

    def _of_type(self, type: TokenType) -> dict[str, int]:
        """The tokens of a type, id by text; an empty text cannot be found in any other and is left out."""
        ids = np.flatnonzero(self._types == type).tolist()
        return {self._tokens[id]: id for id in ids if self._tokens[id]}

    def _begin(self, bos: int | None, default: bool) -> list[int]:
        if not self._flag("add_bos_token", default):
            return []
        if bos is None and self._get("bos_token_id", int) is None:
            raise self._error(
                "missing key tokenizer.ggml.bos_token_id: tokenizer.ggml.add_bos_token asks for that token"
            )
        return [] if bos is None else [bos]

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
        """The token id that a key names, else ``default`` if there is such a token."""
        default = None if default is None or default >= len(self._tokens) else default
        value = self._get(key, int)
        if value is None:
            return default
        if 0 <= value < len(self._tokens):
            return value
        _log.warning(
            "%s: tokenizer.ggml.%s: expected an id below %d, found %d; the key is ignored",
            self._name,
            key,
            len(self._tokens),
            value,
        )
        return default

    def _text(self, key: str) -> str | None:
        value = self._metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise self._error(f"{key}: expected a string, found {type(value).__name__}")
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
