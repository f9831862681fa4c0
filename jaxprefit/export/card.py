"""The model card of an export: what is in it, what it was trained on, how to open it, how far it is from JAX."""

import dataclasses
import json
from collections.abc import Mapping, Sequence

from jaxprefit.export.bundle import Bundle
from jaxprefit.export.parity import Report
from jaxprefit.render.tables import markdown

_OPEN = {
    "huggingface": """from transformers import AutoModel, AutoTokenizer
model, tokenizer = AutoModel.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
# an adapter merged into the weights, where it was exported: FOLDER/merged/NAME""",
    "peft": """from peft import PeftModel
from transformers import AutoModel
model = PeftModel.from_pretrained(AutoModel.from_pretrained(FOLDER), FOLDER + "/adapters/FIRST", adapter_name="FIRST")
model.load_adapter(FOLDER + "/adapters/OTHER", "OTHER")
model.set_adapter("OTHER")""",
    "sentence_transformers": """from sentence_transformers import SentenceTransformer
model = SentenceTransformer(FOLDER)  # an adapter merged into the weights, where it was exported: FOLDER/merged/NAME
vectors = model.encode(["a text"])""",
    "onnx": """import numpy as np, onnxruntime as ort, tokenizers
options = ort.SessionOptions()
options.log_severity_level = 3  # adapter inputs are meant to be no constants
session = ort.InferenceSession(FOLDER + "/encoder.onnx", options)
adapter = ort.LoraAdapter()
adapter.Load(FOLDER + "/adapters/FIRST.onnx_adapter")
run = ort.RunOptions()
run.add_active_adapter(adapter)  # one adapter a run; without it the bare encoder
ids = np.asarray([tokenizers.Tokenizer.from_file(FOLDER + "/tokenizer.json").encode("a text").ids])
tokens, sentence = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)}, run)""",
}
_OPEN["int8"] = _OPEN["onnx"]


@dataclasses.dataclass(frozen=True)
class Source:
    """A source of training rows: the family it served, its name, and its licence where known."""

    family: str
    name: str
    licence: str


@dataclasses.dataclass(frozen=True)
class About:
    """What is known of an encoder's training.

    Attributes:
      title: a line.
      training: sentences.
      sources: of pre-finetuning.
      overlap: a sentence on rows that stand in a downstream test as well.
      scores: Markdown lines; empty where none were given.
    """

    title: str
    training: str
    sources: Sequence[Source] = ()
    overlap: str = ""
    scores: Sequence[str] = ()


def text(bundle: Bundle, format_: str, about: About, report: Report) -> str:
    """The card in Markdown."""
    c = bundle.config
    shape = f"{c.architecture}, {c.num_layers} layers, hidden size {c.hidden_size}, {c.vocab_size:,} word pieces"
    vectors = f"the {'mean over the tokens' if bundle.pooling == 'mean' else 'first token'}"
    lines = [
        "---", "tags: [jaxprefit]", "---", f"# {about.title}", "",
        f"An encoder ({shape}) for named entities and text classification, exported by jaxprefit as `{format_}`.",
        f"A text has up to {bundle.max_length} tokens; its vector is {vectors}"
        f"{', scaled to length 1' if bundle.normalize else ''}.", "",
        "## Open it", "", "```python", *_snippet(bundle, format_).splitlines(), "```", "",
        "## What it holds", "",
        f"- Adapters: {', '.join(bundle.adapters) or 'none'}.",
        *(f"- Head `{name}` ({head.kind}): {len(head.labels)} classes: {_listed(head.labels)}."
          for name, head in bundle.heads.items()),
        *(f"- Prompt `{name}`: {json.dumps(prompt, ensure_ascii=False)}." for name, prompt in bundle.prompts.items()),
        "", "## Training", "", about.training, "",
    ]  # fmt: skip
    if about.sources:
        rows = [[s.family, s.name, s.licence] for s in about.sources]
        lines += [*markdown("Sources", ["family", "source", "licence"], rows), about.overlap, ""]
    if about.scores:
        lines += ["## Scores", "", "Before the export, in JAX.", "", *about.scores]
    return "\n".join([*lines, "## Compared with JAX", "", *_readings(report), *_times(report)]).rstrip() + "\n"


def _snippet(bundle: Bundle, format_: str) -> str:
    first, other = [*bundle.adapters, "NAME", "NAME"][:2]
    lines = _OPEN[format_].replace("FIRST", first).replace("OTHER", other)
    if format_ in ("onnx", "int8") and not bundle.adapters:
        shown = [line for line in lines.splitlines() if not line.startswith(("adapter", "run"))]
        return (
            "\n".join(shown)
            .replace(" = 3  # adapter inputs are meant to be no constants", " = 3")
            .replace(", run)", ")")
        )
    return lines


def _listed(labels: Sequence[str], most: int = 40) -> str:
    """Labels in code marks, in which none can be read as Markdown."""
    shown = ", ".join(f"`{' '.join(label.replace('`', chr(39)).split())}`" for label in labels[:most])
    return shown + (" ..." if len(labels) > most else "")


def _readings(report: Report) -> list[str]:
    header = ["library", "adapter", "tokens", "sentences", "least cosine", "effect of the adapter", "in JAX"]
    rows = [
        [r.library, r.adapter or "none", f"{r.tokens:.1e}", f"{r.sentences:.1e}", f"{r.cosine_least:.4f}",
         *("-" if x is None else f"{x:.2f}" for x in (r.effect, r.effect_in_jax))]
        for r in report.readings
    ]  # fmt: skip
    if not rows:
        return [f"Not compared: {', '.join(report.skipped)} not installed.", ""]
    return markdown(f"Largest absolute differences over {report.texts} texts", header, rows)


def _times(report: Report) -> list[str]:
    if not report.milliseconds:
        return []
    shapes = list(next(iter(report.milliseconds.values())))
    rows = [[name, *(f"{times[s]:.2f}" for s in shapes)] for name, times in report.milliseconds.items()]
    return markdown("Milliseconds a text on the machine of the export", ["", *(f"{s} tokens" for s in shapes)], rows)


def licences(sources: Mapping[str, Sequence[str]], known: Mapping[str, str]) -> list[Source]:
    """A Source for each name by family; a name's licence is that of its address, without options, in `known`."""
    return [
        Source(family, name, known.get(name.partition("?")[0], "not known"))
        for family, names in sources.items()
        for name in names
    ]
