"""The program that exports: what it writes and says, and what it refuses before anything is written."""

import json
from pathlib import Path

import numpy as np
import pytest
from golden.formula import weights
from golden.model_files import write_model
from helpers import bundles, run
from ml_collections import ConfigDict

from configs import export as export_config
from experiments import export
from jaxprefit import strategies
from jaxprefit.encoder.huggingface import load_pretrained
from jaxprefit.errors import UserError
from jaxprefit.model import Model


def model(folder: Path, **settings: object) -> Model:
    """The golden encoder with two adapters, as if a run had trained it."""
    made = bundles.bundle(folder)
    params = {"backbone": made.backbone, "lora": {n: made.adapters[n] for n in ("ner", "tc")}}
    tc = {"prefix_a": "query: ", "prefix_b": ""}
    meta = {
        "step": 7, "data": {"ner": {"/home/me/secret/wnut17?x=1": "f"}, "tc": {"pairs/medquad": "f", "generated": "f"}},
        "config": {"model": {"path": "/home/me/encoder"}, "optimizer": {"steps": 9}, "data": {"tc": tc}, **settings},
    }  # fmt: skip
    return Model(made.config, params, made.tokenizer, strategies.make("task_primary", ("ner", "tc")), meta)


def encoder(folder: Path) -> str:
    config = bundles.CASES["bert"]["config"]
    return str(write_model(folder / "given", config, weights(config)))


def config(**changes: object) -> ConfigDict:
    c = export_config.get_config()
    c.export.update({"texts": 8, "repetitions": 2, "max_length": 24, **changes})
    return c


def test_a_run_becomes_one_int8_folder_with_a_report_and_a_card(tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(export.jaxprefit, "load", lambda path: model(tmp_path))
    report = export.run(config(activations=True), tmp_path / "out", "runs/mine", "int8", "")
    content = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (content["schema"], content["version"], content["format"]) == ("jaxprefit.export", 1, "int8")
    files = run.files(tmp_path / "out")
    assert content["files"] == {name: len(data) for name, data in files.items() if name != "export.json"}
    assert {"encoder.onnx", "tokenizer.json", "README.md", "adapters/ner.onnx_adapter", "adapters/tc.onnx_adapter"} < {
        *files
    }
    assert [r["adapter"] for r in content["readings"]] == [None, "ner", "tc"]
    assert all(r.alone < 1e-5 for r in report.readings)
    assert content["ratios"].keys() == {"onnxruntime float32 / int8 at 1 x 32"}  # 64 tokens are too many for it
    assert content["switch_milliseconds"] > 0
    card = files["README.md"].decode()
    for part in (
        "task_primary, step 7 of 9",
        "| ner | wnut17?x=1 | not known |",
        "| tc | pairs/medquad | CC BY 4.0 |",
        '"query: "',
    ):
        assert part in card
    assert "/home/me" not in card + json.dumps(content)
    assert str(tmp_path / "out") in capsys.readouterr().out


def test_an_export_too_far_from_the_encoder_is_not_kept(tmp_path: Path, monkeypatch) -> None:
    from jaxprefit.export import huggingface

    def wrong(folder: Path, bundle, adapter) -> None:
        params = {**bundle.backbone, "layer_0": bundle.backbone["layer_1"]}
        huggingface.save_pretrained(folder, bundle.config, params, bundle.tokenizer)

    monkeypatch.setattr(huggingface, "write_encoder", wrong)
    monkeypatch.setitem(export.export.FORMATS, "huggingface", (huggingface.open_here,))
    with pytest.raises(UserError, match="differ by up to"):
        export.run(config(), tmp_path / "out", encoder(tmp_path), "huggingface", "")
    assert not (tmp_path / "out").exists()


def test_what_a_user_can_mend_is_one_line(tmp_path: Path) -> None:
    given = encoder(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"schema": "jaxprefit.scores", "start": {"strategy": "naive", "step": 3}}))
    cases = [
        (config(), "out", given, "", "", "--format is missing"),
        (config(), "out", given, "onxn", "", "did you mean 'onnx'"),
        (config(), "out", "", "onnx", "", "--checkpoint is missing"),
        (config(), "full", given, "onnx", "", "no export wrote it"),
        (config(), "out", given, "peft", "", "no adapter"),
        (config(max_length=2), "out", given, "huggingface", "", "max_length is 2"),
        (config(), "out", given, "huggingface", str(scores), "is about strategy naive"),
        (config(table_bits=5), "out", given, "int8", "", "table_bits is 5"),
    ]
    for c, output, checkpoint, format_, table, message in cases:
        with pytest.raises(UserError) as caught:
            export.run(c, tmp_path / output, checkpoint, format_, table)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_the_command_names_its_output_flag(tmp_path: Path) -> None:
    done = run.call("export", f"--checkpoint={encoder(tmp_path)}", "--format=huggingface")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: --output is missing; for example --output=runs/first"


def test_the_exported_encoder_is_the_given_one(tmp_path: Path) -> None:
    given = encoder(tmp_path)
    export.run(config(repetitions=0), tmp_path / "out", given, "huggingface", "")
    back, start = load_pretrained(tmp_path / "out"), load_pretrained(given)
    assert back.config == start.config
    for layer, tree in start.params.items():
        for module, leaves in tree.items():
            for name, leaf in leaves.items():
                np.testing.assert_array_equal(back.params[layer][module][name], leaf)
