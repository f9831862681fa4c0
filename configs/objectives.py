r"""Does pre-finetuning for one family help that family? Twenty-one downstream tasks, from one start encoder.

python -m experiments.objectives --workdir=runs/objectives --config.model.path=DIR --config.data.root=DIR

`model.path` is a Hugging Face directory, `data.root` a folder with ner_pf/, pairs/, ner/ and tc/ as named below. The
size is for two CPU cores and a small encoder.
"""

from ml_collections import ConfigDict

from configs import default

NER = (
    "crossner_politics", "crossner_science", "crossner_literature", "crossner_ai", "wnut17", "mit_movie",
    "mit_restaurant", "bc5cdr", "ncbi_disease",
)  # fmt: skip
TC = (
    "banking77", "clinc150", "snips_intent", "sst2", "cr", "tweet_emotion", "tweet_hate?blank=skip", "tweet_irony",
    "newsgroups20", "financial_phrasebank", "stackoverflow_topic", "dbpedia14",
)  # fmt: skip
NER_SOURCES = (
    "bio_anatem", "bio_bc2gm", "bio_bionlp09", "bio_bionlp11epi", "bio_bionlp11id", "bio_bionlp13cg",
    "bio_bionlp13ge", "bio_bionlp13pc", "bio_craft", "bio_exptm", "bio_linnaeus", "btc", "lab_protocols",
    "litbank", "multiconer2_en", "re3d", "restaurant8k", "sgd_slots", "uner_ewt", "wikiann_en", "wikigold",
    "wikineural_en",
)  # fmt: skip
PAIRS = {"amazon_reviews": 3, "arxiv": 2, "flickr8k": 1, "medquad": 1, "sgd_turns": 3}  # shares


def get_config() -> ConfigDict:
    c = default.get_config()
    c.data.ner.sources = tuple(f"ner_pf/{name}" for name in NER_SOURCES)
    c.data.tc.sources = tuple(f"pairs/{name}" for name in PAIRS)
    c.data.ner.rows, c.data.tc.rows = 32, 32
    # Whole abstracts and answers rather than their first sentence. Of all pairs half are turns of dialogues, and the
    # reviews, which alone speak of sentiment, are three of a hundred; at three of ten each is seen about three times.
    c.data.tc.max_length, c.data.tc.row_length = 64, 128
    c.data.tc.weights = ",".join(f"pairs/{name}={w}" for name, w in PAIRS.items())
    c.data.drop_overlap = "near"  # no row is trained on that stands in a test
    c.lora.last_layers = 2
    # By family, what differs from `optimizer` when the encoder is trained for that family alone.
    c.individual = ConfigDict()
    for family in ("ner", "tc"):
        c.individual[family] = ConfigDict()
        # A step of pairs holds twice the tokens of a step of sentences.
        c.individual[family].steps = {"ner": 1200, "tc": 1000}[family]
        c.individual[family].warmup_steps = {"ner": 120, "tc": 100}[family]
        c.individual[family].backbone_lr = {"ner": 5e-4, "tc": 3e-4}[family]
        c.individual[family].head_lr = 1e-3
        # Of the start's weights in the mean that is scored (0: what was trained). For TC chosen on development rows.
        c.individual[family].start_share = {"ner": 0.0, "tc": 0.5}[family]
    c.downstream.ner = tuple(f"ner/{name}" for name in NER)
    c.downstream.tc = tuple(f"tc/{name}" for name in TC)
    c.downstream.fraction = 0.1
    c.downstream.steps = 150
    c.downstream.seeds = (0, 1, 2)
    return c
