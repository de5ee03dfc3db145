"""Answers of a run's language models, scored by another language model behind an OpenAI-compatible chat endpoint."""

from __future__ import annotations

from fedquilt.judge.client import Judge, Reply
from fedquilt.judge.score import ask, parse

__all__ = ["Judge", "Reply", "ask", "parse"]
