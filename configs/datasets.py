"""Datasets by name, for configs: `--config.data.ner.sources=@ner_prefit --config.downstream.ner=@suite21`.

Entries named like a folder (`ner/wnut17`) are read under data.root, as {train,dev,test}.jsonl.xz or in another format
that jaxprefit/data/sources.py knows; `tfds:` and `hub:` sources are downloaded by those libraries on first use, and
their licences are for you to read. Groups: `suite21` (9 NER and 12 TC tasks), `prefit` (NER and pairs).
"""

from jaxprefit.data.registry import Dataset

UNKNOWN = "see source"
CC_BY, CC_BY_SA, NC = "CC BY 4.0", "CC BY-SA 4.0", "CC BY-NC-SA 4.0"
NONE_STATED, TWITTER = "none stated, research use", "Twitter terms, research use"

NEWS = {"PER": "person", "LOC": "location", "ORG": "organization", "MISC": "miscellaneous name"}
# LOC is a natural place in these two: countries and cities are GPE.
ACE = NEWS | {"FAC": "facility", "GPE": "country or city", "VEH": "vehicle"}
CRAFT = {
    "GGP": "gene or gene product", "CHEBI": "chemical entity", "SO": "sequence feature", "CL": "cell type",
    "GO": "biological process or cell component", "Taxon": "organism species",
}  # fmt: skip
MULTICONER = {
    "ORG": "organization", "MusicalGRP": "musical group", "SportsGRP": "sports team", "PrivateCorp": "private company",
    "PublicCorp": "public company", "OtherLOC": "other location", "OtherPER": "other person",
    "OtherPROD": "other product", "OtherCW": "other creative work",
}  # fmt: skip

_SUITE_NER = {
    "crossner_politics": "MIT", "crossner_science": "MIT", "crossner_literature": "MIT", "crossner_ai": "MIT",
    "wnut17": CC_BY, "mit_movie": NONE_STATED, "mit_restaurant": NONE_STATED, "bc5cdr": CC_BY, "ncbi_disease": CC_BY,
}  # fmt: skip
_SUITE_TC = {
    "banking77": CC_BY, "clinc150": "CC BY 3.0", "snips_intent": "CC0", "sst2": NONE_STATED, "cr": NONE_STATED,
    "tweet_emotion": TWITTER, "tweet_hate": TWITTER, "tweet_irony": TWITTER, "newsgroups20": "public Usenet",
    "financial_phrasebank": "CC BY-NC-SA 3.0", "stackoverflow_topic": "CC BY-SA", "dbpedia14": "CC BY-SA",
}  # fmt: skip
_EXTRA_TC = {"sst5": NONE_STATED, "sms_spam": CC_BY}
_NER_PREFIT = {
    "bio_anatem": CC_BY, "bio_bc2gm": CC_BY, "bio_bionlp09": CC_BY, "bio_bionlp11epi": CC_BY, "bio_bionlp11id": CC_BY,
    "bio_bionlp13cg": CC_BY, "bio_bionlp13ge": CC_BY, "bio_bionlp13pc": CC_BY, "bio_craft": CC_BY, "bio_exptm": CC_BY,
    "bio_linnaeus": CC_BY, "btc": CC_BY, "lab_protocols": "MIT", "litbank": CC_BY, "multiconer2_en": CC_BY,
    "re3d": "OGL / CC BY-SA / public domain by source", "restaurant8k": CC_BY, "sgd_slots": CC_BY_SA,
    "uner_ewt": CC_BY_SA, "wikiann_en": NC, "wikigold": CC_BY, "wikineural_en": NC,
}  # fmt: skip
_PAIRS = {
    "amazon_reviews": "research use", "arxiv": "CC0 metadata", "flickr8k": "research, non-commercial",
    "medquad": CC_BY, "sgd_turns": CC_BY_SA,
}  # fmt: skip
_CONCEPTS = {
    "bio_craft": CRAFT, "litbank": ACE, "multiconer2_en": MULTICONER, "btc": NEWS, "uner_ewt": NEWS,
    "wikiann_en": NEWS, "wikigold": NEWS, "wikineural_en": NEWS,
}  # fmt: skip
_BLANK_ROWS = {"tweet_hate": "?blank=skip"}  # some of its texts are empty


def _folders(place: str, kind: str, licences: dict[str, str], groups: tuple[str, ...] = ()) -> tuple[Dataset, ...]:
    """Entries of folders under data.root."""
    return tuple(
        Dataset(f"{place}/{name}", kind, f"{place}/{name}{_BLANK_ROWS.get(name, '')}", licence, groups,
                _CONCEPTS.get(name, {}) if kind == "ner" else {})
        for name, licence in licences.items()
    )  # fmt: skip


DATASETS: tuple[Dataset, ...] = (
    *_folders("ner", "ner", _SUITE_NER, ("suite21",)),
    *_folders("tc", "labelled", _SUITE_TC, ("suite21",)),
    *_folders("tc", "labelled", _EXTRA_TC),
    *_folders("ner_pf", "ner", _NER_PREFIT, ("prefit",)),
    *_folders("pairs", "pairs", _PAIRS, ("prefit",)),
    *_folders("text", "text", {"novels": "public domain"}),
    # Public NER sets
    Dataset("conll2003", "ner", "tfds:conll2003?tags=ner", UNKNOWN, concepts=NEWS),
    Dataset("few_nerd", "ner", "hub:DFKI-SLT/few-nerd?subset=supervised&tags=fine_ner_tags&scheme=io", CC_BY_SA),
    Dataset("ncbi_disease", "ner", "hub:ncbi/ncbi_disease?revision=refs/convert/parquet&tags=ner_tags", UNKNOWN),
    Dataset("nuner", "ner", "hub:numind/NuNER?split=entity&format=spans&tokens=input&tags=output", "MIT"),
    Dataset("wikiann", "ner", "tfds:wikiann/en", UNKNOWN, concepts=NEWS),
    Dataset("wnut17", "ner", "hub:leondz/wnut_17?revision=refs/convert/parquet&tags=ner_tags", CC_BY),
    # Public labelled texts
    Dataset("ag_news_subset", "labelled", "tfds:ag_news_subset?text=description", UNKNOWN),
    Dataset("banking77", "labelled", "hub:mteb/banking77?label=label_text", CC_BY),
    Dataset("clinc_oos", "labelled", "tfds:clinc_oos?label=intent_name", "CC BY 3.0"),
    Dataset("dbpedia14", "labelled", "hub:fancyzhx/dbpedia_14?text=content", "CC BY-SA"),
    Dataset("emotion", "labelled", "hub:dair-ai/emotion?subset=split", UNKNOWN),
    Dataset("imdb_reviews", "labelled", "tfds:imdb_reviews", UNKNOWN),
    Dataset("trec", "labelled", "tfds:trec?label=label-coarse", UNKNOWN),
    Dataset("yelp_polarity_reviews", "labelled", "tfds:yelp_polarity_reviews", UNKNOWN),
    # Public pairs
    Dataset("all_nli", "pairs", "hub:sentence-transformers/all-nli?subset=pair&a=anchor&b=positive", UNKNOWN),
    Dataset("gigaword", "pairs", "tfds:gigaword?a=document&b=summary", UNKNOWN),
    Dataset("gooaq", "pairs", "hub:sentence-transformers/gooaq?a=question&b=answer", UNKNOWN),
    Dataset("natural_questions", "pairs", "hub:sentence-transformers/natural-questions?a=query&b=answer", UNKNOWN),
    Dataset("squad", "pairs", "tfds:squad?a=question&b=context", CC_BY_SA),
)
