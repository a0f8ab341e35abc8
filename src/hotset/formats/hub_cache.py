"""What the Hugging Face hub's cache holds: listing models, and removing them."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from hotset.core.errors import CheckpointError
from hotset.formats.gguf_file import split_parts
from hotset.formats.hub_choice import choose_files
from hotset.formats.hub_name import MAIN, HubName

_FOLDER = "models--"


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache: a GGUF file with its parts, or a directory of Hugging Face's files."""

    name: str
    """As other commands take it."""
    path: Path
    bytes: int
    modified: datetime
    complete: bool
    """Whether nothing is missing: parts, or the rest of a download."""


def cache_folder(cache: Path | None = None) -> Path:
    """The cache; None means huggingface_hub's own."""
    from huggingface_hub import constants

    return Path(cache or constants.HF_HUB_CACHE)


def repo_folder(repo: str, cache: Path | None = None) -> Path:
    """A repository's folder in the cache, whether or not it is there."""
    return cache_folder(cache) / f"{_FOLDER}{repo.replace('/', '--')}"


def snapshot(folder: Path, revision: str) -> Path | None:
    """The files of a revision (a branch, a tag or a commit) in a repository's folder; None: it has none."""
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    found = folder / "snapshots" / commit
    return found if found.is_dir() else None


def snapshot_files(directory: Path) -> list[str]:
    """Paths in a snapshot, without files that are links to nothing."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def cached_models(cache: Path | None = None) -> list[CachedModel]:
    """All models in the cache, by name."""
    found: dict[str, CachedModel] = {}
    for folder in sorted(cache_folder(cache).glob(f"{_FOLDER}*--*")):
        repo = folder.name.removeprefix(_FOLDER).replace("--", "/", 1)
        for directory, revision in _snapshots(folder):
            for model in _in_snapshot(directory, HubName(repo, revision)):
                found.setdefault(model.name, model)
        partial = list((folder / "blobs").glob("*.partial"))
        if partial:
            name = f"hf:{repo} (unfinished download)"
            found[name] = _model(name, folder, partial, complete=False)
    return sorted(found.values(), key=lambda model: model.name)


def remove(name: HubName, cache: Path | None = None) -> int:
    """Remove what `name` names: a repository, a revision of it, or one model; the bytes that are free now.

    Raises `CheckpointError` if the cache does not hold it.
    """
    folder = repo_folder(name.repo, cache)
    snapshots = [directory for directory, _ in _snapshots(folder)]
    whole = not (name.file or name.type)
    if name.revision != MAIN:
        chosen = snapshot(folder, name.revision)
        snapshots = [chosen] if chosen else []
    doomed: list[Path] = []
    for directory in snapshots:
        files = snapshot_files(directory)
        if not whole:
            try:
                files = [f for f in choose_files(files, name) if f in files]
            except CheckpointError:
                files = []
        doomed += [directory / file for file in files]
    if not doomed and not (whole and name.revision == MAIN and folder.is_dir()):
        raise CheckpointError(f"{name}: not in the cache {cache_folder(cache)} (hotset list shows what is)")
    before = _disk_bytes(folder)
    for path in doomed:
        path.unlink()
    _sweep(folder, whole=whole and name.revision == MAIN)
    return before - _disk_bytes(folder)


def _snapshots(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each snapshot and the revision to name it by: main, another reference, or the commit."""
    names: dict[str, str] = {}
    for reference in sorted((folder / "refs").rglob("*")):
        if reference.is_file():
            commit, revision = (
                reference.read_text().strip(),
                reference.relative_to(folder / "refs").as_posix(),
            )
            if revision == MAIN or commit not in names:
                names[commit] = revision
    for directory in sorted((folder / "snapshots").glob("*")):
        if directory.is_dir():
            yield directory, names.get(directory.name, directory.name)


def _in_snapshot(directory: Path, name: HubName) -> Iterator[CachedModel]:
    files = snapshot_files(directory)
    for file in files:
        path = directory / file
        if not file.endswith(".gguf") or path.name.lower().startswith("mmproj"):
            continue
        parts = split_parts(path.name)
        if parts[0] == path.name:
            there = [path.with_name(part) for part in parts if path.with_name(part).is_file()]
            named = str(HubName(name.repo, name.revision, file))
            yield _model(named, path, there, complete=len(there) == len(parts))
    weights = [directory / f for f in files if f.startswith("model") and f.endswith(".safetensors")]
    if weights and "config.json" in files:
        yield _model(str(name), directory, [directory / file for file in files], complete=True)


def _model(name: str, path: Path, files: list[Path], *, complete: bool) -> CachedModel:
    status = [file.stat() for file in files]
    modified = datetime.fromtimestamp(max(s.st_mtime for s in status), timezone.utc)
    return CachedModel(name, path, sum(s.st_size for s in status), modified, complete)


def _sweep(folder: Path, *, whole: bool) -> None:
    """Remove blobs that no snapshot has any more, and the folder if nothing is left in it."""
    used = {path.resolve() for path in (folder / "snapshots").rglob("*") if path.is_file()}
    if whole or not used:
        shutil.rmtree(folder)
        shutil.rmtree(folder.parent / ".locks" / folder.name, ignore_errors=True)
        return
    for blob in (folder / "blobs").glob("*"):
        if blob.resolve() not in used and not blob.name.endswith((".partial", ".lock", ".incomplete")):
            blob.unlink()
    for directory in (folder / "snapshots").glob("*"):
        if not snapshot_files(directory):
            shutil.rmtree(directory)


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
