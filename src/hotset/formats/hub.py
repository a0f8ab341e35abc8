"""Models from the Hugging Face hub, through huggingface_hub and into its cache.

The library forgets a partial file when its process ends. Here it stays beside the cache's blobs, and the next
attempt goes on where the last one stopped.
"""

import errno
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotset.core.errors import CheckpointError
from hotset.formats.gguf_file import split_parts

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
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
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


def choose_files(files: list[str], repo: str) -> list[str]:
    """Choose what to download: one GGUF model with all its parts, or config.json, weights and tokenizer.

    The first is what to open, or lies in the directory to open.
    """
    models = [f for f in files if f.endswith(".gguf") and not Path(f).name.lower().startswith("mmproj")]
    firsts = [f for f in models if split_parts(Path(f).name)[0] == Path(f).name]
    if firsts:
        return _with_parts(_preferred(firsts, repo))
    weights = [f for f in files if f.endswith(".safetensors") or f.endswith(".safetensors.index.json")]
    weights = [f for f in weights if f.startswith("model") and "/" not in f]
    if "config.json" not in files or not weights:
        raise CheckpointError(
            f"hf:{repo}: expected a .gguf file, or config.json and model*.safetensors; there is neither"
        )
    return ["config.json", *(f for f in _TOKENIZER_FILES if f in files), *weights]


def _preferred(firsts: list[str], repo: str) -> str:
    if len(firsts) == 1:
        return firsts[0]
    for type in _PREFERRED:
        found = [f for f in firsts if type.lower() in Path(f).name.lower().replace("-", "_")]
        if found:
            return min(found, key=lambda f: (len(f), f))
    raise CheckpointError(f"hf:{repo}: has several models; name one, such as hf:{repo}:{min(firsts)}")


def _with_parts(file: str) -> list[str]:
    return [str(Path(file).with_name(part).as_posix()) for part in split_parts(Path(file).name)]


@dataclass(frozen=True)
class Hub:
    """A hub and a cache; None means huggingface_hub's own settings."""

    endpoint: str | None = None
    cache: Path | None = None

    def locate(self, name: str) -> Path:
        """Return the local path of ``org/repo[:file]``, downloading what the cache lacks."""
        repo, _, file = name.partition(":")
        if repo.count("/") != 1 or not all(repo.split("/")):
            raise CheckpointError(f"hf:{name}: expected hf:org/repo or hf:org/repo:file")
        files = _with_parts(file) if file else choose_files(self._list(repo), repo)
        paths = [self._fetch(repo, f) for f in files]
        return paths[0] if files[0].endswith(".gguf") else paths[0].parent

    def _list(self, repo: str) -> list[str]:
        """List the repository's files; without a network, those in the cache."""
        from huggingface_hub import HfApi

        try:
            # Unlike list_repo_files, this does not try for 20 seconds when there is no network.
            siblings = HfApi(endpoint=self.endpoint).model_info(repo, timeout=10).siblings
            return [sibling.rfilename for sibling in siblings or ()]
        except Exception as error:
            if _is_refusal(error):
                raise _explained(error, f"hf:{repo}", repo) from None
            reference = self._folder(repo) / "refs" / "main"
            if not reference.is_file():
                raise _explained(error, f"hf:{repo}", repo) from None
            snapshot = self._folder(repo) / "snapshots" / reference.read_text().strip()
            return [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]

    def _folder(self, repo: str) -> Path:
        """The repository's folder in the cache."""
        from huggingface_hub import constants

        return Path(self.cache or constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"

    def _fetch(self, repo: str, file: str) -> Path:
        """Return one file's path in the cache."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

        options: dict[str, Any] = {"endpoint": self.endpoint, "cache_dir": self.cache}
        what = f"hf:{repo}:{file}"
        try:
            metadata = get_hf_file_metadata(hf_hub_url(repo, file, endpoint=self.endpoint))
        except Exception as error:
            if _is_refusal(error):
                raise _explained(error, what, repo) from None
            try:
                return Path(hf_hub_download(repo, file, local_files_only=True, **options))
            except Exception:
                raise _explained(error, what, repo) from None
        try:
            # The library takes up a blob that is there, and downloads what we leave to it.
            if metadata.etag is not None and metadata.size is not None:
                self._download(repo, file, metadata)
            return Path(hf_hub_download(repo, file, **options))
        except CheckpointError:
            raise
        except Exception as error:
            raise _explained(error, what, repo, reached=True) from None

    def _download(self, repo: str, file: str, metadata: Any) -> None:
        """Put the file's bytes where the cache expects them, going on with what an earlier attempt left."""
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        blob = self._folder(repo) / "blobs" / metadata.etag
        if blob.exists():
            return
        blob.parent.mkdir(parents=True, exist_ok=True)
        partial = blob.with_name(f"{blob.name}.partial")
        url, headers = self._source(repo, file, metadata)
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
                    f"hf:{repo}:{file}: the disk is full: {missing:,} bytes are to come, {free:,} are free in"
                    f" {blob.parent}; free some, or set HF_HOME to another place"
                )
            with partial.open("ab") as target:
                http_get(url, target, resume_size=done, headers=headers, expected_size=metadata.size)
            _check_hash(partial, metadata.etag, f"hf:{repo}:{file}")
            partial.rename(blob)

    def _source(self, repo: str, file: str, metadata: Any) -> tuple[str, dict[str, str]]:
        """The address to download from; the user's token goes to the hub only."""
        from urllib.parse import urlsplit

        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers = build_hf_headers()
        hub = hf_hub_url(repo, file, endpoint=self.endpoint)
        if urlsplit(metadata.location).netloc != urlsplit(hub).netloc:
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
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

    return isinstance(error, RepositoryNotFoundError | EntryNotFoundError | HFValidationError)


def _explained(error: Exception, what: str, repo: str, *, reached: bool = False) -> CheckpointError:
    """Turn whatever the library or its network stack raised into one line."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        reason = (
            f"access is gated: accept its terms at https://huggingface.co/{repo}, then run: hf auth login"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = "no such repository, or a private one that needs: hf auth login"
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
