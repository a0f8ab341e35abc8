"""Models from the Hugging Face hub, through huggingface_hub and into its cache.

The library forgets a partial file when its process ends. Here it stays beside the cache's blobs, and the next
attempt continues where the last one stopped.
"""

import errno
import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hotset.core.errors import CheckpointError
from hotset.formats.hub_cache import repo_folder, snapshot, snapshot_files
from hotset.formats.hub_choice import choose_files
from hotset.formats.hub_name import HubName, parse_hub_name

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@dataclass(frozen=True)
class Hub:
    """A hub and a cache; None means huggingface_hub's own settings."""

    endpoint: str | None = None
    cache: Path | None = None

    def locate(self, name: str) -> Path:
        """Return the local path of what `parse_hub_name` reads, downloading what the cache lacks."""
        named = parse_hub_name(name, self.endpoint)
        files = choose_files([] if named.file.endswith(".gguf") else self._list(named), named)
        paths = [self._fetch(named, f) for f in files]
        return paths[0] if files[0].endswith(".gguf") else paths[0].parent

    def _list(self, name: HubName) -> list[str]:
        """List the repository's files; without a network, those in the cache."""
        from huggingface_hub import HfApi

        try:
            # Unlike list_repo_files, this does not try for 20 seconds when there is no network.
            api = HfApi(endpoint=self.endpoint)
            siblings = api.model_info(name.repo, revision=name.revision, timeout=10).siblings
            return [sibling.rfilename for sibling in siblings or ()]
        except Exception as error:
            directory = snapshot(repo_folder(name.repo, self.cache), name.revision)
            if _is_refusal(error) or directory is None:
                raise _explained(error, str(name), name) from None
            return snapshot_files(directory)

    def _fetch(self, name: HubName, file: str) -> Path:
        """Return one file's path in the cache."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

        repo, what = name.repo, str(replace(name, file=file))
        options: dict[str, Any] = {
            "revision": name.revision,
            "endpoint": self.endpoint,
            "cache_dir": self.cache,
        }
        url = hf_hub_url(repo, file, revision=name.revision, endpoint=self.endpoint)
        try:
            metadata = get_hf_file_metadata(url)
        except Exception as error:
            if _is_refusal(error):
                raise _explained(error, what, name) from None
            try:
                return Path(hf_hub_download(repo, file, local_files_only=True, **options))
            except Exception:
                raise _explained(error, what, name) from None
        try:
            # The library takes up a blob that is there, and downloads what we leave to it.
            if metadata.etag is not None and metadata.size is not None:
                self._download(repo, url, what, metadata)
            return Path(hf_hub_download(repo, file, **options))
        except CheckpointError:
            raise
        except Exception as error:
            raise _explained(error, what, name, reached=True) from None

    def _download(self, repo: str, hub_url: str, what: str, metadata: Any) -> None:
        """Put the file's bytes where the cache expects them, going on with what an earlier attempt left."""
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        blob = repo_folder(repo, self.cache) / "blobs" / metadata.etag
        if blob.exists():
            return
        blob.parent.mkdir(parents=True, exist_ok=True)
        partial = blob.with_name(f"{blob.name}.partial")
        url, headers = _source(hub_url, metadata)
        with WeakFileLock(f"{partial}.lock"):
            if blob.exists():  # another process was faster
                return
            done = partial.stat().st_size if partial.is_file() else 0
            if done > metadata.size:
                partial.unlink()
                done = 0
            missing, free = metadata.size - done, shutil.disk_usage(blob.parent).free
            if missing > free:
                raise CheckpointError(
                    f"{what}: the disk is full: {missing:,} bytes are to come, {free:,} are free in"
                    f" {blob.parent}; free some, or set HF_HOME to another place"
                )
            with partial.open("ab") as target:
                http_get(url, target, resume_size=done, headers=headers, expected_size=metadata.size)
            _check_hash(partial, metadata.etag, what)
            partial.rename(blob)


def _source(hub_url: str, metadata: Any) -> tuple[str, dict[str, str]]:
    """The address to download from; the user's token goes to the hub only."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers = build_hf_headers()
    if urlsplit(metadata.location).netloc != urlsplit(hub_url).netloc:
        headers.pop("authorization", None)
    return metadata.location, headers


def _check_hash(path: Path, etag: str, what: str) -> None:
    """Hold a large file against its ETag, which is its SHA-256 (that of a small one is not)."""
    if len(etag) != 64:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != etag:
        path.unlink()
        raise CheckpointError(f"{what}: the download is damaged (its SHA-256 is another); start it again")


def _is_refusal(error: Exception) -> bool:
    """Whether the hub answered with no, so that the cache has nothing to add."""
    from huggingface_hub import errors

    return isinstance(
        error,
        errors.RepositoryNotFoundError
        | errors.RevisionNotFoundError
        | errors.EntryNotFoundError
        | errors.HFValidationError,
    )


def _explained(error: Exception, what: str, name: HubName, *, reached: bool = False) -> CheckpointError:
    """Turn whatever the library or its network stack raised into one line."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{name.repo}"
        reason = f"access is gated: accept its terms at {page}, then run: hf auth login"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = "no such repository, or a private one that needs: hf auth login"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"the repository has no revision {name.revision}"
    elif isinstance(error, errors.EntryNotFoundError):
        reason = "no such file in the repository"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        reason = "not in the cache, and HF_HUB_OFFLINE is set"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full; what was downloaded is kept: free some space and start again"
    elif isinstance(error, OSError) and error.errno in _NOT_WRITABLE and error.filename:
        reason = (
            f"the cache cannot be written: {error.filename}: {error.strerror}; set HF_HOME to another place"
        )
    else:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        failure = "the download failed, start it again to go on with it"
        reason = failure if reached else "not in the cache, and the hub cannot be reached"
        reason += f" ({first_line[:160]})"
    return CheckpointError(f"{what}: {reason}")
