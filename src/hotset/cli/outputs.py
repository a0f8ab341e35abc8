"""Files that commands write: refused before the work where they cannot be, or would replace others."""

from collections.abc import Iterable
from pathlib import Path


def check_model_output(path: Path, reading: Iterable[Path | str | None]) -> None:
    """Raise `HotsetError` unless a model can be written there, or replaces one that Hotset wrote.

    `reading` are the files that the command names, the model's name among them.
    """
    from hotset.formats.gguf_writer import is_written_here
    from hotset.formats.output import check_output

    files = [Path(file) for file in reading if file]
    check_output(path, files, kind="model that Hotset wrote", replaces=is_written_here)


def check_profile_output(path: Path, reading: Iterable[Path] = ()) -> None:
    """Raise `HotsetError` unless a profile can be written there, or replaces another one."""
    from hotset.activations.profile import is_arrays_file
    from hotset.formats.output import check_output

    check_output(path, reading, kind="profile", replaces=is_arrays_file)
