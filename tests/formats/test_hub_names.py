"""Names of models on the hub: types, revisions, and addresses as people paste them."""

from pathlib import Path

import pytest
from helpers.fake_hub import COMMIT, commit_of, fake_hub
from helpers.gguf_bytes import split, tiny_llama

from hotset.core.errors import CheckpointError
from hotset.formats import locate
from hotset.formats.hub import Hub
from hotset.formats.hub_cache import cached_models, remove, repo_folder
from hotset.formats.hub_choice import choose_files
from hotset.formats.hub_name import HubName, is_hub_name, parse_hub_name

REPO = "org/model-GGUF"
PAGE = f"https://huggingface.co/{REPO}"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("hf:org/model-GGUF", HubName(REPO)),
        ("org/model-GGUF:Q4_K_M", HubName(REPO, type="Q4_K_M")),
        ("hf:org/model-GGUF:q/m-Q8_0.gguf", HubName(REPO, file="q/m-Q8_0.gguf")),
        ("hf:org/model-GGUF@v1.0", HubName(REPO, "v1.0")),
        ("hf:org/model-GGUF@refs/pr/3:Q8_0", HubName(REPO, "refs/pr/3", type="Q8_0")),
        ("hf:org/model-GGUF:Q8_0@v1.0", HubName(REPO, "v1.0", type="Q8_0")),
        (PAGE, HubName(REPO)),
        (PAGE + "/", HubName(REPO)),
        (PAGE + "/tree/main", HubName(REPO)),
        (PAGE + "/tree/v1.0/Q4_K_M", HubName(REPO, "v1.0", type="Q4_K_M")),
        (PAGE + "/blob/main/m-Q4_0.gguf", HubName(REPO, file="m-Q4_0.gguf")),
        (PAGE + "/resolve/main/q/m-Q4_0.gguf?download=true", HubName(REPO, file="q/m-Q4_0.gguf")),
        (PAGE + "/resolve/refs%2Fpr%2F3/m%20x.gguf", HubName(REPO, "refs/pr/3", file="m x.gguf")),
        (PAGE + "?show_file_info=m-Q4_0.gguf", HubName(REPO, file="m-Q4_0.gguf")),
        ("http://www.huggingface.co/org/model-GGUF#files", HubName(REPO)),
        ("huggingface.co/org/model-GGUF", HubName(REPO)),
        ("hf.co/org/model-GGUF:Q4_K_M", HubName(REPO, type="Q4_K_M")),
    ],
)
def test_names_and_addresses(name: str, meant: HubName) -> None:
    assert parse_hub_name(name) == meant
    assert parse_hub_name(str(meant)) == meant
    assert is_hub_name(name) is not name.startswith("org/")


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("hf:org/model@", "expected hf:org/repo"),
        ("hf:org/model:", "expected hf:org/repo"),
        ("https://example.com/m.gguf", "expected an address on huggingface.co"),
        ("https://huggingface.co/datasets/org/data", "expected a model's address"),
        ("https://huggingface.co/org", "expected a model's address"),
        ("https://huggingface.co/org/model/discussions/3", "expected a model's address"),
    ],
)
def test_what_is_no_name(name: str, named: str) -> None:
    with pytest.raises(CheckpointError, match=named) as error:
        locate(name)
    assert "\n" not in str(error.value)


FILES = ["m-Q4_0.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-IQ4_XS.gguf", "m-BF16.gguf", "m-UD-Q4_K_XL.gguf"]


@pytest.mark.parametrize(
    ("files", "type", "chosen"),
    [
        (FILES, "Q4_K_M", ["m-Q4_K_M.gguf"]),
        (FILES, "q4_k_s", ["m-Q4_K_S.gguf"]),
        (FILES, "q4_k_xl", ["m-UD-Q4_K_XL.gguf"]),
        (FILES, "UD-Q4_K_XL", ["m-UD-Q4_K_XL.gguf"]),
        (FILES, "q4_0", ["m-Q4_0.gguf"]),
        (["m.fp16.gguf", "m.q4_0_4_4.gguf", "m.q4_0.gguf"], "Q4_0", ["m.q4_0.gguf"]),
        (
            ["Q8_0/m-00001-of-00002.gguf", "Q8_0/m-00002-of-00002.gguf", "m-Q4_0.gguf"],
            "Q8_0",
            ["Q8_0/m-00001-of-00002.gguf", "Q8_0/m-00002-of-00002.gguf"],
        ),
        (
            ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"],
            "q8_0",
            ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"],
        ),
    ],
)
def test_a_type_picks_the_file(files: list[str], type: str, chosen: list[str]) -> None:
    assert choose_files(files, HubName(REPO, type=type)) == chosen


@pytest.mark.parametrize("type", ["F16", "Q4_K", "Q4_XS"])
def test_no_file_of_the_type(type: str) -> None:
    with pytest.raises(CheckpointError, match=r"there are BF16, IQ4_XS, Q4_0, Q4_K_M, Q4_K_S, Q4_K_XL"):
        choose_files(FILES, HubName(REPO, type=type))


def test_revisions_and_types_are_downloaded_listed_and_removed(tmp_path: Path) -> None:
    parts = {
        f"m-Q8_0-{i + 1:05d}-of-00002.gguf": part.to_bytes() for i, part in enumerate(split(tiny_llama(), 2))
    }
    files = parts | {"m-Q4_0.gguf": b"a" * 1000, "README.md": b"x"}
    older = {"m-Q4_0.gguf": b"b" * 500}
    with fake_hub(REPO, files, revisions={"v1": older, "refs/pr/3": older}) as server:
        hub = Hub(server.endpoint, tmp_path)
        first = hub.locate(f"hf:{REPO}:Q8_0")
        assert first.name == "m-Q8_0-00001-of-00002.gguf"
        assert hub.locate(f"{server.endpoint}/{REPO}/blob/main/m-Q4_0.gguf").read_bytes() == b"a" * 1000
        assert hub.locate(f"hf:{REPO}@v1:q4_0").read_bytes() == b"b" * 500
        assert hub.locate(f"hf:{REPO}@refs/pr/3").read_bytes() == b"b" * 500
        assert hub.locate(f"hf:{REPO}@{COMMIT}:Q8_0") == first
        with pytest.raises(CheckpointError, match="the repository has no revision v9"):
            hub.locate(f"hf:{REPO}@v9:m-Q4_0.gguf")
        with pytest.raises(CheckpointError, match="the repository has no revision v9"):
            hub.locate(f"hf:{REPO}@v9")
    # The server is gone.
    assert hub.locate(f"hf:{REPO}@v1").read_bytes() == b"b" * 500
    assert hub.locate(f"hf:{REPO}:Q8_0") == first
    models = {model.name: model for model in cached_models(tmp_path)}
    assert {name: model.bytes for name, model in models.items()} == {
        f"hf:{REPO}:m-Q8_0-00001-of-00002.gguf": sum(map(len, parts.values())),
        f"hf:{REPO}:m-Q4_0.gguf": 1000,
        f"hf:{REPO}@v1:m-Q4_0.gguf": 500,
        f"hf:{REPO}@refs/pr/3:m-Q4_0.gguf": 500,
    }
    assert all(model.complete for model in models.values())
    for name, model in models.items():
        assert hub.locate(name) == model.path
    # The two other revisions share a blob: it goes with the last of them.
    assert remove(parse_hub_name(f"hf:{REPO}@v1:Q4_0"), tmp_path) < 500
    assert remove(parse_hub_name(f"hf:{REPO}@refs/pr/3"), tmp_path) >= 500
    assert remove(parse_hub_name(f"{REPO}:q8_0"), tmp_path) >= sum(map(len, parts.values()))
    assert [model.name for model in cached_models(tmp_path)] == [f"hf:{REPO}:m-Q4_0.gguf"]
    with pytest.raises(CheckpointError, match="not in the cache"):
        remove(parse_hub_name(f"{REPO}:q8_0"), tmp_path)
    assert remove(parse_hub_name(REPO), tmp_path) >= 1000
    assert cached_models(tmp_path) == []
    assert not repo_folder(REPO, tmp_path).exists()
    with pytest.raises(CheckpointError, match=r"hf:org/other: not in the cache .*hotset list"):
        remove(parse_hub_name("org/other"), tmp_path)
    assert commit_of("v1") != COMMIT


def test_unfinished_downloads_are_shown_and_go(tmp_path: Path) -> None:
    blobs = repo_folder(REPO, tmp_path) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0123.partial").write_bytes(b"x" * 300)
    (model,) = cached_models(tmp_path)
    assert (model.name, model.bytes, model.complete) == (f"hf:{REPO} (unfinished download)", 300, False)
    assert remove(parse_hub_name(REPO), tmp_path) == 300
    assert cached_models(tmp_path) == []


def test_a_model_without_all_its_parts_is_incomplete(tmp_path: Path) -> None:
    directory = repo_folder(REPO, tmp_path) / "snapshots" / "abc"
    directory.mkdir(parents=True)
    (directory / "m-00001-of-00002.gguf").write_bytes(b"x")
    (model,) = cached_models(tmp_path)
    assert (model.name, model.complete) == (f"hf:{REPO}@abc:m-00001-of-00002.gguf", False)
