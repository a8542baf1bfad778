"""``deliver``: the command. Whatever goes wrong ends in a message and an exit code, never in a traceback."""

from __future__ import annotations

import sys
import time
import traceback

import click

from cli import deployments, loadtest, printing, release, service
from delivery.findings import Finding, Interrupted, Permanent, Trouble
from delivery.places.host import default_home


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="model-delivery")
def deliver() -> None:
    """Give it a model and a target: it delivers a verified, load-tested, reversible LLM service, or tells you exactly why not.

    Exit codes: 0 done, 1 failed, 2 bad spec or arguments, 3 refused before anything was touched, 4 a gate said no, 5 interrupted.
    """


for verb in (*release.VERBS, *service.VERBS, *deployments.VERBS, *loadtest.VERBS):
    deliver.add_command(verb)


def main() -> None:
    """The entry point."""
    try:
        deliver(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        interrupted = Interrupted(Finding("interrupted", "stopped from outside", "run it again: it goes on where it was"))
        sys.exit(printing.bad_news(interrupted))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Trouble as trouble:
        sys.exit(printing.bad_news(trouble))
    except Exception as error:  # noqa: BLE001 - the last frame: a user gets a message, the traceback goes to a file
        sys.exit(printing.bad_news(unexpected(error)))


def unexpected(error: Exception) -> Permanent:
    """A fault of ours, as a finding that says where its traceback was written."""
    path = default_home() / f"fault-{time.strftime('%Y%m%d-%H%M%S')}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    why = f"{type(error).__name__}: {str(error)[:300]}"
    return Permanent(Finding("Model Delivery broke", why, f"this is a fault of ours: please report it with {path}"))


if __name__ == "__main__":
    main()
