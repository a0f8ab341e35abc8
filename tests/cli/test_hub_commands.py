"""`hotset pull`, `list` and `rm` against a hub on 127.0.0.1."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_hub import fake_hub
from helpers.gguf_bytes import tiny_llama
from huggingface_hub import constants

REPO = "org/model"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_pull_list_use_remove(hotset: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_llama().to_bytes()
    name = f"hf:{REPO}:m-Q4_0.gguf"
    code, out, err = hotset("list")
    assert (code, err) == (0, "") and str(cache) in out and "hotset pull" in out
    assert json.loads(hotset("list", "--json")[1]) == []
    with fake_hub(REPO, {"m-Q4_0.gguf": data, "m-Q8_0.gguf": data}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        code, out, _ = hotset("pull", f"{server.endpoint}/{REPO}/blob/main/m-Q4_0.gguf", "--json")
        assert code == 0
        pulled = json.loads(out)
        assert (pulled["name"], pulled["bytes"]) == (name, len(data))
        code, out, _ = hotset("pull", f"{REPO}:q8_0")
        assert code == 0 and f"hf:{REPO}:q8_0" in out and "m-Q8_0.gguf" in out
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    listed = json.loads(hotset("list", "--json")[1])
    assert [(m["name"], m["bytes"], m["complete"]) for m in listed] == [
        (name, len(data), True),
        (f"hf:{REPO}:m-Q8_0.gguf", len(data), True),
    ]
    assert listed[0]["path"] == pulled["path"]
    code, out, _ = hotset("list")
    assert code == 0 and name in out
    assert json.loads(hotset("inspect", f"hf:{REPO}:Q4_0", "--json")[1])["hidden_size"] == 8
    assert json.loads(hotset("rm", name, "--json")[1]) == {"name": name, "freed_bytes": 0}  # shared
    code, out, err = hotset("rm", REPO)
    assert (code, err) == (0, "") and out.startswith(f"removed hf:{REPO}: ")
    assert json.loads(hotset("list", "--json")[1]) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["rm", "org/none"], "hf:org/none: not in the cache"),
        (["rm", "model.gguf"], "expected hf:org/repo"),
        (["pull", "model"], "expected hf:org/repo"),
        (["pull"], "NAME"),
        (["rm"], "NAME"),
        (["pull", "https://example.com/x.gguf"], "expected an address on huggingface.co"),
    ],
)
def test_what_is_refused(hotset: Any, cache: Path, arguments: list[str], named: str) -> None:
    code, out, err = hotset(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert named in err
