"""The server's certificate, reloaded when its files change.

Existing connections keep the certificate that they began with.
"""

import asyncio
import logging
import math
import ssl
from pathlib import Path

from cryptography import x509

log = logging.getLogger(__name__)


class Certificate:
    """A certificate and its key, from two PEM files.

    Raises `OSError` (the base of `ssl.SSLError`) if the files hold no valid pair at first.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert, self._key = cert, key
        self._seen = self._files()
        self._current = self._load()
        self.context = self._load()
        """Context of the listening socket. Each new connection switches to the newest pair."""
        self.context.sni_callback = self._choose

    @property
    def expires_at(self) -> float:
        """End of the validity in seconds since 1970. NaN if only OpenSSL can read it."""
        try:
            return x509.load_pem_x509_certificate(self._seen[0]).not_valid_after_utc.timestamp()
        except ValueError:
            return math.nan

    def reload(self) -> bool:
        """Read the files again if they changed, and return whether the certificate was replaced.

        Skip a pair that does not match, because one of the files may be about to change.
        """
        try:
            if (files := self._files()) == self._seen:
                return False
            self._current = self._load()
        except OSError as error:
            log.warning("can't read the new certificate; keeping the current one: %s", error)
            return False
        self._seen = files
        log.info("certificate replaced")
        return True

    async def watch(self, seconds: float) -> None:
        """Call `reload` at this interval, forever."""
        while True:
            await asyncio.sleep(seconds)
            self.reload()

    def _files(self) -> tuple[bytes, bytes]:
        return self._cert.read_bytes(), self._key.read_bytes()

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._cert, self._key)
        return context

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current
