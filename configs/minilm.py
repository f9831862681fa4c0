r"""Pre-finetuning of all-MiniLM-L6-v2 (or any BERT-family encoder) on real text.

python -m experiments.prefinetune --config=configs/minilm.py --workdir=runs/naive \
    --config.model.path=DIR --config.data.root=DIR --config.strategy=naive

`model.path` is a Hugging Face directory, `data.root` a folder with ner_pf/, pairs/, ner/ and tc/ as named below. The
size is for two CPU cores (1,024 tokens of sentences and 2,048 of pairs a step, at most 32 tokens of each text).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    c = default.get_config()
    c.data.limit = 8000  # rows per source
    c.data.ner.sources = tuple(
        f"ner_pf/{name}"
        for name in ("multiconer2_en", "sgd_slots", "bio_bionlp13cg", "wikineural_en", "lab_protocols", "uner_ewt")
    )
    c.data.tc.sources = tuple(
        f"pairs/{name}" for name in ("arxiv", "sgd_turns", "medquad", "flickr8k", "amazon_reviews")
    )
    c.downstream.ner = ("ner/wnut17", "ner/mit_restaurant")
    c.downstream.tc = ("tc/banking77", "tc/tweet_emotion")
    c.downstream.fraction = 0.1  # few labels: where pre-finetuning is meant to help
    c.downstream.steps = 150
    c.downstream.max_length = 48
    c.conflict.rounds = 48
    return c
