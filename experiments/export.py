r"""An encoder with its adapters for another library, compared with JAX.

python -m experiments.export --checkpoint=RUN --format=onnx --output=DIR

Formats: huggingface, peft, sentence_transformers, onnx, int8. RUN is a run's workdir, one of its steps, or a Hugging
Face directory. Writes the folder DIR, whole or not at all: the files, README.md (a model card) and export.json: the
differences to JAX, the effect of each adapter, file sizes, and milliseconds a text at 1 x 32 and 8 x 64 tokens. An
export that differs too much is not kept. A library that is not installed is named and not compared.
--scores=FILE puts the table of a scores.json of the same checkpoint into the card.
"""

import dataclasses
import functools
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

import jaxprefit
from configs.datasets import DATASETS
from experiments.benchmark.timing import interleaved, ratios
from experiments.common import cli, run_tables
from jaxprefit import export
from jaxprefit.errors import UserError
from jaxprefit.export import card, parity
from jaxprefit.runtime.files import read_json

SHAPES = ((1, 32), (8, 64))


def run(config: ConfigDict, output: pathlib.Path, checkpoint: str, format: str, scores: str) -> export.Report:
    """Writes one export and returns its report."""
    c = config.export
    options = {key: c[key] for key in ("merged", "split", "table_bits", "activations")}
    if not format:
        raise UserError(f"--format is missing; choose from {', '.join(export.FORMATS)}")
    settings = export.Settings(format, **options)
    if not checkpoint:
        raise UserError("--checkpoint is missing; give a run's workdir or a Hugging Face directory")
    if c.texts < 1 or c.repetitions < 0 or c.repetitions == 1:
        raise UserError("export.texts must be at least 1, and export.repetitions 0 or at least 2")
    export.check_replaceable(output)  # before anything takes its time
    model = jaxprefit.load(checkpoint)
    about = described(model, checkpoint, scores)
    bundle = bundled(model, c.max_length, c.normalize)
    texts = parity.sample_texts(bundle, c.texts)
    report = export.export(output, bundle, settings, about, texts, functools.partial(measure, bundle, c.repetitions))
    print("\n".join(summary(output, report)))
    return report


def bundled(model: jaxprefit.Model, max_length: int, normalize: bool) -> export.Bundle:
    """What a model exports; the prefixes of its contrastive training as prompts."""
    tc = model.meta.get("config", {}).get("data", {}).get("tc", {})
    prompts = {"query": tc.get("prefix_a", ""), "document": tc.get("prefix_b", "")}
    length = min(max_length or model.sentence.max_length or model.config.max_positions, model.config.max_positions)
    return export.Bundle(
        model.config, model.backbone, model.adapters, model.tokenizer, max_length=length,
        prompts=prompts if any(prompts.values()) else {}, pooling=model.sentence.pooling,
        normalize=normalize or model.sentence.normalize,
    )  # fmt: skip


def described(model: jaxprefit.Model, checkpoint: str, scores: str) -> card.About:
    """What the checkpoint says of its training, and the scores of a file that is about the same checkpoint."""
    name, table = pathlib.Path(checkpoint).name, []
    if scores:
        content = read_json(pathlib.Path(scores))
        if content.get("schema") != "jaxprefit.scores":
            raise UserError(f"{scores} is no scores.json of experiments.downstream")
        start = content["start"]
        if (start["strategy"], start["step"]) != (model.strategy.name, model.meta.get("step")):
            raise UserError(
                f"{scores} is about strategy {start['strategy']}, step {start['step']}, and {checkpoint} has "
                f"{model.strategy.name}, step {model.meta.get('step')}"
            )
        table = run_tables.scores([content])
    if not model.meta:
        return card.About(name, "Not trained here: an encoder as it was given.", scores=table)
    settings = model.meta["config"]
    known = {d.source.partition("?")[0]: d.licence for d in DATASETS}
    sources = {family: [_public(s) for s in names] for family, names in model.meta["data"].items()}
    start = pathlib.Path(settings["model"]["path"]).name or "random parameters"
    training = (
        f"Pre-finetuned from {start}: strategy {model.strategy.name}, step {model.meta['step']} of "
        f"{settings['optimizer']['steps']}."
    )
    dropped = settings["data"].get("drop_overlap", "")
    overlap = f"Training rows that stand in a downstream test were left out ({dropped} match)." if dropped else (
        "Training rows were not compared with downstream tests; some may stand in both."
    )  # fmt: skip
    return card.About(name, training, card.licences(sources, known), overlap, table)


def _public(source: str) -> str:
    """A source's name without the folders of this machine."""
    address, mark, options = source.partition("?")
    return (pathlib.PurePath(address).name if address.startswith("/") else address) + mark + options


def measure(
    bundle: export.Bundle,
    repetitions: int,
    folder: pathlib.Path,
    opened: Sequence[parity.Opened],
    report: export.Report,
) -> export.Report:
    """The report with milliseconds a text, all taken in turns, and of format int8 the ratio to float32 there."""
    if not repetitions:
        return report
    variant = next(iter(bundle.adapters), None)
    vectors = {"jax": (parity.reference(bundle), variant)}
    vectors |= {o.library: (o.vectors, variant if variant in o.variants else None) for o in opened}
    if report.format == "int8":
        vectors |= {"onnxruntime float32": (_float32(bundle, folder, variant), variant)}
    milliseconds: dict[str, dict[str, float]] = {name: {} for name in vectors}
    quotients = {}
    rng = np.random.default_rng(0)
    for rows, length in SHAPES:
        if length > bundle.config.max_positions:
            continue
        ids = rng.integers(bundle.config.vocab_size, size=(rows, length), dtype=np.int32)
        mask, shape = np.ones((rows, length), bool), f"{rows} x {length}"
        calls = {name: functools.partial(call, ids, mask, adapter) for name, (call, adapter) in vectors.items()}
        seconds = interleaved(calls, repetitions)
        for name, values in seconds.items():
            milliseconds[name][shape] = round(1000 * statistics.median(values) / rows, 4)
        if report.format == "int8":
            quotient = ratios(seconds["onnxruntime float32"], seconds[opened[0].library])["median"]
            quotients[f"onnxruntime float32 / int8 at {shape}"] = round(quotient, 3)
    switch = _switch(bundle, folder, repetitions) if report.format in ("onnx", "int8") and bundle.adapters else None
    return dataclasses.replace(report, milliseconds=milliseconds, ratios=quotients, switch_milliseconds=switch)


def _float32(bundle: export.Bundle, folder: pathlib.Path, variant: str | None) -> Callable[..., parity.Vectors]:
    """The float32 graph, to compare an int8 one's time with."""
    from jaxprefit.export import onnx, onnx_graph

    graph = onnx_graph.encoder(bundle, onnx_graph.Float32()).SerializeToString()
    session, adapter = onnx.session(graph), folder / "adapters" / f"{variant}.onnx_adapter"
    active = onnx.active(adapter if variant else None)
    return lambda ids, mask, _: session.run(None, onnx.feed(ids, mask), active[0])


def _switch(bundle: export.Bundle, folder: pathlib.Path, repetitions: int) -> float:
    """Median milliseconds to load an adapter's file and make it active."""
    from jaxprefit.export import onnx

    files = {name: folder / "adapters" / f"{name}.onnx_adapter" for name in bundle.adapters}
    seconds = interleaved({n: functools.partial(onnx.active, file) for n, file in files.items()}, repetitions)
    return round(1000 * statistics.median([s for values in seconds.values() for s in values]), 4)


def summary(output: pathlib.Path, report: export.Report) -> list[str]:
    """A line on each thing that was compared or measured."""
    lines = [f"{output}: {report.format}, {sum(report.files.values()):,} bytes in {len(report.files)} files"]
    for r in report.readings:
        effect = "" if r.effect is None else f", adapter moves tokens by {r.effect:.3f} (JAX {r.effect_in_jax:.3f})"
        lines.append(
            f"{r.library}, adapter {r.adapter or 'none'}: tokens within {r.tokens:.1e}, sentences {r.sentences:.1e}, "
            f"least cosine {r.cosine_least:.4f}{effect}"
        )
    lines += [f"{name} is not installed, so nothing was compared there" for name in report.skipped]
    lines += [f"{name}: {_times(times)}" for name, times in report.milliseconds.items()]
    lines += [f"{what}: {ratio:.2f}" for what, ratio in report.ratios.items()]
    if report.switch_milliseconds is not None:
        lines.append(f"switching an adapter: {report.switch_milliseconds:.2f} ms")
    return lines


def _times(times: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.2f} ms a text at {shape}" for shape, value in times.items())


if __name__ == "__main__":
    cli.run(
        run,
        __doc__ or "",
        config="configs/export.py",
        folder="output",
        checkpoint="A run's workdir, one of its steps, or a Hugging Face directory.",
        format="huggingface, peft, sentence_transformers, onnx or int8.",
        scores="A scores.json of the same checkpoint, for the card.",
    )
