"""What somebody made by hand and is a release of ours since: its object and its pods
carry no label of ours, and are known by what the release says of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from model_delivery.places.cluster.objects import Object, label
from model_delivery.targets.kubernetes.pod import pod_labels


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
    found = {}
    for release in stored:
        if label(release, "kind") == "Release":
            words = json.loads(release["data"]["content"]).get("payload", {}).get("adopted")
            if words:
                pods = words["pods"]
                adopted = Adopted(
                    words["kind"], words["name"], words["uid"], pods.get("labels") or {}, pods.get("prefix", "")
                )
                found[str(label(release, "release"))] = adopted
    return found


def marked(pod: Object, delivery: str, adopted: Mapping[str, Adopted]) -> Object:
    """A pod of an adopted release, with the labels that the pods of ours carry; any other
    as it is.
    """
    meta = pod["metadata"]
    for release, one in adopted.items():
        if one.has(pod):
            return {
                **pod,
                "metadata": {**meta, "labels": {**(meta.get("labels") or {}), **pod_labels(delivery, release)}},
            }
    return pod
