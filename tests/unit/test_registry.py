"""A tag becomes a digest: against a registry of the tests' own, behind the wire protocol
(HEAD of a manifest, Basic and Bearer challenges).
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from model_delivery.base import BadInput, Refused, Retryable, Secret, Trouble, from_cluster
from model_delivery.places.registry import MIRRORS, parts, pin
from tests.parts.ports import free_port

DIGEST = "sha256:" + "a" * 64
LOGIN = base64.b64encode(b"me:s3cret").decode()


@dataclass
class Registry:
    """``wants``: what its challenge asks for; ``status`` answers every manifest that may
    be seen.
    """

    host: str = ""
    wants: str = ""
    status: int = 200
    challenge: str = ""
    digest: str = DIGEST
    repository: str = "a/b"
    asked: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def running(registry: Registry) -> Iterator[Registry]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            given = self.headers.get("Authorization", "")
            registry.asked.append((self.path, given))
            needed = {"": "", "Basic": f"Basic {LOGIN}", "Bearer": "Bearer t0ken"}[registry.wants]
            if given != needed:
                self.send_response(401)
                self.send_header(
                    "WWW-Authenticate",
                    registry.challenge
                    or f'{registry.wants} realm="http://{registry.host}/token",service="s",scope="repository:a/b:pull"',
                )
            elif self.path.partition("?")[0] != f"/v2/{registry.repository}/manifests/v1":
                self.send_response(404)
            else:
                self.send_response(registry.status)
                self.send_header("Docker-Content-Digest", registry.digest)
            self.end_headers()

        def do_GET(self) -> None:
            registry.asked.append((self.path, self.headers.get("Authorization", "")))
            body = json.dumps({"token": "t0ken"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    registry.host = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def secrets(registry: Registry) -> dict[str, str]:
    return {"pull": json.dumps({"auths": {registry.host: {"auth": LOGIN}}})}


@pytest.mark.parametrize("wants", ["", "Basic", "Bearer"])
def test_a_tag_is_pinned_whatever_the_registry_asks_for(wants: str) -> None:
    with running(Registry(wants=wants)) as registry:
        known = secrets(registry)
        with from_cluster(lambda ref: Secret(known[ref.kube.name])):
            pinned = pin(f"{registry.host}/a/b:v1", ["pull"])
    assert pinned == f"{registry.host}/a/b@{DIGEST}"
    if wants == "Bearer":
        assert (f"/token?service=s&scope={'repository%3Aa%2Fb%3Apull'}", f"Basic {LOGIN}") in registry.asked


def test_what_has_a_digest_stays_and_nobody_is_asked() -> None:
    image = f"registry.invalid/a/b:v1@{DIGEST}"
    assert pin(image) == image


@pytest.mark.parametrize(
    ("registry", "tag", "kind", "told"),
    [
        (Registry(), "v2", Refused, "there is no image"),
        (Registry(wants="Basic"), "v1", Refused, "does not let us see"),
        (Registry(status=429), "v1", Retryable, "status 429"),
        (Registry(status=503), "v1", Retryable, "status 503"),
        (Registry(status=400), "v1", Refused, "status 400"),
    ],
    ids=["absent", "denied", "busy", "broken", "wrong"],
)
def test_what_a_registry_refuses(registry: Registry, tag: str, kind: type[Trouble], told: str) -> None:
    with running(registry), pytest.raises(kind, match=told):
        pin(f"{registry.host}/a/b:{tag}")


def test_a_registry_that_is_away() -> None:
    with pytest.raises(Retryable, match="does not answer"):
        pin(f"127.0.0.1:{free_port()}/a/b:v1")


def test_names_as_the_registry_knows_them() -> None:
    assert parts("vllm/vllm-openai:v0.33.0") == ("registry-1.docker.io", "vllm/vllm-openai", "v0.33.0")
    assert parts("busybox") == ("registry-1.docker.io", "library/busybox", "latest")
    assert parts("registry.example:5000/a/b/c:1") == ("registry.example:5000", "a/b/c", "1")


@pytest.mark.parametrize(
    "server", ["registry.example", "{host}0", "127.0.0.1", "{host}.evil", "a{host}", "evil/{host}"]
)
def test_a_login_goes_to_its_own_registry_only(server: str) -> None:
    with running(Registry(wants="Basic")) as registry:
        text = json.dumps({"auths": {server.format(host=registry.host): {"auth": LOGIN}}})
        with from_cluster(lambda _: Secret(text)), pytest.raises(Refused, match="does not let us see"):
            pin(f"{registry.host}/a/b:v1", ["pull"])
    assert {given for _, given in registry.asked} == {""}


@pytest.mark.parametrize("server", ["{host}", "https://{host}", "http://{host}/v1/", "{host}/"])
def test_a_login_is_known_however_its_registry_is_written(server: str) -> None:
    with running(Registry(wants="Basic")) as registry:
        login = {"username": "me", "password": "s3cret", "email": "a@b"}
        text = json.dumps({"auths": {server.format(host=registry.host): login}})
        with from_cluster(lambda _: Secret(text)):
            assert pin(f"{registry.host}/a/b:v1", ["pull"]).endswith(DIGEST)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"auths": 1}', '{"auths": {"a": "b"}}', "a: b"])
def test_a_pull_secret_that_is_none_is_told(text: str) -> None:
    refused = pytest.raises(Refused, match=r"image\.bad-pull-secret")
    with running(Registry(wants="Basic")) as registry, from_cluster(lambda _: Secret(text)), refused:
        pin(f"{registry.host}/a/b:v1", ["pull"])


@pytest.mark.parametrize("realm", ["", 'realm="http://evil.example/token",', 'realm="file:///x",', 'realm="http://[",'])
def test_a_challenge_never_takes_the_login_to_a_place_in_the_open(realm: str) -> None:
    with running(Registry(wants="Bearer", challenge=f"Bearer {realm}service=s")) as registry:
        known = secrets(registry)
        with from_cluster(lambda ref: Secret(known[ref.kube.name])), pytest.raises(Retryable) as told:
            pin(f"{registry.host}/a/b:v1", ["pull"])
    assert "image.no-answer" in told.value.text
    assert LOGIN not in told.value.text


def test_a_digest_that_is_none_is_not_pinned() -> None:
    with (
        running(Registry(digest="sha256:1 --privileged")) as registry,
        pytest.raises(Refused, match=r"image\.no-digest"),
    ):
        pin(f"{registry.host}/a/b:v1")


@pytest.mark.parametrize(
    ("image", "mirrors", "path"),
    [
        ("registry.invalid/a/b:v1", "registry.invalid={host}", "/v2/a/b/manifests/v1?ns=registry.invalid"),
        ("a/b:v1", "ghcr.io=127.0.0.1:1, docker.io={host}/hub/ ,", "/v2/hub/a/b/manifests/v1?ns=docker.io"),
        ("docker.io/a/b:v1", "registry-1.docker.io={host}/hub", "/v2/hub/a/b/manifests/v1?ns=docker.io"),
        ("r.invalid:5000/a/b:v1", "r.invalid:5000={host}/x/y", "/v2/x/y/a/b/manifests/v1?ns=r.invalid%3A5000"),
    ],
)
def test_a_mirror_is_asked_and_the_image_keeps_its_name(
    monkeypatch: pytest.MonkeyPatch, image: str, mirrors: str, path: str
) -> None:
    with running(Registry(repository=path.removeprefix("/v2/").partition("/manifests")[0])) as mirror:
        monkeypatch.setenv(MIRRORS, mirrors.format(host=mirror.host))
        assert pin(image) == f"{image.removesuffix(':v1')}@{DIGEST}"
    assert mirror.asked == [(path, "")]


def test_a_mirror_gets_its_own_login_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(Registry(wants="Basic")) as mirror:
        monkeypatch.setenv(MIRRORS, f"registry.invalid={mirror.host}")
        known = {"pull": {mirror.host: {"auth": LOGIN}}, "other": {"registry.invalid": {"auth": LOGIN}}}
        with from_cluster(lambda ref: Secret(json.dumps({"auths": known[ref.kube.name]}))):
            assert pin("registry.invalid/a/b:v1", ["pull"]).endswith(DIGEST)
            mirror.asked.clear()
            with pytest.raises(Refused, match="does not let us see"):
                pin("registry.invalid/a/b:v1", ["other"])
    assert {given for _, given in mirror.asked} == {""}


def test_a_registry_without_a_mirror_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(Registry()) as registry:
        monkeypatch.setenv(MIRRORS, "registry.invalid=127.0.0.1:1,127.0.0.1=127.0.0.1:1")
        assert pin(f"{registry.host}/a/b:v1") == f"{registry.host}/a/b@{DIGEST}"


@pytest.mark.parametrize("text", ["mirror", "=m", "a=", "a=http://m", "a=u:s3cret@m", "a=m;b=n", "a=m/../x?y"])
def test_mirrors_that_are_none_are_refused_and_not_quoted(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(MIRRORS, text)
    with pytest.raises(BadInput) as refused:
        pin("registry.invalid/a/b:v1")
    assert refused.value.findings[0].code == "image.bad-mirror"
    assert "s3cret" not in refused.value.text
