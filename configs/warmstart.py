r"""A start encoder of BERT-mini size from plain text, by masked language modelling.

python -m experiments.warmstart --workdir=runs/warmstart --config.data.root=DIR

`data.root` is a folder with text/, pairs/ and ner_pf/ as named below; none of the downstream sets is among them. A step
sees 32 rows of 128 tokens. Without any data: --config.data.mlm.sources="('generated:text?rows=50000',)".
"""

from ml_collections import ConfigDict

from configs import default

PAIRS = ("amazon_reviews", "arxiv", "flickr8k", "medquad", "sgd_turns")
NER = (
    "bio_anatem", "bio_bc2gm", "bio_bionlp09", "bio_bionlp11epi", "bio_bionlp11id", "bio_bionlp13cg", "bio_bionlp13ge",
    "bio_bionlp13pc", "bio_craft", "bio_exptm", "bio_linnaeus", "btc", "lab_protocols", "litbank", "multiconer2_en",
    "re3d", "restaurant8k", "sgd_slots", "uner_ewt", "wikiann_en", "wikigold", "wikineural_en",
)  # fmt: skip


def get_config() -> ConfigDict:
    c = default.get_config()
    c.strategy = "individual_mlm"
    c.model.layers, c.model.hidden, c.model.heads, c.model.intermediate = 4, 256, 4, 1024
    c.model.max_positions = 512  # those past data.mlm.max_length stay untrained
    c.model.vocab = 8192
    c.optimizer.steps = 20_000
    c.optimizer.warmup_steps = 1000
    c.optimizer.backbone_lr = c.optimizer.head_lr = 1e-3
    c.optimizer.b2 = 0.98
    c.data.mlm.sources = (
        "text/novels",
        *(f"pairs/{name}?text=a,b" for name in PAIRS),
        *(f"ner_pf/{name}?text=tokens" for name in NER),
    )
    c.data.mlm.rows, c.data.mlm.row_length, c.data.mlm.max_length = 32, 128, 128
    c.run.checkpoint_every = 500
    c.run.eval_every = 500
    return c
