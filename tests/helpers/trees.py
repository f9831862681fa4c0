"""What lies in a folder, before and after a program, and files of a user in it."""

import hashlib
import os
from pathlib import Path

Snapshot = dict[str, tuple[str, int, int]]


def snapshot(folder: Path) -> Snapshot:
    """Path -> (hash of the content, time of the last change in ns, mode) of everything below `folder`; of folders, the
    mode alone, since a new file in one changes its time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status, is_file = path.stat(), path.is_file()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else ""
        found[str(path.relative_to(folder))] = digest, status.st_mtime_ns * is_file, status.st_mode
    return found


def lost(before: Snapshot, after: Snapshot) -> list[str]:
    """What is no longer as it was."""
    return [path for path, state in before.items() if after.get(path) != state]


def bystanders(folder: Path) -> None:
    """Files of a user, by the names that programs use and others."""
    names = ["notes.txt", ".hidden", "sub/table.csv", "metrics.tmp", "train.jsonl", "generated_ner_300_1.jsonl",
             "generated_ner_300_1.txt", "step_1.npz", "vectors.npy", "meta.json"]  # fmt: skip
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}\n")
    os.utime(folder / "notes.txt", (1e9, 1e9))  # old enough for whatever sweeps
