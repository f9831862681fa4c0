"""Quantised arithmetic for `onnx_graph`, in standard operators.

Matrices have 8 bits with a scale per output column; the word table, half of a small encoder, 8 bits with a scale per
row or 4 bits with a float16 scale per block. Activations stay float32, or are rounded to 8 bits with a scale per
*token*: one for a whole tensor would make a text's vector depend on the texts beside it in a batch.
"""

import dataclasses
import math

import numpy as np
from onnx import TensorProto

from jaxprefit.errors import UserError
from jaxprefit.export.onnx_graph import Graph

BLOCK = 32  # columns that share a scale in a 4-bit table


@dataclasses.dataclass(frozen=True)
class Int8:
    """An `onnx_graph.Arithmetic`.

    Attributes:
      table_bits: of the word table, 8 or 4.
      activations: whether what enters a matrix is rounded to 8 bits as well: faster, and less exact.
    """

    table_bits: int = 8
    activations: bool = False

    def __post_init__(self) -> None:
        if self.table_bits not in (4, 8):
            raise UserError(f"export.table_bits is {self.table_bits}; use 8 or 4")

    def embed(self, graph: Graph, ids: str, table: np.ndarray) -> str:
        if self.table_bits == 8:
            codes, scales = quantized(table, axis=1)
            rows = graph.add("Gather", graph.constant(codes, np.int8), ids)
            rows = graph.add("Cast", rows, to=TensorProto.FLOAT)
            return graph.add("Mul", rows, graph.add("Gather", graph.constant(scales), ids))
        codes, scales = packed(table)
        pairs = graph.add("Gather", graph.constant(codes, np.uint8), ids)
        low = graph.add("BitwiseAnd", pairs, graph.constant(15, np.uint8))
        high = graph.add("BitShift", pairs, graph.constant(4, np.uint8), direction="RIGHT")
        both = graph.add("Cast", graph.add("Concat", low, high, axis=-1), to=TensorProto.FLOAT)
        blocks = graph.integers(0, 0, scales.shape[1], table.shape[1] // scales.shape[1])
        centred = graph.add("Reshape", graph.add("Sub", both, graph.constant(8.0)), blocks)
        scale = graph.add("Gather", graph.constant(scales, np.float16), ids)
        scale = graph.add("Unsqueeze", graph.add("Cast", scale, to=TensorProto.FLOAT), graph.integers(3))
        return graph.add("Reshape", graph.add("Mul", centred, scale), graph.integers(0, 0, table.shape[1]))

    def product(self, graph: Graph, x: str, kernel: np.ndarray) -> str:
        codes, scales = quantized(kernel, axis=0)
        if not self.activations:
            zero = graph.constant(np.zeros(kernel.shape[1]), np.int8)
            weights = graph.constant(codes, np.int8)
            return graph.add(
                "MatMul", x, graph.add("DequantizeLinear", weights, graph.constant(scales[0]), zero, axis=1)
            )
        rounded, scale = graph.shared(("rounded", x), lambda: self._rounded(graph, x))
        middle = graph.shared("middle", lambda: graph.constant(128, np.uint8))
        sums = graph.add("MatMulInteger", rounded, graph.constant(codes, np.int8), middle)
        sums = graph.add("Mul", graph.add("Cast", sums, to=TensorProto.FLOAT), scale)
        return graph.add("Mul", sums, graph.constant(scales[0]))

    @staticmethod
    def _rounded(graph: Graph, x: str) -> tuple[str, str]:
        """Names of x [B, L, D] as uint8 around 128, and of the scale [B, L, 1] of each token."""
        largest = graph.add("ReduceMax", graph.add("Abs", x), graph.integers(-1))
        scale = graph.add("Div", graph.add("Max", largest, graph.constant(1e-12)), graph.constant(127.0))
        shifted = graph.add("Add", graph.add("Round", graph.add("Div", x, scale)), graph.constant(128.0))
        return graph.add("Cast", shifted, to=TensorProto.UINT8), scale


def quantized(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers in [-127, 127] and float32 scales, one along `axis`: their product is nearest to `array` [n, m]."""
    scales = np.maximum(np.abs(array).max(axis, keepdims=True), 1e-12).astype(np.float32) / 127
    return np.rint(array / scales).astype(np.int8), scales


def packed(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A table [V, D] in 4 bits: codes [V, D / 2] uint8 and float16 scales [V, D / block].

    A byte holds a column of the first half in its low bits and one of the second half in its high bits, each as
    1 to 15 for -7 to 7 times the scale of its block of columns.
    """
    rows, size = table.shape
    if size % 2:
        raise UserError(f"the hidden size {size} is odd; export.table_bits=4 needs an even one")
    blocks = table.reshape(rows, -1, math.gcd(size, BLOCK))
    scales = np.abs(blocks).max(2, keepdims=True) / 7
    scales = np.maximum(scales, 2.0**-24).astype(np.float16)
    codes = np.clip(np.rint(blocks / scales.astype(np.float32)), -7, 7).reshape(rows, size).astype(np.int8) + 8
    low, high = codes[:, : size // 2].astype(np.uint8), codes[:, size // 2 :].astype(np.uint8)
    return low | (high << 4), scales[..., 0]
