"""Kinds of task, and the metrics of each."""

from __future__ import annotations

from typing import Literal

Kind = Literal["classification", "regression", "generation"]
Metric = Literal[
    "accuracy", "f1", "matthews", "choice", "choice_f1", "exact", "pearson", "spearman", "loss", "perplexity", "rouge_l", "token_f1"
]
# The first is the default; for generation the second is reported too.
METRICS: dict[Kind, tuple[Metric, ...]] = {
    "classification": ("accuracy", "f1", "matthews", "choice", "choice_f1", "exact"),
    "regression": ("pearson", "spearman"),
    "generation": ("loss", "perplexity", "rouge_l", "exact", "token_f1"),
}
GROUPED = ("choice", "choice_f1", "exact")  # of whole questions
WRITTEN = ("rouge_l", "exact", "token_f1")  # of what a language model writes
