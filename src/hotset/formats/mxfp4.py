"""gpt-oss's experts as the hub has them: MXFP4 in two tensors, re-laid without loss as GGUF's blocks.

``NAME_blocks`` (E, rows, columns / 32, 16) has two codes a byte, the even column's in the low half, and
``NAME_scales`` (E, rows, columns / 32) the blocks' exponents.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hotset.core.errors import CheckpointError
from hotset.formats.experts import add_stack
from hotset.formats.tensor import Tensor, TensorType
from hotset.formats.tensor_table import Sizes, TensorTable

Bytes = NDArray[np.uint8]

_BLOCK = 32
_PARTS = {
    "down_proj": {"ffn_down_exps": slice(None)},
    # Gate's rows alternate with up's.
    "gate_up_proj": {"ffn_gate_exps": slice(0, None, 2), "ffn_up_exps": slice(1, None, 2)},
}


def add_mxfp4(table: TensorTable, raw: Mapping[str, Bytes], sizes: Sizes) -> None:
    """Take in the pairs of all layers; `raw` has the files' tensors of bytes.

    Raises `CheckpointError` for tensors of other names or shapes, and where one of a pair is missing.
    """
    count, size, hidden = sizes.dimensions("EXD")
    shapes = {"down_proj": (hidden, size), "gate_up_proj": (2 * size, hidden)}
    left = set(raw)
    for layer in range(sizes.layers):
        for module, (rows, columns) in shapes.items():
            name = f"model.layers.{layer}.mlp.experts.{module}"
            names = f"{name}_blocks", f"{name}_scales"
            if not left & set(names):
                continue
            expected = (count, rows, columns // _BLOCK, 16), (count, rows, columns // _BLOCK)
            for one, shape in zip(names, expected, strict=True):
                if one not in raw:
                    raise CheckpointError(f"{table.where}: tensor {one} is missing: the file is incomplete")
                if columns % _BLOCK or raw[one].shape != shape:
                    raise table.mismatch(one, shape, raw[one].shape)
            left -= set(names)
            blocks, scales = (raw[one] for one in names)
            for part, own in _PARTS[module].items():
                target = f"blk.{layer}.{part}.weight"
                made = (count, len(range(rows)[own]), columns)
                make = partial(_relaid, target, blocks[:, own], scales[:, own])
                add_stack(table, target, TensorType.MXFP4, made, make)
    for name in sorted(left):
        raise CheckpointError(
            f"{table.where}: tensor {name} is unexpected: no experts of MXFP4 have that name"
        )


def _relaid(name: str, all_blocks: Bytes, all_scales: Bytes, expert: int) -> Tensor:
    """One expert's matrix."""
    blocks, scales = all_blocks[expert], all_scales[expert]
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*scales.shape, _BLOCK)
    data = np.empty((*scales.shape, 17), np.uint8)
    data[..., 0] = scales
    shape = scales.shape[0], scales.shape[1] * _BLOCK
    data[..., 1:] = codes[..., :16] | codes[..., 16:] << 4
    return Tensor(name, TensorType.MXFP4, shape, data.reshape(-1))
