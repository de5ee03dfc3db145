"""What a causal language model with one adapter is worth on held-out examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from fedquilt.data.answers import exact, token_f1
from fedquilt.data.rouge import rouge_l
from fedquilt.models.greedy import prompts_of
from fedquilt.models.network import TextNetwork
from fedquilt.ticks import Tick, between, silent
from fedquilt.types import Batch, Stack

ROWS = 8  # generated together


class Asked(NamedTuple):
    """Rows that a model is to answer; ``references``: all right answers of each; empty: a row's own response is the only one."""

    batch: Batch
    references: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class TextScores:
    """Held-out metrics. ``rows``: how many examples of a task are generated for ROUGE-L (0: none); ``max_new``: tokens each;
    ``tick``: called with 0 before every pass."""

    network: TextNetwork
    tokenizer: Any
    rows: int = 0
    max_new: int = 64
    tick: Tick = silent

    def __call__(self, stack: Stack, batches: Sequence[Batch], prompts: Asked | None) -> dict[str, float]:
        """``loss`` (mean over all response tokens, nats) and ``perplexity`` (its exponential) on ``batches``; on ``prompts``, if
        given, means over rows: ``rouge_l`` against the response, ``exact`` and ``token_f1`` against all right answers."""
        total, count = 0.0, 0
        for batch in between(batches, self.tick):
            sums, counts = self.network.token_losses(stack, batch)
            total, count = total + float(sums.double().sum()), count + int(counts.sum())
        loss = total / count
        scores = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if prompts is not None:
            pairs = self.answers(stack, prompts.batch)
            right = prompts.references or [(reference,) for _, reference in pairs]
            scores["rouge_l"] = sum(rouge_l(answer, reference) for answer, reference in pairs) / len(pairs)
            for name, compare in (("exact", exact), ("token_f1", token_f1)):
                scores[name] = sum(compare(answer, of) for (answer, _), of in zip(pairs, right, strict=True)) / len(pairs)
        return scores

    def answers(self, stack: Stack, batch: Batch) -> list[tuple[str, str]]:
        """(what its owner among ``stack [G, ...]`` writes, the reference) for each row; a reference that was cut to the context
        is compared as cut."""
        written: dict[int, str] = {}
        for row in batch.owner.unique().tolist():  # one adapter at a time
            own, mine = {key: x[row : row + 1] for key, x in stack.items()}, torch.nonzero(batch.owner == row).flatten()
            for index in between(mine.split(ROWS), self.tick):
                part = replace(batch.pick(index), owner=torch.zeros_like(index))
                texts = map(self._text, self.network.generate(own, part, self.max_new))
                written.update(zip(index.tolist(), texts, strict=True))
        return [(written[i], reference) for i, reference in enumerate(self.references(batch))]

    def references(self, batch: Batch) -> list[str]:
        """The response of each row."""
        rows = zip(batch.tokens.split(batch.lengths.tolist()), batch.types.split(batch.lengths.tolist()), strict=True)
        return [self._text(ids[types == 1].tolist()) for ids, types in rows]

    def prompts(self, batch: Batch) -> list[str]:
        """What stands before the response of each row."""
        return [self._text(ids.tolist()) for ids in prompts_of(batch)]

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))
