"""Adapters in and out of the format of the PEFT library.

    model = PeftModel.from_pretrained(AutoModel.from_pretrained(DIR), DIR/adapters/NAME, adapter_name=NAME)
    model.load_adapter(DIR/adapters/OTHER, OTHER); model.set_adapter(OTHER)

A map x -> x W + scale (x a) b is there lora_A = a^T, lora_B = b^T and lora_alpha = scale * rank.
"""

import collections
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from jaxprefit.encoder.parameter_names import names_in_files
from jaxprefit.encoder.transformer import EncoderConfig
from jaxprefit.errors import UserError
from jaxprefit.export.bundle import Bundle, write_heads
from jaxprefit.export.huggingface import ids_by_transformers, torch_batch, torch_model, write_encoder
from jaxprefit.export.parity import Opened, Vectors

_PREFIX = "base_model.model."
# What a configuration may say beside what is read: it changes nothing that the adapter computes.
_HARMLESS = {
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",  # these are read
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "megatron_core",
    "qalora_group_size",
}  # fmt: skip
_PLAIN_VALUES = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "eva", "orthogonal")}


def write(folder: pathlib.Path, bundle: Bundle) -> None:
    """Writes the backbone to `folder`, each adapter to `folder`/adapters/NAME, and the heads beside."""
    write_encoder(folder, bundle, None)
    write_heads(folder, bundle.heads)
    for name, adapter in bundle.adapters.items():
        write_adapter(folder / "adapters" / name, bundle.config, adapter)


def write_adapter(folder: pathlib.Path, config: EncoderConfig, adapter: Mapping[str, Any]) -> None:
    """Writes adapter_config.json and adapter_model.safetensors of one LoRA tree."""
    modules, ranks, alphas, tensors = _modules(config), {}, {}, {}
    for layer, maps in adapter.items():
        for name, m in maps.items():
            module, a, b = modules[f"{layer}/{name}"], np.asarray(m["a"]), np.asarray(m["b"])
            ranks[module] = a.shape[1]
            alphas[module] = _alpha(np.float32(m["scale"]), a.shape[1])
            tensors[f"{_PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a.T, np.float32)
            tensors[f"{_PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(b.T, np.float32)
    rank, alpha = (collections.Counter(v.values()).most_common(1)[0][0] for v in (ranks, alphas))
    content = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "inference_mode": True,
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        # Full names everywhere: PEFT matches shorter ones as endings, and 'output.dense' ends two maps of a layer.
        "target_modules": sorted(ranks),
        "rank_pattern": {module: r for module, r in ranks.items() if r != rank},
        "alpha_pattern": {module: a for module, a in alphas.items() if a != alpha},
        "use_rslora": False,
        "fan_in_fan_out": False,
        "bias": "none",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _alpha(scale: np.float32, rank: int) -> float:
    """The shortest decimal that gives exactly this scale when divided by the rank."""
    exact = float(scale) * rank
    rounded = (round(exact, digits) for digits in range(16))
    return next((alpha for alpha in rounded if np.float32(alpha / rank) == scale), exact)


def read_adapter(folder: pathlib.Path, config: EncoderConfig) -> dict:
    """The LoRA tree in a folder that PEFT or `write_adapter` wrote, float32 NumPy.

    Raises UserError for what is not plain LoRA on the linear maps of this encoder: DoRA, trained biases, adapters of
    embeddings or of a pooler, further trained modules.
    """
    settings = _settings(folder / "adapter_config.json")
    try:
        tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    except Exception as e:  # of safetensors, of the system
        raise UserError(f"{folder / 'adapter_model.safetensors'} cannot be read ({e}); fetch it again") from None
    paths = {module: path for path, module in _modules(config).items()}
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for key, tensor in tensors.items():
        found = re.fullmatch(rf"{re.escape(_PREFIX)}(?:{config.architecture}\.)?(.+)\.lora_([AB])\.weight", key)
        path = paths.get(found[1]) if found else None
        if not found or path is None:
            raise UserError(f"{folder}: {key} is no LoRA of a linear map of this encoder, and cannot be read")
        flat[(*path.split("/"), found[2].lower())] = np.ascontiguousarray(tensor.T, np.float32)
    for *path_parts, part in list(flat):
        layer, name = path_parts
        a, b = flat.get((layer, name, "a")), flat.get((layer, name, "b"))
        d_in, d_out = config.map_shape(name)
        if a is None or b is None or a.shape[0] != d_in or b.shape != (a.shape[1], d_out) or not _finite(a, b):
            raise UserError(f"{folder}: the adapter of {layer}/{name} is not whole, or of another encoder")
        if part == "a":
            flat[layer, name, "scale"] = _scale(settings, _modules(config)[f"{layer}/{name}"], a.shape[1], folder)
    if not flat:
        raise UserError(f"{folder} holds no adapter: adapter_model.safetensors is empty")
    return unflatten_dict(flat)


def _settings(file: pathlib.Path) -> dict[str, Any]:
    """adapter_config.json, checked to describe plain LoRA."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{file} cannot be read ({type(e).__name__}); give a folder that PEFT saved") from None
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type must be LORA; other kinds of adapters cannot be read")
    for key, value in content.items():
        plain = key in _HARMLESS or not value or value in _PLAIN_VALUES.get(key, ())
        if not plain:
            raise UserError(f"{file}: {key} is {json.dumps(value)[:80]}; only plain LoRA can be read")
    return content


def _scale(settings: Mapping[str, Any], module: str, rank: int, folder: pathlib.Path) -> np.ndarray:
    """lora_alpha / rank of a module, or / sqrt(rank) with use_rslora; patterns are looked up as PEFT does."""

    def of(patterns: Mapping[str, Any], default: Any) -> Any:
        return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)

    try:
        alpha = float(of(settings.get("alpha_pattern") or {}, settings["lora_alpha"]))
        stated = of(settings.get("rank_pattern") or {}, settings["r"])
    except (KeyError, TypeError, ValueError, AttributeError, re.error):
        raise UserError(f"{folder}/adapter_config.json: r and lora_alpha must be given as numbers") from None
    if stated != rank:
        raise UserError(f"{folder}: {module} has rank {rank}, and adapter_config.json says {stated}")
    return np.asarray(alpha / (rank**0.5 if settings.get("use_rslora") else rank), np.float32)


def _finite(*arrays: np.ndarray) -> bool:
    return all(np.isfinite(a).all() for a in arrays)


def _modules(config: EncoderConfig) -> dict[str, str]:
    """Name in a transformers model of each linear map, by 'layer_0/query'."""
    names = names_in_files(config).items()
    return {p.removesuffix("/kernel"): n.removesuffix(".weight") for p, n in names if p.endswith("/kernel")}


def open_peft(folder: pathlib.Path, bundle: Bundle) -> Opened:
    """The export opened by PEFT, which switches adapters on one model. Raises ImportError where it is not installed."""
    import contextlib

    import peft
    import torch

    model = torch_model(folder, bundle.config.architecture)
    for i, name in enumerate(bundle.adapters):
        place = folder / "adapters" / name
        if i == 0:
            model = peft.PeftModel.from_pretrained(model, place, adapter_name=name).eval()
        else:
            model.load_adapter(place, name)

    def vectors(ids: np.ndarray, mask: np.ndarray, adapter: str | None) -> Vectors:
        bare = model.disable_adapter() if adapter is None and bundle.adapters else contextlib.nullcontext()
        if adapter is not None:
            model.set_adapter(adapter)
        with torch.no_grad(), bare:
            hidden = model(**torch_batch(ids, mask)).last_hidden_state.numpy()
        return hidden, bundle.sentences(hidden, mask)

    return Opened(f"peft {peft.__version__}", bundle.variants, vectors, ids_by_transformers(folder, bundle))
