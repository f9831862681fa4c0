"""The encoder against hidden states of the transformers library (golden/make_golden.py)."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.formula import shapes, weights
from golden.model_files import prefixed, write_model
from helpers.paths import GOLDEN_FILES

from jaxprefit.encoder.huggingface import load_pretrained
from jaxprefit.encoder.transformer import Encoder, EncoderConfig

GOLDEN = json.loads((GOLDEN_FILES / "encoder.json").read_text())
CASES: dict[str, Any] = GOLDEN["cases"]
LAYERS = 3


@dataclasses.dataclass
class Loaded:
    """A golden case with the model jaxprefit loads for it."""

    golden: dict[str, Any]
    config: EncoderConfig
    params: dict[str, Any]
    ids: np.ndarray
    mask: np.ndarray
    types: np.ndarray | None

    @property
    def real(self) -> np.ndarray:
        return self.mask.astype(bool)

    @functools.cached_property
    def states(self) -> list[np.ndarray]:
        """All hidden states of the golden batch."""
        return self.run()

    def run(self, **changed: Any) -> list[np.ndarray]:
        """All hidden states, compiled, with some of config, ids, mask and types replaced."""
        config = changed.pop("config", self.config)
        inputs = {"ids": self.ids, "mask": self.mask, "types": self.types} | changed
        states = jax.jit(
            lambda params, ids, mask, types: Encoder(config).apply(
                {"params": params}, ids, mask, token_types=types, all_hidden=True
            )
        )(self.params, **inputs)
        assert isinstance(states, tuple)
        return [np.asarray(state) for state in states]


def load(path: Path, golden: dict[str, Any], prefix: str = "", dtype: type = np.float32) -> Loaded:
    tensors = {name: tensor.astype(dtype) for name, tensor in weights(golden["config"]).items()}
    found = load_pretrained(write_model(path, golden["config"], prefixed(tensors, prefix)))
    types = golden["token_types"]
    return Loaded(
        golden=golden,
        config=found.config,
        params=found.params,
        ids=np.array(golden["input_ids"], np.int32),
        mask=np.array(golden["mask"], np.int32),
        types=None if types is None else np.array(types, np.int32),
    )


@pytest.fixture(scope="module", params=list(CASES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(tmp_path_factory.mktemp(request.param), CASES[request.param])


def assert_golden(model: Loaded, states: list[np.ndarray], tolerance: float) -> None:
    assert len(states) == len(model.golden["hidden"]) == LAYERS + 1
    for layer, (state, expected) in enumerate(zip(states, model.golden["hidden"], strict=True)):
        real = state[model.real].astype(np.float64)
        found = [real.mean(), real.std(), np.abs(real).max()]
        found += [state[row, position, channel] for row, position, channel, _ in expected["values"]]
        wanted = [expected[name] for name in ("mean", "std", "absmax")]
        wanted += [value for *_, value in expected["values"]]
        np.testing.assert_allclose(
            np.array(found, np.float64), wanted, rtol=0, atol=tolerance, err_msg=f"hidden {layer}"
        )


def test_golden_file_lists_the_tensors_of_the_formula() -> None:
    for golden in CASES.values():
        assert {k: tuple(v) for k, v in golden["tensors"].items()} == shapes(golden["config"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("with_prefix", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_hidden_states_are_those_of_transformers(name: str, with_prefix: bool, dtype: type, tmp_path: Path) -> None:
    golden = CASES[name]
    prefix = golden["config"]["model_type"] + "." if with_prefix else ""
    model = load(tmp_path, golden, prefix, dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {np.dtype(np.float32)}
    assert_golden(model, model.run(), 1e-5)


def test_config_is_read(model: Loaded) -> None:
    given = model.golden["config"]
    bert = given["model_type"] == "bert"
    config = model.config
    assert config.architecture == given["model_type"]
    assert config.activation == ("gelu_tanh" if given.get("hidden_act") == "gelu_new" else "gelu")
    assert config.norm_eps == given.get("layer_norm_eps", 1e-12)
    assert config.type_vocab_size == (2 if bert else 0)
    assert (config.vocab_size, config.hidden_size, config.num_layers) == (97, 32, LAYERS)
    assert (config.num_heads, config.intermediate_size, config.max_positions) == (4, 64, 40)
    assert config.dtype == "float32"


def test_parameter_tree_is_the_one_of_init(model: Loaded) -> None:
    ids = jnp.zeros((1, 4), jnp.int32)
    init = jax.eval_shape(lambda: Encoder(model.config).init(jax.random.key(0), ids, ids == 0))
    assert jax.tree.map(jnp.shape, model.params) == jax.tree.map(jnp.shape, dict(init["params"]))


def test_last_hidden_is_the_last_of_all(model: Loaded) -> None:
    last = Encoder(model.config).apply({"params": model.params}, model.ids, model.mask, model.types, all_hidden=False)
    # One call runs op by op, the other compiled as a whole: rounding differs.
    np.testing.assert_allclose(last, model.states[-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_trunk_then_top_is_the_whole(model: Loaded, layer: int) -> None:
    encoder, variables = Encoder(model.config), {"params": model.params}
    inputs = (model.ids, model.mask, model.types)
    states = encoder.apply(variables, *inputs, all_hidden=True)
    hidden = encoder.apply(variables, *inputs, layer=layer, method="trunk")
    np.testing.assert_allclose(hidden, states[layer], rtol=0, atol=1e-6)
    last = encoder.apply(variables, hidden, model.mask, layer=layer, method="top")
    np.testing.assert_allclose(last, states[-1], rtol=0, atol=1e-6)


def test_appended_padding_changes_no_real_token(model: Loaded) -> None:
    def longer(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else np.pad(array, [(0, 0), (0, 13)])

    padded = model.run(ids=longer(model.ids), mask=longer(model.mask), types=longer(model.types))
    for wide, state in zip(padded, model.states, strict=True):
        narrow = wide[:, : model.ids.shape[1]]
        np.testing.assert_allclose(narrow[model.real], state[model.real], rtol=0, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch(model: Loaded) -> None:
    row = np.s_[1:2, :9]
    types = None if model.types is None else model.types[row]
    alone = model.run(ids=model.ids[row], mask=model.mask[row], types=types)
    for one, state in zip(alone, model.states, strict=True):
        np.testing.assert_allclose(one, state[row], rtol=0, atol=1e-5)


def test_ids_of_padding_change_nothing(model: Loaded) -> None:
    other = np.where(model.real, model.ids, 61)
    for changed, state in zip(model.run(ids=other), model.states, strict=True):
        np.testing.assert_array_equal(changed[model.real], state[model.real])


def test_boolean_mask_is_an_integer_mask(model: Loaded) -> None:
    """Integers are segments: 0 and 1 mean padding and the row's only text."""
    for with_bool, state in zip(model.run(mask=model.real), model.states, strict=True):
        np.testing.assert_allclose(with_bool[model.real], state[model.real], rtol=0, atol=1e-5)


def test_a_row_of_padding_alone_is_finite(model: Loaded) -> None:
    mask = model.mask.copy()
    mask[1] = 0
    assert all(np.isfinite(state).all() for state in model.run(mask=mask))


def test_no_token_types_means_type_zero(model: Loaded) -> None:
    if model.types is None:
        pytest.skip("DistilBERT has no token types")
    zeros = model.run(types=np.zeros_like(model.ids))
    for none, zero in zip(model.run(types=None), zeros, strict=True):
        np.testing.assert_allclose(none, zero, rtol=0, atol=1e-5)
    assert np.abs(model.states[0] - zeros[0]).max() > 0.1


def test_bfloat16_is_near_float32(model: Loaded) -> None:
    states = model.run(config=dataclasses.replace(model.config, dtype="bfloat16"))
    assert {state.dtype for state in states} == {jnp.dtype(jnp.bfloat16)}
    for half, full in zip(states, model.states, strict=True):
        error = np.abs(half.astype(np.float32) - full)[model.real]
        assert error.max() < 0.2
        assert error.mean() < 0.02
