"""A certificate authority of one cluster: its certificates, and service account tokens
that end when a test wants them to.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ISSUER = "https://kubernetes.default.svc"
LEEWAY = 60  # seconds for which the API server still takes an ended token (go-jose's default)


class Authority:
    """``ca.crt`` and ``ca.key``, ``NAME.crt`` and ``NAME.key`` for each certificate,
    ``sa.key`` and ``sa.pub`` in ``folder``.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("test-cluster-ca")
        self.ca = folder / "ca.crt"
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        ca = _certificate(self._name, self._key.public_key()).issuer_name(self._name)
        ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).add_extension(
            usage, critical=True
        )
        self.ca.write_bytes(ca.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        _write_key(folder / "ca.key", self._key)
        self._accounts = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        _write_key(folder / "sa.key", self._accounts)
        (folder / "sa.pub").write_bytes(
            self._accounts.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )

    @property
    def bundle(self) -> str:
        """Its certificate as a ``caBundle``."""
        return base64.b64encode(self.ca.read_bytes()).decode()

    def issue(self, file: str, user: str, groups: Sequence[str] = (), names: Sequence[str] = ()) -> tuple[Path, Path]:
        """A certificate for a client and, where it has ``names`` (DNS or IP), for a
        server; returns its file and its key's.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        made = _certificate(_name(user, groups), key.public_key()).issuer_name(self._name)
        made = made.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        if names:
            made = made.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        crt = self.folder / f"{file}.crt"
        crt.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        return crt, _write_key(self.folder / f"{file}.key", key)

    def token(self, claims: Mapping[str, Any], seconds: float) -> str:
        """A token with these claims that the API server refuses after ``seconds`` (it
        remembers a good one for up to 10 s more).
        """
        now = time.time()
        body = {
            "iss": ISSUER,
            "aud": [ISSUER],
            "iat": int(now) - 3600,
            "nbf": int(now) - 3600,
            "exp": int(now + seconds - LEEWAY),
            **claims,
        }
        public = self._accounts.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        digest = hashes.Hash(hashes.SHA256())
        digest.update(public)
        header = {"alg": "RS256", "kid": _base64(digest.finalize())}
        signed = f"{_base64(json.dumps(header).encode())}.{_base64(json.dumps(body).encode())}"
        return f"{signed}.{_base64(self._accounts.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _name(user: str, groups: Sequence[str] = ()) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _certificate(subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    """Without its issuer."""
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(subject).public_key(key).serial_number(x509.random_serial_number())
    return made.not_valid_before(now - timedelta(hours=2)).not_valid_after(now + timedelta(days=2))


def _write_key(file: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> Path:
    file.touch(mode=0o600)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return file
