"""A matrix in the GPU's memory, and its products."""

from collections.abc import Callable, Iterable
from copy import copy
from typing import Any

import numpy as np
import torch
import triton

from hotset.backends.blocks import dequantise, store_as
from hotset.backends.checks import check_shape
from hotset.backends.contract import F32, Linear
from hotset.backends.gpu.device import INTERPRETED, Gpu
from hotset.backends.gpu.kernels.by_neuron import sum_neurons, sum_splits
from hotset.backends.gpu.kernels.matmul import matmul, to_halves
from hotset.backends.gpu.kernels.matvec import matvec
from hotset.backends.gpu.kernels.quantise import quantise
from hotset.backends.gpu.layouts import Layout, layout
from hotset.formats.tensor import Tensor, TensorType


class Input:
    """What matrices are multiplied with: numbers (T, C), and the codes of one token where they are needed."""

    def __init__(self, gpu: Gpu, numbers: Any, codes: Any = None) -> None:
        self.numbers = numbers
        self._gpu, self._codes = gpu, codes

    @property
    def codes(self) -> Any:
        """The token's codes (`hotset.backends.gpu.kernels.quantise`); C must be a multiple of 32."""
        if self._codes is None:
            size = self.numbers.shape[1]
            self._codes = code_room(self._gpu, size)
            block = 2048 if self._gpu.multiprocessors == INTERPRETED else 256
            quantise[(triton.cdiv(size, block),)](self.numbers, self._codes, size, BLOCK=block, num_warps=1)
        return self._codes


def as_input(gpu: Gpu, x: Any) -> Input:
    """x, or x (T, C) as an input."""
    return x if isinstance(x, Input) else Input(gpu, x)


def code_room(gpu: Gpu, size: int) -> Any:
    """Room for the codes of a token of `size` numbers, good until the next one's are written."""
    return gpu.scratch("codes", 1, size // 32 * 11, dtype=torch.int32)


class Matrix:
    """A laid-out matrix (rows, cols) and the bias of its outputs."""

    def __init__(self, gpu: Gpu, weight: Layout, bias: F32 | None = None) -> None:
        self.gpu, self.rows, self.cols = gpu, weight.rows, weight.cols
        self.bits, self.scaled = weight.bits, int(weight.scaled)
        codes = weight.codes
        # A kernel takes all four arrays; those that there are not, it does not read.
        parts = (weight.high, weight.scales, weight.supers)
        self.arrays = (codes, *(codes if part is None else part for part in parts))
        # Words of a chunk and fields of a word. Of floats, a thread loads 4 neighbours 8 times in `matvec`,
        # and 8 neighbours in tiles.
        self.words = {8: 8, 2: 2}.get(self.bits, 4)
        self.fields = 32 // self.words
        self.tile_words, self.tile_fields = (self.words, self.fields) if self.bits else (8, 1)
        self.even = self.cols % (32 * self.words * self.fields) == 0
        self.has_bias = bias is not None
        self.bias = codes if bias is None else gpu.upload(np.asarray(bias, np.float32))
        self.float_type = codes.dtype if weight.bits == 0 else None
        self.nbytes = weight.nbytes + (0 if bias is None else bias.nbytes)

    def move(self, move: Callable[[Any], Any]) -> None:
        """Have each array where `move` puts it."""
        self.arrays = tuple(map(move, self.arrays))
        self.bias = move(self.bias)

    def slice(self, index: int, count: int) -> "Matrix":
        """Part `index` of `count` equal ones, one after the other: a view."""

        def own(array: Any) -> Any:
            size = len(array) // count
            return array[index * size : (index + 1) * size]

        part = copy(self)
        part.rows = self.rows // count
        part.move(own)
        return part

    def assign(self, other: "Matrix") -> None:
        """Copy the contents of another of the same shape and type here, in stream order."""
        for to, array in zip((*self.arrays, self.bias), (*other.arrays, other.bias), strict=True):
            to.copy_(array)

    def times(self, x: Any, out: Any, *, add: bool = False, relu: bool = False) -> None:
        """out (T, rows) = W x + b of x (T, cols), or += with `add`; out's rows may be strided.

        x is a tensor or an `Input`, which products with several matrices share.
        """
        x = as_input(self.gpu, x)
        if len(x.numbers) == 1:
            rows = matvec_rows(self, self.gpu.multiprocessors)
            matvec[(triton.cdiv(self.rows, rows),)](
                x.codes if self.bits else x.numbers, *self.arrays, self.bias, out, self.rows, self.cols,
                BITS=self.bits, SCALES=self.scaled, W=self.words, K=self.fields, HAS_BIAS=self.has_bias,
                ADD=add, RELU=relu, BR=rows, PTX=self.gpu.ptx, EVEN=self.even, num_warps=1,
            )  # fmt: skip
            return
        self._matmul(x.numbers, out, add, by_neuron=False)
        if relu:
            out.clamp_(min=0)

    def sum_rows(self, h: Any, out: Any, *, add: bool = False, skip: bool = False) -> None:
        """out (T, cols) = h W + b of h (T, rows), or += with `add`.

        `skip`: for one token, rows whose factor in h is zero are not read.
        """
        if len(h) > 1:
            self._matmul(h, out, add, by_neuron=True)
            return
        block = min(256, max(32, triton.next_power_of_2(self.cols)))
        # Programs of one warp, whose threads add up rows by themselves.
        step = 32 if self.gpu.multiprocessors == INTERPRETED else max(4, 1024 // block)
        columns = triton.cdiv(self.cols, block)
        enough = max(16 * self.gpu.multiprocessors // columns, self.rows // (16 * step))
        splits = max(1, min(enough, self.rows // (4 * step), 256))
        part = self.gpu.scratch("sums", 1, splits, self.cols)
        sum_neurons[columns, splits](
            h, *self.arrays, part, self.rows, self.cols, BITS=self.bits, SCALES=self.scaled,
            W=self.tile_words, K=self.tile_fields, SKIP=skip, BR=step, BC=block,
            EVEN=self.cols % block == 0 and self.rows % (splits * step) == 0, num_warps=1,
        )  # fmt: skip
        sum_splits[(triton.cdiv(self.cols, 32),)](
            part, self.bias, out, splits, self.cols, HAS_BIAS=self.has_bias, ADD=add,
            SPLITS=triton.next_power_of_2(splits), BLOCK=32, num_warps=4,
        )  # fmt: skip

    def _matmul(self, x: Any, out: Any, add: bool, by_neuron: bool) -> None:
        gpu, tokens = self.gpu, len(x)
        scale = x
        is_half = self.float_type not in (torch.float32, torch.bfloat16)
        if is_half:
            half, scale = gpu.empty(*x.shape, dtype=torch.float16), gpu.empty(tokens)
            to_halves[(tokens,)](x, half, scale, x.shape[1], BLOCK=1024, num_warps=4)
            x = half
        precision = (
            "ieee" if gpu.capability < 80 else "tf32x3" if self.float_type == torch.float32 else "tf32"
        )
        outputs, depth = (self.cols, self.rows) if by_neuron else (self.rows, self.cols)
        bm = min(128 if gpu.capability >= 80 and is_half else 64, max(16, triton.next_power_of_2(tokens)))
        bn = 32 if bm <= 32 else 64 if bm <= 64 else 128
        bk = 64 if is_half else 32
        if gpu.multiprocessors == INTERPRETED:
            bn = bk = 256
        rows, cols = (bk, bn) if by_neuron else (bn, bk)
        matmul[triton.cdiv(tokens, bm), triton.cdiv(outputs, bn)](
            x, scale, *self.arrays, self.bias, out, tokens, self.rows, self.cols, out.stride(0),
            BITS=self.bits, SCALES=self.scaled, W=self.tile_words, K=self.tile_fields, BY_NEURON=by_neuron,
            PRECISION=precision, HAS_BIAS=self.has_bias, ADD=add, BM=bm, BR=rows, BC=cols,
            EVEN=outputs % bn == 0 and depth % bk == 0,
            num_warps=8 if bm == 128 else 4, num_stages=3 if gpu.capability >= 80 else 2,
        )  # fmt: skip


def matvec_rows(matrix: Matrix, multiprocessors: int) -> int:
    """Rows of a program, which is a warp.

    Of codes one: their x is small. Of floats many, as x is loaded for each program, but enough programs.
    """
    if multiprocessors == INTERPRETED:
        return 64
    for rows, warps in ((8, 16), (4, 4), (2, 4)):
        if not matrix.bits and matrix.rows >= rows * warps * multiprocessors:
            return rows
    return 1


def build_matrix(gpu: Gpu, linear: Linear, rows: int, cols: int, *, outputs: int | None = None) -> Matrix:
    """Lay out and upload a matrix of that shape; its bias has `outputs` numbers, by default `rows`."""
    weight, bias = linear.weight, linear.bias
    check_shape(weight.name, weight.shape, (rows, cols))
    if bias is not None:
        check_shape(f"{weight.name}: bias", bias.shape, (rows if outputs is None else outputs,))
    return Matrix(gpu, layout(gpu, weight), bias)


def build_stacked(gpu: Gpu, parts: list[tuple[Linear, int]], cols: int) -> list[Matrix]:
    """Matrices of the (linear, rows) one above the other, neighbours of one type in one."""
    stacked: list[tuple[Linear, int]] = []
    for linear, rows in parts:
        check_shape(linear.weight.name, linear.weight.shape, (rows, cols))
        if linear.bias is not None:
            check_shape(f"{linear.weight.name}: bias", linear.bias.shape, (rows,))
        if stacked and _alike(stacked[-1][0].weight, linear.weight):
            above, size = stacked[-1]
            stacked[-1] = _below(above, linear), size + rows
        else:
            stacked.append((linear, rows))
    return [build_matrix(gpu, linear, rows, cols) for linear, rows in stacked]


def times_stacked(matrices: list[Matrix], x: Input, out: Any) -> None:
    """out (T, rows of all) = the products of x with matrices, side by side."""
    first = 0
    for matrix in matrices:
        matrix.times(x, out[:, first : first + matrix.rows])
        first += matrix.rows


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether one matrix can have the rows of both."""
    return a.type is b.type and a.scale is None and b.scale is None


def _below(first: Linear, second: Linear) -> Linear:
    """The second matrix below the first."""
    a, b = first.weight, second.weight
    rows = a.shape[0] + b.shape[0]
    weight = Tensor(f"{a.name}, {b.name}", a.type, (rows, a.shape[1]), np.concatenate([a.data, b.data]))
    if first.bias is None and second.bias is None:
        return Linear(weight)
    biases = [np.zeros(x.weight.shape[0], np.float32) if x.bias is None else x.bias for x in (first, second)]
    return Linear(weight, np.concatenate(biases))


def one_above_the_other(weight: Tensor, parts: Iterable[int]) -> Tensor:
    """The matrix of some parts of a tensor (parts, rows, cols); where each has a scale, of float16."""
    matrices = [weight.part(part) for part in parts]
    if weight.scale is not None:
        matrices = [store_as(part.name, dequantise(part), TensorType.F16) for part in matrices]
    rows, cols = weight.shape[1:]
    whole = np.concatenate([part.data for part in matrices])
    return Tensor(weight.name, matrices[0].type, (len(matrices) * rows, cols), whole)
