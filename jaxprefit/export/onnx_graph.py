"""The encoder as an ONNX graph, node by node: about 200 nodes of standard operators (opset 20).

Inputs input_ids and attention_mask [B, L] int64, outputs tokens [B, L, D] and sentence [B, D], B and L free. The
matrices of each adapted map are inputs as well, `layer_4.query.a` [in, R] and `layer_4.query.b` [R, out] (the scale is
in b), with defaults of rank 0: without an adapter the graph is the bare encoder. Their rank as arrays is free, too:
[N, in, R] gives each row of a batch its own adapter, or makes N rows of one.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from jaxprefit.encoder.transformer import LINEAR_MAPS, EncoderConfig
from jaxprefit.export.bundle import Bundle

OPSET = 20  # has Gelu and LayerNormalization
IR_VERSION = 10
_FREE: list[str | None] = ["batch", "length"]


class Arithmetic(Protocol):
    """How tables are read and matrices multiplied: in float32 or quantised (`int8`)."""

    def embed(self, graph: "Graph", ids: str, table: np.ndarray) -> str:
        """Name of the rows of `table` [V, D] at ids [B, L]."""

    def product(self, graph: "Graph", x: str, kernel: np.ndarray) -> str:
        """Name of x [B, L, in] times kernel [in, out]."""


class Float32:
    """Tables and matrices as they are."""

    def embed(self, graph: "Graph", ids: str, table: np.ndarray) -> str:
        return graph.add("Gather", graph.constant(table), ids)

    def product(self, graph: "Graph", x: str, kernel: np.ndarray) -> str:
        return graph.add("MatMul", x, graph.constant(kernel))


@dataclasses.dataclass
class Graph:
    """Nodes and constants while a graph is being written; methods give the names of values."""

    nodes: list[onnx.NodeProto] = dataclasses.field(default_factory=list)
    initializers: list[onnx.TensorProto] = dataclasses.field(default_factory=list)
    defaults: list[onnx.ValueInfoProto] = dataclasses.field(default_factory=list)  # inputs that need not be given
    once: dict[Any, Any] = dataclasses.field(default_factory=dict)  # of values that several nodes share

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Adds a node with one output, called `name` or numbered."""
        output = name or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any = np.float32, name: str = "") -> str:
        """Adds an array."""
        name = name or f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def integers(self, *values: int) -> str:
        """A 1-D int64 array, as shapes and axes are given; the same one for the same values."""
        return self.shared(("integers", values), lambda: self.constant(values, np.int64))

    def shared(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gave at the first call with this key."""
        if key not in self.once:
            self.once[key] = make()
        return self.once[key]

    def default(self, name: str, value: np.ndarray) -> str:
        """Adds an input of any shape with a default."""
        self.defaults.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        return self.constant(value, name=name)

    def model(self, inputs: list, outputs: list, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """The finished graph."""
        made = helper.make_graph(self.nodes, "jaxprefit", [*inputs, *self.defaults], outputs, self.initializers)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(made, opset_imports=opset, ir_version=IR_VERSION, producer_name="jaxprefit")
        helper.set_model_props(model, dict(metadata))
        return model


def adapted_maps(bundle: Bundle) -> set[tuple[int, str]]:
    """(layer, linear map) of all that an adapter of the bundle changes; every map where it has no adapter."""
    given = {(int(layer.removeprefix("layer_")), name) for a in bundle.adapters.values()
             for layer, maps in a.items() for name in maps}  # fmt: skip
    return given or {(layer, name) for layer in range(bundle.config.num_layers) for name in LINEAR_MAPS}


def adapter_inputs(adapter: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The graph's inputs, by name, that make it run a LoRA tree."""
    out = {}
    for layer, maps in adapter.items():
        for name, m in maps.items():
            out[f"{layer}.{name}.a"] = np.ascontiguousarray(m["a"], np.float32)
            out[f"{layer}.{name}.b"] = np.ascontiguousarray(np.asarray(m["scale"]) * np.asarray(m["b"]), np.float32)
    return out


def encoder(bundle: Bundle, arithmetic: Arithmetic) -> onnx.ModelProto:
    """The whole encoder: input_ids, attention_mask -> tokens, sentence."""
    graph = Graph()
    hidden = _embeddings(graph, bundle, arithmetic)
    return _upper(graph, bundle, arithmetic, hidden, range(bundle.config.num_layers), [_ids("input_ids")])


def trunk(bundle: Bundle, arithmetic: Arithmetic, layers: int) -> onnx.ModelProto:
    """The first `layers` layers without adapters: input_ids, attention_mask -> hidden [B, L, D]."""
    graph = Graph()
    bias = _attention_bias(graph)
    hidden = _embeddings(graph, bundle, arithmetic)
    for number in range(layers):
        hidden = _layer(graph, bundle, arithmetic, hidden, bias, number, set())
    graph.add("Identity", hidden, name="hidden")
    return graph.model([_ids("input_ids"), _ids("attention_mask")], [_float("hidden", bundle.config)], {})


def top(bundle: Bundle, arithmetic: Arithmetic, layers: int) -> onnx.ModelProto:
    """All layers but the first `layers`: hidden, attention_mask -> tokens, sentence."""
    numbers = range(layers, bundle.config.num_layers)
    return _upper(Graph(), bundle, arithmetic, "hidden", numbers, [_float("hidden", bundle.config)])


def head(kernel: np.ndarray, bias: np.ndarray, reads: str, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """A linear classifier: `reads`, 'tokens' [B, L, D] or 'sentence' [B, D] -> logits [B, L, C] or [B, C]."""
    graph = Graph()
    graph.add("Add", graph.add("MatMul", reads, graph.constant(kernel)), graph.constant(bias), name="logits")
    free = _FREE if reads == "tokens" else _FREE[:1]
    ends = [(name, [*free, size]) for name, size in zip((reads, "logits"), kernel.shape)]
    given, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends)
    return graph.model([given], [out], metadata)


def _upper(
    graph: Graph, bundle: Bundle, arithmetic: Arithmetic, hidden: str, numbers: Iterable[int], inputs: list
) -> onnx.ModelProto:
    """From a hidden state through layers `numbers` to the two outputs."""
    config, places = bundle.config, adapted_maps(bundle)
    bias = _attention_bias(graph)
    for number in numbers:
        hidden = _layer(graph, bundle, arithmetic, hidden, bias, number, places)
    graph.add("Identity", hidden, name="tokens")
    _sentence(graph, bundle)
    sentence = helper.make_tensor_value_info("sentence", TensorProto.FLOAT, ["rows", config.hidden_size])
    tokens = helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["rows", "length", config.hidden_size])
    return graph.model([*inputs, _ids("attention_mask")], [tokens, sentence], {})


def _ids(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, _FREE)


def _float(name: str, config: EncoderConfig) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [*_FREE, config.hidden_size])


def _attention_bias(graph: Graph) -> str:
    """[B, 1, 1, L]: zero at real tokens, so low at padding that its attention is exactly zero."""
    mask = graph.add("Cast", "attention_mask", name="mask", to=TensorProto.FLOAT)
    missing = graph.add("Sub", graph.constant(1.0), graph.add("Unsqueeze", mask, graph.integers(1, 2)))
    return graph.add("Mul", missing, graph.constant(-1e9))


def _embeddings(graph: Graph, bundle: Bundle, arithmetic: Arithmetic) -> str:
    tables, config = bundle.backbone["embeddings"], bundle.config
    words = arithmetic.embed(graph, "input_ids", np.asarray(tables["word"]["embedding"]))
    beside = np.asarray(tables["position"]["embedding"])
    if config.type_vocab_size:  # always type 0, so that it can be part of the position
        beside = beside + np.asarray(tables["token_type"]["embedding"])[0]
    length = graph.add("Shape", "input_ids", start=1, end=2)
    positions = graph.add("Slice", graph.constant(beside), graph.integers(0), length, graph.integers(0))
    return _norm(graph, config, tables["norm"], graph.add("Add", words, positions))


def _norm(graph: Graph, config: EncoderConfig, norm: Mapping[str, Any], x: str) -> str:
    scale, bias = graph.constant(norm["scale"]), graph.constant(norm["bias"])
    return graph.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=config.norm_eps)


def _layer(
    graph: Graph, bundle: Bundle, arithmetic: Arithmetic, hidden: str, bias: str, number: int, places: set
) -> str:
    config, params = bundle.config, bundle.backbone[f"layer_{number}"]
    width = config.hidden_size // config.num_heads

    def linear(name: str, x: str) -> str:
        y = arithmetic.product(graph, x, np.asarray(params[name]["kernel"]))
        y = graph.add("Add", y, graph.constant(params[name]["bias"]))
        if (number, name) not in places:
            return y
        d_in, d_out = config.map_shape(name)
        a = graph.default(f"layer_{number}.{name}.a", np.zeros((d_in, 0)))
        b = graph.default(f"layer_{number}.{name}.b", np.zeros((0, d_out)))
        return graph.add("Add", y, graph.add("MatMul", graph.add("MatMul", x, a), b))

    def heads(x: str, perm: list[int]) -> str:
        split = graph.add("Reshape", x, graph.integers(0, 0, config.num_heads, width))
        return graph.add("Transpose", split, perm=perm)

    query, value = (heads(linear(n, hidden), [0, 2, 1, 3]) for n in ("query", "value"))
    key = heads(linear("key", hidden), [0, 2, 3, 1])
    scores = graph.add("MatMul", graph.add("Mul", query, graph.constant(1 / math.sqrt(width))), key)
    weights = graph.add("Softmax", graph.add("Add", scores, bias), axis=-1)
    context = graph.add("Transpose", graph.add("MatMul", weights, value), perm=[0, 2, 1, 3])
    context = graph.add("Reshape", context, graph.integers(0, 0, config.hidden_size))
    attended = graph.add("Add", hidden, linear("attention_output", context))
    hidden = _norm(graph, config, params["attention_norm"], attended)
    approximate = "tanh" if config.activation == "gelu_tanh" else "none"
    inner = graph.add("Gelu", linear("intermediate", hidden), approximate=approximate)
    return _norm(graph, config, params["output_norm"], graph.add("Add", hidden, linear("output", inner)))


def _sentence(graph: Graph, bundle: Bundle) -> None:
    """From `tokens` and `mask` to the output `sentence`."""
    if bundle.pooling == "cls":
        pooled = graph.add("Gather", "tokens", graph.constant(0, np.int64), axis=1)
    else:
        weights = graph.add("Unsqueeze", "mask", graph.integers(2))
        total = graph.add("ReduceSum", graph.add("Mul", "tokens", weights), graph.integers(1), keepdims=0)
        count = graph.add("ReduceSum", weights, graph.integers(1), keepdims=0)
        pooled = graph.add("Div", total, graph.add("Max", count, graph.constant(1.0)))
    if bundle.normalize:
        norm = graph.add("ReduceL2", pooled, graph.integers(-1))
        pooled = graph.add("Div", pooled, graph.add("Max", norm, graph.constant(1e-12)))
    graph.add("Identity", pooled, name="sentence")
