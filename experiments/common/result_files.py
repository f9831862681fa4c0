"""The result files of the programs: name of the file's schema -> the record it holds."""

RESULT_FILES: dict[str, type] = {}
