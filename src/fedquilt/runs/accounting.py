"""How the FL-TAC paper arrives at its "trainable parameters" (Ping et al. 2024, arXiv 2404.15384, tables 1 and 2).

The paper does not say how it counts. The rules here were found by reproducing every figure from the models, and each names where it
parts from what trains or travels. Nothing in fedquilt uses them but the comparison of costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedquilt.models.meta import Shape, Use, meta_model, parameter_count, peft_count

IMAGENET = 1000  # classes of the ViT checkpoint that the paper's full count belongs to; neither CIFAR has as many
SCORES = 2  # transformers' default number of labels, left as it is for Llama
FULL_RANK = {"image": 16, "generation": 1}  # rank of the adapter inside the count of the full model


@dataclass(frozen=True)
class PaperCount:
    """A total by the paper's rule; ``quirk``: how the rule differs from what trains, empty where it does not."""

    total: int
    quirk: str = ""


def as_in_paper(
    method: str, shape: Shape, use: Use, *, tasks: int, classes: int, rank: int, roles: tuple[str, ...]
) -> PaperCount | None:
    """The paper's count for ``fltac``, ``fedit`` or ``full``; None for other methods.

    With c(r) what peft prints as trainable for one adapter of rank r: FL-TAC is tasks x c(r), FedIT is r x c(1).
    """
    if method not in ("fltac", "fedit", "full"):
        return None
    ledger = _Ledger(shape, use, classes, roles)
    if method == "full":
        return ledger.full()
    if method == "fltac":
        return PaperCount(tasks * ledger.printed(rank), _QUIRKS["fltac", use])
    return PaperCount(rank * ledger.printed(1), _QUIRKS["fedit", use])


_QUIRKS: dict[tuple[str, Use], str] = {
    ("fltac", "text"): "",
    ("fedit", "text"): "r times the rank-1 count with its head: the head is counted r times",
    ("full", "text"): "",
    ("fltac", "image"): "one map per layer, no head (for two tasks as much as one adapter on q and v)",
    ("fedit", "image"): "one map per layer, no head (as much as rank r/2 on q and v)",
    (
        "full",
        "image",
    ): "peft's count of all parameters, LoRA of rank 16 on one map per layer included, of a model with 1000 classes",
    ("fltac", "generation"): "a 2-class score head is counted with every adapter; a language model has none",
    ("fedit", "generation"): "r times the rank-1 count with a 2-class score head, which a language model does not have",
    ("full", "generation"): "peft's count of all parameters of a 2-class classifier: no output layer, the score head twice, "
    "LoRA of rank 1 included",
}


@dataclass(frozen=True)
class _Ledger:
    """What peft would print for the paper's model of one use."""

    shape: Shape
    use: Use
    classes: int
    roles: tuple[str, ...]

    def printed(self, rank: int) -> int:
        """Trainable parameters of one adapter."""
        return self._peft(rank, self.classes)[0]

    def full(self) -> PaperCount:
        """The full model: plain for text, peft's "all params" for the other two."""
        if self.use == "text":
            return PaperCount(parameter_count(meta_model(self.shape, "text", self.classes)))
        return PaperCount(self._peft(FULL_RANK[self.use], IMAGENET)[1], _QUIRKS["full", self.use])

    def _peft(self, rank: int, classes: int) -> tuple[int, int]:
        if self.use == "image":
            return peft_count(meta_model(self.shape, "image", classes), self.roles[:1], rank, head=False)
        outputs = SCORES if self.use == "generation" else classes
        return peft_count(meta_model(self.shape, "text", outputs), self.roles, rank, head=True)
