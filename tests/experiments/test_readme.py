"""The README's study of one's own encoder and files runs as it stands there."""

import re
from pathlib import Path

import pytest
from golden.formula import weights
from golden.model_files import VOCABULARY, write_model
from helpers import run
from helpers.paths import ROOT
from helpers.schemas import assert_valid

SMALL = {  # beside what the README sets
    "data.held_out": 4,
    "data.ner.rows": 4,
    "data.ner.row_length": 32,
    "data.ner.max_length": 32,
    "data.tc.rows": 4,
    "data.tc.row_length": 32,
    "data.tc.max_length": 16,
    "optimizer.steps": 2,
    "optimizer.warmup_steps": 1,
    "downstream.steps": 2,
    "downstream.max_length": 16,
}


@pytest.mark.slow
def test_a_study_of_ones_own_encoder_and_files(tmp_path: Path) -> None:
    (text,) = re.findall(r"```python\n(# my_study\.py\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for folder in ("my/encoder", "my/data"):
        assert text.count(f'"{folder}"') == 1
        text = text.replace(f'"{folder}"', repr(str(tmp_path / folder)))
    (tmp_path / "my_study.py").write_text(text)
    shape = {
        "model_type": "bert", "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64, "type_vocab_size": 2,
    }  # fmt: skip
    write_model(tmp_path / "my" / "encoder", shape, weights(shape))
    write_files(tmp_path / "my" / "data")
    small = [f"--config.{key}={value}" for key, value in SMALL.items()]
    done = run.call("study", f"--config={tmp_path / 'my_study.py'}", f"--workdir={tmp_path / 'out'}", *small)
    assert done.returncode == 0, done.stderr
    content = assert_valid(tmp_path / "out" / "study.json", "study")
    # variants x modes x fractions x tasks x seeds
    assert content["cells"]["done"] == content["cells"]["all"] == 4 * 2 * 2 * 2 * 3
    assert list(content["starts"]) == ["encoder"]
    assert {t["task"] for r in content["results"] for t in r["tasks"]} == {"tickets", "intents"}
    assert (tmp_path / "out" / "study.md").exists()


def write_files(data: Path) -> None:
    """The files that the README's config names."""
    for folder in ("tickets", "intents"):
        (data / folder).mkdir(parents=True)
    (data / "notes.conll").write_text(conll(range(40)))
    (data / "faq.csv").write_text("question,answer\n" + "".join(f"where sat cat {i},on mat {i}\n" for i in range(40)))
    for split, rows in (("train", range(30)), ("test", range(30, 40))):
        (data / "tickets" / f"{split}.conll").write_text(conll(rows))
        lines = (f"hello {i},greeting\ncat {i} sat,report\n" for i in rows)
        (data / "intents" / f"{split}.csv").write_text("text,label\n" + "".join(lines))


def conll(rows: range) -> str:
    sentence = "hello O\ncat{} B-PET\nsat O\non O\nthe O\nmat O\nat O\ncafe{} B-PLACE\n"
    return "\n".join(sentence.format(i, i % 3) for i in rows)
