"""The only printer: tables and progress for people, JSON for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from model_delivery.base import Progress, Trouble, scrub, sink
from model_delivery.base.findings import together
from model_delivery.base.home import unwritable
from model_delivery.verbs.where import find

if TYPE_CHECKING:
    from rich.table import Table

QUIET_SECONDS = 5.0
PATH = click.Path(path_type=Path)


class Output(click.Path):
    """A folder to write into: told before anything is done where that is impossible."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        folder = Path(str(super().convert(value, param, ctx)))
        if why := unwritable(folder):
            self.fail(f"nothing can be written into {folder}: {why}", param, ctx)
        return folder


OUTPUT = Output(path_type=Path)
FILE = click.argument("file", type=PATH)
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


@dataclass(frozen=True)
class Answer:
    """What a command prints: ``value`` as JSON, else ``lines``, texts and tables. With a
    ``trouble``, ``value`` stands beside the error.
    """

    value: Any
    lines: Iterable[str | Table] = ()
    trouble: Trouble | None = None


def answers(command: Callable[..., Answer]) -> Callable[..., None]:
    """With --json; the command returns what is printed."""

    @wraps(command)
    def call(*, as_json: bool, **given: Any) -> None:
        answer = command(**given)
        if not as_json:
            show(answer.lines)
        if answer.trouble:
            sys.exit(bad_news(answer.trouble, answer.value))
        if as_json:
            emit(answer.value)

    return as_json(call)


def emit(value: Any) -> None:
    """``value`` as JSON."""
    click.echo(scrub(json.dumps(value, indent=1, default=_plain, ensure_ascii=False)))


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def show(lines: Iterable[str | Table], *, err: bool = False) -> None:
    """A table wraps at a terminal's width, and does not when its output goes
    elsewhere.
    """
    for line in lines:
        if not isinstance(line, str):
            from rich.console import Console

            Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False).print(line)
        else:
            click.echo(scrub(line), err=err)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*("" if cell is None else scrub(str(cell)) for cell in row))
    return grid


def bad_news(trouble: Trouble, value: Mapping[str, Any] | None = None) -> int:
    """Tell it on standard error, and in JSON where that was asked for.

    Returns the exit code.
    """
    show((f"{click.style('✗', fg='red')} {finding}" for finding in together(trouble.findings)), err=True)
    if any(word.partition("=")[0] == "--json" for word in sys.argv[1:]):  # --json=1 is a wrong argument
        first, *others = [finding.to_json() for finding in trouble.findings]
        emit({**(value or {}), "error": first, "exit_code": trouble.exit_code, "others": others})
    return trouble.exit_code


@contextmanager
def progress_lines() -> Iterator[None]:
    """Progress on standard error: one line that is rewritten at a terminal, a line per
    piece of news elsewhere.
    """
    terminal, last, shown = sys.stderr.isatty(), ("", ""), 0.0

    def listen(news: Progress) -> None:
        nonlocal last, shown
        counting = news.done is not None and news.done != news.total
        now, this = time.monotonic(), (news.step, news.note)
        if terminal:
            click.echo(f"\r\x1b[K{news.line()[:150]}", err=True, nl=not counting)
        elif not counting or last != this or now - shown >= QUIET_SECONDS:
            click.echo(news.line(), err=True)
            last, shown = this, now

    with sink(listen):
        yield
