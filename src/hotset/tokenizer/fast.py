"""The `tokenizers` library behind this package's two needs: encode text, and name one token's bytes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from hotset.core.errors import CheckpointError, HotsetError, RequestError
from hotset.tokenizer.pretokenizers import PreTokenizer

if TYPE_CHECKING:
    import tokenizers


@contextmanager
def rust_errors(error: type[HotsetError], what: str) -> Iterator[None]:
    """Turn whatever `tokenizers` raises, Rust panics too, into one line that begins with ``what``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, HotsetError):
        raise
    except BaseException as reason:  # a panic is no Exception
        raise error(f"{what}: {' '.join(str(reason).split()) or type(reason).__name__}") from None


class FastEncoder:
    """Encodes with a `tokenizers.Tokenizer`; may be shared by threads."""

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._lock = Lock()

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Token ids of ``text``, with no begin or end token added."""
        # Whether special tokens are found in text is a state of the Rust object, hence the lock.
        with rust_errors(RequestError, "the text cannot be tokenised"), self._lock:
            self._tokenizer.encode_special_tokens = not parse_special
            return self._tokenizer.encode(text, add_special_tokens=False).ids


def byte_level_bpe(
    ids: dict[str, int],
    merges: Sequence[str],
    pre_tokenizer: PreTokenizer,
    *,
    control: Sequence[str],
    user_defined: Sequence[str],
    name: str,
) -> FastEncoder:
    """Byte-level BPE as GPT-2's: ``ids`` by token, ``merges`` by rank, each two tokens with a space between.

    ``user_defined`` tokens are found in every text, ``control`` tokens only where the caller allows it.
    Errors begin with ``name``.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    with rust_errors(CheckpointError, f"{name}: the tokenizer's merges do not fit its tokens"):
        model = models.BPE(
            vocab=ids,
            merges=[tuple(merge.split(" ")) for merge in merges],  # type: ignore[misc]
            ignore_merges=pre_tokenizer.ignore_merges,
        )
    with rust_errors(CheckpointError, f"{name}: the tokenizer cannot be built"):
        tokenizer = Tokenizer(model)
        if pre_tokenizer.nfc:
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Split(Regex(text), "isolated") for text in pre_tokenizer.expressions),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in user_defined])
    return FastEncoder(tokenizer)


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins: bytes that print are themselves, the others follow from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


def byte_level_decoder() -> Callable[[str], bytes]:
    """Maps a token of byte-level BPE to its bytes; one that is not in its alphabet is taken as plain text."""
    byte_of = _byte_of_character()

    def decode(token: str) -> bytes:
        try:
            return bytes([byte_of[character] for character in token])
        except KeyError:
            return token.encode()

    return decode
