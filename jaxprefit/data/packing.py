"""Several texts in one row, so that almost no token of a batch is padding, and every batch has one shape.

    row 0   [CLS] a text [SEP] [CLS] another [SEP] [CLS] a third one [SEP] [PAD]
            1     1 1    1     2     2       2     3     3 3     3   3     0        segments

The encoder keeps the texts of a row apart by their segments (`encoder.attention_mask`, `encoder.positions`). A text's
pooled vector stands at its slot, row * per_row + segment - 1 (`encoder.pool_segments`).
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shape of a packed batch."""

    rows: int
    length: int  # tokens in a row
    per_row: int  # most texts in a row, even

    @classmethod
    def of(cls, rows: int, length: int) -> "Layout":
        """With room for one text per 8 tokens, so that only a row of very short texts stays partly empty."""
        return cls(rows, length, max(2, length // 16 * 2))

    @property
    def slots(self) -> int:
        """Most texts in a batch."""
        return self.rows * self.per_row

    @property
    def tokens(self) -> int:
        """Tokens in a batch, padding included."""
        return self.rows * self.length

    def room(self, longest: int) -> int:
        """Number of texts of at most `longest` tokens that always fit together into an empty batch.

        A text finds no row only where each row holds as many texts as this counts for it: a row with fewer has
        `longest` tokens left. So `pack` places any so many texts, whatever their sizes and order.
        """
        return self.rows * min(self.length // longest, self.per_row)


@dataclasses.dataclass(frozen=True)
class Packing:
    """Where each of T texts stands: the texts of the first example, then those of the second, and so on."""

    layout: Layout
    row: np.ndarray  # [T] int32
    offset: np.ndarray  # [T] int32, of the text's first token in its row
    segment: np.ndarray  # [T] int32, from 1
    size: np.ndarray  # [T] int32, tokens

    @property
    def slot(self) -> np.ndarray:
        """[T] int32: where `encoder.pool_segments` puts the text's vector."""
        return self.row * self.layout.per_row + self.segment - 1

    def lay(self, values: Sequence[np.ndarray], fill: int = 0) -> np.ndarray:
        """One value per token, `values[t]` [size[t]] for text t, laid out as [R, L] int32 with `fill` at padding."""
        out = np.full((self.layout.rows, self.layout.length), fill, np.int32)
        for value, row, offset in zip(values, self.row, self.offset):
            out[row, offset : offset + len(value)] = value
        return out

    def segments(self) -> np.ndarray:
        """[R, L] int32: which text of its row a token belongs to, from 1; 0 at padding."""
        return self.lay([np.full(n, s) for n, s in zip(self.size, self.segment)])


Placed = tuple[list[int], Packing]
"""Indices of texts, and where each stands: text t of the packing is the t-th of the list."""


def pack(sizes: Sequence[Sequence[int]], layout: Layout) -> tuple[list[int], Packing]:
    """Lays out as many examples as fit: (the indices of those placed, in order, and where their texts are).

    `sizes[i]` are the token counts of example i's texts, which are placed together or not at all. Best fit: each text
    goes to the row that it leaves least room in. Examples are taken in the order given, so that sorting by size,
    largest first, fills the rows best.
    """
    room = np.full(layout.rows, layout.length)
    texts = np.zeros(layout.rows, int)
    placed, places = [], []
    for i, example in enumerate(sizes):
        before = room.copy(), texts.copy()
        mine: list[tuple[int, int, int, int]] = []
        for size in example:
            fits = (room >= size) & (texts < layout.per_row)
            if not fits.any():
                break
            row = int(np.where(fits, room, layout.length + 1).argmin())
            texts[row] += 1
            mine.append((row, layout.length - int(room[row]), int(texts[row]), size))
            room[row] -= size
        if len(mine) == len(example):
            placed.append(i)
            places += mine
        else:
            room, texts = before
    columns = np.asarray(places, np.int32).reshape(-1, 4).T
    return placed, Packing(layout, *columns)


def packed(sizes: Sequence[int], layout: Layout) -> Iterator[Placed]:
    """All texts, each once, in batches of one shape. Raises ValueError for a text longer than a row."""
    if max(sizes, default=0) > layout.length:
        raise ValueError(f"a text of {max(sizes)} tokens fits no row of {layout.length}")
    left = list(range(len(sizes)))
    while left:
        # Large texts of a window first, small ones fill the gaps; what finds no place leads the next window.
        window = sorted(left[: layout.slots], key=lambda i: -sizes[i])
        done, packing = pack([[sizes[i]] for i in window], layout)
        yield [window[i] for i in done], packing
        left = sorted({*window} - {window[i] for i in done}) + left[layout.slots :]


ROW_LENGTH = 64  # tokens; shorter rows fill badly, longer ones spend more on attention


def row_length(max_length: int) -> int:
    """Tokens in a packed row for texts of at most `max_length`."""
    return max(ROW_LENGTH, -(-max_length // 16) * 16)
