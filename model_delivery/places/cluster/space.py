"""One namespace's objects by kind and name, and what a refusal of the API server means."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_delivery.base.findings import Finding, Permanent
from model_delivery.places.cluster.client import Client, Forbidden, Status
from model_delivery.places.cluster.objects import Object
from model_delivery.targets.kubernetes.kinds import POD
from model_delivery.values.resources import Ref

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Space:
    client: Client
    name: str

    def get(self, ref: Ref) -> Object | None:
        try:
            return self.send("GET", ref)
        except Status as status:
            if status.code == 404:
                return None
            raise self.refusal(ref, status) from None

    def send(
        self, method: str, ref: Ref, query: Mapping[str, Any] | None = None, body: Any = None, **how: Any
    ) -> Object:
        """The answer's JSON; ``how``: as Client.call has it. Raises what that raises."""
        return self.client.call(method, ref.kind.path(self.name, ref.name), query, body, **how)

    def refusal(self, ref: Ref, status: Status) -> Permanent:
        """Of a request that should have succeeded."""
        what = f"the API server refuses {ref}"
        if status.code == 422:
            fix = "correct the spec's field that the message names"
            return Permanent(Finding("cluster.invalid", what, status.message, fix))
        if status.code == 404:
            why = f"{status.message} (namespace {self.name})"
            fix = "does the namespace exist, and is the API of this kind installed?"
            return Permanent(Finding("cluster.no-such-api", f"{ref} cannot be made", why, fix))
        why = f"{status.code} {status.reason}: {status.message}"
        return Permanent(Finding("cluster.refused", what, why, "see the message"))


def own_image(client: Client) -> str | None:
    """The image of the pod that this runs in; None outside of a cluster, or where we may not see it."""
    if not ACCOUNT.exists():
        return None
    namespace, name = ACCOUNT.read_text(encoding="utf-8").strip(), os.environ.get("HOSTNAME", socket.gethostname())
    try:
        return str(client.call("GET", POD.path(namespace, name))["spec"]["containers"][0]["image"])
    except (Status, Forbidden):
        return None
