"""The classification protocol of MTEB: a logistic regression on frozen vectors of k rows a label, drawn several times.

Muennighoff et al., 2023, "MTEB: Massive Text Embedding Benchmark" (EACL), and the benchmark's AbsTaskClassification:
8 rows a label, 10 draws, at most 100 iterations, mean accuracy. A seed of downstream.seeds is the number of a draw.
A text's vector is the mean of its last hidden states at unit length, as the contrastive objective compares it and as
sentence encoders such as all-MiniLM-L6-v2 give it out, or the first one where the encoder's files say so.
experiments/results/mteb.md has its scores beside the published.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprefit.data import packing
from jaxprefit.downstream import sampling
from jaxprefit.downstream.features import Features
from jaxprefit.downstream.finetune import FinetuneConfig, Finetuned, Predictions, TaskData, cuts_of, encoded
from jaxprefit.encoder import lora
from jaxprefit.errors import UserError
from jaxprefit.model import Model

TEXTS = 1024  # whose token vectors are in memory at a time


def classify(
    model: Model, data: TaskData, cfg: FinetuneConfig, draws: Sequence[int], on_step: Callable[[int], Any]
) -> Finetuned:
    """Predictions of the test rows from each draw of cfg.shots training rows a label."""
    if data.task.kind == "ner":
        raise UserError(f"task '{data.name}': downstream.mode=mteb classifies whole texts; leave downstream.ner empty")
    import sklearn.exceptions  # here, as in evaluate.py
    import sklearn.linear_model

    train = [data.train[i] for i in range(len(data.train))]
    labels = [record["label"] for record in train]
    chosen = [sampling.mteb_draw(labels, cfg.shots, draw) for draw in draws]
    drawn = sorted({int(i) for indices in chosen for i in indices})
    place = {i: n for n, i in enumerate(drawn)}
    known = text_vectors(model, data, [train[i] for i in drawn])
    asked = text_vectors(model, data, [data.test[i] for i in range(len(data.test))])
    number = {label: i for i, label in enumerate(data.task.labels)}
    found: dict[int, Predictions | UserError] = {}
    for n, (draw, indices) in enumerate(zip(draws, chosen), start=1):
        regression = sklearn.linear_model.LogisticRegression(max_iter=100, random_state=sampling.MTEB_SEED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)  # 100 iterations are the protocol
            try:
                regression.fit(known[[place[int(i)] for i in indices]], [number[labels[i]] for i in indices])
                found[draw] = [[int(c)] for c in regression.predict(asked)]
            except ValueError as error:  # one label alone, vectors that are not finite
                found[draw] = UserError(f"task '{data.name}': {str(error).splitlines()[0]}")
        on_step(n)
    present = {labels[i] for i in chosen[0]}
    unseen = tuple(label for label in data.task.labels if label not in present)
    cuts = {
        "train": cuts_of(data.task.encode_record(train[int(i)]) for i in chosen[0]),
        "test": cuts_of(encoded(data.task, data.test)),
    }
    return Finetuned(found, len(chosen[0]), unseen, cuts)


def text_vectors(model: Model, data: TaskData, records: Sequence[dict[str, Any]]) -> np.ndarray:
    """Each text's vector at unit length, as the model pools it, through the family's adapter where the model has one:
    [N, D] float32."""
    adapter = model.adapters.get(data.family)
    backbone = lora.merge(model.backbone, adapter) if adapter else model.backbone
    ids = [data.task.encode_record(record)["ids"] for record in records]
    length = packing.row_length(data.task.max_length)
    out = np.empty((len(ids), model.config.hidden_size), np.float32)
    for begin in range(0, len(ids), TEXTS):
        part = ids[begin : begin + TEXTS]
        found = Features(model.config, backbone, model.config.num_layers, part, length, limit=2**62)
        hidden, starts = np.asarray(found.hidden, np.float32), found.begin[:-1]
        if model.sentence.pooling == "cls":
            out[begin : begin + TEXTS] = hidden[starts]
        else:
            out[begin : begin + TEXTS] = np.add.reduceat(hidden, starts) / np.diff(found.begin)[:, None]
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
