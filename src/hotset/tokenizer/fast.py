"""The `tokenizers` library behind this package's two needs: encode text, and name one token's bytes."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from secrets import token_hex
from threading import Lock
from typing import TYPE_CHECKING

from hotset.core.errors import CheckpointError, HotsetError, RequestError
from hotset.tokenizer.pretokenizers import PreTokenizer
from hotset.tokenizer.sentencepiece import SPACE
from hotset.tokenizer.vocabulary import Allowed

if TYPE_CHECKING:
    import tokenizers


# No text can have it: drawn again in every process, 128 bits between private-use characters.
_ALIAS = f"\ue000{token_hex(16)}\ue000"


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

    def __init__(self, tokenizer: "tokenizers.Tokenizer", control: Collection[int]) -> None:
        """``control`` are the ids of the tokenizer's special tokens."""
        self._tokenizer = tokenizer
        self._control = frozenset(control)
        # Another name that no text has for each control token that needed one; whose the names' ids are.
        self._alias: dict[int, str] = {}
        self._of_alias: dict[int, int] = {}
        self._lock = Lock()

    def encode(self, text: str, control: bool | Allowed) -> list[int]:
        # Whether special tokens are found in text is a state of the Rust object, hence the lock.
        with rust_errors(RequestError, "the text cannot be tokenised"), self._lock:
            if isinstance(control, bool):
                return self._encode(text, control).ids
            found = self._encode(text, True)
            ids = found.ids
            tokens = [
                (id, *self._span(id, found.token_to_chars(i), text))
                for i, id in enumerate(ids)
                if id in self._control
            ]
            allowed = [token for token in tokens if control(*token[1:])]
            return ids if len(allowed) == len(tokens) else self._encode_only(allowed, text)

    def _encode(self, text: str, control: bool) -> "tokenizers.Encoding":
        self._tokenizer.encode_special_tokens = not control
        # A batch, even of one, leaves other threads of Python alone meanwhile: a long text takes seconds.
        return self._tokenizer.encode_batch([text], add_special_tokens=False)[0]

    def _span(self, id: int, span: tuple[int, int] | None, text: str) -> tuple[int, int]:
        """Where a control token's own text begins and ends in ``span``, without spaces that it swallowed."""
        start, end = span or (0, 0)
        name = self._tokenizer.id_to_token(id) or ""
        at = text.find(name, start, end)
        return (start, end) if at < 0 else (at, at + len(name))

    def _encode_only(self, tokens: Sequence[tuple[int, int, int]], text: str) -> list[int]:
        """Encode with no control tokens but these (id, start, end).

        The library finds all in a text or none. So none is to be found, and those that are wanted stand under
        other names, as tokens that are found in every text: all rules about what is around them still hold.
        """
        parts: list[str] = []
        at = 0
        for id, start, end in tokens:
            parts += [text[at:start], self._alias_of(id)]
            at = end
        ids = self._encode("".join([*parts, text[at:]]), False).ids
        if sum(id in self._of_alias for id in ids) != len(tokens) or not self._control.isdisjoint(ids):
            raise RequestError("the text of a control token in a message cannot be kept apart from the token")
        return [self._of_alias.get(id, id) for id in ids]

    def _alias_of(self, id: int) -> str:
        from tokenizers import AddedToken

        if id not in self._alias:
            token = self._tokenizer.get_added_tokens_decoder()[id]
            alias = f"{_ALIAS}{id}{_ALIAS}"
            self._tokenizer.add_tokens(
                [
                    AddedToken(
                        alias,
                        single_word=token.single_word,
                        lstrip=token.lstrip,
                        rstrip=token.rstrip,
                        normalized=token.normalized,
                        special=False,
                    )
                ]
            )
            made = self._tokenizer.token_to_id(alias)
            if made is None:
                raise RequestError("the tokenizer takes no further tokens")
            self._alias[id] = alias
            self._of_alias[made] = id
        return self._alias[id]


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
    from tokenizers import Regex, normalizers, pre_tokenizers

    def rules(tokenizer: "tokenizers.Tokenizer") -> None:
        if pre_tokenizer.nfc:
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Split(Regex(text), "isolated") for text in pre_tokenizer.expressions),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    return _bpe(ids, merges, rules, control, user_defined, name, ignore_merges=pre_tokenizer.ignore_merges)


def byte_fallback_bpe(
    ids: dict[str, int],
    merges: Sequence[str],
    *,
    control: Sequence[str],
    user_defined: Sequence[str],
    name: str,
) -> FastEncoder:
    """BPE over characters as Gemma 4's; otherwise as `byte_level_bpe`.

    Spaces are U+2581, text is cut at line ends only, and what is no token becomes its bytes (``<0x41>``).
    """
    from tokenizers import Regex, normalizers, pre_tokenizers

    def rules(tokenizer: "tokenizers.Tokenizer") -> None:
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("\n+"), "isolated")

    return _bpe(ids, merges, rules, control, user_defined, name, byte_fallback=True)


def _bpe(
    ids: dict[str, int],
    merges: Sequence[str],
    rules: Callable[["tokenizers.Tokenizer"], None],
    control: Sequence[str],
    user_defined: Sequence[str],
    name: str,
    **options: bool,
) -> FastEncoder:
    from tokenizers import AddedToken, Tokenizer, models

    with rust_errors(CheckpointError, f"{name}: the tokenizer's merges do not fit its tokens"):
        pairs = [tuple(merge.split(" ")) for merge in merges]
        model = models.BPE(vocab=ids, merges=pairs, **options)  # type: ignore[arg-type]
    with rust_errors(CheckpointError, f"{name}: the tokenizer cannot be built"):
        tokenizer = Tokenizer(model)
        rules(tokenizer)
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in user_defined])
    return FastEncoder(tokenizer, [ids[text] for text in control])


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
