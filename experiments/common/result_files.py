"""The result files of the programs: name of the file's schema -> the record it holds."""

from experiments.study.results import StudyResult

RESULT_FILES: dict[str, type] = {"study": StudyResult}
