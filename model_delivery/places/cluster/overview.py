"""One look at all deliveries of a namespace: what each is asked for by itself is listed
once, and found among that.
"""

from __future__ import annotations

import json
import re

from model_delivery.places.cluster.client import Client, Query
from model_delivery.places.cluster.look import Look
from model_delivery.places.cluster.objects import Object
from model_delivery.values import Kind, Ref

OURS = "model-delivery/"
EVERYBODYS = {"labelSelector": f"{OURS}delivery,{OURS}kind!=Report"}
TERM = re.compile(r"([^\s,()!=]+)(?:(!?=)([^,]*)| in \(([^)]*)\))?")


class Overview(Look):
    """As everything was when it was first asked for. An object that is not found among
    ours is asked for by its name, once: somebody else may have it.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self._listed = dict[tuple[Kind, str], list[Object]]()
        self._got = dict[Ref, Object | None]()

    def listed(self, kind: Kind, query: Query = None) -> list[Object]:
        selector = str((query or {}).get("labelSelector", ""))
        if selector.startswith(OURS):
            return [live for live in self._once(kind, EVERYBODYS) if _is_meant(live, selector)]
        return list(self._once(kind, query))

    def get(self, ref: Ref) -> Object | None:
        if ref not in self._got:
            ours = self.maybe(ref.kind, EVERYBODYS) if ref.kind in self.kinds else []
            found = next((live for live in ours if live["metadata"]["name"] == ref.name), None)
            self._got[ref] = found or super().get(ref)
        return self._got[ref]

    def _once(self, kind: Kind, query: Query) -> list[Object]:
        key = (kind, json.dumps(query, sort_keys=True))
        if key not in self._listed:
            self._listed[key] = super().listed(kind, query)
        return self._listed[key]


def _is_meant(live: Object, selector: str) -> bool:
    labels = live["metadata"].get("labels") or {}
    for name, sign, value, several in TERM.findall(selector):
        has = labels.get(name)
        is_so = has in several.split(",") if several else has == value if sign else has is not None
        if is_so == (sign == "!="):
            return False
    return True
