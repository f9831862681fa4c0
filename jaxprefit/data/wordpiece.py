"""WordPiece vocabularies trained on a user's text, the same on every run and machine.

The trainer of `tokenizers` breaks ties between merges by the ids of the parts, and gives ids to characters in the
order of a hash table. Here every character, and every character as a continuation, has its id before the training.
"""

from collections import Counter
from collections.abc import Iterable

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4
MAX_ALPHABET = 1000  # the most frequent characters; any other makes its word unknown


def train_wordpiece(texts: Iterable[str], size: int, lowercase: bool = True) -> tokenizers.Tokenizer:
    """A BERT tokenizer whose vocabulary of at most `size` entries is trained on `texts`; a function of these alone.

    It holds the special tokens, the alphabet and the pieces that occur at least twice. The alphabet is always
    there, so that a very small `size` is exceeded.
    """
    normalizer, split = normalizers.BertNormalizer(lowercase=lowercase), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in split.pre_tokenize_str(normalizer.normalize_str(text)))
    frequencies: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            frequencies[character] += count
    ranked = sorted(frequencies, key=lambda c: (-frequencies[c], c))
    alphabet = sorted(ranked[:MAX_ALPHABET])
    inside = {character for word in words for character in word[1:]}
    continued = [f"##{c}" for c in alphabet if c in inside]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        special_tokens=[*SPECIAL, *alphabet, *continued],  # the only way to fix their ids
        show_progress=False,
    )
    trained = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    # Each word stands as often as it occurred; the trainer counts them again, without a split of its own.
    trained.train_from_iterator(([word] * count for word, count in words.items()), trainer)
    # A new tokenizer, in which only the special tokens are special.
    return tokenizers.Tokenizer.from_str(
        tokenizers.BertWordPieceTokenizer(vocab=trained.get_vocab(), lowercase=lowercase).to_str()
    )
