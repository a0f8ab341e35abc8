"""The tokenizer that the rest of Hotset sees, wherever its vocabulary came from."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from hotset.core.errors import RequestError
from hotset.formats.as_gguf import TOKENIZER
from hotset.formats.checkpoint import Checkpoint
from hotset.tokenizer.chat_template import ChatTemplate
from hotset.tokenizer.fill_in import fill_in
from hotset.tokenizer.gguf import read_metadata
from hotset.tokenizer.huggingface import directory_files, embedded_files, read_files
from hotset.tokenizer.streaming import StreamDecoder
from hotset.tokenizer.vocabulary import Encoder, Vocabulary
from hotset.tokenizer.written import template_wrote


class Tokenizer:
    """Text to token ids and back. Immutable; may be shared by threads."""

    vocab_size: int
    bos_id: int | None
    end_ids: frozenset[int]
    """Every id that ends a generation."""
    suppressed: frozenset[int]
    """Every id that is never to be chosen."""
    control_ids: frozenset[int]
    """Every id that steers the model and is no text."""
    chat_template: ChatTemplate | None

    def __init__(self, encoder: Encoder, vocabulary: Vocabulary, chat_template: ChatTemplate | None) -> None:
        self._encoder = encoder
        self._vocabulary = vocabulary
        self._hidden = self.control_ids = frozenset(vocabulary.control.values())
        self.vocab_size = vocabulary.size
        self.bos_id = vocabulary.bos_id
        self.end_ids = frozenset(vocabulary.end_ids)
        self.suppressed = frozenset(vocabulary.suppressed)
        self.chat_template = chat_template

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "Tokenizer":
        """Read GGUF's metadata, or ``tokenizer.json`` and its neighbours in a Hugging Face directory.

        GGUF's metadata may have these files as they are, too (`hotset.formats.as_gguf`).

        Raises `CheckpointError` where the tokenizer is missing, broken or of an unknown kind.
        """
        if checkpoint.path.is_dir():
            return cls(*read_files(directory_files(checkpoint.path), checkpoint.metadata))
        if TOKENIZER in checkpoint.metadata and "tokenizer.ggml.model" not in checkpoint.metadata:
            files = embedded_files(str(checkpoint.path), checkpoint.metadata)
            return cls(*read_files(files, files.json("config.json")))
        return cls(*read_metadata(str(checkpoint.path), checkpoint.metadata))

    def encode(
        self, text: str, *, add_special: bool = True, add_end: bool = False, parse_special: bool = True
    ) -> list[int]:
        """Token ids of ``text``.

        ``add_special`` puts before the text what the model wants there (most often a begin token), and
        ``add_end`` what it wants after one that is over (``add_eos_token``), for embeddings: other texts are
        to be continued.
        With ``parse_special`` control tokens that are written out in the text become those tokens; without,
        they are text like any other, which is what text from outside should be.
        """
        ids = self._encoder.encode(_unicode(text), parse_special)
        before = self._vocabulary.prefix if add_special else ()
        return [*before, *ids, *(self._vocabulary.suffix if add_end else ())]

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation, written out by the model's chat template (`ChatTemplate.render`).

        They are those of the whole text. Control tokens come from the template alone: where a message, a tool
        or a variable has the text of one, it stays text, so that nobody can put words into another's mouth.
        A begin token, too, comes from the template or not at all, whatever the file says of plain text.
        Raises `RequestError` where there is no chat template.
        """
        if self.chat_template is None:
            raise RequestError(
                "this model has no chat template: use plain completion, or an instruction-tuned model"
            )
        text = self.chat_template.write(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables
        )
        return self._encoder.encode(_unicode(text), partial(template_wrote, text))

    def encode_gap(self, before: str, after: str, files: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Token ids that ask for what stands between two texts; `files` are names and texts of others.

        Raises `UnsupportedError` for models without marks for that (`hotset.tokenizer.fill_in`).
        """

        def encode(text: str) -> list[int]:
            return self._encoder.encode(_unicode(text), False)

        ids = fill_in(self._vocabulary.control, encode, before, after, files)
        return [*self._vocabulary.prefix, *ids]

    def token_bytes(self, id: int) -> bytes:
        """The exact bytes of one token: a part of a character perhaps, or a control token's name."""
        if not 0 <= id < self.vocab_size:
            raise RequestError(f"token id {id} is not in the vocabulary of {self.vocab_size} tokens")
        return self._vocabulary.token_bytes(id)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ``ids``, without control tokens if ``skip_special``.

        Bytes that are not UTF-8 become U+FFFD. ``ids`` are a whole text: where encoding put a space before it
        (Llama 2), that space is taken away.
        """
        piece = self._visible_bytes if skip_special else self.token_bytes
        text = b"".join(map(piece, ids)).decode(errors="replace")
        return text[1:] if self._vocabulary.space_prefixed and text.startswith(" ") else text

    def stream(self, shown: Sequence[str] = ()) -> StreamDecoder:
        """Decode a generation token by token, without control tokens but those that are part of `shown`.

        `shown` are the marks that a parser of replies looks for (`hotset.replies`).
        """
        ids = {id for text, id in self._vocabulary.control.items() if any(text in mark for mark in shown)}
        if not ids:
            return StreamDecoder(self._visible_bytes)
        hidden = self._hidden - ids
        return StreamDecoder(lambda id: b"" if id in hidden else self.token_bytes(id))

    def _visible_bytes(self, id: int) -> bytes:
        return b"" if id in self._hidden else self.token_bytes(id)


def _unicode(text: str) -> str:
    """``text`` as a plain string; `RequestError` where it is no Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as reason:
        raise RequestError(
            f"the text is not Unicode: lone surrogate at character {reason.start}; was it read as UTF-8?"
        ) from None
    return str.__str__(text)
