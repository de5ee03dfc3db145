"""What the demonstrations show: runs, data and model of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Demo:
    """The runs are ``configs/demo/<prefix><run>.toml``; the first is the one that is reported."""

    about: str
    prefix: str
    runs: tuple[str, ...]
    model: str
    data: tuple[str, ...]
    megabytes: int


FOUR = ("fltac", "fedit-steps", "fedit-params", "local")
CLASSIFY = """\
{clients} clients hold {tasks} whose labels mean different things (per task Dirichlet(0.5) over the clients).
  fltac         one rank-1 LoRA per local task; the server clusters the uploads without any task label and averages clusters
  fedit-steps   one rank-1 LoRA for everybody, the same number of local steps in mixed batches
  fedit-params  one rank-{count} LoRA for everybody: as many parameters as fltac's {count}
  local         every client alone; nothing is sent
"""
DEMOS = {
    "text": Demo(
        CLASSIFY.format(clients="Ten", tasks="four real text tasks", count=4),
        "",
        FOUR,
        "minilm",
        ("vader_tweet", "vader_tweet_strength", "vader_review_domain", "exam_dental"),
        110,
    ),
    "image": Demo(
        CLASSIFY.format(clients="Six", tasks="three tasks on real images of digits", count=3),
        "image-",
        FOUR,
        "vit-s14",
        ("mnist_digit", "mnist_parity", "mnist_loop"),
        92,
    ),
    "llm": Demo(
        """\
Five clients tune SmolLM2 (135M parameters) on four kinds of instruction (per task Dirichlet(0.5) over the clients).
Scores are losses on held-out responses: lower is better.
  fltac  one rank-1 LoRA per local task; the server clusters the uploads without any task label and averages clusters
  fedit  one rank-4 LoRA for everybody: as many parameters as fltac's four, the same number of local steps
  local  every client alone; nothing is sent
""",
        "llm-",
        ("fltac", "fedit", "local"),
        "smollm2",
        ("text_summary", "text_social", "text_choice", "text_howto"),
        115,
    ),
}
