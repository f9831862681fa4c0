"""Export for ONNX Runtime: encoder.onnx, adapters/NAME.onnx_adapter, heads/NAME.onnx, and on request trunk and top.

    session = onnxruntime.InferenceSession("DIR/encoder.onnx", options)   # options.log_severity_level = 3, see below
    adapter = onnxruntime.LoraAdapter(); adapter.Load("DIR/adapters/ner.onnx_adapter")
    run = onnxruntime.RunOptions(); run.add_active_adapter(adapter)
    tokens, sentence = session.run(None, {"input_ids": ids, "attention_mask": mask}, run)

A run takes one adapter. Each adapter input is reported at opening as one that could be a constant; it is meant to be
none, hence the severity.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tokenizers

from jaxprefit.errors import UserError
from jaxprefit.export.bundle import Bundle, write_heads
from jaxprefit.export.parity import Opened, Vectors

LARGEST = 2**31 - 2**16  # bytes of an ONNX file: the limit of its protocol, less the nodes
_EXTRA = "this format needs the packages onnx and onnxruntime: pip install 'jaxprefit[onnx]'"


def write(folder: pathlib.Path, bundle: Bundle, int8: Mapping | None = None, split: bool = False) -> None:
    """Writes the graphs, adapters, heads and tokenizer.

    `int8` are the fields of `int8.Int8`; None is float32. With `split` also trunk.onnx, the layers below all adapters,
    and top.onnx, the rest: several adapters on one text then share the trunk.
    Raises UserError where onnx or onnxruntime is missing, or the encoder too large for one file.
    """
    try:
        import onnxruntime  # noqa: F401 (writes adapters)

        from jaxprefit.export import int8 as quantised
        from jaxprefit.export import onnx_graph
    except ImportError:
        raise UserError(_EXTRA) from None
    arithmetic = onnx_graph.Float32() if int8 is None else quantised.Int8(**int8)
    lowest = min(layer for layer, _ in onnx_graph.adapted_maps(bundle))
    graphs: dict[str, Callable] = {"encoder": lambda: onnx_graph.encoder(bundle, arithmetic)}
    if split:
        graphs["trunk"] = lambda: onnx_graph.trunk(bundle, arithmetic, lowest)
        graphs["top"] = lambda: onnx_graph.top(bundle, arithmetic, lowest)
    for name, graph in graphs.items():
        _save(folder / f"{name}.onnx", graph())
    for name, adapter in bundle.adapters.items():
        write_adapter(folder / "adapters" / f"{name}.onnx_adapter", onnx_graph.adapter_inputs(adapter))
    for name, head in bundle.heads.items():
        described = {"kind": head.kind, "labels": json.dumps(head.labels, ensure_ascii=False)}
        _save(
            folder / "heads" / f"{name}.onnx", onnx_graph.head(head.kernel, head.bias, _reads(head.pooling), described)
        )
    write_heads(folder, bundle.heads)
    bundle.tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"max_length": bundle.max_length, "pooling": bundle.pooling, "normalize": bundle.normalize,
                "prompts": dict(bundle.prompts)}  # fmt: skip
    (folder / "encoder.json").write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _reads(pooling: str) -> str:
    return {"none": "tokens", "mean": "sentence"}[pooling]


def _save(file: pathlib.Path, model) -> None:
    import onnx

    if model.ByteSize() > LARGEST:
        raise UserError(f"{file.name} would have {model.ByteSize():,} bytes, more than ONNX allows; use --format=int8")
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, file)


def write_adapter(file: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes one .onnx_adapter file of a graph's inputs, and reads it back."""
    import onnxruntime as ort

    file.parent.mkdir(parents=True, exist_ok=True)
    # Values point into the arrays, which must live until the file is written: else it holds whatever comes after them.
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    made = ort.AdapterFormat()
    made.set_adapter_version(1)
    made.set_model_version(1)
    made.set_parameters(values)
    made.export_adapter(os.fspath(file))
    back = ort.AdapterFormat.read_adapter(os.fspath(file)).get_parameters()
    if back.keys() != arrays.keys() or any(not np.array_equal(back[n].numpy(), arrays[n]) for n in arrays):
        raise RuntimeError(f"{file}: onnxruntime did not write the adapter as given")


def session(model: pathlib.Path | bytes, threads: int = 0):
    """An onnxruntime session on the CPU; `threads` 0: as many as there are cores."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # a warning for each adapter input otherwise
    options.intra_op_num_threads = threads
    given = model if isinstance(model, bytes) else os.fspath(model)
    return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def active(adapter: pathlib.Path | None):
    """(run options with the adapter of a file, the adapter, which must outlive them)."""
    import onnxruntime as ort

    options = ort.RunOptions()
    if adapter is None:
        return options, None
    loaded = ort.LoraAdapter()
    loaded.Load(os.fspath(adapter))
    options.add_active_adapter(loaded)
    return options, loaded


def activations(folder: pathlib.Path, bundle: Bundle) -> dict[str | None, Any]:
    """What `active` gives, for the bare backbone and each adapter."""
    files = {name: folder / "adapters" / f"{name}.onnx_adapter" for name in bundle.adapters}
    return {None: active(None)} | {name: active(file) for name, file in files.items()}


def feed(ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """The two inputs of encoder.onnx for ids and mask [B, L]."""
    return {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)}


def open_onnxruntime(folder: pathlib.Path, bundle: Bundle) -> Opened:
    """encoder.onnx with its adapters and heads. Raises ImportError where onnxruntime is not installed."""
    import onnxruntime as ort

    encoder = session(folder / "encoder.onnx")
    runs = activations(folder, bundle)
    heads = {name: session(folder / "heads" / f"{name}.onnx") for name in bundle.heads}

    def vectors(ids: np.ndarray, mask: np.ndarray, adapter: str | None) -> Vectors:
        tokens, sentences = encoder.run(None, feed(ids, mask), runs[adapter][0])
        return tokens, sentences

    def logits(tokens: np.ndarray, sentences: np.ndarray, name: str) -> np.ndarray:
        given = {"tokens": tokens, "sentence": sentences}
        reads = heads[name].get_inputs()[0].name
        return heads[name].run(None, {reads: given[reads]})[0]

    ids_of = ids_by_tokenizers(folder, bundle)
    return Opened(f"onnxruntime {ort.__version__}", bundle.variants, vectors, ids_of, logits if heads else None)


def open_split(folder: pathlib.Path, bundle: Bundle) -> Opened:
    """trunk.onnx and top.onnx, one after the other."""
    import onnxruntime as ort

    if not (folder / "trunk.onnx").exists():
        raise ImportError(name="trunk.onnx")
    lower, upper = session(folder / "trunk.onnx"), session(folder / "top.onnx")
    runs = activations(folder, bundle)

    def vectors(ids: np.ndarray, mask: np.ndarray, adapter: str | None) -> Vectors:
        given = feed(ids, mask)
        (hidden,) = lower.run(None, given)
        tokens, sentences = upper.run(
            None, {"hidden": hidden, "attention_mask": given["attention_mask"]}, runs[adapter][0]
        )
        return tokens, sentences

    return Opened(f"onnxruntime {ort.__version__}, split", bundle.variants, vectors, ids_by_tokenizers(folder, bundle))


def ids_by_tokenizers(folder: pathlib.Path, bundle: Bundle) -> Callable[[str], list[int]]:
    """`Opened.ids` by the tokenizers library, which is what an application uses beside onnxruntime."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(bundle.max_length)
    return lambda text: tokenizer.encode(text).ids
