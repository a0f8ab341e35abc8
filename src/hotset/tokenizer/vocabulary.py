"""What every source of a tokenizer is read into."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

END_OF_TURN = frozenset(
    (
        *(
            "<|eot_id|>",
            "<|eom_id|>",
            "<|im_end|>",
            "<|end|>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<|return|>",
        ),
        *("<|call|>", "<end_of_turn>", "<end_of_utterance>", "<turn|>", "<EOT>", "[EOT]", "[EOS]"),
        "<｜end▁of▁sentence｜>",
    )
)
"""Control tokens that end a generation in the models that have them, beside those that a file names."""


class Encoder(Protocol):
    """Cuts text into tokens."""

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Token ids of ``text``, with no begin or end token added."""


@dataclass(frozen=True)
class Vocabulary:
    """What a checkpoint says of its tokens."""

    size: int
    """Every id is below it."""
    token_bytes: Callable[[int], bytes]
    """Exact bytes of a token below ``size``; none for an id that has no token."""
    control: Mapping[str, int]
    """Tokens that steer the model and are no text, such as ``<s>``: id by text."""
    bos_id: int | None
    end_ids: Collection[int]
    prefix: Sequence[int]
    """Ids that ``add_special`` puts before the text."""
    suffix: Sequence[int]
    """Ids that ``add_special`` puts after the text."""
    space_prefixed: bool
    """Encoding puts a space before the text, so that decoding takes one away."""
