"""What every source of a tokenizer is read into."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

_END_OF_TURN = frozenset(
    (
        *(
            "<|eot_id|>",
            "<|eom_id|>",
            "<|im_end|>",
            "<|end|>",
            "<|return|>",
            "<|call|>",
            "<|calls|>",
            "<|flush|>",
        ),
        *("<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "<end_of_utterance>", "<turn|>"),
        *("<|tool_response>", "</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[e~["),
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "</assistant>",
        # A model that fills in the middle of a file begins another file or repository with these.
        *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
        *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
    )
)

_GLM, _GLM_ENDS = "[gMASK]", frozenset({"<|user|>", "<|observation|>"})
"""GLM's answers end where another turn begins; other families have tokens of these names that end none."""

Allowed = Callable[[int, int], bool]
"""Whether the control token that is written out from one character up to another may be that token."""


def end_of_turn(texts: Iterable[str]) -> set[str]:
    """Those of a vocabulary's ``texts`` that end an answer by their name, whatever their type."""
    found = (_END_OF_TURN | _GLM_ENDS | {_GLM}).intersection(texts)
    ends = set(found & (_END_OF_TURN | _GLM_ENDS if _GLM in found else _END_OF_TURN))
    if {"<|return|>", "<|call|>"} <= ends or {"<|calls|>", "<|flush|>"} <= ends:
        ends -= {"<|end|>"}  # ends a message of several in one answer (gpt-oss)
    if "<|tool_response>" in ends:
        ends -= {"</s>"}  # HTML (Gemma 4)
    return ends


def looks_like_control(text: str) -> bool:
    """Whether an added token is no word of anyone's by its shape (``<|im_start|>``), whatever its type."""
    return any(text.startswith(f"<{bar}") and text.endswith(f"{bar}>") for bar in "|\uff5c")


class Encoder(Protocol):
    """Cuts text into tokens."""

    def encode(self, text: str, control: bool | Allowed) -> list[int]:
        """Token ids of ``text``, with no begin or end token added.

        ``control`` is whether control tokens that are written out in the text become those tokens: all, none,
        or those that are allowed where they stand.
        """


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
    """Ids that ``add_end`` puts after the text."""
    space_prefixed: bool
    """Encoding puts a space before the text, so that decoding takes one away."""
    suppressed: Collection[int] = ()
    """Ids that are never to be chosen."""
