"""judge: another language model scores the answers of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fedquilt.cli import show


def judge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory with generation tasks.")],
    endpoint: Annotated[str, typer.Option("--endpoint", help="OpenAI-compatible, such as http://localhost:8000/v1.")],
    model: Annotated[str, typer.Option("--model", help="The judge's name at the endpoint.")],
    rows: Annotated[int, typer.Option("--rows", min=1, help="Evaluation examples per adapter and task.")] = 20,
    max_new: Annotated[int, typer.Option("--max-new", min=1, help="Tokens of an answer at most.")] = 64,
    key_env: Annotated[str, typer.Option("--key-env", help="The environment variable with the key.")] = "FEDQUILT_JUDGE_KEY",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask nothing; print token counts and their price.")] = False,
    price_in: Annotated[float, typer.Option("--price-in", min=0, help="Per million prompt tokens.")] = 0.0,
    price_out: Annotated[float, typer.Option("--price-out", min=0, help="Per million reply tokens.")] = 0.0,
    as_json: show.AsJson = False,
) -> None:
    """Let a language model score a run's answers from 0 to 1; writes judge.json. Replies are cached: asking twice costs once."""
    from fedquilt.data.files import default_cache
    from fedquilt.judge.client import Judge
    from fedquilt.judge.run import estimate, judge_run, open_run

    judge_model = Judge(endpoint, model, default_cache(), key=os.environ.get(key_env, ""))
    opened = open_run(run, rows=rows, max_new=max_new)
    if dry_run:
        cost = estimate(opened, price_in, price_out)
        if as_json:
            show.print_json(cost)
            return
        typer.echo(f"{cost['requests']:,} requests, about {cost['tokens_in']:,} prompt and {cost['tokens_out']:,} reply tokens")
        typer.echo(f"price: {cost['price']:.4f} (tokens are counted with the run's own tokenizer)")
        return
    record = judge_run(opened, judge_model, run, show.say)
    if as_json:
        show.print_json(record)
        return
    for task, score in record["tasks"].items():
        typer.echo(f"{task}: {score:.3f}")
    used = record["used"]
    typer.echo(f"mean over slots: {record['mean']:.3f} (higher is better)")
    typer.echo(f"{used['requests']:,} requests ({used['cached']:,} more from the cache): {run / 'judge.json'}")
