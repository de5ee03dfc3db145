"""What the demonstrations show: runs, data and model of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Demo:
    """``runs`` are configurations in ``configs/demo``; the first is the one that is reported."""

    text: str
    runs: tuple[str, ...]
    model: str
    data: tuple[str, ...]
    megabytes: int


DEMOS = {
    "text": Demo(
        """\
Ten clients hold four real text tasks whose labels mean different things (per task Dirichlet(0.5) over the clients).
  fltac         one rank-1 LoRA per local task; the server clusters the uploads without any task label and averages clusters
  fedit-steps   one rank-1 LoRA for everybody, the same number of local steps in mixed batches
  fedit-params  one rank-4 LoRA for everybody: as many parameters as fltac's four
  local         every client alone; nothing is sent
""",
        ("fltac", "fedit-steps", "fedit-params", "local"),
        "minilm",
        ("vader_tweet", "vader_tweet_strength", "vader_review_domain", "exam_dental"),
        110,
    ),
    "llm": Demo(
        """\
Five clients tune SmolLM2 (135M parameters) on four kinds of instruction (per task Dirichlet(0.5) over the clients).
Scores are losses on held-out responses: lower is better.
  llm-fltac  one rank-1 LoRA per local task; the server clusters the uploads without any task label and averages clusters
  llm-fedit  one rank-4 LoRA for everybody: as many parameters as fltac's four, the same number of local steps
  llm-local  every client alone; nothing is sent
""",
        ("llm-fltac", "llm-fedit", "llm-local"),
        "smollm2",
        ("text_summary", "text_social", "text_choice", "text_howto"),
        115,
    ),
}
