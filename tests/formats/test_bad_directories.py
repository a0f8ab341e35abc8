"""Directories that `transformers` saved, damaged: each runs or is refused in one line.

The slow-marked run tries 10,000 cases of mixtures and delta nets, and as many of other families.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from helpers.bad_input import JSON, MUTATIONS, assert_runs_or_refuses, fuzz, mutated, of_families
from helpers.changed_values import changed, changes
from helpers.tiny_families import tiny_families
from helpers.tiny_mixtures import tiny_mixtures
from helpers.tiny_models import save, tiny_models
from hypothesis import strategies as st

MODELS = {**tiny_models(), **tiny_mixtures(), **tiny_families()}
WITH_EXPERTS = [*tiny_mixtures(), *(name for name in tiny_models() if name.startswith("qwen35"))]
OTHERS = [name for name in MODELS if name not in WITH_EXPERTS]
SOME = ["qwen35", "gpt-oss", "lfm2moe", "nemotron-h", "gemma4-shared", "granite-hybrid"]

Saved = Callable[[str], tuple[bytes, bytes]]
"""config.json and model.safetensors of a tiny model."""


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    @cache
    def build(name: str) -> tuple[bytes, bytes]:
        directory = tmp_path_factory.mktemp(name)
        save(MODELS[name](), directory)
        return tuple((directory / file).read_bytes() for file in ("config.json", "model.safetensors"))

    return build


def of_names(everyday: int, thorough: int) -> Any:
    return of_families("names", (SOME, everyday), experts=(WITH_EXPERTS, thorough), others=(OTHERS, thorough))


@of_names(60, 5000)
def test_mutated_bytes(names: list[str], examples: int, saved: Saved, tmp_path: Path) -> None:
    def check(case: Any) -> None:
        name, in_config, mutations = case
        for file, data in zip(("config.json", "model.safetensors"), saved(name), strict=True):
            damaged = in_config == (file == "config.json")
            (tmp_path / file).write_bytes(mutated(data, mutations) if damaged else data)
        assert_runs_or_refuses(tmp_path)

    fuzz(st.tuples(st.sampled_from(names), st.booleans(), MUTATIONS), check, examples)


@of_names(60, 5000)
def test_odd_values(names: list[str], examples: int, saved: Saved, tmp_path: Path) -> None:
    """Values near those that a model has, or nothing like them, in two places."""

    @cache
    def all_changes(name: str) -> list[tuple[tuple[str, ...], Any]]:
        return list(changes(json.loads(saved(name)[0])))

    def check(case: Any) -> None:
        name, first, second, odd = case
        config, weights = saved(name)
        possible = all_changes(name)
        (path, value), (other, _) = possible[first % len(possible)], possible[second % len(possible)]
        values = json.loads(config)
        if path[0] != other[0]:
            values = changed(values, other, odd)
        (tmp_path / "config.json").write_text(json.dumps(changed(values, path, value)))
        (tmp_path / "model.safetensors").write_bytes(weights)
        assert_runs_or_refuses(tmp_path)

    places = st.integers(0, 1 << 16)
    fuzz(st.tuples(st.sampled_from(names), places, places, JSON), check, examples)
