"""LoRA trees (Hu et al., 2021, arXiv 2106.09685), written by hand as plain dicts.

An adapter is the whole `lora` collection of the encoder:

    {'layer_4': {'query': {'a': [in, r], 'b': [r, out], 'scale': []}, ...}, 'layer_5': {...}}

The map x -> x W becomes x -> x W + scale (x a) b with scale = alpha / r. `scale` is a constant array in the tree, not a
parameter: no strategy trains it (see `strategies`), `count` does not count it.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxprefit.encoder.transformer import LINEAR_MAPS, EncoderConfig
from jaxprefit.errors import UserError


@dataclasses.dataclass(frozen=True)
class LoraSpec:
    """Where an adapter sits and how large it is."""

    last_layers: int = 3  # on the last k layers, unless `layers` names some
    targets: tuple[str, ...] = LINEAR_MAPS
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0  # on the input of the low-rank path, in training only
    layers: tuple[int, ...] = ()  # on these layers, counted from 0 at the input; empty: on the last `last_layers`

    def placed(self, num_layers: int) -> tuple[int, ...]:
        """The layers that carry the adapter, in an encoder of so many."""
        return self.layers or tuple(range(num_layers - self.last_layers, num_layers))

    def validate(self, config: EncoderConfig) -> None:
        """Raises UserError naming the first setting that does not fit an encoder of `config`."""
        if self.rank < 1:
            raise UserError(f"lora.rank is {self.rank}; it must be at least 1 (for no LoRA choose strategy 'naive')")
        if not self.layers and not 1 <= self.last_layers <= config.num_layers:
            raise UserError(f"lora.last_layers is {self.last_layers}; this encoder has layers 1 to {config.num_layers}")
        if len({*self.layers}) < len(self.layers) or not {*self.layers} <= {*range(config.num_layers)}:
            last = config.num_layers - 1
            raise UserError(f"lora.layers is {self.layers}; name layers of this encoder, 0 to {last}, each once")
        unknown = [t for t in self.targets if t not in LINEAR_MAPS]
        if unknown or not self.targets:
            raise UserError(f"lora.targets {list(self.targets)}: choose from {', '.join(LINEAR_MAPS)}")
        narrowest = min(self.targets, key=lambda t: min(config.map_shape(t)))
        if self.rank > (most := min(config.map_shape(narrowest))):
            raise UserError(
                f"lora.rank is {self.rank}; the map '{narrowest}' of this encoder has a rank of {most} at most"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"lora.dropout is {self.dropout}; it must lie in [0, 1)")


def init_lora(spec: LoraSpec, config: EncoderConfig, key: jax.Array) -> dict:
    """A fresh adapter: a Gaussian with variance 1/in, b zero, so that it equals the base model exactly."""
    spec.validate(config)
    tree: dict = {}
    for i in spec.placed(config.num_layers):
        for name in spec.targets:
            d_in, d_out = config.map_shape(name)
            map_key = jax.random.fold_in(jax.random.fold_in(key, i), LINEAR_MAPS.index(name))
            tree.setdefault(f"layer_{i}", {})[name] = {
                "a": jax.random.normal(map_key, (d_in, spec.rank)) * d_in**-0.5,
                "b": jnp.zeros((spec.rank, d_out)),
                "scale": jnp.asarray(spec.alpha / spec.rank, jnp.float32),
            }
    return tree


def merge(backbone: Mapping, lora: Mapping) -> dict:
    """The backbone tree with every adapted kernel replaced by W + scale a b. The bare backbone is not changed."""
    merged = dict(backbone)
    for layer, maps in lora.items():
        merged[layer] = dict(merged[layer])
        for name, m in maps.items():
            delta = m["scale"] * (m["a"] @ m["b"])
            merged[layer][name] = dict(merged[layer][name], kernel=merged[layer][name]["kernel"] + delta)
    return merged


def count(lora: Mapping) -> int:
    """Number of parameters of an adapter: the entries of all a and b."""
    return sum(m[leaf].size for maps in lora.values() for m in maps.values() for leaf in ("a", "b"))


def size(spec: LoraSpec, config: EncoderConfig) -> int:
    """`count` of an adapter of `spec`, without making one."""
    per_layer = sum(sum(config.map_shape(name)) for name in spec.targets)
    return spec.rank * per_layer * len(spec.placed(config.num_layers))


def pad(lora: Mapping, rank: int) -> dict:
    """The same adapter with rank `rank`: zero columns in a, zero rows in b, the old scale. Computes the same map.

    Raises ValueError where the adapter's rank is already larger.
    """

    def pad_map(path: str, m: Mapping) -> dict:
        extra = rank - m["a"].shape[1]
        if extra < 0:
            raise ValueError(f"{path} has rank {m['a'].shape[1]}, larger than {rank}")
        a, b = jnp.pad(m["a"], ((0, 0), (0, extra))), jnp.pad(m["b"], ((0, extra), (0, 0)))
        return {"a": a, "b": b, "scale": m["scale"]}

    return {layer: {name: pad_map(f"{layer}/{name}", m) for name, m in maps.items()} for layer, maps in lora.items()}
