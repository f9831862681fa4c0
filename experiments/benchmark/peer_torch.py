"""The work of a task_primary step in transformers and peft on torch, as one would write it there.

Not imported before it is asked for; torch, transformers and peft are no dependencies of the project:
`pip install torch transformers peft`. Texts are padded to the longest of their batch, as the libraries' collators do;
each family's gradient is taken and clipped on its own, and the shared one is their sum.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import peft
import torch
import transformers
from torch.nn import functional

from jaxprefit.encoder.lora import LoraSpec
from jaxprefit.families.ner_losses import IGNORE, OUTSIDE
from jaxprefit.training.optim import OptimizerConfig


class Texts(NamedTuple):
    """Padded texts: ids and mask [N, L]."""

    ids: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def of(cls, texts: Sequence[np.ndarray]) -> "Texts":
        """Texts of ids [n]."""
        length = max(map(len, texts))
        ids = torch.zeros(len(texts), length, dtype=torch.long)
        mask = torch.zeros(len(texts), length, dtype=torch.long)
        for i, text in enumerate(texts):
            ids[i, : len(text)], mask[i, : len(text)] = torch.as_tensor(text), 1
        return cls(ids, mask)


class NerBatch(NamedTuple):
    """Sentences with labels [N, L] (place among the K concepts; below 0 none, IGNORE at padding), which concepts their
    source annotates [N, K] bool, and the numbers [K] of the concepts."""

    texts: Texts
    labels: torch.Tensor
    annotated: torch.Tensor
    concepts: torch.Tensor

    @classmethod
    def of(
        cls, texts: Sequence[np.ndarray], labels: Sequence[np.ndarray], annotated: np.ndarray, concepts: np.ndarray
    ) -> "NerBatch":
        """Of ids and labels [n] a sentence."""
        padded = Texts.of(texts)
        laid = torch.full_like(padded.ids, IGNORE)
        for i, values in enumerate(labels):
            laid[i, : len(values)] = torch.as_tensor(values)
        return cls(padded, laid, torch.as_tensor(annotated), torch.as_tensor(concepts, dtype=torch.long))


class TcBatch(NamedTuple):
    """Pairs: both sides, and [N, N] bool, which pairs of texts count in the loss."""

    a: Texts
    b: Texts
    kept: torch.Tensor

    @classmethod
    def of(cls, a: Sequence[np.ndarray], b: Sequence[np.ndarray], a_key: np.ndarray, b_key: np.ndarray) -> "TcBatch":
        """Of ids [n] a text; equal texts have equal keys and are no negatives of each other."""
        copies = (a_key[:, None] == a_key) | (b_key[:, None] == b_key) | (a_key[:, None] == b_key)
        return cls(Texts.of(a), Texts.of(b), torch.as_tensor(~copies | np.eye(len(a), dtype=bool)))


class Peer:
    """Encoder with one adapter a family, heads and AdamW."""

    def __init__(self, path: str, spec: LoraSpec, optimizer: OptimizerConfig, concepts: np.ndarray, temperature: float):
        """`path` is a Hugging Face directory of a BERT, `concepts` [C, D] the frozen vectors of the entity types."""
        model = transformers.AutoModel.from_pretrained(path, add_pooling_layer=False, dtype=torch.float32)
        model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
        settings = peft.LoraConfig(
            r=spec.rank,
            lora_alpha=spec.alpha,
            lora_dropout=0.0,
            target_modules=["query", "key", "value", "dense"],  # all six maps of a layer
            layers_to_transform=list(spec.placed(model.config.num_hidden_layers)),
            layers_pattern="layer",
        )
        self.model = peft.get_peft_model(model, settings, adapter_name="ner")
        self.model.add_adapter("tc", settings)
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        named = dict(self.model.named_parameters())
        lora = {f: [p for n, p in named.items() if f".{f}." in n and "lora_" in n] for f in ("ner", "tc")}
        backbone = [p for n, p in named.items() if "lora_" not in n]
        self.concepts = torch.tensor(concepts)
        self.head = {
            "projection": torch.nn.Parameter(torch.eye(concepts.shape[1])),
            "log_scale": torch.nn.Parameter(torch.tensor(20.0).log()),
            "bias": torch.nn.Parameter(torch.tensor(-10.0)),
        }
        self.temperature, self.clip_norm = temperature, optimizer.clip_norm
        self.touched = {"ner": [*backbone, *lora["ner"], *self.head.values()], "tc": [*backbone, *lora["tc"]]}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": backbone, "lr": optimizer.backbone_lr},
                {"params": [*lora["ner"], *lora["tc"]], "lr": optimizer.lora_lr},
                {"params": [*self.head.values()], "lr": optimizer.head_lr},
            ],
            betas=(optimizer.b1, optimizer.b2),
            weight_decay=optimizer.weight_decay,
        )
        self.schedule = transformers.get_linear_schedule_with_warmup(
            self.optimizer, optimizer.warmup_steps, optimizer.steps
        )

    def step(self, ner: NerBatch, tc: TcBatch) -> dict[str, float]:
        """One update; the losses before it."""
        losses = {}
        grads: dict[torch.Tensor, torch.Tensor] = {}
        for family, batch in (("ner", ner), ("tc", tc)):
            mine = self.touched[family]
            loss = self._loss(family, batch)
            found = torch.autograd.grad(loss, mine, allow_unused=True)
            norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in found if g is not None]))
            factor = torch.clamp(self.clip_norm / norm, max=1.0)
            for p, g in zip(mine, found):
                if g is not None:
                    grads[p] = grads[p] + factor * g if p in grads else factor * g
            losses[family] = loss.item()
        for p, g in grads.items():
            p.grad = g
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return losses

    def _loss(self, family: str, batch: Any) -> torch.Tensor:
        self.model.set_adapter(family)
        for p in self.touched[family]:  # set_adapter freezes the adapter that is not in use
            p.requires_grad_(True)
        return self.ner_loss(batch) if family == "ner" else self.tc_loss(batch)

    def loss(self, family: str, batch: Any) -> float:
        """Of one family's batch; nothing is trained."""
        with torch.no_grad():
            return self._loss(family, batch).item()

    def hidden(self, texts: Texts) -> torch.Tensor:
        """Last hidden states [N, L, D]."""
        return self.model(input_ids=texts.ids, attention_mask=texts.mask).last_hidden_state

    def ner_loss(self, batch: NerBatch) -> torch.Tensor:
        """As `jaxprefit.families.ner_losses.sigmoid_loss`."""
        words = functional.normalize(self.hidden(batch.texts), dim=-1)
        concepts = functional.normalize(self.concepts[batch.concepts] @ self.head["projection"], dim=-1)
        logits = self.head["log_scale"].exp() * (words @ concepts.T) + self.head["bias"]
        targets = functional.one_hot(batch.labels.clamp(min=0), concepts.shape[0]).to(logits.dtype)
        targets = targets * (batch.labels >= 0)[..., None]
        losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        is_word = (batch.labels >= 0) | (batch.labels == OUTSIDE)
        return (losses * batch.annotated[:, None]).sum(-1)[is_word].mean()

    def tc_loss(self, batch: TcBatch) -> torch.Tensor:
        """As `jaxprefit.families.info_nce.info_nce`, both sides encoded one after the other."""
        a, b = (functional.normalize(self.pooled(side), dim=-1) for side in (batch.a, batch.b))
        logits = (a @ b.T / self.temperature).masked_fill(~batch.kept, -torch.inf)
        right = torch.arange(len(logits))
        return (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2

    def pooled(self, texts: Texts) -> torch.Tensor:
        """Mean over the real tokens [N, D]."""
        mask = texts.mask[..., None].to(torch.float32)
        return (self.hidden(texts) * mask).sum(1) / mask.sum(1)


def versions() -> dict[str, Any]:
    """Of the peers."""
    return {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}


def threads() -> int:
    """That torch computes with."""
    return torch.get_num_threads()


def places(ner: NerBatch, tc: TcBatch) -> int:
    """Of the padded texts of a step."""
    return sum(texts.mask.numel() for texts in (ner.texts, tc.a, tc.b))
