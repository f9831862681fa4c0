"""Folders that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDEN_FILES = ROOT / "tests" / "golden"
SCHEMAS = ROOT / "tests" / "schemas"
RESULTS = ROOT / "experiments" / "results"
