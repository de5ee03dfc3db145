"""The tree of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from fedquilt.cli import cost, data, demo, deploy, doctor, federation, judge, methods, reports, runs, toy

HELP = "Federated fine-tuning of pre-trained transformers with small adapters."
# suggest_commands: click suggests too, and the word would stand there twice
app = typer.Typer(
    suggest_commands=False,
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from fedquilt import __version__

        typer.echo(f"fedquilt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    pass  # both act before a command does: --version here, --debug in main


commands = (
    *(demo.demo, runs.run, runs.resume, reports.report, reports.compare, runs.export),
    *(judge.judge, runs.route, cost.cost, toy.toy, doctor.doctor),
    *(federation.server, federation.client, federation.submit, federation.status),
)
for command in commands:
    app.command()(command)
app.add_typer(data.app, name="data")
app.add_typer(deploy.app, name="deploy")
app.add_typer(methods.app, name="methods")
