r"""Where do the families' gradients conflict, does it cost anything, and where should LoRA go? One report, by parts.

python -m experiments.conflict --config=configs/minilm.py --checkpoint=runs/naive --workdir=runs/naive_conflict \
    --config.conflict.mode=probe

Each mode adds its section to WORKDIR/conflict.json and conflict.html:

  probe    at the checkpoint's parameters, on the run's training rows in a new order: per block of the shared parameters
           the cosine between families, that of two batches of one family as the reference level, the noise-corrected
           cosine, and more, before clipping and loss weights; the transfer between families that this predicts, also
           in Adam's metric, and the affinity measured by trying steps; curvature. Also grams.npz
  online   the trend over training, from the Gram matrices that the run logged
  ablate   short trainings from the run's start with one family's gradient stopped on one block, and controls: what
           that does to the held-out losses. One file a cell below WORKDIR/ablation; the same command continues
  represent  hidden states of every layer against the start encoder's: CKA, how near a sentence's tokens are, linear
           probes of downstream.ner and downstream.tc (experiments.representations does it for several runs)
  advise   where the families' LoRAs should go, from what the report holds by then: advice.json, for
           experiments.prefinetune --config.lora=@WORKDIR/advice.json
  compare  several runs or reports side by side: --checkpoint=runs/naive,runs/task_primary_conflict

Sources, batch sizes and LoRA are the run's own; from --config come only conflict.*, downstream.*, devices, and
data.root, data.cache and model.path where given.
"""

import hashlib
import json
import pathlib

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import jaxprefit
from experiments.common import assembly, family_data
from experiments.common.checks import check
from experiments.common.start import start_encoder
from experiments.common.workdirs import owned
from experiments.conflict import ablate, comparison, hidden_states, probe
from jaxprefit.conflict import advice, online
from jaxprefit.conflict.report import document, page, verdicts
from jaxprefit.conflict.report.results import ConflictReport, ReportedRun
from jaxprefit.encoder import lora
from jaxprefit.encoder.transformer import EncoderConfig
from jaxprefit.errors import UserError
from jaxprefit.model import Model
from jaxprefit.render.html import page as html_page
from jaxprefit.representations.results import RepresentationsReport
from jaxprefit.runtime import results
from jaxprefit.runtime.files import write_text
from jaxprefit.runtime.paths import user_path
from jaxprefit.runtime.terminal import lines, printable
from jaxprefit.strategies import make
from jaxprefit.training.checkpoints import PLACES


@owned("conflict")
def run(config: ConfigDict, workdir: pathlib.Path, checkpoint: str, show: bool = True) -> ConflictReport:
    """Measures what conflict.mode names, writes the report, prints it where `show`, and returns it."""
    if not checkpoint:
        raise UserError("--checkpoint is missing; give the workdir of a run that trained two families together")
    check(config)
    file, mode = workdir / "conflict.json", config.conflict.mode
    if mode == "compare":
        about = ReportedRun(
            checkpoint=checkpoint, strategy=None, aggregator=None, step=None, seed=None, families=None, fingerprint=None
        )
        earlier = document.content(about, {}, file)  # another report here is refused before anything is measured
        runs = comparison.measure(config, workdir, checkpoint.split(","), run, identify)
        sections: dict[str, document.Section] = {"compare": runs}
        title = "Gradient conflict: runs side by side"
    else:
        model = jaxprefit.load(checkpoint)
        shared, about = shared_paths(model, checkpoint), identity(model, checkpoint)
        earlier = document.content(about, {}, file)
        sections = _measure(config, workdir, model, shared, earlier)
        title = f"Gradient conflict: {about.strategy}, step {about.step}"
    result = document.content(about, sections, file)
    workdir.mkdir(parents=True, exist_ok=True)
    results.write(file, result)
    if earlier.advice and not result.advice:  # drawn from evidence that has changed
        (workdir / "advice.json").unlink(missing_ok=True)
    write_text(workdir / "conflict.html", html_page(title, page.sections(result)))
    if mode == "advise" and result.advice:
        results.write(workdir / "advice.json", result.advice.lora)
    if show:
        if mode == "probe":
            document.print_tables(result)
        print(lines("\n".join(verdicts.verdict(result))))
    print(printable(f"wrote {file} and {workdir / 'conflict.html'}"))
    return result


def shared_paths(model: Model, checkpoint: str) -> list[str]:
    """The parameters that all families of the run touch. Raises UserError where there is none, or no run."""
    if not model.meta:
        raise UserError(f"{checkpoint} is a plain encoder, no run; the analysis needs the heads of its families")
    strategy = model.strategy
    everyone = len(strategy.families)
    shared = [path for path in flatten_dict(model.params, sep="/") if len(strategy.touched_by(path)) == everyone > 1]
    if not shared:
        raise UserError(f"strategy '{strategy.name}' shares no parameter between families; nothing can conflict")
    return shared


def identify(checkpoint: str) -> ReportedRun:
    """`identity` of the run at `checkpoint`. Raises UserError where it is none to analyse."""
    model = jaxprefit.load(checkpoint)
    shared_paths(model, checkpoint)
    return identity(model, checkpoint)


def identity(model: Model, checkpoint: str) -> ReportedRun:
    """Which run a report is about."""
    meta = model.meta
    settings = {k: v for k, v in flatten_dict(meta["config"], sep=".").items() if k not in PLACES}
    content = json.dumps([settings, meta["data"], meta["encoder"], meta["step"]], sort_keys=True)
    return ReportedRun(
        checkpoint=checkpoint,
        strategy=model.strategy.name,
        aggregator=meta["config"]["aggregator"],
        step=meta["step"],
        seed=meta["config"]["seed"],
        families=tuple(model.strategy.families),
        fingerprint=hashlib.sha256(content.encode()).hexdigest()[:12],
    )


def _measure(
    config: ConfigDict, workdir: pathlib.Path, model: Model, shared: list[str], earlier: ConflictReport
) -> dict[str, document.Section]:
    """The sections of one mode; `earlier` is the report so far."""
    mode, checkpoint = config.conflict.mode, user_path(earlier.run.checkpoint)
    if mode == "probe":
        return {"probe": probe.measure(config, workdir, model, shared, str(checkpoint))}
    if mode == "represent":
        start = start_encoder(assembly.original(model, config, workdir), family_data.cache_folder(config, workdir))
        plain = Model(start.config, {"backbone": start.params}, start.tokenizer, make("none", ()), {})
        models = {"start": plain, model.strategy.name: model}
        content = hidden_states.measure_models(config, workdir, models)
        measured = results.from_json(content, RepresentationsReport, "representations")
        return {"representations": measured}
    if mode == "ablate":
        return {"ablation": ablate.measure(config, workdir, model, shared)}
    if mode == "online":
        folder = checkpoint.parents[1] if checkpoint.name.isdigit() else checkpoint
        families = model.strategy.families
        logged = online.read(folder / "metrics.jsonl", families, model.meta["step"])
        return {"online": online.content(logged, families, config.conflict.windows)}
    if earlier.probe is None:
        raise UserError(f"{workdir} holds no probe to advise from; run mode probe with the same workdir first")
    own = model.meta["config"]["lora"]
    spec = lora.LoraSpec(own["last_layers"], tuple(own["targets"]), own["rank"], own["alpha"])
    rows = earlier.ablation.rows if earlier.ablation else None
    return {"advice": advice.advise(earlier.probe.pairs, rows, spec, EncoderConfig(**model.meta["encoder"]))}
