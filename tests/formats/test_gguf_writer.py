"""The GGUF writer: what it writes is read back by the `gguf` library, and it leaves nothing half-written."""

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers.small_disk import small_disk

from hotset.core.errors import CheckpointError, HotsetError
from hotset.formats import TensorType, locate
from hotset.formats.gguf_file import read_gguf
from hotset.formats.gguf_writer import NewTensor, same_metadata, same_tensor, write_gguf
from hotset.formats.tensor import tensor_from_array


def test_copy_of_the_demo_file_is_the_same_to_the_byte(tmp_path: Path) -> None:
    source = locate(None)
    file = read_gguf(source)
    progress: list[tuple[int, int]] = []
    size = write_gguf(
        tmp_path / "copy.gguf",
        same_metadata(file.metadata),
        [same_tensor(tensor) for tensor in file.tensors.values()],
        lambda done, total: progress.append((done, total)),
    )
    copy = (tmp_path / "copy.gguf").read_bytes()
    assert len(copy) == size
    assert copy == source.read_bytes()
    total = sum(tensor.nbytes for tensor in file.tensors.values())
    assert progress[-1] == (total, total)


def test_every_kind_of_value_and_tensor_reads_back_by_the_library(tmp_path: Path) -> None:
    values = {
        "general.architecture": "llama",
        "k.small": 7,
        "k.negative": -7,
        "k.large": 1 << 40,
        "k.flag": True,
        "k.float": 0.5,
        "k.text": "naïve ✓",
        "k.texts": ["", "é"],
        "k.none": [],
        **{
            f"k.{kind}": np.array([1, 0, 1], kind)
            for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")
        },
        **{f"k.{kind}": np.array([0.5, 2], kind) for kind in ("f4", "f8", ">f4")},
        "k.flags": np.array([True, False]),
    }
    rng = np.random.default_rng(0)
    arrays = {f"t{rank}": rng.standard_normal((3, 5, 2)[:rank], np.float32) for rank in (1, 2, 3)}
    q8 = rng.integers(0, 256, (4, 2 * 34), np.uint8)

    def halves() -> Iterator[bytes]:
        yield q8[:2].tobytes()
        yield q8[2:].tobytes()

    tensors = [same_tensor(tensor_from_array(name, values)) for name, values in arrays.items()]
    tensors.append(NewTensor("q8", (4, 64), TensorType.Q8_0, halves))
    write_gguf(tmp_path / "m.gguf", values, tensors)

    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    kinds = {name: field.types[0].name for name, field in reader.fields.items()}
    assert (kinds["k.small"], kinds["k.negative"], kinds["k.large"]) == ("UINT32", "INT32", "UINT64")
    for key, value in values.items():
        found = reader.fields[key].contents()
        assert found == (value.tolist() if isinstance(value, np.ndarray) else value), key
    *floats, quantised = reader.tensors
    for tensor in floats:
        assert np.array_equal(tensor.data, arrays[tensor.name])
    assert tuple(quantised.shape.tolist()) == (64, 4)
    assert np.array_equal(quantised.data, q8)
    assert np.array_equal(read_gguf(tmp_path / "m.gguf").metadata["k.i8"], values["k.i8"])


@pytest.mark.parametrize("failure", [KeyboardInterrupt, CheckpointError, ValueError])
def test_nothing_is_left_when_a_tensor_fails(tmp_path: Path, failure: type[BaseException]) -> None:
    def fail() -> Iterator[bytes]:
        yield bytes(4)
        raise failure("stop")

    path = tmp_path / "m.gguf"
    path.write_bytes(b"older")
    with pytest.raises(failure):
        write_gguf(path, {}, [NewTensor("t", (2,), TensorType.F32, fail)])
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert path.read_bytes() == b"older"


def test_a_tensor_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="t: expected 8 bytes, got 4"):
        write_gguf(tmp_path / "m.gguf", {}, [NewTensor("t", (2,), TensorType.F32, lambda: [bytes(4)])])
    assert not list(tmp_path.iterdir())


def no_folder(path: Path) -> Path:
    return path / "none" / "m.gguf"


def a_folder(path: Path) -> Path:
    (path / "m.gguf").mkdir()
    return path / "m.gguf"


@pytest.mark.parametrize("place", [no_folder, a_folder])
def test_what_the_system_refuses_is_one_line(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    path = place(tmp_path)
    with pytest.raises(HotsetError, match=r"m\.gguf: cannot be written: \w") as caught:
        write_gguf(path, {}, [])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(), pytest.raises(HotsetError, match=r"m\.gguf: cannot be written: File too large"):
        write_gguf(tmp_path / "m.gguf", {}, [same_tensor(tensor_from_array("t", np.ones(1 << 20)))])
    assert not list(tmp_path.iterdir())
