"""The encoder and its adapters for other libraries: transformers, PEFT, sentence-transformers, ONNX Runtime.

`export` writes one folder, whole or not at all: the files of the format, README.md (a model card) and export.json,
which says how far the export is from the encoder in JAX. One that is too far is not kept.
"""

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Callable, Sequence

from jaxprefit.errors import UserError
from jaxprefit.export import card, huggingface, onnx, parity, peft, sentence_transformers
from jaxprefit.export.bundle import Bundle, FittedHead
from jaxprefit.export.folder import REPORT, check_replaceable, sizes, whole
from jaxprefit.export.parity import Opened, Report
from jaxprefit.runtime import results
from jaxprefit.runtime.files import write_text

__all__ = ["FORMATS", "Bundle", "FittedHead", "Report", "Settings", "export"]

Measure = Callable[[pathlib.Path, Sequence[Opened], Report], Report]

FORMATS: dict[str, tuple[Callable[[pathlib.Path, Bundle], Opened], ...]] = {
    "huggingface": (huggingface.open_here, huggingface.open_transformers),
    "peft": (peft.open_peft,),
    "sentence_transformers": (sentence_transformers.open_sentence_transformers,),
    "onnx": (onnx.open_onnxruntime,),
    "int8": (onnx.open_onnxruntime,),
}
"""The formats, and what opens each one to compare it with JAX."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an export of a format is.

    Attributes:
      format: a key of FORMATS.
      merged: formats huggingface and sentence_transformers also write each adapter merged into the weights.
      split: formats onnx and int8 also write trunk and top, which several adapters on one text share.
      table_bits, activations: of format int8, see `int8.Int8`.
    """

    format: str
    merged: bool = False
    split: bool = False
    table_bits: int = 8
    activations: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            near = difflib.get_close_matches(self.format, FORMATS, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(FORMATS)}"
            raise UserError(f"--format is '{self.format}'; {hint}")

    def write(self, folder: pathlib.Path, bundle: Bundle) -> None:
        """Writes the files of the format into an empty folder."""
        match self.format:
            case "huggingface":
                huggingface.write(folder, bundle, self.merged)
            case "peft":
                if not bundle.adapters:
                    raise UserError("there is no adapter to write for PEFT; use --format=huggingface")
                peft.write(folder, bundle)
            case "sentence_transformers":
                sentence_transformers.write(folder, bundle, self.merged)
            case "onnx":
                onnx.write(folder, bundle, split=self.split)
            case "int8":
                int8 = {"table_bits": self.table_bits, "activations": self.activations}
                onnx.write(folder, bundle, int8, self.split)

    @property
    def openers(self) -> tuple[Callable[[pathlib.Path, Bundle], Opened], ...]:
        """What opens the export to compare it."""
        split = (onnx.open_split,) if self.split and self.format in ("onnx", "int8") else ()
        return FORMATS[self.format] + split


def export(
    output: str | os.PathLike,
    bundle: Bundle,
    settings: Settings,
    about: card.About,
    texts: Sequence[str] = (),
    measure: Measure = lambda folder, opened, report: report,
) -> Report:
    """Writes `bundle` to the folder `output` and compares it with JAX on `texts` (by default `parity.sample_texts`).

    `measure` may add times to the report. Raises UserError where a package of the format is missing, where the export
    is too far from the encoder, and where `output` holds something that no export wrote.
    """
    output = pathlib.Path(output)
    check_replaceable(output)
    with whole(output) as folder:
        settings.write(folder, bundle)
        opened, skipped = parity.open_all(folder, bundle, settings.openers)
        texts = texts or parity.sample_texts(bundle)
        report = parity.check(bundle, opened, texts, settings.format, dataclasses.asdict(settings), skipped)
        report = measure(folder, opened, report)
        write_text(folder / "README.md", card.text(bundle, settings.format, about, report))
        report = dataclasses.replace(report, files=sizes(folder))
        results.write(folder / REPORT, report)
    return report
