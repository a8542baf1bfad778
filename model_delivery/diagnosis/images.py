"""Why an image is not pulled, in the runtime's own words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from model_delivery.base import Finding, short
from model_delivery.diagnosis.engine_signs import Sign
from model_delivery.values import Failed, InProgress

PULLING = ("ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable", "ErrImageNeverPull")
NEVER = "ErrImageNeverPull"
MISSING = r"not found|manifest unknown|name unknown|no such image|\b404\b|no match for platform"
HOPELESS = (  # the first that is found counts; what is none of them may pass
    Sign(
        "image.registry-certificate",
        r"x509:|certificate signed by unknown authority|failed to verify certificate",
        r"the nodes do not trust the registry of \1",
        "give its authority's certificate to the nodes' container runtime",
    ),
    Sign(
        "image.registry-http",
        r"server gave HTTP response to HTTPS client",
        r"the registry of \1 speaks http, the nodes ask by https",
        "give the registry a certificate, or name it as an http registry to the nodes' container runtime",
    ),
    Sign(
        "image.wrong-platform",
        r"no match for platform",
        r"\1 is not made for the node's processor",
        "name an image of the node's architecture, or select other nodes in serving.pod.node_selector",
    ),
    Sign(
        "image.denied",
        r"unauthorized|authentication required|authorization failed|denied|forbidden|no basic auth|\b40[13]\b",
        r"the registry does not let the cluster pull \1",
        "name a pull secret in serving.pod.image_pull_secrets (of a step: runner.image_pull_secrets), or correct it",
    ),
    Sign(
        "image.not-found",
        MISSING,
        r"there is no image \1",
        "correct target.image (of a step: runner.image), or push the image",
    ),
)
FULL = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
BUSY = re.compile(
    r"toomanyrequests|too many requests|\b429\b|\b5\d\d\b|timeout|deadline|refused|reset by peer|EOF|no such host",
    re.IGNORECASE,
)


def unpulled(status: Mapping[str, Any], waiting: Mapping[str, str], messages: Sequence[str]) -> InProgress | Failed:
    """Of a container that waits for its image; ``messages``: what its pod's events say of
    the pull.

    Not found and not allowed will not pass by waiting; a busy or unreachable registry
    may.
    """
    image, message = status["image"], waiting.get("message", "")
    words = " ".join([message, *messages])
    told = "rpc error" in message or "fail" in message or not messages
    line = short(message if told else messages[-1], 400)
    if waiting["reason"] == NEVER:
        fix = "load the image on the nodes, or let it be pulled (imagePullPolicy)"
        return Failed(Finding("image.never-pulled", f"{image} is not on the node, and is never pulled", line, fix))
    if FULL.search(words):
        return InProgress(f"the node has no space for {image}: {line}", "make room on the node's disk")
    if BUSY.search(words) and not re.search(f"{MISSING}|x509:", words, re.IGNORECASE):
        return InProgress(f"the registry is busy or away, the pull of {image} is tried again: {line}")
    for sign in HOPELESS:
        if re.search(sign.pattern, words, re.IGNORECASE):
            return Failed(Finding(sign.code, sign.what.replace(r"\1", image), line, sign.fix))
    return InProgress(f"the image {image} cannot be pulled yet: {line or waiting['reason']}")
