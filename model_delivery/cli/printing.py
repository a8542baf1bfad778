"""The only printer: tables and progress for people, JSON for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from model_delivery.base import Progress, Trouble, sink
from model_delivery.verbs.where import find

QUIET_SECONDS = 5.0
FIND = (
    click.option("--context", help="Of the kubeconfig: NAME lives in a cluster."),
    click.option("-n", "--namespace", help="NAME lives in this namespace of a cluster."),
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def delivery(command: Callable[..., None]) -> Callable[..., None]:
    """Argument NAME (or a spec's file), with --context and --namespace: the command is
    handed a ``where``.
    """

    @wraps(command)
    def call(name: str, context: str | None, namespace: str | None, **rest: Any) -> None:
        command(where=find(name, context, namespace), **rest)

    for option in FIND:
        call = option(call)
    return click.argument("name")(call)


def emit(value: Any, *, machine: bool, text: str | None = None) -> None:
    """``value`` as JSON for machines, else ``text``."""
    click.echo(json.dumps(value, indent=1, default=str, ensure_ascii=False) if machine else text)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table that wraps at a terminal's width, and does not when its output goes
    elsewhere.
    """
    console = Console(width=None if sys.stdout.isatty() else 200)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*("" if cell is None else str(cell) for cell in row))
    console.print(grid)


class Unhappy(Exception):
    """A failure whose command found something all the same: in JSON, ``value`` stands
    beside the error.
    """

    def __init__(self, trouble: Trouble, value: dict[str, Any]) -> None:
        super().__init__(trouble)
        self.trouble, self.value = trouble, value


def bad_news(trouble: Trouble, *, value: Mapping[str, Any] | None = None, shown: bool = False) -> int:
    """Tell it on standard error (unless it is ``shown`` there already), and in JSON where
    that was asked for.

    Returns the exit code.
    """
    for finding in () if shown else trouble.findings:
        click.echo(f"{click.style('✗', fg='red')} {finding}", err=True)
    if "--json" in sys.argv[1:]:
        first, *others = [finding.to_json() for finding in trouble.findings]
        error = {"error": first, "exit_code": trouble.exit_code, "others": others}
        emit({**(value or {}), **error}, machine=True)
    return trouble.exit_code


@contextmanager
def progress_lines() -> Iterator[None]:
    """Progress on standard error: one line that is rewritten at a terminal, a line per
    piece of news elsewhere.
    """
    terminal, last, shown = sys.stderr.isatty(), ("", ""), 0.0

    def show(news: Progress) -> None:
        nonlocal last, shown
        counting, now, this = (
            news.done is not None and news.done != news.total,
            time.monotonic(),
            (news.step, news.note),
        )
        if terminal:
            click.echo(f"\r\x1b[K{news.line()[:150]}", err=True, nl=not counting)
        elif not counting or last != this or now - shown >= QUIET_SECONDS:
            click.echo(news.line(), err=True)
            last, shown = this, now

    with sink(show):
        yield
