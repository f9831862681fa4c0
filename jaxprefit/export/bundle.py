"""What an export holds: an encoder, its adapters, fitted heads and the tokenizer, as plain trees and arrays."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers

from jaxprefit.encoder import lora
from jaxprefit.encoder.transformer import LINEAR_MAPS, POOLINGS, EncoderConfig
from jaxprefit.errors import UserError

POOLING = {"ner": "none", "tc": "mean"}
"""What a head reads, by the kind of its task: each token's vector, or the mean over a text's tokens."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclasses.dataclass(frozen=True)
class FittedHead:
    """A linear classifier on an encoder's vectors: class scores are `vectors @ kernel + bias`.

    Attributes:
      kind: of the task, a key of POOLING.
      labels: the C classes; of an NER task 'O' and IOB2 tags.
      kernel: [D, C] float32.
      bias: [C] float32.
      pooling: 'none' or 'mean', see POOLING.
    """

    kind: str
    labels: tuple[str, ...]
    kernel: np.ndarray
    bias: np.ndarray
    pooling: str


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Everything that one export writes.

    A head runs on the adapter of the same name, or on the bare backbone where there is none of that name.

    Attributes:
      config: of the encoder.
      backbone: its parameter tree, float32.
      adapters: LoRA trees (`encoder.lora`) by name.
      tokenizer: gives ids below config.vocab_size.
      heads: by name.
      max_length: tokens of a text; longer ones are cut, before their last special token.
      prompts: what users of sentence-transformers put before a text, by the prompt's name.
      pooling: of sentence vectors, a key of `transformer.POOLINGS`.
      normalize: whether sentence vectors are scaled to length 1.
    """

    config: EncoderConfig
    backbone: Mapping[str, Any]
    adapters: Mapping[str, Mapping[str, Any]]
    tokenizer: tokenizers.Tokenizer
    heads: Mapping[str, FittedHead] = dataclasses.field(default_factory=dict)
    max_length: int = 128
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pooling: str = "mean"
    normalize: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for the first part that does not fit the encoder."""
        if not 4 <= self.max_length <= self.config.max_positions:
            raise UserError(
                f"max_length is {self.max_length}; this encoder takes 4 to {self.config.max_positions} tokens"
            )
        if self.pooling not in POOLINGS:
            raise UserError(f"pooling is '{self.pooling}'; choose from {', '.join(POOLINGS)}")
        for name in (*self.adapters, *self.heads):
            if not _NAME.fullmatch(name):
                raise UserError(f"{name!r} cannot name a file of an export; use letters, digits, '_', '-' and '.'")
        for name, adapter in self.adapters.items():
            if problem := _adapter_problem(self.config, adapter):
                raise UserError(f"adapter '{name}': {problem}; it belongs to another encoder")
        for name, head in self.heads.items():
            if problem := _head_problem(self.config, head):
                raise UserError(f"head '{name}': {problem}")

    @property
    def variants(self) -> tuple[str | None, ...]:
        """The encoders in it: None, the bare backbone, and the name of each adapter."""
        return (None, *self.adapters)

    def merged(self, adapter: str | None) -> dict:
        """The backbone tree with the adapter of that name merged into its kernels; None: the bare backbone."""
        return dict(self.backbone) if adapter is None else lora.merge(self.backbone, self.adapters[adapter])

    def sentences(self, hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Sentence vectors [B, D] of hidden states [B, L, D] and the mask [B, L] of real tokens."""
        if self.pooling == "cls":
            vectors = hidden[:, 0]
        else:
            weights = mask[..., None].astype(np.float32)
            vectors = (hidden * weights).sum(1) / np.maximum(weights.sum(1), 1.0)
        return (
            vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12) if self.normalize else vectors
        )


def _adapter_problem(config: EncoderConfig, adapter: Mapping[str, Any]) -> str:
    for layer, maps in adapter.items():
        if layer not in {f"layer_{i}" for i in range(config.num_layers)}:
            return f"it adapts {layer}, and the encoder has layers 0 to {config.num_layers - 1}"
        for name, m in maps.items():
            if name not in LINEAR_MAPS:
                return f"it adapts {layer}/{name}, and the linear maps are {', '.join(LINEAR_MAPS)}"
            (d_in, d_out), (a, b) = config.map_shape(name), (np.shape(m["a"]), np.shape(m["b"]))
            if len(a) != 2 or len(b) != 2 or (a[0], b[1]) != (d_in, d_out) or a[1] != b[0]:
                return f"{layer}/{name} has a {a} and b {b}, and the map goes from {d_in} to {d_out}"
    return ""


def _head_problem(config: EncoderConfig, head: FittedHead) -> str:
    if head.kind not in POOLING:
        return f"kind is '{head.kind}'; choose from {', '.join(POOLING)}"
    if head.pooling != POOLING[head.kind]:
        return f"pooling is '{head.pooling}'; a head of kind {head.kind} has '{POOLING[head.kind]}'"
    wanted = (config.hidden_size, len(head.labels)), (len(head.labels),)
    if (np.shape(head.kernel), np.shape(head.bias)) != wanted:
        given = f"kernel {np.shape(head.kernel)}, bias {np.shape(head.bias)}"
        return f"{given}; this encoder and {len(head.labels)} labels take {wanted[0]} and {wanted[1]}"
    return ""


def write_heads(folder: pathlib.Path, heads: Mapping[str, FittedHead]) -> None:
    """Writes `heads.json` (kind, labels, pooling) and `heads.safetensors` (NAME.kernel, NAME.bias); nothing of none."""
    if not heads:
        return
    described = {n: {"kind": h.kind, "labels": list(h.labels), "pooling": h.pooling} for n, h in heads.items()}
    (folder / "heads.json").write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    arrays = {f"{n}.{part}": np.ascontiguousarray(getattr(h, part), np.float32)
              for n, h in heads.items() for part in ("kernel", "bias")}  # fmt: skip
    safetensors.numpy.save_file(arrays, folder / "heads.safetensors")


def read_heads(folder: pathlib.Path) -> dict[str, FittedHead]:
    """The heads that `write_heads` wrote. Raises UserError where a file is damaged."""
    if not (folder / "heads.json").exists():
        return {}
    try:
        described = json.loads((folder / "heads.json").read_text(encoding="utf-8"))
        arrays = safetensors.numpy.load_file(folder / "heads.safetensors")
        return {
            n: FittedHead(d["kind"], tuple(d["labels"]), arrays[f"{n}.kernel"], arrays[f"{n}.bias"], d["pooling"])
            for n, d in described.items()
        }
    except Exception as e:  # of JSON, of safetensors, of a missing key
        raise UserError(f"{folder}: heads.json and heads.safetensors cannot be read ({e}); export again") from None
