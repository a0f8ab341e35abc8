"""Write a GGUF file piece by piece, and dequantise one: little memory, and no half-written file is left."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize


@dataclass(frozen=True)
class StreamedTensor:
    """One tensor to write; ``shape`` counts numbers, the last dimension being contiguous."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    chunks: Callable[[], Iterable[memoryview]]
    """Gives the tensor's ``nbytes`` bytes in order."""

    @property
    def nbytes(self) -> int:
        """Bytes without padding."""
        return tensor_bytes(self.shape, self.type)


def tensor_bytes(shape: Sequence[int], kind: GGMLQuantizationType) -> int:
    """Bytes of a tensor of so many numbers, without padding."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    count = 1
    for size in shape:
        count *= size
    return count // block * block_bytes


def write_gguf(
    path: Path, architecture: str, metadata: Callable[[GGUFWriter], None], tensors: Sequence[StreamedTensor]
) -> int:
    """Write `path` by a temporary file beside it and a rename; its size in bytes. OSError as raised."""
    partial = path.with_name(path.name + ".partial")
    try:
        writer = GGUFWriter(partial, architecture)
        metadata(writer)
        for tensor in tensors:
            # A dtype other than uint8 makes the writer take the shape as counted in numbers.
            writer.add_tensor_info(
                tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.type
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with partial.open("ab") as file:
            file.write(bytes(-file.tell() % writer.data_alignment))
            for tensor in tensors:
                for chunk in tensor.chunks():
                    file.write(chunk)
                file.write(bytes(-tensor.nbytes % writer.data_alignment))
            size = file.tell()
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return size


def write_dequantised(source: Path, path: Path) -> int:
    """Write the same model with every tensor in F32, dequantised by the `gguf` library; the size in bytes."""
    reader = GGUFReader(source)

    def metadata(writer: GGUFWriter) -> None:
        for field in reader.fields.values():
            if field.name.startswith("GGUF.") or field.name == "general.architecture":
                continue
            kind = field.types[0]
            element = field.types[-1] if kind is GGUFValueType.ARRAY else None
            value = 0 if field.name == "general.file_type" else field.contents()
            writer.add_key_value(field.name, value, kind, element)

    def chunks(tensor: object) -> Iterable[memoryview]:
        values = dequantize(tensor.data, tensor.tensor_type)
        yield memoryview(np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8))

    tensors = [
        StreamedTensor(
            tensor.name,
            tuple(int(size) for size in tensor.shape[::-1]),
            GGMLQuantizationType.F32,
            lambda tensor=tensor: chunks(tensor),
        )
        for tensor in reader.tensors
    ]
    return write_gguf(path, reader.fields["general.architecture"].contents(), metadata, tensors)
