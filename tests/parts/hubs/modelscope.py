"""A ModelScope hub of the tests' own, of one repository: it answers what modelscope's
HubApi and the transfer ask.

``GET /api/v1/models/org/model/repo/files?Revision=REV&Recursive=True`` lists (``master``
and the tag ``v1``; sha256 of every file, a latest commit without an id, as the real one
leaves it), ``GET /api/v1/models/org/model/repo?Revision=REV&FilePath=PATH`` gives bytes,
with ``Range``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.parts.hubs import Hub, HubHandler, files_of, serving, sum_of

REPO = "org/model"
REVISIONS = ("master", "v1")


class Handler(HubHandler):
    def do_GET(self) -> None:
        at = urlsplit(self.path)
        asked = {key: value[0] for key, value in parse_qs(at.query).items()}
        if self.refused():
            return
        if not at.path.startswith(f"/api/v1/models/{REPO}/repo"):
            self.complain("the model does not exist")
        elif asked.get("Revision", "master") not in REVISIONS:
            self.complain("the revision does not exist")
        elif at.path.endswith("/repo/files"):
            self.answer_json(
                {
                    "Code": 200,
                    "Success": True,
                    "Data": {"Files": self.listing(), "LatestCommitter": {"Id": "", "ShortId": "1a2b3c4d"}},
                }
            )
        else:
            self.send(asked["FilePath"])

    def listing(self) -> list[dict[str, object]]:
        hub = self.hub
        return [
            {
                "Path": name,
                "Name": name,
                "Type": "blob",
                "Size": hub.size_of(name),
                "Sha256": sum_of(body),
                "Revision": "0" * 40,
            }
            for name, body in hub.files.items()
        ] + [{"Path": "folder", "Name": "folder", "Type": "tree", "Size": 0, "Sha256": ""}]

    def complain(self, message: str) -> None:
        self.answer_json({"Code": 10010205001, "Success": False, "Message": message, "Data": None}, 404)


@contextmanager
def running_modelscope(model: Path, certificate: Path | None = None) -> Iterator[Hub]:
    """A hub whose one repository holds the files of ``model``."""
    with serving(Handler, Hub(files_of(model)), certificate) as hub:
        yield hub
