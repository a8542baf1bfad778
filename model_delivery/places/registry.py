"""A tag becomes a digest: what is pulled later is what was meant when the release was
made.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable

import httpx
from pydantic import ConfigDict, ValidationError

from model_delivery.base import BadInput, Finding, KubeSecret, Part, Refused, Retryable, Secret, Trouble, read_secret
from model_delivery.models.sources.http import trusted

HUB = "registry-1.docker.io"
HUBS = ("docker.io", "index.docker.io", HUB)
FORMS = (
    *("oci.image.index.v1", "docker.distribution.manifest.list.v2"),
    *("oci.image.manifest.v1", "docker.distribution.manifest.v2"),
)
ACCEPT = ", ".join(f"application/vnd.{form}+json" for form in FORMS)
IMAGE = re.compile(r"^(?:(localhost|[^/]*[.:][^/]*)/)?([^:]*):?(.*)")
PINNED = re.compile(r"@sha256:[0-9a-f]{64}$")
LOCAL = re.compile(r"^(localhost|127\.\d+\.\d+\.\d+)(:\d+)?$")
MIRRORS = "MODEL_DELIVERY_REGISTRY_MIRRORS"
MIRROR = re.compile(r"([\w.:-]+)=([\w.-]+(?::\d+)?)/?((?:[\w.-]+/)*)")
FIX = "correct target.image, or name its digest: NAME@sha256:…"


class Told(Part):
    """What others wrote may say more."""

    model_config = ConfigDict(extra="ignore")


class Login(Told):
    auth: str = ""
    username: str = ""
    password: str = ""


class Logins(Told):
    auths: dict[str, Login]


class Token(Told):
    token: str = ""
    access_token: str = ""


def pin(image: str, pull_secrets: Iterable[str] = ()) -> str:
    """``image`` by its digest (one that has a digest stays as it is). ``pull_secrets``:
    names of docker-registry Secrets. Where ``MIRRORS`` names a mirror of its registry,
    that is asked; the image keeps its name.

    Refused when the registry says no, Retryable when it is busy or away.
    """
    if PINNED.search(image):
        return image
    host, repository, tag = parts(image)
    host, repository, asked = _mirrored(host, repository)
    url = f"{'http' if LOCAL.match(host) else 'https'}://{host}/v2/{repository}/manifests/{tag}"
    try:
        with httpx.Client(verify=trusted(), timeout=httpx.Timeout(20, connect=5), follow_redirects=True) as client:
            answer = client.head(url, params=asked, headers={"Accept": ACCEPT})
            if answer.status_code == httpx.codes.UNAUTHORIZED:
                allowed = _authorization(client, answer.headers.get("WWW-Authenticate", ""), _login(host, pull_secrets))
                answer = client.head(url, params=asked, headers={"Accept": ACCEPT, **allowed})
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        why = f"{type(error).__name__}: {error}; an image is pinned to its digest before anything is touched"
        raise Retryable(Finding("image.no-answer", f"the registry {host} does not answer", why, FIX)) from None
    digest = answer.headers.get("Docker-Content-Digest", "")
    if answer.is_success and PINNED.fullmatch(f"@{digest}"):
        return f"{image.removesuffix(f':{tag}')}@{digest}"
    raise _trouble(answer.status_code, image, host, f"{repository}:{tag}")


def _trouble(status: int, image: str, host: str, name: str) -> Trouble:
    if status == httpx.codes.NOT_FOUND:
        why = f"the registry {host} does not know {name}"
        return Refused(Finding("image.not-found", f"there is no image {image}", why, FIX))
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        what = f"the registry {host} does not let us see {image}"
        fix = "name a pull secret in serving.pod.image_pull_secrets, or correct it"
        return Refused(Finding("image.not-allowed", what, f"status {status}", fix))
    what = f"the registry {host} cannot say what {image} is"
    if _busy(status):
        return Retryable(Finding("image.registry-busy", what, f"status {status}", "run again"))
    return Refused(Finding("image.no-digest", what, f"status {status}", FIX))


def _busy(status: int) -> bool:
    return status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR


def parts(image: str) -> tuple[str, str, str]:
    """Registry, repository and tag as the registry's API names them: ``vllm/x`` is Docker
    Hub's, ``x`` its library's.
    """
    ((host, name, tag),) = IMAGE.findall(image)
    if host in ("", *HUBS):
        host, name = HUB, name if "/" in name else f"library/{name}"
    return host, name, tag or "latest"


def _mirrored(host: str, repository: str) -> tuple[str, str, dict[str, str]]:
    """Whom to ask in place of ``host``, for what, and the query that containerd adds
    there. BadInput where ``MIRRORS`` is no list of them.
    """
    for entry in filter(None, os.environ.get(MIRRORS, "").replace(" ", "").split(",")):
        if not (said := MIRROR.fullmatch(f"{entry.rstrip('/')}/")):
            fix = "write HOST=MIRROR, or HOST=MIRROR/PATH, with commas between"
            raise BadInput(Finding("image.bad-mirror", f"{MIRRORS} cannot be read", "it is no list of mirrors", fix))
        if _host_of(said[1]) == host:
            return said[2], said[3] + repository, {"ns": HUBS[0] if host == HUB else host}
    return host, repository, {}


def _login(host: str, pull_secrets: Iterable[str]) -> str | None:
    """The Basic credentials for this very ``host`` in the first pull secret that has
    some. Refused where one is no list of logins.
    """
    for name in pull_secrets:
        ref = KubeSecret.model_validate({"kube": {"name": name, "key": ".dockerconfigjson"}})
        text = read_secret(ref, lines=True).reveal()
        try:
            logins = Logins.model_validate_json(text)
        except ValidationError:
            what, why = f"the pull secret {name} cannot be read", "it is no docker-registry Secret"
            fix = f"make it with `kubectl create secret docker-registry {name}`"
            raise Refused(Finding("image.bad-pull-secret", what, why, fix)) from None
        for server, login in logins.auths.items():
            if _host_of(server) == host:
                words = f"{login.username}:{login.password}"
                return Secret(login.auth or base64.b64encode(words.encode()).decode()).reveal()
    return None


def _host_of(server: str) -> str:
    """Of an entry such as ``https://index.docker.io/v1/`` the host, with its port, as
    ``parts`` says it.
    """
    host = server.partition("://")[2] or server
    host = host.partition("/")[0].lower()
    return HUB if host in HUBS else host


def _authorization(client: httpx.Client, challenge: str, login: str | None) -> dict[str, str]:
    """The header that the registry's challenge asks for: a token (anonymous without a
    login), or the login itself. ValueError where the challenge is none.
    """
    basic = {"Authorization": f"Basic {login}"} if login else {}
    if not challenge.lower().startswith("bearer"):
        return basic
    query = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = httpx.URL(query.pop("realm", ""))
    if realm.scheme != "https" and not LOCAL.match(realm.netloc.decode()):
        raise ValueError(f"its tokens are at {str(realm)!r:.100}, which is not https")
    answer = client.get(realm, params=query, headers=basic)
    if _busy(answer.status_code):
        what, why = f"{answer.url.host} gives no token for the registry", f"status {answer.status_code}"
        raise Retryable(Finding("image.registry-busy", what, why, "run again"))
    token = Token.model_validate_json(answer.content) if answer.is_success else Token()
    return {"Authorization": f"Bearer {Secret(token.token or token.access_token).reveal()}"}
