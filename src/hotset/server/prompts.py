"""Texts, or their token ids, that are no conversations."""

from collections.abc import Sequence
from typing import Any

from hotset.server.ask import Gap, Prompt, Text
from hotset.server.fields import Fields


def read_prompts(fields: Fields, name: str, most: int) -> list[Text]:
    """A field's prompts, at most `most`: a text, token ids, or a list of these."""
    given = fields.get(name)
    several = isinstance(given, list) and not (given and isinstance(given[0], int))
    prompts = given if several and given else [given]
    if len(prompts) > most:
        raise fields.wrong(name, f"at most {most} of them")
    return [_prompt(fields, name, prompt) for prompt in prompts]


def around(fields: Fields, prompts: Sequence[Text], suffix: str) -> list[Prompt]:
    """Texts with what comes after a gap."""
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise fields.wrong("prompt", "texts, as suffix is given")
    return [Gap(str(prompt), suffix) for prompt in prompts]


def is_id(value: Any) -> bool:
    """Whether a value may be a token's id."""
    return isinstance(value, int) and not isinstance(value, bool)


def _prompt(fields: Fields, name: str, prompt: Any) -> Text:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(map(is_id, prompt)):
        return tuple(prompt)
    raise fields.wrong(name, "a text, token ids, or a list of these")
