"""The GGUF container against the `gguf` library's reader and writer, and all that can be wrong with it."""

import os
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers.gguf_bytes import GGUFBytes, TensorLine, pack_string, split, tiny_llama
from helpers.systems import on_posix

from hotset.core.errors import CheckpointError
from hotset.formats import TensorType, locate, open_checkpoint
from hotset.formats.gguf_file import read_gguf


def write(path: Path, file: GGUFBytes) -> Path:
    path.write_bytes(file.to_bytes())
    return path


def assert_same_as_library(path: Path, library: gguf.GGUFReader) -> None:
    mine = read_gguf(path)
    assert list(mine.tensors) == [t.name for t in library.tensors]
    for theirs in library.tensors:
        tensor = mine.tensors[theirs.name]
        assert tensor.type == theirs.tensor_type
        assert tensor.shape == tuple(theirs.shape.tolist()[::-1])
        assert tensor.data.tobytes() == theirs.data.tobytes()
    fields = {k: v for k, v in library.fields.items() if not k.startswith("GGUF.")}
    assert list(mine.metadata) == list(fields)
    for key, field in fields.items():
        value = field.contents()
        found = mine.metadata[key]
        assert (found.tolist() if isinstance(found, np.ndarray) else found) == value
        if isinstance(value, list):
            assert mine.metadata.length(key) == len(value)


def test_demo_file_reads_as_by_the_library_and_faster() -> None:
    path = locate(None)
    start = time.process_time()
    library = gguf.GGUFReader(path)
    library_seconds = time.process_time() - start
    start = time.process_time()
    open_checkpoint(path)
    assert time.process_time() - start < library_seconds / 5
    assert_same_as_library(path, library)


def test_every_tensor_and_value_type_reads_as_by_the_library(tmp_path: Path) -> None:
    path = tmp_path / "all.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"k.{kind}", 7)
    writer.add_float32("k.f32", 0.5)
    writer.add_float64("k.f64", 1e-300)
    writer.add_bool("k.bool", True)
    writer.add_string("k.text", "naïve ✓")
    writer.add_array("k.strings", ["", "é", "two\nlines"])
    writer.add_array("k.ints", [1, -2, 3])
    writer.add_array("k.floats", [0.5, -2.0])
    writer.add_array("k.bools", [True, False])
    rng = np.random.default_rng(1)
    for type in TensorType:
        row_bytes = 256 // type.block_size * type.block_bytes
        raw = rng.integers(0, 256, (3, row_bytes), dtype=np.uint8)
        writer.add_tensor(f"t.{type.name}", raw, raw_dtype=gguf.GGMLQuantizationType(type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_same_as_library(path, gguf.GGUFReader(path))


def test_version_2_and_other_alignment(tmp_path: Path) -> None:
    file = tiny_llama(general__alignment=16)
    file.version = 2
    assert open_checkpoint(write(tmp_path / "v2.gguf", file)).config.hidden_size == 8


def bad_type(kind: int) -> TensorLine:
    return TensorLine("blk.0.ffn_up.weight", (1, 256), bytes(1024), type=kind)


def line(name: str, **changes: object) -> TensorLine:
    return TensorLine(**{"name": name, "shape": (8,), "data": bytes(32)} | changes)  # type: ignore[arg-type]


ARRAY, STRING, U32 = (struct.pack("<I", kind) for kind in (9, 8, 4))
HUGE, ONE = struct.pack("<Q", 2**63), struct.pack("<Q", 1)

DAMAGE = {
    "magic": (GGUFBytes({}, magic=b"GGML"), r"expected it to begin with GGUF, found b'GGML'"),
    "version 1": (GGUFBytes({}, version=1), r"version 2 or 3, found version 1"),
    "big-endian": (GGUFBytes({}, version=3 << 24), r"big-endian"),
    "many tensors": (GGUFBytes({}, n_tensors=2**60), r"announces 1152921504606846976 entries"),
    "many keys": (GGUFBytes({}, n_keys=2**64 - 1), r"announces 18446744073709551615 entries"),
    "one key too few": (GGUFBytes({"a": 1, "b": 2}, n_keys=3), r"truncated|announces"),
    "long string": (GGUFBytes({"a": STRING + HUGE}), r"announces 9223372036854775808"),
    "long array": (GGUFBytes({"a": ARRAY + U32 + HUGE}), r"announces 9223372036854775808"),
    "long strings": (GGUFBytes({"a": ARRAY + STRING + struct.pack("<Q", 1) + HUGE + b"x"}), r"truncated"),
    "deep array": (
        GGUFBytes({"a": ARRAY + (ARRAY + ONE) * 5 + bytes(12)}),
        r"'a' has arrays more than 4 deep",
    ),
    "value type": (GGUFBytes({"a": struct.pack("<I", 77)}), r"'a' has value type 77"),
    "key twice": (GGUFBytes([("a", 1), ("a", 2)]), r"key 'a' is there twice"),
    "key not UTF-8": (GGUFBytes([(b"\xff", 1)]), r"not UTF-8"),  # type: ignore[list-item]
    "long key": (GGUFBytes([("k" * 70000, 1)]), r"announces 70000 entries: expected at most 65535"),
    "alignment": (GGUFBytes({"general.alignment": 12}), r"general.alignment: expected a power of two"),
    "alignment type": (GGUFBytes({"general.alignment": "x"}), r"general.alignment: expected a power of two"),
    "no dimensions": (GGUFBytes({}, [line("t", shape=())]), r"1 to 4 dimensions, found 0"),
    "dimensions": (GGUFBytes({}, [line("t", shape=(1,) * 5)]), r"1 to 4 dimensions, found 5"),
    "empty": (GGUFBytes({}, [line("t", shape=(0, 8))]), r"found shape \[0, 8\]"),
    "row": (GGUFBytes({}, [line("t", shape=(2, 33), type=2)]), r"multiple of 32 numbers for type Q4_0"),
    "overflow": (GGUFBytes({}, [line("t", shape=(2**40, 2**40))]), r"ends at byte .* truncated"),
    "out of range": (GGUFBytes({}, [line("t", offset=4096)]), r"ends at byte .* truncated"),
    "unaligned": (GGUFBytes({}, [line("t", offset=8)]), r"not aligned to 32"),
    "overlap": (GGUFBytes({}, [line("s"), line("t", offset=0)]), r"overlaps"),
    "tensor twice": (GGUFBytes({}, [line("t"), line("t")]), r"tensor 't' is there twice"),
    "named type": (
        GGUFBytes({}, [bad_type(9)]),
        r"'blk.0.ffn_up.weight' has type Q8_1, which Hotset does not run; take a file of another type",
    ),
    "removed type": (GGUFBytes({}, [bad_type(31)]), r"has type 31 \(Q4_0_4_4\), which GGUF no longer has; "),
    "foreign type": (GGUFBytes({}, [bad_type(9999)]), r"has type 9999, which is none of GGUF's: other prog"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_clear_line(case: str, tmp_path: Path) -> None:
    file, message = DAMAGE[case]
    path = write(tmp_path / "bad.gguf", file)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_truncation_anywhere_is_refused(tmp_path: Path) -> None:
    whole = tiny_llama().to_bytes()
    path = tmp_path / "cut.gguf"
    for length in range(0, len(whole) - 32, 13):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_bad_token_says_so_when_looked_up(tmp_path: Path) -> None:
    tokens = ARRAY + STRING + struct.pack("<Q", 1) + pack_string(b"\xc3")
    checkpoint = open_checkpoint(write(tmp_path / "t.gguf", tiny_llama(tokenizer__ggml__tokens=tokens)))
    with pytest.raises(CheckpointError, match="not UTF-8"):
        checkpoint.metadata["tokenizer.ggml.tokens"]


def write_parts(folder: Path, parts: list[GGUFBytes]) -> list[Path]:
    count = len(parts)
    return [write(folder / f"m-{i + 1:05d}-of-{count:05d}.gguf", part) for i, part in enumerate(parts)]


def test_any_part_opens_the_whole(tmp_path: Path) -> None:
    whole = open_checkpoint(write(tmp_path / "whole.gguf", tiny_llama()))
    for path in write_parts(tmp_path, split(tiny_llama(), 3)):
        checkpoint = open_checkpoint(path)
        assert checkpoint.config == whole.config
        assert list(checkpoint.tensors) == list(whole.tensors)
        for name, tensor in whole.tensors.items():
            assert checkpoint.tensors[name].data.tobytes() == tensor.data.tobytes()


def test_splits_are_checked(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, split(tiny_llama(), 3))

    def refused(message: str, path: Path = paths[0]) -> None:
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path)

    kept = paths[1].read_bytes()
    paths[1].write_bytes(paths[0].read_bytes())
    refused(r"00002-of-00003.gguf: split.no: expected 1, found 0")
    paths[1].unlink()
    refused(r"part 2 of 3 is missing")
    paths[1].write_bytes(kept)
    renamed = paths[0].rename(tmp_path / "m.gguf")
    refused(r"split.count: found 3, but the name says 1", renamed)
    write(paths[0], tiny_llama())
    refused(r"split.count: found 0, but the name says 3")
    write(paths[0], split(tiny_llama(), 4)[0])
    refused(r"split.count: found 4, but the name says 3")
    again = split(tiny_llama(), 3)
    again[2].tensors[0].name = "token_embd.weight"
    write_parts(tmp_path, again)
    refused(r"'token_embd.weight' is in another part too")
    fewer = split(tiny_llama(), 3)
    fewer[2].tensors.pop()
    write_parts(tmp_path, fewer)
    refused(r"split.tensors.count: found 11, but the parts have 10")
    zero = write(tmp_path / "m-00001-of-00000.gguf", split(tiny_llama(), 3)[0])
    refused(r"split.count: found 3", zero)


@on_posix
def test_what_is_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    (tmp_path / "empty.gguf").write_bytes(b"")
    for name, message in {
        "none.gguf": "cannot be read: No such file",
        "pipe.gguf": "expected a file",
        "empty.gguf": "is empty",
        "x\0.gguf": "cannot be read",
        "x" * 300: "cannot be read",
        "config.json": "name its directory",
        "model.safetensors": "name its directory",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / name)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.gguf", tiny_llama())

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    for method, target in (("open", path), ("stat", path), ("exists", tmp_path)):
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, denied)  # the superuser may read everything
            with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
                open_checkpoint(target)
