"""``python -m tests.parts.cluster.sealed COMMAND…`` (root): run it where nothing outside
this machine can be reached.

The command gets network, mount and process namespaces of its own: what it starts, mounts
and listens on ends with it, however it ends. (Not ``ip netns exec``, which remounts /sys
and hides the cgroups.) ``SEALED=1`` tells it where it is.
"""

from __future__ import annotations

import os
import sys

UNSHARE = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--")


def is_sealed() -> bool:
    return os.environ.get("SEALED") == "1"


def main() -> None:
    begin = 'ip link set lo up && "$@"; exit $?'  # not exec: the shell stays as process 1 and reaps
    os.execvpe(UNSHARE[0], [*UNSHARE, "bash", "-c", begin, "sealed", *sys.argv[1:]], os.environ | {"SEALED": "1"})  # noqa: S606


if __name__ == "__main__":
    main()
