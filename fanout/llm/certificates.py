"""Trusted server certificates: from the environment, else the system's."""

from __future__ import annotations

import os
import ssl
import sys
from pathlib import Path

from fanout.core.errors import ModelError
from fanout.core.records import ErrorKind

__all__ = ["trust"]

# Certificate stores of systems whose OpenSSL was built with another path.
_CA_FILES = (
    "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/cert.pem",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/ca-bundle.pem",
)


def trust() -> ssl.SSLContext:
    """Return a TLS context that trusts ``SSL_CERT_FILE`` or ``SSL_CERT_DIR``, else the system.

    Raises:
        ModelError: The file or folder that the environment names cannot be read.
    """
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        path = os.environ.get(name)
        try:
            if path and name == "SSL_CERT_FILE":
                return ssl.create_default_context(cafile=path)
            if path:
                return ssl.create_default_context(capath=path)
        except OSError as error:
            raise ModelError(
                f"{name}: no certificates can be read there: {error.strerror or error} (got "
                f"{path!r}); change it where the workers run",
                kind=ErrorKind.CONNECTION,
            ) from None
    return _system_trust()


def _system_trust() -> ssl.SSLContext:
    if sys.platform == "darwin":
        import truststore

        return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_default_certs()
    # Zero also if OpenSSL uses a folder of certificates, which it reads only during a handshake.
    if not context.cert_store_stats()["x509_ca"]:
        cafile = next((each for each in _CA_FILES if Path(each).is_file()), None)
        if cafile is not None:
            context.load_verify_locations(cafile)
    return context
