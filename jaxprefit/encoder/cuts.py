"""What of a text is beyond `max_length`, counted in texts, words and entities, so that nothing is cut in silence."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import tokenizers


class Cuts(NamedTuple):
    """Numbers of texts, words and entities, and of those among them that did not fit `max_length`.

    A text did not fit if it has more tokens; a word if it does not begin within; an entity if any of its words does
    not. Words of a running text are those that the tokenizer splits it into, those of a tagged one its own.
    """

    texts: int = 0
    cut_texts: int = 0
    words: int = 0
    cut_words: int = 0
    entities: int = 0
    cut_entities: int = 0

    def plus(self, other: "Cuts") -> "Cuts":
        """The counts of both together."""
        return Cuts(*map(operator.add, self, other))

    @classmethod
    def total(cls, parts: Iterable[Self]) -> "Cuts":
        """The counts of all together; zeros of none."""
        return Cuts(*map(sum, zip(*parts)))

    def report(self) -> dict[str, int]:
        """As JSON, by name."""
        return self._asdict()


def share(cuts: dict[str, Any], what: str) -> float:
    """The share of `what` ('texts', 'words', 'entities') that did not fit, of a report of `Cuts`; 0 where there is
    none."""
    return cuts[f"cut_{what}"] / max(cuts[what], 1)


def sentence(cuts: dict[str, Any]) -> str:
    """A report of `Cuts` in words, for a sentence that ends in what became of them."""
    kinds = [what for what in ("texts", "words", "entities") if cuts[what]]
    parts = [f"{cuts[f'cut_{w}']:,} of {cuts[w]:,} {w} ({100 * share(cuts, w):.1f} %)" for w in kinds]
    return ", ".join(parts) + " were"


def text_cuts(encoding: tokenizers.Encoding, max_length: int, closing: int) -> Cuts:
    """Of one running text, from its whole encoding, the last `closing` tokens of which keep the last places."""
    whole = len(encoding.ids) <= max_length
    inside = max_length if whole else max_length - closing
    words, begun = (set(encoding.word_ids[:end]) - {None} for end in (len(encoding.ids), inside))
    return Cuts(1, int(not whole), len(words), len(words) - len(begun))


def tagged_cuts(tags: Sequence[str], begun: int, tokens: int, max_length: int) -> Cuts:
    """Of one tagged text (IOB2) of `tokens` tokens, the first `begun` words of which begin within `max_length`."""
    ends = []  # of entities
    for i, tag in enumerate(tags):
        if tag.startswith("B-"):
            ends.append(i + 1)
        elif tag.startswith("I-") and ends and ends[-1] == i:
            ends[-1] += 1
    cut = sum(end > begun for end in ends)
    return Cuts(1, int(tokens > max_length), len(tags), len(tags) - begun, len(ends), cut)
