"""A played node: it registers itself, takes the pods that the real scheduler gives it and
runs their containers as children of the test.

It speaks the kubelet's side of the API (node and pod status, ``/containerLogs`` over
TLS), so that all that talks to the API server is real. Not played: images
(``entrypoints`` says which there are, and what each starts), limits, security contexts,
liveness probes, a pod's network. A pod's port really listens on the pod's address in
127/8, and so does every Service's (``forwarding``).
"""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from ssl import SSLContext
from typing import Any

import httpx

from tests.parts.cluster.control_plane import Cluster
from tests.parts.cluster.forwarding import Forwarding
from tests.parts.cluster.logs import serving_logs
from tests.parts.cluster.played_pod import Container, Object, Scene, loopback

IDLE = ("idle",)  # as an entrypoint: no process at all, running and ready at once
PERIOD = 0.1
BACK_OFF = 1.0


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Player(threading.Thread):
    """One pod, from its binding to its end."""

    def __init__(self, node: PlayedNode, pod: dict[str, Any], address: str) -> None:
        super().__init__(daemon=True)
        self.node, self.pod, self.address = node, pod, address
        meta = pod["metadata"]
        self.path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        self.folder: Path = node.folder / "pods" / meta["uid"]
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        self.scene = Scene(node.cluster, pod, loopback(address), self.folder)
        self.deleted, self.abandoned = threading.Event(), threading.Event()
        self.grace = 30.0
        self.tries: dict[str, int] = {}
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.states: dict[str, dict[str, Any]] = {}
        self.ready: set[str] = set()
        # by container: when it first ended, or could not start (seconds since the epoch)
        self.failed_at: dict[str, float] = {}
        self._said: Any = None
        self.began, self.turned = now(), (False, now())

    def run(self) -> None:
        spec = self.pod["spec"]
        try:
            succeeded = all(self.to_its_end(one) for one in spec.get("initContainers", ()))
            if succeeded and not self.over:
                self.main(spec["containers"])
            elif not self.over:
                self.tell("Failed", surely=True)
        finally:
            self.end_children()
        if self.deleted.is_set():
            self.tell("Succeeded" if all(self.code(name) == 0 for name in self.states) else "Failed")
            self.remove()

    def remove(self) -> None:
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.pod["metadata"]["uid"]}}
        while not self.abandoned.is_set():
            with suppress(httpx.TransportError):
                self.node.cluster.client.request("DELETE", self.path, json=options)
                return
            self.abandoned.wait(PERIOD)

    @property
    def over(self) -> bool:
        return self.deleted.is_set() or self.abandoned.is_set()

    def main(self, containers: Sequence[Object]) -> None:
        policy = self.pod["spec"].get("restartPolicy", "Always")
        again = dict.fromkeys((one["name"] for one in containers), 0.0)
        specs = {one["name"]: one for one in containers}
        while not self.over:
            for name in [name for name, due in again.items() if time.monotonic() >= due]:
                if self.start_container(specs[name]):
                    del again[name]
                else:
                    again[name] = time.monotonic() + BACK_OFF
            for name in [name for name in list(self.children) if self.ended(name)]:
                code = self.code(name)
                if policy == "Always" or (policy == "OnFailure" and code):
                    again[name] = time.monotonic() + BACK_OFF
                    self.back_off(name)
            if not again and not self.children and all("terminated" in state for state in self.states.values()):
                self.tell("Succeeded" if all(self.code(name) == 0 for name in specs) else "Failed", surely=True)
                return
            self.probe(specs)
            self.tell(
                "Running"
                if any("waiting" not in state or self.tries[name] for name, state in self.states.items())
                else "Pending"
            )
            self.deleted.wait(PERIOD)

    def to_its_end(self, spec: Object) -> bool:
        """Of an init container; False: it failed."""
        while not self.over:
            if self.start_container(spec):
                while not self.ended(spec["name"]) and not self.over:
                    self.tell("Pending")
                    self.deleted.wait(PERIOD)
                if self.code(spec["name"]) == 0 or self.pod["spec"].get("restartPolicy") == "Never":
                    return self.code(spec["name"]) == 0
            self.tell("Pending")
            self.deleted.wait(BACK_OFF)
        return False

    def start_container(self, spec: Object) -> bool:
        """False: it waits, for its image or for a thing that it mounts."""
        name, image = spec["name"], spec["image"]
        self.tries.setdefault(name, 0)
        entrypoint = self.node.entrypoints.get(image)
        if entrypoint is None:
            reason = "ImagePullBackOff" if name in self.states else "ErrImagePull"
            return self.wait(
                name,
                reason,
                f'failed to pull and unpack image "{image}": failed to resolve reference "{image}": not found',
            )
        try:
            made = (
                Container(IDLE, {}) if entrypoint == IDLE else self.scene.container(spec, tuple(map(str, entrypoint)))
            )
        except httpx.TransportError as error:
            return self.wait(name, "CreateContainerConfigError", str(error))
        if made.waiting:
            return self.wait(name, *made.waiting)
        if made.command != IDLE:
            self.children[name] = self.spawn(name, spec, made)
        self.tries[name] += 1
        self.states[name] = {"running": {"startedAt": now()}}
        return True

    def wait(self, name: str, reason: str, message: str) -> bool:
        self.failed_at.setdefault(name, time.time())
        self.states[name] = {"waiting": {"reason": reason, "message": message}}
        return False

    def spawn(self, name: str, spec: Object, made: Container) -> subprocess.Popen[bytes]:
        log = self.log_of(name, self.tries[name])
        folder = self.folder / spec.get("workingDir", "/").lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            words = ["setpriv", "--pdeathsig", "KILL", *made.command]
            try:
                return subprocess.Popen(
                    words,
                    env=dict(made.environ),
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            except OSError as error:
                raise RuntimeError(f"{shlex.join(words)}: {error}") from error

    def log_of(self, container: str, attempt: int) -> Path:
        return self.folder / "logs" / f"{container}-{attempt}"

    def ended(self, name: str) -> bool:
        code = self.children[name].poll() if name in self.children else None
        if code is None:
            return False
        del self.children[name]
        self.ready.discard(name)
        self.failed_at.setdefault(name, time.time())
        told = {**self.states[name]["running"], **self.scene.last_words(name)}
        number = 128 - code if code < 0 else code
        reason = "Error" if number else "Completed"
        self.states[name] = {"terminated": {"exitCode": number, "reason": reason, **told, "finishedAt": now()}}
        return True

    def code(self, name: str) -> int | None:
        return self.states[name].get("terminated", {}).get("exitCode") if name in self.states else None

    def back_off(self, name: str) -> None:
        last = self.states[name]
        message = f"back-off 1s restarting failed container={name}"
        self.states[name] = {"waiting": {"reason": "CrashLoopBackOff", "message": message}, "last": last}

    def probe(self, specs: Mapping[str, Object]) -> None:
        """A container without a readiness probe is ready when it runs."""
        for name, spec in specs.items():
            running = "running" in self.states.get(name, {})
            probe = spec.get("readinessProbe", {})
            asked = probe.get("httpGet") or probe.get("tcpSocket")
            child = name in self.children
            if running and (not asked or not child or self.answers(spec, asked)):
                self.ready.add(name)
            else:
                self.ready.discard(name)

    def answers(self, spec: Object, asked: Object) -> bool:
        port = asked["port"]
        if isinstance(port, str):
            port = next(one["containerPort"] for one in spec.get("ports", ()) if one["name"] == port)
        if "httpGet" not in spec["readinessProbe"]:
            with socket.socket() as there:
                there.settimeout(1)
                return there.connect_ex((loopback(self.address), port)) == 0
        try:
            answer = self.node.prober.get(f"http://{loopback(self.address)}:{port}{asked.get('path', '/')}")
        except httpx.TransportError:
            return False
        return answer.status_code < 400

    def end_children(self) -> None:
        """SIGTERM, the pod's grace, SIGKILL."""
        for child in self.children.values():
            child.send_signal(signal.SIGKILL if self.abandoned.is_set() else signal.SIGTERM)
        deadline = time.monotonic() + self.grace
        for child in self.children.values():
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for name in list(self.children):
            self.ended(name)

    def tell(self, phase: str, *, surely: bool = False) -> None:
        """Write the pod's status where it has changed; a pod that is gone is told
        nothing.

        Without an API server it is told with the next look; ``surely`` waits for one.
        """
        status = self.status(phase, self.pod["spec"])
        patch = {"metadata": {"uid": self.pod["metadata"]["uid"]}, "status": status}
        headers = {"Content-Type": "application/merge-patch+json"}
        while status != self._said and not self.abandoned.is_set():
            with suppress(httpx.TransportError):
                answer = self.node.cluster.client.patch(f"{self.path}/status", json=patch, headers=headers)
                if answer.status_code in (404, 409):  # gone, or another of the same name stands there
                    self.abandoned.set()
                elif answer.is_success:
                    self._said = status
            if not surely:
                return
            self.abandoned.wait(PERIOD)

    def status(self, phase: str, spec: Object) -> dict[str, Any]:
        init = [one["name"] for one in spec.get("initContainers", ())]
        main = [one["name"] for one in spec["containers"]]
        images = {one["name"]: one["image"] for one in [*spec.get("initContainers", ()), *spec["containers"]]}
        ready = phase == "Running" and set(main) <= self.ready
        self.turned = self.turned if self.turned[0] == ready else (ready, now())
        made: dict[str, Any] = {
            "phase": phase, "podIP": self.address, "podIPs": [{"ip": self.address}], "hostIP": "192.0.2.10", "startTime": self.began,
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": self.began},
                {"type": "Initialized", "status": str(phase != "Pending"), "lastTransitionTime": self.began},
                {"type": "ContainersReady", "status": str(ready), "lastTransitionTime": self.turned[1]},
                {"type": "Ready", "status": str(ready), "lastTransitionTime": self.turned[1]},
            ],
        }  # fmt: skip
        for key, names in (("initContainerStatuses", init), ("containerStatuses", main)):
            if names:
                made[key] = [self.container_status(name, images[name]) for name in names]
        return made

    def container_status(self, name: str, image: str) -> dict[str, Any]:
        state = dict(self.states.get(name, {"waiting": {"reason": "PodInitializing"}}))
        last = state.pop("last", {})
        return {
            "name": name, "image": image, "imageID": image if self.tries.get(name) else "", "ready": name in self.ready,
            "restartCount": max(0, self.tries.get(name, 0) - 1), "started": "running" in state, "state": state, "lastState": last,
        }  # fmt: skip


class PlayedNode:
    """``entrypoints``: what each image starts (``IDLE``: nothing); a test may change it
    at any time. An image that is not there is not found.
    """

    def __init__(self, cluster: Cluster, name: str, allocatable: Mapping[str, str], labels: Mapping[str, str]) -> None:
        self.cluster, self.name = cluster, name
        self.folder = cluster.folder / name
        self.entrypoints: dict[str, Sequence[str | Path]] = {}
        self.players: dict[str, Player] = {}
        # a connection a probe, as the kubelet's; no CAs, which take long to read
        self.prober = httpx.Client(
            trust_env=False, verify=SSLContext(), timeout=1, limits=httpx.Limits(max_keepalive_connections=0)
        )
        self._stop = threading.Event()
        self._loop = threading.Thread(target=self._watch, daemon=True)
        self._allocatable, self._labels = (
            {"cpu": "8", "memory": "16Gi", "pods": "110", "ephemeral-storage": "50Gi", **allocatable},
            labels,
        )

    def register(self, port: int) -> None:
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            **self._labels,
        }
        status = {
            "capacity": self._allocatable, "allocatable": self._allocatable, "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Played", "lastHeartbeatTime": now(), "lastTransitionTime": now()}],
        }  # fmt: skip
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": labels}}
        self.cluster.apply(node)
        answer = self.cluster.client.patch(
            f"/api/v1/nodes/{self.name}/status",
            json={"status": status},
            headers={"Content-Type": "application/merge-patch+json"},
        )
        answer.raise_for_status()

    def _watch(self) -> None:
        while not self._stop.wait(PERIOD):
            with suppress(httpx.HTTPError):  # the API server is down for a test; what runs goes on
                self._take(self.cluster.listed("/api/v1/pods", fieldSelector=f"spec.nodeName={self.name}"))

    def _take(self, pods: Sequence[dict[str, Any]]) -> None:
        there = {pod["metadata"]["uid"]: pod for pod in pods}
        for uid, pod in there.items():
            if uid not in self.players and pod["status"].get("phase") in (None, "Pending"):
                self.players[uid] = Player(self, pod, self._free_address())
                self.players[uid].start()
            if uid in self.players and pod["metadata"].get("deletionTimestamp"):
                self.players[uid].grace = float(pod["metadata"].get("deletionGracePeriodSeconds", 30))
                self.players[uid].deleted.set()
        for uid, player in self.players.items():
            if uid not in there:
                player.abandoned.set()

    def _free_address(self) -> str:
        taken = {player.address for player in self.players.values() if player.is_alive()}
        return next(free for n in range(2, 128) if (free := f"{self.cluster.subnet}.{n}") not in taken)

    def log_file(self, namespace: str, pod: str, container: str, *, previous: bool) -> Path | None:
        for player in reversed(list(self.players.values())):
            meta = player.pod["metadata"]
            if (meta["namespace"], meta["name"]) == (namespace, pod) and player.tries.get(container):
                file = player.log_of(container, player.tries[container] - 1 - previous)
                return file if file.exists() else None
        return None

    def is_running(self, namespace: str, pod: str, container: str) -> bool:
        return any(
            container in player.children
            for player in self.players.values()
            if (player.pod["metadata"]["namespace"], player.pod["metadata"]["name"]) == (namespace, pod)
        )

    def close(self) -> None:
        self._stop.set()
        self._loop.join()
        for player in self.players.values():
            player.abandoned.set()
        for player in self.players.values():
            player.join()


@contextmanager
def played_node(
    cluster: Cluster,
    name: str = "node0",
    allocatable: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Iterator[PlayedNode]:
    """A node that takes pods, for the length of the block; what runs there at its end is
    killed.
    """
    node = PlayedNode(cluster, name, allocatable or {}, labels or {})
    with serving_logs(cluster.authority, node) as port, Forwarding(cluster):
        node.register(port)
        node._loop.start()
        try:
            yield node
        finally:
            node.close()
            cluster.client.delete(f"/api/v1/nodes/{name}")
