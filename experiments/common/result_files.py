"""The result files of the programs: name of the file's schema -> the record it holds."""

from jaxprefit.export.parity import Report

RESULT_FILES: dict[str, type] = {"export": Report}
