"""The encoder: a post-LayerNorm BERT-family Transformer in Flax Linen.

It knows nothing of tasks. One class serves BERT, MiniLM, TinyBERT (token types) and DistilBERT (none). Adapters
live in a variable collection of their own:

    encoder.apply({'params': backbone}, ids, mask)                   # the base model
    encoder.apply({'params': backbone, 'lora': adapter}, ids, mask)  # the same with an adapter

A row may hold one text (a boolean mask of its real tokens) or several (int32 segments, as `data.packing` lays them
out): then attention is block-diagonal and positions restart with each text, so that a text's hidden states are those
it would have alone.

Attention is `jax.nn.dot_product_attention` in the implementation that JAX chooses. It has no dropout of attention
probabilities, so there is none here; hidden dropout there is.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

LINEAR_MAPS = ("query", "key", "value", "attention_output", "intermediate", "output")
"""The six linear maps of a layer, by their names in the parameter tree."""

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What the backward pass of a layer finds in memory: all; the layer's input alone; also what its linear maps gave. The
rest it computes again (rematerialisation; Chen et al., 2016, arXiv 1604.06174). On the CPU XLA orders a program for
parallelism, and saves memory only under XLA_FLAGS=--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED."""


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Shape and arithmetic of an encoder."""

    vocab_size: int = 30522
    hidden_size: int = 384
    num_layers: int = 6
    num_heads: int = 12
    intermediate_size: int = 1536
    max_positions: int = 512
    type_vocab_size: int = 2  # 0: no token types (DistilBERT)
    activation: str = "gelu"  # 'gelu' is the exact erf form, 'gelu_tanh' the approximation
    norm_eps: float = 1e-12
    hidden_dropout: float = 0.0  # active only in a call with deterministic=False
    dtype: str = "float32"  # of the computation; parameters are always float32
    architecture: str = "bert"  # 'bert' or 'distilbert': names in a Hugging Face file, nothing else

    def map_shape(self, name: str) -> tuple[int, int]:
        """(in, out) of the linear map `name`."""
        d, f = self.hidden_size, self.intermediate_size
        return {"intermediate": (d, f), "output": (f, d)}.get(name, (d, d))


class Linear(nn.Module):
    """x @ kernel + bias, plus scale * (x @ a) @ b where the `lora` collection holds an adapter for this map."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, lora_dropout: float = 0.0, deterministic: bool = True) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        shape = x.shape
        # Rows in one dimension: XLA on the CPU copies both operands, transposed, of a product summed over two.
        x = x.astype(self.dtype).reshape(-1, shape[-1])
        y = x @ kernel.astype(self.dtype) + bias.astype(self.dtype)
        if self.has_variable("lora", "a"):
            a, b, scale = (jnp.asarray(self.get_variable("lora", n), self.dtype) for n in ("a", "b", "scale"))
            # alpha / rank: an array, so that adapters of different rank swap without recompiling, but never trained.
            scale = jax.lax.stop_gradient(scale)
            z = nn.Dropout(lora_dropout)(x, deterministic=deterministic)
            # Unmerged on purpose: merging inside a loss would compute the dense gradient of the kernel.
            y = y + (z @ a) @ (b * scale)  # b is small, what it gives is not
        return y.reshape(*shape[:-1], self.features)


@functools.partial(jax.checkpoint, static_argnums=1)
def gelu(x: jax.Array, approximate: bool) -> jax.Array:
    """x Phi(x), or with `approximate` its tanh form (Hendrycks and Gimpel, 2016, arXiv 1606.08415).

    Computed again in the backward pass, which is faster than reading back what it would keep.
    """
    if approximate:
        return nn.gelu(x)
    # Of erf, as in BERT's code and torch: jax.nn.gelu takes erfc, 2.6 times as long on the CPU, for digits of its
    # negative tail.
    return x * (0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5)))


class Layer(nn.Module):
    """One Transformer layer: self-attention and feed-forward, each followed by residual and LayerNorm."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, hidden: jax.Array, mask: jax.Array, lora_dropout: float = 0.0, deterministic: bool = True
    ) -> jax.Array:
        cfg = self.config
        dtype = jnp.dtype(cfg.dtype)
        batch, length, dim = hidden.shape
        dropout = nn.Dropout(cfg.hidden_dropout, deterministic=deterministic)

        def linear(name: str, x: jax.Array) -> jax.Array:
            return Linear(cfg.map_shape(name)[1], dtype, name=name)(x, lora_dropout, deterministic)

        def norm(name: str, x: jax.Array) -> jax.Array:
            # Statistics in float32 whatever the compute dtype.
            y = nn.LayerNorm(cfg.norm_eps, dtype=jnp.float32, use_fast_variance=False, name=name)(x)
            return y.astype(dtype)

        heads = (batch, length, cfg.num_heads, dim // cfg.num_heads)
        query, key, value = (linear(n, hidden).reshape(heads) for n in ("query", "key", "value"))
        context = jax.nn.dot_product_attention(query, key, value, mask=attention_mask(mask))
        attended = linear("attention_output", context.reshape(batch, length, dim))
        hidden = norm("attention_norm", hidden + dropout(attended))

        output = linear("output", gelu(linear("intermediate", hidden), cfg.activation == "gelu_tanh"))
        return norm("output_norm", hidden + dropout(output))


class Embeddings(nn.Module):
    """Word + position (+ token type) embeddings, LayerNorm, dropout."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, input_ids: jax.Array, mask: jax.Array, token_types: jax.Array | None, deterministic: bool
    ) -> jax.Array:
        cfg = self.config

        def table(name: str, size: int) -> nn.Embed:
            return nn.Embed(size, cfg.hidden_size, embedding_init=nn.initializers.normal(0.02), name=name)

        x = table("word", cfg.vocab_size)(input_ids)
        x = x + table("position", cfg.max_positions)(positions(mask))
        if cfg.type_vocab_size:
            types = jnp.zeros_like(input_ids) if token_types is None else token_types
            x = x + table("token_type", cfg.type_vocab_size)(types)
        x = nn.LayerNorm(cfg.norm_eps, dtype=jnp.float32, use_fast_variance=False, name="norm")(x)
        return nn.Dropout(cfg.hidden_dropout, deterministic=deterministic)(x).astype(cfg.dtype)


class Encoder(nn.Module):
    """Token ids to hidden states.

    All methods take `mask` [B, L]: bool, True at real tokens, of one text a row; or int32 segments of packed rows, 0 at
    padding and 1, 2, ... at the tokens of the row's first, second, ... text. Hidden states are [B, L, D] in the compute
    dtype.
    """

    config: EncoderConfig
    remat: str = "none"  # a key of REMAT; changes memory and time of a gradient, nothing else
    rows: jax.sharding.NamedSharding | None = None  # of hidden states, see `sharding.hidden_rows`; None: left to XLA

    def setup(self) -> None:
        self.embeddings = Embeddings(self.config)
        policy = REMAT[self.remat]
        # Arguments 3 and 4 are the dropout's: Python numbers, not arrays.
        layer = nn.remat(Layer, static_argnums=(3, 4), policy=policy) if policy else Layer
        self.layer = [layer(self.config) for _ in range(self.config.num_layers)]

    def __call__(
        self,
        input_ids: jax.Array,
        mask: jax.Array,
        token_types: jax.Array | None = None,
        *,
        all_hidden: bool = False,
        lora_dropout: float = 0.0,
        deterministic: bool = True,
    ) -> jax.Array | tuple[jax.Array, ...]:
        """The last hidden state [B, L, D], or with `all_hidden` the tuple (embeddings, layer 1, ..., layer N)."""
        states = [self._lay(self.embeddings(input_ids, mask, token_types, deterministic))]
        for layer in self.layer:
            states.append(self._lay(layer(states[-1], mask, lora_dropout, deterministic)))
        return tuple(states) if all_hidden else states[-1]

    def _lay(self, hidden: jax.Array) -> jax.Array:
        return hidden if self.rows is None else jax.lax.with_sharding_constraint(hidden, self.rows)

    def trunk(
        self,
        input_ids: jax.Array,
        mask: jax.Array,
        token_types: jax.Array | None = None,
        *,
        layer: int,
        lora_dropout: float = 0.0,
        deterministic: bool = True,
    ) -> jax.Array:
        """Hidden state after the first `layer` layers."""
        hidden = self.embeddings(input_ids, mask, token_types, deterministic)
        for block in self.layer[:layer]:
            hidden = block(hidden, mask, lora_dropout, deterministic)
        return hidden

    def top(
        self,
        hidden: jax.Array,
        mask: jax.Array,
        *,
        layer: int,
        lora_dropout: float = 0.0,
        deterministic: bool = True,
    ) -> jax.Array:
        """Last hidden state from `hidden`, the output of `trunk` at the same `layer`."""
        for block in self.layer[layer:]:
            hidden = block(hidden, mask, lora_dropout, deterministic)
        return hidden


def init_backbone(config: EncoderConfig, key: jax.Array) -> dict:
    """A randomly initialised parameter tree (normal 0.02, as BERT)."""
    ids = jnp.zeros((1, 2), jnp.int32)
    return Encoder(config).init(key, ids, jnp.ones((1, 2), bool))["params"]


def attention_mask(mask: jax.Array) -> jax.Array:
    """Which token may attend to which: [B, 1, 1, L] of a bool mask [B, L], [B, 1, L, L] of int segments [B, L]."""
    if mask.dtype == bool:
        return mask[:, None, None, :]
    # Padding attends to padding: a row of nothing but False would have no softmax.
    return (mask[:, :, None] == mask[:, None, :])[:, None]


def positions(mask: jax.Array) -> jax.Array:
    """Position of each token in its text: [1, L] of a bool mask [B, L], [B, L] of int segments (0 at padding)."""
    index = jnp.arange(mask.shape[1])[None]
    if mask.dtype == bool:
        return index
    begins = jnp.pad(mask[:, 1:] != mask[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(mask > 0, index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1), 0)


def pool_segments(hidden: jax.Array, segments: jax.Array, per_row: int) -> jax.Array:
    """Mean of `hidden` [R, L, D] over each text of packed rows, in float32: [R * per_row, D].

    `segments` [R, L] int32. The vector of text s (from 1) of row r stands at r * per_row + s - 1; where there is no
    such text it is zero.
    """
    member = (segments[..., None] == jnp.arange(1, per_row + 1)).astype(jnp.float32)  # [R, L, S]
    sums = jnp.einsum("rls,rld->rsd", member, hidden.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    means = sums / jnp.maximum(member.sum(1), 1.0)[..., None]
    return means.reshape(-1, hidden.shape[-1])


def mean_pool(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `hidden` [B, L, D] over the real tokens of `mask` [B, L], in float32: [B, D]."""
    weights = mask.astype(jnp.float32)[..., None]
    return (hidden.astype(jnp.float32) * weights).sum(1) / jnp.maximum(weights.sum(1), 1.0)


def first_token(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """The first token of each text in `hidden` [B, L, D], which is [CLS], in float32: [B, D]."""
    return hidden[:, 0].astype(jnp.float32)


POOLINGS = {"mean": mean_pool, "cls": first_token}
"""How hidden states [B, L, D] and their mask [B, L] become vectors of the texts [B, D], by name."""


def unit(x: jax.Array) -> jax.Array:
    """Rows of `x` [..., D] scaled to length 1."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))
