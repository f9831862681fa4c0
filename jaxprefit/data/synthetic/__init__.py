"""English text in the style of phone messages, generated from a grammar.

This is made-up text. It needs no download, is the same on every machine, and is good for a first
look and for tests. It says nothing about quality on real-world text.

Every function depends on its arguments alone. With `held_out=True` the phrases and the words that
names are built from are others than with `held_out=False`, so a model that was pre-finetuned on
the one part meets new phrases and new names in the other. Function words, dates and numbers are
shared.
"""

import random
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from .situations import SITUATIONS
from .templates import MESSAGES, REQUEST_FRAMES, REQUESTS, STATEMENT_FRAMES, STATEMENTS
from .vocabulary import ENTITY_OF, SHAPES, SHORTHAND, SYLLABLES, WORDS

T = TypeVar("T")
Tagged = list[tuple[str, str]]  # tokens with their IOB2 tags

_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
_SLOT = re.compile(r"\{([^{}]+)\}")
_TOKEN = re.compile(r"'s\b|\w+(?:[./:-]\w+|'(?!s\b)\w+)*|[^\w\s]")
_CLAUSES = REQUESTS | STATEMENTS
_LENGTHS = range(5, 30)  # tokens in a text, before a final full stop
_ENDS = (".", "?", "!")


def entity_types() -> list[str]:
    """The entity types of `ner_records`, sorted."""
    return sorted(set(ENTITY_OF.values()))


def intents() -> list[str]:
    """The labels of `labelled_records`, sorted."""
    return sorted(_CLAUSES)


def ner_records(n: int, seed: int, held_out: bool = False) -> list[dict[str, list[str]]]:
    """`n` records of tokens and their IOB2 tags."""
    writer = _Writer(seed, held_out)
    records = []
    for _ in range(n):
        tagged = writer.any_text()
        records.append({"tokens": [t for t, _ in tagged], "tags": [tag for _, tag in tagged]})
    return records


def pairs(n: int, seed: int, held_out: bool = False) -> list[dict[str, str]]:
    """`n` weak pairs: two texts of one situation, such as a message and its reply.

    In half of them both texts are about the same persons, places and so on."""
    writer = _Writer(seed, held_out)
    return [dict(zip("ab", map(_text, writer.pair()), strict=True)) for _ in range(n)]


def labelled_records(n: int, seed: int, held_out: bool = False) -> list[dict[str, str]]:
    """`n` texts, each with the intent or topic of its main clause."""
    writer = _Writer(seed, held_out)
    records = []
    for _ in range(n):
        label = writer.pick(intents())
        records.append({"text": _text(writer.labelled(label)), "label": label})
    return records


def text_records(n: int, seed: int, held_out: bool = False) -> list[dict[str, str]]:
    """`n` texts of all kinds."""
    writer = _Writer(seed, held_out)
    return [{"text": _text(writer.any_text())} for _ in range(n)]


def corpus(n: int, seed: int) -> list[str]:
    """`n` texts of all kinds, none from the held-out part: for a vocabulary or a warm start."""
    return [record["text"] for record in text_records(n, seed)]


def detokenise(tokens: Sequence[str]) -> str:
    """Join tokens with natural spacing."""
    text = re.sub(r" (?=[,.?!:%)]|'s\b)", "", " ".join(tokens))
    return re.sub(r"([$€#+(]) ", r"\1", text)


class _Writer:
    """Draws text from one part of the grammar, the ordinary or the held-out one."""

    def __init__(self, seed: int, held_out: bool) -> None:
        self._random = random.Random(seed).random  # the one method that no Python version changes
        self._held_out = held_out

    def any_text(self) -> Tagged:
        """A message, a labelled text or one side of a pair."""
        kind = self._random()
        if kind < 0.25:
            return self.labelled(self.pick(intents()))
        if kind < 0.5:
            return self.pick(self.pair())
        return self._finish(*self._fitting(self._message if kind < 0.85 else self._two_messages))

    def pair(self) -> list[Tagged]:
        """The two sides of one situation."""

        def sides() -> list[Tagged]:
            first, second = map(self._draw, self.pick(SITUATIONS))
            slots: dict[str, str] = {}
            one = self._render(first, slots)
            # Half of the pairs share their details, half only the situation: else matching names would be enough.
            return [one, self._render(second, slots if self._random() < 0.5 else {})]

        return [self._finish(side) for side in self._fitting(sides)]

    def labelled(self, label: str) -> Tagged:
        """A text whose main clause has this label; the other clause, if any, has another one."""
        family, frames = (REQUESTS, REQUEST_FRAMES) if label in REQUESTS else (STATEMENTS, STATEMENT_FRAMES)
        others = [name for name in family if name != label]

        def sentence() -> list[Tagged]:
            clauses = {
                "{ask}": self._draw(_CLAUSES[label]),
                "{other}": self._draw(_CLAUSES[self.pick(others)]),
                "{fact}": self._draw(STATEMENTS[self.pick(list(STATEMENTS))]),
            }
            frame = self._draw(frames)
            for mark, clause in clauses.items():
                frame = frame.replace(mark, clause)
            return [self._render(frame, {})]

        return self._finish(*self._fitting(sentence))

    def pick(self, items: Sequence[T]) -> T:
        """One of all items."""
        return items[self._below(len(items))]

    def _below(self, n: int) -> int:
        return int(self._random() * n)

    def _draw(self, items: Sequence[T]) -> T:
        """One of this writer's part of the items: every third is held out."""
        third = len(items) // 3
        if self._held_out:
            return items[3 * self._below(third) + 2]
        k = self._below(len(items) - third)
        return items[k + k // 2]

    def _message(self) -> list[Tagged]:
        return [self._render(self._draw(MESSAGES), {})]

    def _two_messages(self) -> list[Tagged]:
        first, second = (self._render(self._draw(MESSAGES), {}) for _ in range(2))
        return [first + ([] if first[-1][0] in _ENDS else [(".", "O")]) + second]

    def _render(self, template: str, slots: dict[str, str]) -> Tagged:
        """Tokens and tags of a template; `slots` keeps the values, for another text to share."""
        tagged: Tagged = []
        for i, piece in enumerate(_SLOT.split(self._choose(template))):
            if i % 2 == 0:
                tagged += [(token, "O") for token in _TOKEN.findall(piece)]
                continue
            symbol = piece.split(":")[0]
            if piece not in slots:
                slots[piece] = self._new_value(symbol, set(slots.values()))
            entity = ENTITY_OF.get(symbol)
            for j, token in enumerate(_TOKEN.findall(slots[piece])):
                tagged.append((token, f"{'I' if j else 'B'}-{entity}" if entity else "O"))
        return tagged

    def _new_value(self, symbol: str, taken: set[str]) -> str:
        value = self._expand(symbol)
        while value in taken:
            value = self._expand(symbol)
        return value

    def _expand(self, symbol: str) -> str:
        """A string for a shape, a word list, a number range or a built name."""
        if symbol in WORDS:
            return self._draw(WORDS[symbol])
        if symbol == "root":
            return self._built_name()
        if ".." in symbol:
            low, high = map(int, symbol.split(".."))
            return str(low + self._below(high - low + 1))
        shape = self._choose(self.pick(SHAPES[symbol]))
        return _SLOT.sub(lambda match: self._expand(match[1]), shape)

    def _built_name(self) -> str:
        """A name such as "Velora". A third of all combinations is held out."""
        while True:
            chosen = [self._below(len(bank)) for bank in SYLLABLES]
            if (sum(chosen) % 3 == 2) == self._held_out:
                return "".join(bank[i] for bank, i in zip(SYLLABLES, chosen, strict=True))

    def _choose(self, text: str) -> str:
        """Settle every (a|b)."""
        return _CHOICE.sub(lambda match: self.pick(match[1].split("|")), text)

    def _fitting(self, sentences: Callable[[], list[Tagged]]) -> list[Tagged]:
        """Draw sentences until all of them have a fitting length."""
        while True:
            drawn = sentences()
            if all(len(tagged) in _LENGTHS for tagged in drawn):
                return drawn

    def _finish(self, tagged: Tagged) -> Tagged:
        """Add capitals, a full stop and some noise."""
        tokens = [token for token, _ in tagged]
        tags = [tag for _, tag in tagged]
        for i, token in enumerate(tokens):
            if i == 0 or tokens[i - 1] in _ENDS:
                tokens[i] = token[0].upper() + token[1:]
            if token == "a" and tokens[i + 1][0] in "aeiouAEIOU":
                tokens[i] += "n"
        if tokens[-1] not in _ENDS and self._random() < 0.6:
            tokens.append(".")
            tags.append("O")
        return list(zip(self._noise(tokens), tags, strict=True))

    def _noise(self, tokens: list[str]) -> list[str]:
        """Lower case, shorthand and slips of the finger, each in a share of the texts."""
        if self._random() < 0.3:
            tokens = [token.lower() for token in tokens]
        if self._random() < 0.2:
            tokens = [SHORTHAND.get(token, token) for token in tokens]
        if self._random() < 0.3:
            tokens = [self._slip(token) if self._random() < 0.1 else token for token in tokens]
        return tokens

    def _slip(self, token: str) -> str:
        """Drop, double or swap a letter of a longer word."""
        if len(token) < 4 or not token.isalpha():
            return token
        i = 1 + self._below(len(token) - 2)
        before, here, following, after = token[:i], token[i], token[i + 1], token[i + 2 :]
        return before + self.pick((following, here * 2 + following, following + here)) + after


def _text(tagged: Tagged) -> str:
    return detokenise([token for token, _ in tagged])
