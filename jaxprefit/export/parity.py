"""Whether an export computes what the encoder computes in JAX: vectors, ids, effect of each adapter, sizes of files."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxprefit.encoder.tokenization import encode_text, pad_ids
from jaxprefit.encoder.transformer import Encoder
from jaxprefit.errors import UserError
from jaxprefit.export.bundle import Bundle
from jaxprefit.runtime.results import record

TOLERANCE = 1e-4
"""Largest absolute difference of a float32 export, for vectors with entries up to 1; beyond, in proportion."""
LEAST_COSINE = 0.9
"""Between a text's vector in JAX and in a quantised export. Rounding costs far less (0.98 at worst, seen on MiniLM with
per-token activations and a 4-bit word table), so a smaller one is a mistake."""
BATCH = 8

Vectors = tuple[np.ndarray, np.ndarray]
"""Of a batch: tokens [B, L, D] and sentences [B, D], float32."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """An export as a library opened it.

    Attributes:
      library: its name and version.
      variants: adapters that it can run; None is the bare backbone.
      vectors: (ids [B, L] int32, mask [B, L] bool, variant) -> Vectors.
      ids: of a text, cut to the bundle's max_length, by the tokenizer as this library reads it.
      logits: (tokens [B, L, D], sentences [B, D], name of a head) -> class scores; None where heads only lie beside.
    """

    library: str
    variants: tuple[str | None, ...]
    vectors: Callable[[np.ndarray, np.ndarray, str | None], Vectors]
    ids: Callable[[str], Sequence[int]]
    logits: Callable[[np.ndarray, np.ndarray, str], np.ndarray] | None = None


@record
class Reading:
    """One variant of the encoder in one library, against JAX on the same texts."""

    library: str
    """Name and version of the library."""
    adapter: str | None
    """Name of the adapter; null is the bare backbone."""
    largest: float
    """Largest absolute entry of the token vectors in JAX, the scale of what follows."""
    tokens: float
    """Largest absolute difference to JAX over the vectors of real tokens."""
    sentences: float
    """Largest absolute difference to JAX over sentence vectors."""
    cosine_least: float
    """Least cosine between a text's sentence vector and that of JAX."""
    cosine_mean: float
    """Mean of these cosines."""
    effect: float | None
    """Largest absolute difference to the bare backbone's token vectors in the same library; null for itself."""
    effect_in_jax: float | None
    """The same in JAX."""
    alone: float
    """Largest absolute difference of a sentence vector between its text alone and in a batch of other texts."""
    logits: float | None
    """Largest absolute difference of the class scores of the head of this name; null where there is none."""


@record
class Report:
    """What an export holds, how far it is from the encoder in JAX, and how long it takes."""

    SCHEMA: ClassVar[str] = "jaxprefit.export"
    VERSION: ClassVar[int] = 1

    format: str
    """Format of the export."""
    settings: dict[str, bool | int | str]
    """Settings it was written with."""
    texts: int
    """Number of texts compared."""
    readings: tuple[Reading, ...]
    """One per library and variant."""
    same_ids: dict[str, bool]
    """Whether a library's own tokenizer cuts every text into the ids that JAX got."""
    skipped: tuple[str, ...]
    """Libraries that are not installed, so that nothing is known of them."""
    files: dict[str, int]
    """Bytes by relative path, without export.json itself."""
    milliseconds: dict[str, dict[str, float]]
    """Median wall time of a text, by what computes it and by shape, texts x tokens; empty where not measured."""
    ratios: dict[str, float]
    """Medians of the quotient of two times of the same repetition."""
    switch_milliseconds: float | None
    """Median time to load an adapter and make it active; null where the format has no switch."""


def sample_texts(bundle: Bundle, number: int = 64, seed: int = 0) -> list[str]:
    """Texts of words drawn from the vocabulary: the empty one, most of up to 32 tokens, some beyond max_length."""
    words = [w for w in sorted(bundle.tokenizer.get_vocab()) if not w.startswith(("[", "<"))]
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(1 / 16, number), 2 * bundle.max_length)
    lengths[0], lengths[-1] = 0, 2 * bundle.max_length
    drawn = ([words[i].removeprefix("##") for i in rng.integers(len(words), size=n)] for n in lengths)
    return [" ".join(words) for words in drawn]


def reference(bundle: Bundle) -> Callable[[np.ndarray, np.ndarray, str | None], Vectors]:
    """The encoder in JAX, float32 at full precision, in the form of `Opened.vectors`."""
    encoder = Encoder(dataclasses.replace(bundle.config, dtype="float32"))
    backbone = jax.device_put(dict(bundle.backbone))
    adapters: dict[str | None, dict] = {None: {}} | {
        name: {"lora": jax.device_put(dict(a))} for name, a in bundle.adapters.items()
    }

    @jax.jit
    def apply(variables: Mapping, ids: jax.Array, mask: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return jnp.asarray(encoder.apply(variables, ids, mask))

    def vectors(ids: np.ndarray, mask: np.ndarray, adapter: str | None) -> Vectors:
        hidden = np.asarray(apply({"params": backbone, **adapters[adapter]}, ids, mask))
        return hidden, bundle.sentences(hidden, mask)

    return vectors


def compare(bundle: Bundle, opened: Sequence[Opened], texts: Sequence[str]) -> list[Reading]:
    """A Reading per library and variant."""
    rows = [encode_text(bundle.tokenizer, text, bundle.max_length) for text in texts]
    batches = list(_batches(rows))
    expect = reference(bundle)
    expected = {variant: [expect(*batch, variant) for batch in batches] for variant in bundle.variants}
    out = []
    for library in opened:
        bare: list[Vectors] = []
        for variant in library.variants:
            got = [library.vectors(*batch, variant) for batch in batches]
            bare = bare or got
            out.append(_reading(bundle, library, variant, batches, expected, got, bare))
    return out


def _batches(rows: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids and mask of BATCH rows at a time, padded to a power of 4 or the longest row, so that JAX compiles little."""
    most = max(map(len, rows))
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        length = 4 ** math.ceil(math.log(max(map(len, batch)), 4))
        yield pad_ids(batch, min(length, most))


def _reading(
    bundle: Bundle,
    library: Opened,
    variant: str | None,
    batches: Sequence[tuple[np.ndarray, np.ndarray]],
    expected: Mapping[str | None, Sequence[Vectors]],
    got: Sequence[Vectors],
    bare: Sequence[Vectors],
) -> Reading:
    masks = [mask for _, mask in batches]
    ours = expected[variant]
    cosines = np.concatenate([cosine(a[1], b[1]) for a, b in zip(ours, got)])
    ids, mask = batches[0]
    singly = [library.vectors(ids[i : i + 1], mask[i : i + 1], variant)[1][0] for i in range(len(ids))]
    logits = None
    if library.logits and variant is not None and variant in bundle.heads:
        head = bundle.heads[variant]
        scores = [(v[0] if head.pooling == "none" else v[1]) @ head.kernel + head.bias for v in got]
        logits = max(float(np.abs(s - library.logits(*v, variant)).max()) for s, v in zip(scores, got))
    return Reading(
        library=library.library,
        adapter=variant,
        largest=max(float(np.abs(v[0])[mask].max()) for v, mask in zip(ours, masks)),
        tokens=tokens_difference(ours, got, masks),
        sentences=max(float(np.abs(a[1] - b[1]).max()) for a, b in zip(ours, got)),
        cosine_least=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        effect=None if variant is None else tokens_difference(got, bare, masks),
        effect_in_jax=None if variant is None else tokens_difference(ours, expected[None], masks),
        alone=float(np.abs(np.stack(singly) - got[0][1]).max()),
        logits=logits,
    )


def tokens_difference(a: Sequence[Vectors], b: Sequence[Vectors], masks: Sequence[np.ndarray]) -> float:
    """Largest absolute difference of two encoders over the vectors of real tokens."""
    return max(float(np.abs(x[0] - y[0])[mask].max()) for x, y, mask in zip(a, b, masks))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of `a` [B, D] with the same row of `b`: [B]."""
    return (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)


def same_ids(bundle: Bundle, library: Opened, texts: Sequence[str]) -> bool:
    """Whether the library's tokenizer cuts every text into the ids of the bundle's own."""
    own = (encode_text(bundle.tokenizer, text, bundle.max_length).tolist() for text in texts)
    return all(ids == [int(i) for i in library.ids(text)] for ids, text in zip(own, texts))


def open_all(
    folder: pathlib.Path, bundle: Bundle, openers: Sequence[Callable[[pathlib.Path, Bundle], Opened]]
) -> tuple[list[Opened], list[str]]:
    """(the export in each library that is installed, names of the other ones)."""
    opened, skipped = [], []
    for opener in openers:
        try:
            opened.append(opener(folder, bundle))
        except ImportError as e:
            skipped.append(e.name or str(e))
    return opened, skipped


def check(
    bundle: Bundle,
    opened: Sequence[Opened],
    texts: Sequence[str],
    format_: str,
    settings: Mapping[str, Any],
    skipped: Sequence[str] = (),
) -> Report:
    """Compares the opened export with JAX; the report's files and times are left empty.

    Raises UserError where a float32 export differs by more than TOLERANCE, a quantised one has a cosine below
    LEAST_COSINE, or a tokenizer gives other ids.
    """
    ids = {library.library: same_ids(bundle, library, texts) for library in opened}
    readings = compare(bundle, opened, texts)
    report = Report(
        format=format_, settings=dict(settings), texts=len(texts), readings=tuple(readings), same_ids=ids,
        skipped=tuple(skipped), files={}, milliseconds={}, ratios={}, switch_milliseconds=None,
    )  # fmt: skip
    if problem := problems(report):
        raise UserError(f"the export differs from the encoder, so it is not kept: {problem}")
    return report


def problems(report: Report) -> str:
    """The first reading that is further from JAX than its format allows; '' where there is none."""
    for r in report.readings:
        place = f"{r.library}, adapter {r.adapter}"
        difference = max(r.tokens, r.sentences, r.logits or 0.0)
        if report.format == "int8":
            if not r.cosine_least >= LEAST_COSINE:
                return f"{place}: a sentence vector has cosine {r.cosine_least:.4f} with that of JAX"
        elif not difference <= TOLERANCE * max(1.0, r.largest):
            return f"{place}: vectors differ by up to {difference:.2g}"
    wrong = [library for library, same in report.same_ids.items() if not same]
    return f"{wrong[0]}: its tokenizer gives other ids" if wrong else ""
