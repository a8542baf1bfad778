"""An image registry with a password: Debian's docker-registry, over TLS, behind a proxy
that answers with faults when told to.

Images are pushed past the proxy, to the registry itself. What it stores outlives it (it
is a cache, keyed by content).
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from tests.parts.cluster.control_plane import Cluster
from tests.parts.golang import cache
from tests.parts.ports import free_port

HOST = "registry.test"
USER, PASSWORD = "puller", "not-a-secret"
HASHED = "$2b$04$yLPdiJ8YuXzG7pym8EKBlutkTc4Azx3/GNYxQmGi45ajHUC6BMTWC"  # bcrypt of PASSWORD
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
KEPT = ("Content-Type", "Content-Length", "Docker-Content-Digest", "WWW-Authenticate", "Location", "Content-Range")
Descriptor = Mapping[str, Any]


@dataclass
class Fault:
    """Answers requests whose path matches ``path`` with ``status``, ``times`` times
    (None: always). ``over``: they are held until then, and answered as they are.
    """

    status: int
    path: str = ""
    times: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    over: threading.Event | None = None


@dataclass
class Registry:
    """``asked``: method and path of each request of the wire; ``faults``: the first that
    fits answers.
    """

    port: int
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", auth=(USER, PASSWORD), trust_env=False, timeout=600
        )

    @property
    def dockerconfig(self) -> str:
        """The ``.dockerconfigjson`` of a pull secret."""
        shown = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        return json.dumps({"auths": {HOST: {"username": USER, "password": PASSWORD, "auth": shown}}})

    def pull_secret(self, namespace: str, name: str = "pull") -> dict[str, Any]:
        data = {".dockerconfigjson": self.dockerconfig}
        meta = {"name": name, "namespace": namespace}
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/dockerconfigjson",
            "metadata": meta,
            "stringData": data,
        }

    @contextmanager
    def failing(self, status: int, path: str = "/manifests/", **headers: str) -> Iterator[Fault]:
        """Requests whose path matches ``path`` get ``status`` while the block runs."""
        fault = Fault(status, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        self.faults.append(fault)
        try:
            yield fault
        finally:
            self.faults.remove(fault)

    @contextmanager
    def holding(self, path: str) -> Iterator[threading.Event]:
        """Requests whose path matches ``path`` wait for the event, or the block's end."""
        with self.failing(0, path) as fault:
            fault.over = threading.Event()
            try:
                yield fault.over
            finally:
                fault.over.set()

    def answers(self) -> bool:
        try:
            return self._client.get("/v2/").is_success
        except httpx.TransportError:
            return False

    def find(self, repository: str, tag: str) -> str | None:
        """The image's reference by digest, if it is there."""
        answer = self._client.head(f"/v2/{repository}/manifests/{tag}", headers={"Accept": MANIFEST})
        return f"{HOST}/{repository}@{answer.headers['Docker-Content-Digest']}" if answer.is_success else None

    def push_blob(self, repository: str, content: Iterable[bytes], kind: str) -> Descriptor:
        """Stream a blob in; returns its descriptor."""
        began = self._client.post(f"/v2/{repository}/blobs/uploads/").raise_for_status()
        digest, size = hashlib.sha256(), 0

        def counted() -> Iterator[bytes]:
            nonlocal size
            for part in content:
                digest.update(part)
                size += len(part)
                yield part

        sent = self._client.patch(
            began.headers["Location"], content=counted(), headers={"Content-Type": "application/octet-stream"}
        ).raise_for_status()
        name = f"sha256:{digest.hexdigest()}"
        self._client.put(httpx.URL(sent.headers["Location"]).copy_merge_params({"digest": name})).raise_for_status()
        return {"mediaType": kind, "digest": name, "size": size}

    def mount_blob(self, repository: str, blob: Descriptor, source: str) -> Descriptor:
        """A blob of another repository, without sending it again."""
        answer = self._client.post(f"/v2/{repository}/blobs/uploads/", params={"mount": blob["digest"], "from": source})
        assert answer.status_code == 201, answer.text
        return blob

    def has_blob(self, repository: str, digest: str) -> bool:
        return self._client.head(f"/v2/{repository}/blobs/{digest}").is_success

    def push(self, repository: str, tag: str, layers: Iterable[Descriptor], config: Mapping[str, Any]) -> str:
        """An image of uncompressed layers that are there; returns its reference by
        digest.
        """
        layers = list(layers)
        rootfs = {"type": "layers", "diff_ids": [one["digest"] for one in layers]}
        whole = {"architecture": "amd64", "os": "linux", "config": config, "rootfs": rootfs}
        described = self.push_blob(repository, [json.dumps(whole).encode()], CONFIG)
        return self.push_manifest(
            repository, tag, {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": layers}
        )

    def push_manifest(self, repository: str, tag: str, manifest: Mapping[str, Any] | bytes) -> str:
        body = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        answer = self._client.put(f"/v2/{repository}/manifests/{tag}", content=body, headers={"Content-Type": MANIFEST})
        if not answer.is_success:
            raise RuntimeError(f"the registry refuses {repository}:{tag}: {answer.text}")
        return f"{HOST}/{repository}@{answer.headers['Docker-Content-Digest']}"

    def close(self) -> None:
        self._client.close()


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry

    def do_GET(self) -> None:
        self.registry.asked.append((self.command, self.path))
        for fault in self.registry.faults:
            if fault.times != 0 and re.search(fault.path, self.path):
                if fault.over:
                    fault.over.wait()
                    break
                fault.times = None if fault.times is None else fault.times - 1
                self._answer(fault.status, fault.headers, b"")
                return
        self._forward()

    def do_HEAD(self) -> None:
        self.do_GET()

    def _forward(self) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.registry.port, timeout=60)
        upstream.request(self.command, self.path, headers=dict(self.headers.items()))
        answer = upstream.getresponse()
        self.send_response(answer.status)
        for name in KEPT:
            if (value := answer.headers.get(name)) is not None:
                self.send_header(name, value)
        self.end_headers()
        while data := answer.read(1 << 20):
            self.wfile.write(data)
        upstream.close()

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def running_registry(cluster: Cluster, address: str) -> Iterator[Registry]:
    """``https://registry.test`` on ``address``, with a certificate of the cluster's
    authority.
    """
    registry = Registry(free_port())
    (cluster.folder / "htpasswd").write_text(f"{USER}:{HASHED}\n")
    config = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(cache() / "registry")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{registry.port}", "relativeurls": True, "secret": "of one process"},
        "auth": {"htpasswd": {"realm": "test", "path": str(cluster.folder / "htpasswd")}},
    }
    (cluster.folder / "registry.yml").write_text(json.dumps(config))
    cluster.programs.start("registry", ["docker-registry", "serve", "registry.yml"])
    cluster.programs.wait_for("registry", registry.answers)
    crt, key = cluster.authority.issue("registry", HOST, names=[HOST, address])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(crt, key)
    server = ThreadingHTTPServer((address, 443), type("Proxy", (_Proxy,), {"registry": registry}))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        registry.close()
        cluster.programs.stop("registry")
