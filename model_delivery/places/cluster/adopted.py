"""What somebody made by hand and is a release of ours since: its object and its pods
carry no label of ours, and are known by what the release says of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from model_delivery.places.cluster.objects import Object, label
from model_delivery.targets.kubernetes.release import pod_labels
from model_delivery.values import RELEASE


@dataclass(frozen=True)
class Adopted:
    """The object's kind, name and uid; of its pods the labels, or where there are none
    the prefix of their names.
    """

    kind: str
    name: str
    uid: str
    labels: Mapping[str, str]
    prefix: str

    def has(self, pod: Object) -> bool:
        meta = pod["metadata"]
        if self.labels:
            return self.labels.items() <= (meta.get("labels") or {}).items()
        return str(meta["name"]).startswith(self.prefix)


def adoptions(stored: Iterable[Object]) -> dict[str, Adopted]:
    """Those among the ConfigMaps ``stored``, by release. The one place that reads a
    payload's words.
    """
    adopted = {}
    for release in stored:
        content = json.loads(release["data"]["content"]) if label(release, "kind") == RELEASE.name else {}
        words = content.get("payload", {}).get("adopted")
        if words:
            by = words["pods"]
            known = Adopted(words["kind"], words["name"], words["uid"], by.get("labels") or {}, by.get("prefix", ""))
            adopted[str(label(release, "release"))] = known
    return adopted


def marked(pod: Object, delivery: str, adopted: Mapping[str, Adopted]) -> Object:
    """A pod of an adopted release, with the labels that the pods of ours carry; any other
    as it is.
    """
    meta = pod["metadata"]
    for release, owned in adopted.items():
        if owned.has(pod):
            return {
                **pod,
                "metadata": {**meta, "labels": {**(meta.get("labels") or {}), **pod_labels(delivery, release)}},
            }
    return pod
