"""Metadata that the user puts in place of what a file says (``--override KEY=VALUE``)."""

from collections.abc import Mapping
from typing import Any

from hotset.core.errors import CheckpointError, RequestError
from hotset.formats.gguf_file import LAID_OUT_ANEW, Metadata

Overrides = Mapping[str, str | int | float | bool]
"""By GGUF's full keys; for a Hugging Face directory by config.json's, tables' keys after a dot."""

_READ = ("general.", "tokenizer.", "hotset.", "powerinfer.")


def override_metadata(metadata: Metadata, overrides: Overrides) -> None:
    """Change a GGUF file's metadata; an integer becomes a float where the file has one.

    Raises `RequestError` for what cannot be changed, or is text in the file and no text here.
    """
    for key, new in overrides.items():
        if key.startswith(LAID_OUT_ANEW):
            raise RequestError(f"{key} says how the file lies: it cannot be overridden (--override)")
        try:
            old = metadata.get(key)
        except CheckpointError:  # unreadable: the more reason to replace it
            old = None
        if isinstance(old, str) and not isinstance(new, str):
            raise RequestError(f"{key} is text: write --override {key}=str:{new}")
        as_float = isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool)
        metadata.change(key, float(new) if as_float else new)


def check_overrides(overrides: Overrides, architecture: str) -> None:
    """Raise `RequestError` for keys that nothing reads in a file of this architecture."""
    for key in overrides:
        if not key.startswith((*_READ, f"{architecture}.")):
            raise RequestError(
                f"{key}: nothing reads this key of a model of architecture {architecture}: expected one that "
                f"begins with {', '.join(_READ)} or {architecture}. (--override)"
            )


def override_config(config: dict[str, Any], overrides: Overrides) -> None:
    """Change a parsed config.json; `RequestError` for a dotted key whose table is not there."""
    for key, value in overrides.items():
        *tables, last = key.split(".")
        table = config
        for name in tables:
            if name not in table or not isinstance(table[name], dict | None):
                raise RequestError(f"{key}: config.json has no table {name} (--override)")
            table[name] = table[name] or {}
            table = table[name]
        table[last] = value
