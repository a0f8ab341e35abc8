"""Prompts that ask for what stands between two texts, of models that were trained so (arXiv 2207.14255)."""

from collections.abc import Callable, Mapping, Sequence

from hotset.core.errors import UnsupportedError

_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite Code
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),  # DeepSeek
)
"""What stands before the text before the gap, before the one after it, and before what is asked for."""

_FILES = ("<|file_sep|>", "<file_sep>")
"""What stands before each file of several."""


def fill_in(
    control: Mapping[str, int],
    encode: Callable[[str], list[int]],
    before: str,
    after: str,
    files: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """Token ids of the texts around a gap, and before them other files, names and texts.

    `control` has the ids of control tokens. Raises `UnsupportedError` where the marks are none of them; files
    are left out where only the mark between files is missing.
    """
    marks = next((marks for marks in _MARKS if all(mark in control for mark in marks)), None)
    if marks is None:
        raise UnsupportedError(
            "this model does not fill in the middle: its vocabulary has no marks for it, such as "
            f"{_MARKS[0][0]}; take a model that was trained for it, such as Qwen2.5-Coder"
        )
    first, second, third = (control[mark] for mark in marks)
    ids: list[int] = []
    between = next((control[mark] for mark in _FILES if mark in control), None)
    if between is not None and files:
        for name, text in files:
            ids += [between, *encode(f"{name}\n{text}")]
        ids += [between, *encode("file\n")]
    return [*ids, first, *encode(before), second, *encode(after), third]
