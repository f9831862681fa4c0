r"""What joint training does to the hidden states, layer by layer: several encoders on the same texts.

python -m experiments.representations --config=configs/minilm.py --workdir=runs/representations \
    --config.data.root=DIR --checkpoints=start=DIR,naive=runs/naive,task_primary=runs/task_primary

Each of --checkpoints is a run's workdir, one of its steps, or a Hugging Face directory; the first is what the others
are compared with. A run with adapters is measured bare (`task_primary`) and through each of them (`task_primary+ner`).
Texts are the runs' held-out rows (from --config where none is a run) and test rows of downstream.ner and
downstream.tc. Measured: linear CKA, the cosine of a sentence's tokens to their mean, effective rank, alignment and
uniformity, and linear probes of the downstream tasks. Writes representations.json, representations.html, and figures.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

import jaxprefit
from experiments.common import cli
from experiments.common.checks import check
from experiments.common.workdirs import owned
from experiments.conflict.hidden_states import measure_models
from jaxprefit.errors import UserError
from jaxprefit.render.html import page, png
from jaxprefit.representations import report
from jaxprefit.runtime.files import write_json, write_text
from jaxprefit.runtime.terminal import printable


@owned("representations")
def run(config: ConfigDict, workdir: pathlib.Path, checkpoints: str, show: bool = True) -> dict[str, Any]:
    """Measures the encoders, writes the report, prints it where `show`, returns what representations.json holds."""
    check(config)
    models = {name: jaxprefit.load(path) for name, path in parse(checkpoints).items()}
    content = measure_models(config, workdir, models)
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "representations.json", content)
    write_text(workdir / "representations.html", page("Hidden states, layer by layer", report.html_parts(content)))
    for name, (figure, _) in report.figures(content).items():
        (workdir / f"{name}.png").write_bytes(png(figure))
    if show:
        report.print_tables(content)
    print(printable(f"wrote {workdir / 'representations.json'} and {workdir / 'representations.html'}"))
    return content


def parse(checkpoints: str) -> dict[str, str]:
    """'start=DIR,naive=runs/naive' -> name: path."""
    found: dict[str, str] = {}
    for part in filter(None, checkpoints.split(",")):
        name, equals, path = part.partition("=")
        if not (name and equals and path):
            raise UserError(f"--checkpoints has '{part}'; write it as name=path,name=path")
        if name in found or "+" in name:
            raise UserError(f"--checkpoints has the name '{name}'; each needs a name of its own, without +")
        found[name] = path
    if not found:
        raise UserError("--checkpoints is missing; for example --checkpoints=start=DIR,naive=runs/naive")
    return found


if __name__ == "__main__":
    cli.run(run, __doc__ or "", checkpoints="name=path,name=path,...; the first is the reference.")
