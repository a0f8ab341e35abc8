"""Names of models on the Hugging Face hub: ``hf:org/repo@revision:file``, or an address of a web page."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from hotset.core.errors import CheckpointError

MAIN = "main"
_HOSTS = ("huggingface.co", "hf.co")
_ADDRESS = re.compile(r"https?://|(?:www\.)?(?:huggingface\.co|hf\.co)/", re.IGNORECASE)
_REPOSITORY = re.compile(r"[^/:@\s]+/[^/:@\s]+")


@dataclass(frozen=True)
class HubName:
    """A repository, and what of it is meant."""

    repo: str
    revision: str = MAIN
    """A branch, a tag or a commit."""
    file: str = ""
    """A file's path in the repository; empty: the one that `type` or the repository suggests."""
    type: str = ""
    """Part of the names of the files that are meant, such as ``Q4_K_M``."""

    def __str__(self) -> str:
        revision = "" if self.revision == MAIN else f"@{self.revision}"
        chosen = self.file or self.type
        return f"hf:{self.repo}{revision}{chosen and f':{chosen}'}"


def is_hub_name(name: str) -> bool:
    """Whether a model's name is one of the hub, or a web address."""
    return name.startswith("hf:") or _ADDRESS.match(name) is not None


def parse_hub_name(name: str, endpoint: str | None = None) -> HubName:
    """A name with ``hf:`` or without it, or an address on the hub; else `CheckpointError`."""
    if _ADDRESS.match(name):
        return _from_address(name, endpoint)
    text = name.removeprefix("hf:")
    repo, colon, chosen = text.partition(":")
    repo, at, revision = repo.partition("@")
    if not at:
        chosen, at, revision = chosen.partition("@")
    if not _REPOSITORY.fullmatch(repo) or (colon and not chosen) or (at and not revision):
        found = f"hf:{text}" if name.strip() else "NAME is empty"
        raise CheckpointError(
            f"{found}: expected hf:org/repo or hf:org/repo:file, such as hf:org/repo:Q4_K_M or "
            "hf:org/repo@revision:file.gguf"
        )
    return _named(repo, revision, chosen)


def _from_address(address: str, endpoint: str | None) -> HubName:
    """From https://huggingface.co/org/repo/blob/revision/file, with ``resolve`` or ``tree``, or shorter."""
    parts = urlsplit(address if "://" in address else f"https://{address}")
    hosts = [*_HOSTS, *(f"www.{host}" for host in _HOSTS), urlsplit(_endpoint(endpoint)).netloc]
    if parts.netloc.lower() not in hosts:
        raise CheckpointError(
            f"{address}: expected an address on huggingface.co; from elsewhere, download the file and name it"
        )
    path = [unquote(part) for part in parts.path.strip("/").split("/")]
    repo, _, chosen = "/".join(path[:2]).partition(":")
    kind, revision = [*path[2:4], "", ""][:2]
    if (
        not _REPOSITORY.fullmatch(repo)
        or repo.startswith(("datasets/", "spaces/"))
        or kind not in ("", "blob", "resolve", "raw", "tree")
    ):
        raise CheckpointError(
            f"{address}: expected a model's address, such as https://huggingface.co/org/repo, or a file's"
        )
    if kind == "tree":  # a folder, such as Q4_K_M
        chosen = path[-1] if len(path) > 4 else ""
    else:
        chosen = chosen or "/".join(path[4:]) or parse_qs(parts.query).get("show_file_info", [""])[0]
    return _named(repo, revision, chosen)


def _named(repo: str, revision: str, chosen: str) -> HubName:
    revision = revision or MAIN
    if chosen.endswith((".gguf", ".safetensors", ".json")):
        return HubName(repo, revision, file=chosen)
    return HubName(repo, revision, type=chosen)


def _endpoint(endpoint: str | None) -> str:
    from huggingface_hub import constants

    return endpoint or constants.ENDPOINT
