"""What the hubs have in common: an address that the environment may change, and repositories called ``OWNER/NAME``."""

from __future__ import annotations

import os
from typing import ClassVar

from model_delivery.base.findings import Finding, Refused, Retryable
from model_delivery.models.sources.http import unreachable
from model_delivery.models.sources.spec import RemoteModel


class HubModel(RemoteModel):
    """A repository of the hub at ``home``, or of the one that ``endpoint_variable`` names."""

    home: ClassVar[str]
    endpoint_variable: ClassVar[str]
    example: ClassVar[str] = "org/model@main"

    @property
    def endpoint(self) -> str:
        return os.environ.get(self.endpoint_variable, self.home).rstrip("/")

    @property
    def asked(self) -> str:
        """The ``why`` of what goes wrong."""
        return f"{self.endpoint} was asked for {self.repo}@{self.revision}"

    def unreachable(self, error: Exception) -> Retryable:
        settings = f"HTTPS_PROXY, SSL_CERT_FILE, REQUESTS_CA_BUNDLE and {self.endpoint_variable}"
        return unreachable(self.endpoint, self.asked, error, settings)

    def misnamed(self, why: str) -> Refused:
        return Refused(Finding("source.wrong-name", f"{self.repo} is no repository's name", why, "write OWNER/NAME"))
