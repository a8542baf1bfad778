"""One machine: objects are files under ``$MODEL_DELIVERY_HOME``, engines and the router
are processes, the lease ends with its holder.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from model_delivery.base import BadInput, Finding, Permanent, proven, read_secret, short
from model_delivery.base.durable import replace_file
from model_delivery.models.manifest import model_folder, read_manifest
from model_delivery.models.verify import misfit
from model_delivery.places.host import binding
from model_delivery.places.host.cards import held
from model_delivery.places.host.handler import Handler, StateFolder
from model_delivery.places.host.kinds import HANDLERS, KINDS, ROLES
from model_delivery.places.host.processes import locked, read_json, unreadable, wait
from model_delivery.targets.process import ENGINE, ROUTE
from model_delivery.values import (
    ABSENT,
    ANY,
    RELEASE,
    Card,
    Change,
    Mismatch,
    Observed,
    Ref,
    Resource,
    Snapshot,
    Version,
    World,
    difference,
)

LOOK_SECONDS = 0.5
DAMAGED = "<damaged>"


class Host(StateFolder):
    """A place. Every object is one JSON file; what else it is, its kind's handler
    knows.
    """

    lease_seconds = 60.0  # where nobody can see whether its process lives
    keeps_files = True

    @property
    def elsewhere(self) -> str:
        return f"state is looked up under {self.home}; for a cluster name the spec's file, or --context and --namespace"

    @property
    def location(self) -> tuple[str | None, str | None]:
        return None, None

    def put(self, resource: Resource, *, expect: Version = ANY, dry_run: bool = False) -> Change:
        ref, handler = resource.ref, self._handler(resource)
        if not handler.stored:
            there = handler.stands()
            if not (there or dry_run):
                handler.act({})
            return Change(ref, "unchanged" if there else "created")
        if dry_run and not self.home.exists():
            handler.bind()
            return Change(ref, "created")
        with locked(self.home / "lock"):
            old = self._stored(self._object(resource.delivery, ref))
            if expect not in (ANY, old.version if old else ABSENT):
                raise Mismatch(ref)
            if old and old.resource == resource and handler.stands():
                return Change(ref, "unchanged", version=old.version)
            bound, version = handler.bind(), uuid.uuid4().hex
            diff = (tuple(difference(old.resource.spec, resource.spec)) or (handler.gone,)) if old else ()
            change = Change(ref, "updated" if old else "created", diff)
            if dry_run:
                return change
            self._write(Observed(resource, version, bound))
            handler.act(bound)
        handler.settle(bound)
        return replace(change, version=version)

    def without(self, delivery: str, releases: Collection[str]) -> Host:
        return replace(self, leaving=tuple(self.process(delivery, Ref(ENGINE, release)) for release in releases))

    def overview(self) -> Host:
        return self

    def delete(self, delivery: str, ref: Ref, *, grace: float | None = None) -> Change:
        path = self._object(delivery, ref)
        old = self._stored(path)
        if old is None:
            return Change(ref, "absent")
        self._handler(old.resource).stop(grace)
        with locked(self.home / "lock"):
            path.unlink(missing_ok=True)
        return Change(ref, "deleted")

    def world(self, delivery: str) -> World:
        now = time.time()
        folder = proven(self.folder(delivery) / "objects", self.home)
        objects = map(self._seen_or_damaged, sorted(folder.glob("*/*.json")))
        return World(delivery, {seen.resource.ref: seen for seen in objects if seen}, now)

    def get(self, delivery: str, ref: Ref) -> Observed | None:
        return self._seen(self._object(delivery, ref))

    def deliveries(self) -> tuple[str, ...]:
        """Those with a record, or with an engine that somebody has taken the record
        from.
        """
        found = (
            path for what in ("Record", "Engine/*.json") for path in self.home.glob(f"deliveries/*/objects/{what}")
        )
        return tuple(sorted({path.relative_to(self.home).parts[1] for path in found}))

    def named(self) -> tuple[str, ...]:
        """Whoever has a folder, though its books may be gone."""
        return tuple(sorted(path.name for path in self.home.glob("deliveries/*") if path.is_dir()))

    def started(self, delivery: str) -> set[str]:
        """The releases of which an engine runs, as its process alone says."""
        engines = self.processes(delivery, f"{ENGINE}-")
        return {engine.path.name.removeprefix(f"{ENGINE}-") for engine in engines if engine.alive}

    def cards(self, delivery: str) -> dict[str, tuple[Card, ...]]:
        engines = [one for one in self.processes(delivery, f"{ENGINE}-") if one.running and one.binding.get("gpus")]
        names = [one.path.name.removeprefix(f"{ENGINE}-") for one in engines]
        return dict(zip(names, held(self.tenants(engines)) if engines else (), strict=True))

    def has_run(self, delivery: str) -> bool:
        """Not where a first run ended before it began a release."""
        return any((self.folder(delivery) / what).exists() for what in ("processes", "slots", "logs"))

    def log(self, delivery: str, ref: Ref, *, follow: bool = True) -> Iterator[bytes]:
        stored = self._stored(self._object(delivery, ref))
        return self._handler(stored.resource).lines(follow=follow) if stored else iter(())

    def engine_log(self, delivery: str, release: str, *, follow: bool = False) -> Iterator[bytes]:
        ref = Ref(ENGINE, release)
        logs = [log for _, log in sorted(self.engine_logs(delivery, release).items())]
        logs = [log for log in logs if log.is_file() and not log.is_symlink()]
        if not logs:
            raise BadInput(
                Finding(
                    "host.no-log",
                    f"no log of {delivery} {release}".rstrip(),
                    "no engine of it was ever started here",
                    f"see `deliver history {delivery}`",
                )
            )
        if follow and self._object(delivery, ref).exists():
            return self.log(delivery, ref)
        return iter(logs[-1].read_bytes().splitlines())

    def hint(self, delivery: str, timeout: float) -> None:
        wait([folder for folder in self.processes(delivery) if folder.running], min(timeout, LOOK_SECONDS))

    secret = staticmethod(read_secret)

    def has_model(self, snapshot: Snapshot, root: str | None) -> bool | None:
        folder = model_folder(Path(root or self.home), snapshot)
        manifest = read_manifest(folder)
        return manifest is not None and not any(misfit(folder / e.path, e.path, e.size, "") for e in manifest.files)

    def listener(self, port: int) -> str:
        if not binding.listening("127.0.0.1", port):
            return ""
        routes = ((name, self._stored(self._object(name, ROUTE))) for name in self.deliveries())
        ours = (f"the delivery {name}" for name, route in routes if route and route.resource.spec["port"] == port)
        return next(ours, "something else")

    def look_up(self, path: str) -> None:
        """There is no API on a host."""

    def rights(self) -> None:
        """Whoever runs this may what the system lets them."""

    def own_image(self) -> None:
        """Nor a pod."""

    def _handler(self, resource: Resource) -> Handler:
        return HANDLERS.get(resource.ref.kind, Handler)(self, resource)

    def _seen_or_damaged(self, path: Path) -> Observed | None:
        """A damaged release is there, and says nothing: whoever needs it is told, and a
        `down` does not need it.
        """
        try:
            return self._seen(path)
        except Permanent:
            delivery, _, kind, name = path.with_suffix("").parts[-4:]
            if kind != RELEASE.name:
                raise
            return Observed(Resource(Ref(RELEASE, name), "record", delivery, {}, name), DAMAGED)

    def _seen(self, path: Path) -> Observed | None:
        stored = self._stored(path)
        try:
            return stored and replace(stored, status=self._handler(stored.resource).status(stored.status))
        except OSError as error:  # a folder in a file's place: of this delivery alone
            raise Permanent(unreadable(Path(error.filename or path), str(error.strerror))) from None
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise Permanent(unreadable(path, short(f"{type(error).__name__}: {error}", 200))) from None

    def _stored(self, path: Path) -> Observed | None:
        """The object in a file; its status is what it was bound to. Of a damaged one that
        is made from others nothing is known but that it is there: it is put again, or
        ended. Permanent where nobody else knows what it said.
        """
        proven(path.parent, self.home)
        try:
            whole = read_json(path)
            return None if whole is None else _object(whole, path)
        except Permanent:
            delivery, _, kind, name = path.with_suffix("").parts[-4:]
            if kind not in ROLES:
                raise
            release = name if kind == ENGINE.name else None
            return Observed(Resource(Ref(KINDS[kind], name), ROLES[kind], delivery, {}, release), DAMAGED)

    def _write(self, stored: Observed) -> None:
        resource, ref = stored.resource, stored.resource.ref
        whole = {
            "kind": ref.kind.name,
            "name": ref.name,
            "role": resource.role,
            "delivery": resource.delivery,
            "release": resource.release,
            "version": stored.version,
            "bound": dict(stored.status),
            "spec": dict(resource.spec),
        }
        replace_file(self._object(resource.delivery, ref), json.dumps(whole, indent=1))

    def _object(self, delivery: str, ref: Ref) -> Path:
        return self.folder(delivery) / "objects" / ref.kind.name / f"{ref.name}.json"


def _object(whole: Mapping[str, Any], path: Path) -> Observed:
    """Permanent where it is not what its path says, or says too little."""
    try:
        ref = Ref(KINDS[whole["kind"]], whole["name"])
        resource = Resource(ref, whole["role"], whole["delivery"], dict(whole["spec"]), whole["release"])
        seen = Observed(resource, str(whole["version"]), dict(whole["bound"]))
    except (LookupError, TypeError, ValueError) as error:
        raise Permanent(unreadable(path, f"{type(error).__name__}: {error}")) from None
    if (resource.delivery, "objects", ref.kind.name, ref.name) != path.with_suffix("").parts[-4:]:
        raise Permanent(unreadable(path, f"it holds {ref} of {resource.delivery}"))
    return seen
