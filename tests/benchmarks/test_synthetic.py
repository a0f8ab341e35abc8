"""Synthetic files hold valid blocks and nothing is left behind when the disk is full."""

from dataclasses import replace

import accuracy
import gguf
import numpy as np
import pytest
import synthetic

from hotset.formats import open_checkpoint


@pytest.mark.parametrize("kind", list(synthetic.TYPES))
@pytest.mark.parametrize("columns", [576, 4096])
def test_blocks_dequantise_to_centred_numbers_of_the_wanted_deviation(kind, columns):
    type_ = synthetic.matrix_type(synthetic.TYPES[kind], columns)
    blocks = synthetic.random_blocks(type_, columns, 1024, np.random.default_rng(1))
    if type_.name in ("F32", "F16"):
        values = (
            blocks.reshape(-1).view({"F32": np.float32, "F16": np.float16}[type_.name]).astype(np.float32)
        )
    else:
        values = gguf.dequantize(blocks, type_)
    assert np.isfinite(values).all()
    assert np.std(values) * columns**0.5 == pytest.approx(1.0, rel=0.15)
    assert abs(np.mean(values)) * columns**0.5 < 0.15


@pytest.mark.parametrize(
    "shape",
    [
        *("smollm2-135m", "qwen2.5-1.5b", "falcon-7b", "opt-6.7b"),
        *("qwen3.5-4b", "qwen3-30b-a3b", "qwen3.6-35b-a3b", "gpt-oss-20b"),
    ],
)
def test_file_is_read_back_by_gguf(tmp_path, shape, monkeypatch):
    full = synthetic.SHAPES[shape]
    monkeypatch.setitem(synthetic.SHAPES, shape, replace(full, vocab=1000, experts=min(full.experts, 9)))
    path = tmp_path / "m.gguf"
    layers = 4 if full.delta_heads else 1  # they have two kinds
    size = synthetic.write(path, shape, "q4_k", layers=layers)
    assert size == path.stat().st_size
    reader = gguf.GGUFReader(path)
    assert "synthetic" in reader.fields["general.name"].contents()
    planned = synthetic.plan(synthetic.SHAPES[shape], layers, synthetic.TYPES["q4_k"])
    found = {t.name: (tuple(int(n) for n in t.shape[::-1]), t.tensor_type) for t in reader.tensors}
    assert found == {t.name: (t.shape, t.type) for t in planned}
    assert len(reader.fields["tokenizer.ggml.tokens"].data) == synthetic.SHAPES[shape].vocab
    assert open_checkpoint(path).config.n_layers == layers


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("gemma-4-26b-a4b", 6),
        ("gemma-4-e2b", 35),
        ("lfm2-1.2b", 3),
        ("nemotron-3-nano-30b-a3b", 6),
        ("glm-4.7-flash", 3),
    ],
)
def test_files_of_families_whose_layers_differ_are_models(tmp_path, name, layers, monkeypatch):
    family = synthetic.FAMILIES[name]
    small = {"vocab": 1000, "hidden": 128, "ffn": 64, "experts": 9, "experts_size": 32, "shared_size": 32}
    small = {key: value for key, value in small.items() if getattr(family, key, 0)}
    monkeypatch.setitem(synthetic.FAMILIES, name, replace(family, **small))
    synthetic.write(tmp_path / "m.gguf", name, "q4_k", layers=layers)
    config = open_checkpoint(tmp_path / "m.gguf").config
    assert config.n_layers == layers
    assert config.mixture == bool(small.get("experts"))
    assert config.recurrent == (family.architecture not in ("gemma4", "deepseek2"))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(synthetic, "tensor_chunks", full)
    out = tmp_path / "m.gguf"
    monkeypatch.setattr("sys.argv", ["synthetic", "smollm2-135m", "--layers", "1", "--out", str(out)])
    assert synthetic.main() == 2
    assert capsys.readouterr().err == f"synthetic: {out}: cannot be written: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


def test_dequantised_copy_holds_the_same_numbers_and_metadata(tmp_path, monkeypatch):
    monkeypatch.setitem(
        synthetic.SHAPES, "smollm2-135m", replace(synthetic.SHAPES["smollm2-135m"], vocab=500)
    )
    synthetic.write(tmp_path / "m.gguf", "smollm2-135m", "q4_1", layers=1)
    accuracy.write_dequantised(tmp_path / "m.gguf", tmp_path / "f32.gguf")
    source, copy = gguf.GGUFReader(tmp_path / "m.gguf"), gguf.GGUFReader(tmp_path / "f32.gguf")
    for a, b in zip(source.tensors, copy.tensors, strict=True):
        assert a.name == b.name
        assert b.tensor_type.name == "F32"
        assert np.array_equal(gguf.dequantize(a.data, a.tensor_type), b.data)
    for name, field in source.fields.items():
        if not name.startswith("GGUF."):
            assert copy.fields[name].contents() == field.contents()
