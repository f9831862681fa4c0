"""Adapters in PEFT's format: what is written comes back exactly, what cannot be read is refused, PEFT agrees."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.bundles import bundle, mixed
from safetensors.numpy import load_file, save_file

from jaxprefit.errors import UserError
from jaxprefit.export import peft
from jaxprefit.export.bundle import read_heads
from jaxprefit.export.parity import compare, sample_texts


@pytest.mark.parametrize("case", ["bert", "distilbert"])
def test_adapters_come_back_bit_for_bit(case: str, tmp_path: Path) -> None:
    made = bundle(tmp_path, case)
    for name, tree in made.adapters.items():
        peft.write_adapter(tmp_path / name, made.config, tree)
        back = peft.read_adapter(tmp_path / name, made.config)
        assert jax.tree.structure(back) == jax.tree.structure(tree)
        jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_config_names_each_adapted_module_in_full(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    peft.write_adapter(tmp_path / "odd", made.config, made.adapters["odd"])
    config = json.loads((tmp_path / "odd" / "adapter_config.json").read_text())
    low = ["encoder.layer.0.attention.self.query", "encoder.layer.0.output.dense"]  # rank 3, alpha 1
    high = [f"encoder.layer.2.{m}" for m in ("attention.output.dense", "attention.self.value", "intermediate.dense")]
    assert config["target_modules"] == sorted(low + high)
    assert (config["r"], config["lora_alpha"]) == (5, 32.0)
    assert config["rank_pattern"] == dict.fromkeys(low, 3)
    assert config["alpha_pattern"].keys() == {*low}
    assert {*config["alpha_pattern"].values()} == {1.0}


def change(folder: Path, **settings: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def rename(folder: Path, old: str, new: str) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({key.replace(old, new): np.ascontiguousarray(t) for key, t in load_file(file).items()}, file)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another kind": (lambda f: change(f, peft_type="LOHA"), "peft_type"),
    "DoRA": (lambda f: change(f, use_dora=True), "use_dora"),
    "trained biases": (lambda f: change(f, bias="lora_only"), "bias"),
    "trained modules": (lambda f: change(f, modules_to_save=["classifier"]), "modules_to_save"),
    "a changed base": (lambda f: change(f, init_lora_weights="pissa"), "init_lora_weights"),
    "an unknown setting": (lambda f: change(f, use_something_new=True), "use_something_new"),
    "no scale": (lambda f: change(f, lora_alpha=None), "lora_alpha"),
    "another rank": (lambda f: change(f, r=4, rank_pattern={}), "rank"),
    "a damaged pattern": (lambda f: change(f, rank_pattern={"(": 3}), "r and lora_alpha"),
    "a pooler": (lambda f: rename(f, "encoder.layer.0.output.dense", "pooler.dense"), "pooler.dense"),
    "embeddings": (lambda f: rename(f, "lora_A.weight", "lora_embedding_A"), "lora_embedding_A"),
    "half of a pair": (lambda f: rename(f, "layer.0.output.dense.lora_A", "layer.1.output.dense.lora_A"), "layer_"),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json"),
    "no tensors": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"12"), "adapter_model.safetensors"),
    "nothing": (lambda f: save_file({}, f / "adapter_model.safetensors"), "no adapter"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_plain_lora_of_this_encoder_is_refused_by_name(name: str, tmp_path: Path) -> None:
    config = bundle(tmp_path).config
    peft.write_adapter(tmp_path / "a", config, mixed(config))
    damage, word = REFUSED[name]
    damage(tmp_path / "a")
    with pytest.raises(UserError) as caught:
        peft.read_adapter(tmp_path / "a", config)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_a_wider_encoder_is_refused(tmp_path: Path) -> None:
    config = bundle(tmp_path).config
    wider = dataclasses.replace(config, hidden_size=64)
    peft.write_adapter(tmp_path / "a", wider, mixed(wider))
    with pytest.raises(UserError, match="another encoder"):
        peft.read_adapter(tmp_path / "a", config)


def test_heads_lie_beside(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    peft.write(tmp_path / "out", made)
    back = read_heads(tmp_path / "out")
    assert back.keys() == made.heads.keys()
    for name, head in made.heads.items():
        assert (back[name].kind, back[name].labels, back[name].pooling) == (head.kind, head.labels, head.pooling)
        np.testing.assert_array_equal(back[name].kernel, head.kernel)
        np.testing.assert_array_equal(back[name].bias, head.bias)


@pytest.mark.parametrize("case", ["bert", "distilbert"])
def test_peft_gives_the_vectors_of_jax(case: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    made = bundle(tmp_path, case)
    peft.write(tmp_path / "out", made)
    opened, texts = peft.open_peft(tmp_path / "out", made), sample_texts(made, 12)
    readings = compare(made, [opened], texts)
    assert [r.adapter for r in readings] == [None, "ner", "tc", "odd"]
    assert max(max(r.tokens, r.sentences) for r in readings) < 1e-5
    assert min(r.effect for r in readings if r.effect is not None) > 0.1


def test_adapters_made_by_peft_are_read(tmp_path: Path) -> None:
    library = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    made = bundle(tmp_path)
    peft.write(tmp_path / "out", made)
    from jaxprefit.export.huggingface import torch_model

    patterns = {"rank_pattern": {"value": 5}, "alpha_pattern": {r"layer\.1\..*query": 3}}
    for i, extra in enumerate(({}, {"use_rslora": True, **patterns})):
        config = library.LoraConfig(
            r=4, lora_alpha=7, target_modules=["query", "value"], init_lora_weights=False, **extra
        )
        torch.manual_seed(i)
        model = library.get_peft_model(torch_model(tmp_path / "out", "bert"), config)
        model.save_pretrained(tmp_path / f"theirs_{i}")
        read = dataclasses.replace(
            made, heads={}, adapters={"a": peft.read_adapter(tmp_path / f"theirs_{i}", made.config)}
        )
        (tmp_path / f"both_{i}" / "adapters").mkdir(parents=True)
        peft.write_encoder(tmp_path / f"both_{i}" / "base", made, None)
        for file in (tmp_path / f"both_{i}" / "base").iterdir():
            file.rename(tmp_path / f"both_{i}" / file.name)
        (tmp_path / f"theirs_{i}").rename(tmp_path / f"both_{i}" / "adapters" / "a")
        _, reading = compare(read, [peft.open_peft(tmp_path / f"both_{i}", read)], sample_texts(read, 8))
        assert reading.tokens < 1e-5
        assert reading.effect is not None
        assert reading.effect > 0.1
