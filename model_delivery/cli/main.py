"""``deliver``: the command.

Whatever goes wrong ends in a message and an exit code, never in a traceback.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

import click
from pydantic import ValidationError

from model_delivery.base import (
    BadInput,
    Finding,
    Interrupted,
    Permanent,
    Trouble,
    default_home,
    private_folder,
    problems,
    scrub,
    short,
    trouble,
)
from model_delivery.base.home import disk_full, no_state_folder
from model_delivery.cli import compare, deployments, loadtest, model, release, service
from model_delivery.cli.printing import bad_news


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="model-delivery")
def deliver() -> None:
    """Give it a model and a target: it delivers a verified, load-tested, reversible LLM
    service, or tells you exactly why not.

    Exit codes: 0 done, 1 failed, 2 bad spec or arguments, 3 refused before anything was
    touched, 4 a gate said no, 5 interrupted.
    """


for verb in (*release.VERBS, *service.VERBS, *model.VERBS, *deployments.VERBS, *loadtest.VERBS, *compare.VERBS):
    deliver.add_command(verb)


def main() -> None:
    """The entry point. A SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        deliver(standalone_mode=False)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        sys.exit(bad_news(_usage(error)))
    except (KeyboardInterrupt, click.Abort):
        fix = "run it again: a delivery and a fetch go on where they were"
        sys.exit(bad_news(Interrupted(Finding("cli.interrupted", "interrupted", "stopped from outside", fix))))
    except Trouble as bad:
        sys.exit(bad_news(bad))
    except Exception as error:  # noqa: BLE001 - the last frame: a user gets a message, the traceback goes to a file
        if isinstance(error, ValidationError) and error.title.endswith("Settings"):
            what, why = "a setting of Prefect is wrong", "; ".join(problems(error)[:3])
            fix = "correct the PREFECT_ variable, or see `prefect config view`"
            sys.exit(bad_news(BadInput(Finding("prefect.bad-setting", what, why, fix))))
        kind = BadInput if getattr(error, "errno", None) == errno.ENAMETOOLONG else Permanent
        sys.exit(bad_news(kind(unexpected(error))))


def _usage(error: click.ClickException) -> Trouble:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "deliver"
    why = error.format_message().rstrip(".")
    fix = f"see `{command} --help`" + (f"; {context.get_usage()}" if context else "")
    return trouble(error.exit_code, Finding("cli.usage", f"`{command}` cannot be called so", why, fix))


def unexpected(error: Exception) -> Finding:
    """A state folder that cannot be used, or a fault of ours and where its traceback was
    written: into a file that nobody could foresee.
    """
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        what, why = "a path is too long", f"{error.strerror}: {short(str(error.filename), 300)}"
        return Finding("cli.path-too-long", what, why, "use a shorter one: a name has 255 bytes at most")
    if full := disk_full(error):
        return full
    folders = [Path(tempfile.gettempdir())]
    with suppress(Trouble):
        folders.insert(0, home := default_home())
        if isinstance(error, OSError) and error.filename and Path(str(error.filename)).absolute().is_relative_to(home):
            return no_state_folder(home, f"{error.strerror}: {error.filename}")
    text = scrub("".join(traceback.format_exception(error)))
    fix, evidence = "this is a fault of ours: please report it", tuple(text.splitlines()[-8:])
    for folder in folders:
        with suppress(OSError):
            private_folder(folder)
            descriptor, file = tempfile.mkstemp(".log", time.strftime("fault-%Y%m%d-%H%M%S-"), folder)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as log:
                log.write(text)
            fix, evidence = f"{fix} with {file}", ()
            break
    why = f"{type(error).__name__}: {short(str(error), 300)}"
    return Finding("cli.fault", "Model Delivery broke", why, fix, evidence)


if __name__ == "__main__":
    main()
