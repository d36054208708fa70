"""API keys: from the environment and a file, compared in a time that says nothing of them."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from bll_pyro.serve.settings import KEY_VARIABLE, ServiceSettings

SHORTEST = 16  # characters of a key


@dataclass(frozen=True)
class Keys:
    """The keys that are taken, as SHA-256; none: everyone is served.

    Parameters
    ----------
    digests
        Of the keys.
    """

    digests: tuple[bytes, ...] = ()

    @classmethod
    def read(cls, settings: ServiceSettings) -> Keys:
        """The keys that the settings name.

        Raises
        ------
        ValueError
            If a key is short, or the file has none: a service that was to be locked is never left open.
        """
        found = []
        if KEY_VARIABLE in settings.environment:
            found.append((KEY_VARIABLE, settings.environment[KEY_VARIABLE].strip()))
        if settings.key_file is not None:
            lines = [line.strip() for line in settings.key_file.read_text(encoding="utf-8").splitlines()]
            keys = [line for line in lines if line and not line.startswith("#")]
            if not keys:
                raise ValueError(f"{settings.key_file}: expected one key a line, got none")
            found += [(str(settings.key_file), key) for key in keys]
        for place, key in found:
            if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError(
                    f"{place}: expected keys of at least {SHORTEST} letters and digits, got another one; make one by "
                    "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
                )
        return cls(tuple(_digest(key.encode()) for _, key in found))

    def accept(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a request has a key, as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``.

        All keys are compared, and digests instead of the keys, so that the time does not tell which letters were right.
        """
        if not self.digests:
            return True
        given = headers.get(b"x-api-key", b"")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            given = token
        digest = _digest(given.strip())
        return sum([hmac.compare_digest(digest, known) for known in self.digests]) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
