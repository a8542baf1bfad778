"""``deliver``: the command. Whatever goes wrong ends in a message and an exit code, never in a traceback."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

import click

from model_delivery.base.findings import Finding, Interrupted, Permanent, Trouble
from model_delivery.base.home import default_home
from model_delivery.cli import deployments, loadtest, model, printing, release, service


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="model-delivery")
def deliver() -> None:
    """Give it a model and a target: it delivers a verified, load-tested, reversible LLM service, or tells you exactly why not.

    Exit codes: 0 done, 1 failed, 2 bad spec or arguments, 3 refused before anything was touched, 4 a gate said no, 5 interrupted.
    """


for verb in (*release.VERBS, *service.VERBS, *model.VERBS, *deployments.VERBS, *loadtest.VERBS):
    deliver.add_command(verb)


def main() -> None:
    """The entry point. A SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        deliver(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        interrupted = Interrupted(
            Finding("todo", "interrupted", "stopped from outside", "run it again: it goes on where it was")
        )
        sys.exit(printing.bad_news(interrupted))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Trouble as trouble:
        sys.exit(printing.bad_news(trouble))
    except Exception as error:  # noqa: BLE001 - the last frame: a user gets a message, the traceback goes to a file
        sys.exit(printing.bad_news(unexpected(error)))


def unexpected(error: Exception) -> Permanent:
    """A state folder that cannot be used, or a fault of ours, as a finding that says where its traceback was written."""
    home, text = default_home(), "".join(traceback.format_exception(error))
    if isinstance(error, OSError) and error.filename and Path(str(error.filename)).absolute().is_relative_to(home):
        why = f"{error.strerror}: {error.filename}"
        return Permanent(
            Finding(
                "todo",
                f"the state folder {home} cannot be used",
                why,
                "make it writable, or name another in MODEL_DELIVERY_HOME",
            )
        )
    why, name = f"{type(error).__name__}: {str(error)[:300]}", f"fault-{time.strftime('%Y%m%d-%H%M%S')}.log"
    for folder in (home, Path(tempfile.gettempdir())):
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
            return Permanent(
                Finding(
                    "todo",
                    "Model Delivery broke",
                    why,
                    f"this is a fault of ours: please report it with {folder / name}",
                )
            )
    return Permanent(
        Finding(
            "todo",
            "Model Delivery broke",
            why,
            "this is a fault of ours: please report it",
            tuple(text.splitlines()[-8:]),
        )
    )


if __name__ == "__main__":
    main()
