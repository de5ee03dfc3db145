"""Certificates and keys of a federation: an authority of its own, the server's certificate, a key pair per node."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedquilt.errors import ConfigError

YEARS = 2
LABELS = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")  # of a host name
PEM = serialization.Encoding.PEM


def write_server(folder: Path, hosts: list[str]) -> None:
    """``ca.crt``, ``server.pem``, ``server.key``: a certificate for these names and addresses by an authority made for it.

    The authority's own key is not written: nobody can make another certificate with it.

    Raises:
        ConfigError: no name or address of a machine.
    """
    authority, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedquilt federation")])
    root = _certificate(issuer, authority.public_key(), issuer).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    root = root.add_extension(usage, critical=True).add_extension(
        x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedquilt server")])
    names = x509.SubjectAlternativeName([_name(host) for host in hosts])
    own = _certificate(subject, key.public_key(), issuer).add_extension(names, critical=False)
    own = own.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ca.crt").write_bytes(root.sign(authority, hashes.SHA384()).public_bytes(PEM))
    (folder / "server.pem").write_bytes(own.sign(authority, hashes.SHA384()).public_bytes(PEM))
    form = serialization.PrivateFormat.PKCS8
    write_secret(folder / "server.key", key.private_bytes(PEM, form, serialization.NoEncryption()))


def write_node(folder: Path, name: str) -> None:
    """``<name>`` and ``<name>.pub``: a node's key pair, in the form of OpenSSH, which Flower wants."""
    key = ec.generate_private_key(ec.SECP384R1())
    folder.mkdir(parents=True, exist_ok=True)
    form = serialization.PrivateFormat.OpenSSH
    write_secret(folder / name, key.private_bytes(PEM, form, serialization.NoEncryption()))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (folder / f"{name}.pub").write_bytes(public + b"\n")


def write_secret(path: Path, data: bytes) -> None:
    """A file that only its owner may read, from its first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as handle:
        handle.write(data)


def _certificate(subject: x509.Name, key: ec.EllipticCurvePublicKey, issuer: x509.Name) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=365 * YEARS))
    )


def _name(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    if len(host) > 253 or not LABELS.fullmatch(host):
        raise ConfigError(
            f"{host!r} is no name or address of a machine", where="--host", fix="such as server.example.org or 10.0.0.1"
        )
    return x509.DNSName(host)
