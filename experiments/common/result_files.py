"""The result files of the programs: name of the file's schema -> the record it holds."""

from experiments.common.conflict_results import AblationCell, Trial
from experiments.common.study_results import StudyResult
from jaxprefit.conflict.report.results import ConflictReport
from jaxprefit.export.parity import Report
from jaxprefit.representations.results import RepresentationsReport

RESULT_FILES: dict[str, type] = {
    "ablation_cell": AblationCell,
    "conflict": ConflictReport,
    "export": Report,
    "representations": RepresentationsReport,
    "study": StudyResult,
    "trial": Trial,
}
