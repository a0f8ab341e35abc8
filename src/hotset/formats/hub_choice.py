"""Which of a repository's files are the model that a name means."""

import re
from pathlib import Path

from hotset.core.errors import CheckpointError
from hotset.formats.gguf_file import split_parts
from hotset.formats.hub_name import HubName

# Of several GGUF files in a repository, the first of these types is taken: small, and good for its size.
_PREFERRED = (
    "Q4_K_M",
    "Q4_0",
    "Q4_K_S",
    "Q4_1",
    "Q5_K_M",
    "Q5_K_S",
    "Q5_0",
    "Q6_K",
    "Q8_0",
    "F16",
    "BF16",
    "F32",
)
_TYPE = re.compile(r"(?:iq|q|tq)\d(?:_[0-9a-z]+)*|(?:bf|f|fp)(?:16|32)|mxfp4(?:_moe)?", re.IGNORECASE)
"""A type in a file's name."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)


def choose_files(files: list[str], name: HubName) -> list[str]:
    """Choose what to download: one GGUF model with all its parts, or config.json, weights and tokenizer.

    The first is what to open, or lies in the directory to open. Raises `CheckpointError`.
    """
    if name.file.endswith(".gguf"):
        return _with_parts(name.file)
    models = [f for f in files if f.endswith(".gguf") and not Path(f).name.lower().startswith("mmproj")]
    firsts = [f for f in models if split_parts(Path(f).name)[0] == Path(f).name]
    if name.type and not name.file:
        return _with_parts(_of_type(firsts, name))
    if firsts and not name.file:
        return _with_parts(_preferred(firsts, name))
    weights = [f for f in files if f.endswith(".safetensors") or f.endswith(".safetensors.index.json")]
    weights = [f for f in weights if f.startswith("model") and "/" not in f]
    if "config.json" not in files or not weights:
        raise CheckpointError(
            f"{name}: expected a .gguf file, or config.json and model*.safetensors; there is neither"
        )
    return ["config.json", *(f for f in _TOKENIZER_FILES if f in files), *weights]


def _preferred(firsts: list[str], name: HubName) -> str:
    if len(firsts) == 1:
        return firsts[0]
    for type in _PREFERRED:
        if found := _with_type(firsts, type):
            return found
    raise CheckpointError(f"{name}: has several models; name one, such as {name}:{min(firsts)}")


def _of_type(firsts: list[str], name: HubName) -> str:
    found = _with_type(firsts, name.type)
    if found is None:
        types = sorted({match[0].upper() for f in firsts if (match := _TYPE.search(Path(f).name))})
        there = f"there are {', '.join(types or map(repr, sorted(firsts)))}" if firsts else "there is none"
        raise CheckpointError(f"{name}: expected a .gguf file with {name.type} in its name; {there}")
    return found


def _with_type(firsts: list[str], type: str) -> str | None:
    """The plainest name in which the type stands, not as part of another such as BF16 of F16."""
    plain = re.escape(type.lower().replace("-", "_"))
    pattern = re.compile(rf"(?<![a-z0-9]){plain}(?![a-z0-9]|_[a-z0-9]{{1,2}}(?![a-z0-9]))")
    found = [f for f in firsts if pattern.search(f.lower().replace("-", "_"))]
    return min(found, key=lambda f: (len(f), f), default=None)


def _with_parts(file: str) -> list[str]:
    return [str(Path(file).with_name(part).as_posix()) for part in split_parts(Path(file).name)]
