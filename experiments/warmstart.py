r"""A start encoder from plain text, by masked language modelling: from scratch, or continued on a domain.

python -m experiments.warmstart --config=configs/warmstart.py --workdir=runs/warmstart --config.data.root=DIR

Trains an encoder of the sizes model.*, or goes on with model.path. A new encoder's WordPiece vocabulary of model.vocab
entries is trained on the sources (data.mlm.sources), or taken from the directory model.vocab_path. The rest is a
pre-finetuning run of the strategy individual_mlm: the same command continues one that was stopped.

Writes WORKDIR/encoder, a Hugging Face directory for --config.model.path=WORKDIR/encoder, and WORKDIR/warmstart.json and
warmstart.md with masked accuracy and loss on held-out text against steps.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import statistics
import tempfile
from typing import Any

from ml_collections import ConfigDict

import jaxprefit
from experiments.common import cli, family_data, prefinetuning
from experiments.common.checks import check
from experiments.common.workdirs import owned
from jaxprefit.data.wordpiece import train_wordpiece
from jaxprefit.errors import UserError
from jaxprefit.model import Model
from jaxprefit.render.tables import markdown
from jaxprefit.runtime.distributed import FLAG, first, first_alone, joined
from jaxprefit.runtime.files import write_json, write_text
from jaxprefit.runtime.terminal import printable

SUMMARY_VERSION = 1
STRATEGY = "individual_mlm"
VOCABULARY_TEXTS = 100_000  # a vocabulary is trained on at most so many


def main(config: ConfigDict, workdir: pathlib.Path, distributed: str = "") -> None:
    """`run`, in one process or in all that `distributed` names."""
    check(config)  # before the others are waited for
    with joined(distributed, config.run.join_within, config.run.lost_after):
        run(config, workdir)


@owned("warmstart")
def run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains, or continues, exports, and returns what warmstart.json holds; {} in all processes but the first."""
    check(config)
    if config.strategy != STRATEGY:
        raise UserError(f"strategy is '{config.strategy}'; a warm start trains by '{STRATEGY}'")
    if not config.data.mlm.sources:
        raise UserError("data.mlm.sources is empty; name at least one source of text")
    if not (config.model.path or config.model.vocab_path):
        with first_alone("vocabulary"):
            config.model.vocab_path = str(vocabulary(config, family_data.cache_folder(config, workdir)))
    trained = prefinetuning.run(config, workdir)
    model = jaxprefit.load(workdir)  # by all processes, which read a checkpoint together
    with first_alone("encoder"):
        return export(model, trained, config, workdir) if first() else {}


def export(model: Model, trained: dict[str, Any], config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Writes the encoder and the summary, which it returns; `trained` is that of the run."""
    if not (workdir / "encoder").exists():
        model.export(workdir / "encoder")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    curve = [json.loads(line) for line in (workdir / "held_out.jsonl").read_text().splitlines()]
    summary = {
        "schema": "jaxprefit.warmstart",
        "version": SUMMARY_VERSION,
        "start": config.model.path or "scratch",
        "encoder": dataclasses.asdict(model.config),
        "parameters": trained["total_parameters"],
        "seed": trained["seed"],
        "steps": trained["steps"],
        "device": trained["device"],
        "tokens": trained["data"]["mlm"]["useful_tokens"],
        "tokens_per_s": statistics.median(line["tokens_per_s"] for line in lines),
        "data": trained["data"]["mlm"],
        "curve": [{"step": line["step"], **line["held_out"]["mlm"]} for line in curve],
    }
    write_json(workdir / "warmstart.json", summary)
    write_text(workdir / "warmstart.md", report(summary))
    last = summary["curve"][-1]
    print(f"masked accuracy {100 * last['accuracy']:.1f} % and loss {last['loss']:.3f} on held-out text")
    print(printable(f"wrote {workdir / 'encoder'} and {workdir / 'warmstart.json'}"))
    return summary


def report(summary: dict[str, Any]) -> str:
    """warmstart.md: what was trained, and the curve."""
    encoder, tokens = summary["encoder"], summary["tokens"]
    facts = [
        ["encoder", f"{encoder['num_layers']} layers x {encoder['hidden_size']}, vocabulary {encoder['vocab_size']:,}"],
        ["start", summary["start"]],
        ["parameters, with the decoder", f"{summary['parameters']:,}"],
        ["steps, seed", f"{summary['steps']:,}, {summary['seed']}"],
        ["tokens seen (no padding counted)", f"{tokens:,}, {tokens / max(summary['steps'], 1):,.0f} a step"],
        ["places of a batch that are no padding", f"{100 * summary['data']['useful_share']:.1f} %"],
        ["tokens a second (median of the steps)", f"{summary['tokens_per_s']:,.0f} on {summary['device']}"],
        ["texts", f"{sum(s['rows'] for s in summary['data']['sources'].values()):,} of these sources: "
         + ", ".join(summary["data"]["sources"])],
    ]  # fmt: skip
    curve = [[f"{c['step']:,}", f"{100 * c['accuracy']:.1f}", f"{c['loss']:.3f}"] for c in summary["curve"]]
    lines = ["# A warm start by masked language modelling", "", *markdown("What was trained", ["", ""], facts)]
    return "\n".join(
        [*lines, *markdown("Masked tokens of held-out text", ["step", "accuracy, %", "loss, nats"], curve)]
    )


def vocabulary(config: ConfigDict, cache: pathlib.Path) -> pathlib.Path:
    """A directory in the cache with a tokenizer.json of `model.vocab` entries trained on the sources, made once."""
    prepared = family_data.prepared_sources(config, "mlm", cache)
    content = json.dumps([config.model.vocab, VOCABULARY_TEXTS, [p.directory.name for p in prepared]])
    folder = cache / f"vocabulary-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        every = max(1, math.ceil(sum(map(len, prepared)) / VOCABULARY_TEXTS))
        texts = (p[i]["text"] for p in prepared for i in range(0, len(p), every))
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{folder.name}.") as work:
            whole = pathlib.Path(work) / "whole"
            whole.mkdir()
            train_wordpiece(texts, config.model.vocab).save(str(whole / "tokenizer.json"))
            if not folder.is_dir():
                whole.rename(folder)
    return folder


if __name__ == "__main__":
    cli.run(main, __doc__ or "", config="configs/warmstart.py", distributed=FLAG)
