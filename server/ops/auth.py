"""A token -> who it is. JWT (HS256, RS256, ES256; by secret, PEM or JWKS) and API keys, of which only hashes are kept.

Where auth is off everybody is ``anonymous``, told apart by address for the limits alone.
"""

import logging
import time
from pathlib import Path
from typing import Any

import jwt
import msgspec

from qwen3_jax.checkpoint.folders import expand
from qwen3_jax.messages import shorten
from qwen3_jax.text import files
from server.ops.crowd import network_of
from server.ops.jwks import KeySet
from server.ops.keys import KeyFile
from server.settings import Settings

ANONYMOUS = "anonymous"
MAX_TOKEN = 8192  # characters
LEAST_SECRET = 32  # bytes (RFC 7518, 3.2)
UNREADABLE = (jwt.PyJWTError, UnicodeError, OverflowError, RecursionError)  # older PyJWT lets the last one, of nested JSON, through
LEEWAY = 10.0  # seconds by which clocks may differ
log = logging.getLogger(__name__)


class Unauthorized(ValueError):
    """No token, or one that is not valid; the message says what is wrong and nothing about keys."""


class Principal(msgspec.Struct, frozen=True):
    """Who asks. ``id`` owns voices; limits count by ``bucket``; ``expires`` is seconds since 1970."""

    id: str
    bucket: str
    expires: float | None = None

    @property
    def expired(self) -> bool:
        return self.expires is not None and time.time() > self.expires + LEEWAY


class Authenticator:
    """All keys of the settings.

    Raises:
        ValueError, FileNotFoundError: a key that cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self.required = settings.auth_required
        self._keys = None if settings.api_keys is None else KeyFile(settings.api_keys)
        self._secret = None if settings.jwt_secret is None else settings.jwt_secret.get_secret_value()
        if self._secret is not None and len(self._secret.encode()) < LEAST_SECRET:
            length = f"TTS_JWT_SECRET has {len(self._secret.encode())} bytes"
            log.warning("%s, which can be guessed: HS256 asks for %d or more; openssl rand -base64 32 makes one", length, LEAST_SECRET)
        self._pems = {
            "ES256": _pem("TTS_JWT_PUBLIC_KEY", settings.jwt_public_key),
            "RS256": _pem("TTS_JWT_RSA_PUBLIC_KEY", settings.jwt_rsa_public_key),
        }
        base = None if settings.supabase_url is None else settings.supabase_url.rstrip("/") + "/auth/v1"
        location = settings.jwks or (f"{base}/.well-known/jwks.json" if base is not None else None)
        self._jwks = None if location is None else KeySet(location, settings.jwks_ttl)
        self._issuer, self._audience = settings.jwt_issuer or base, settings.jwt_audience
        if base is not None and self._audience is None:
            self._audience = "authenticated"
        self._takes_jwt = any(one is not None for one in (self._secret, self._jwks, *self._pems.values()))

    def start(self) -> None:
        """Keep the keys of files and addresses fresh. In the event loop."""
        for kept in (self._keys, self._jwks):
            if kept is not None:
                kept.start()

    def close(self) -> None:
        """Keep them fresh no more."""
        for kept in (self._keys, self._jwks):
            if kept is not None:
                kept.close()

    def anonymous(self, address: str) -> Principal:
        """Somebody who has said nothing. An IPv6 user, who has 2^64 addresses, is counted once."""
        return Principal(ANONYMOUS, f"ip:{network_of(address)}")

    async def authenticate(self, token: str | None) -> Principal:
        """Who the token is.

        Raises:
            Unauthorized: see there.
        """
        if not token:
            raise Unauthorized("no token: send authToken in start, an Authorization: Bearer header, or a token query")
        if len(token) > MAX_TOKEN:
            raise Unauthorized(f"a token of {len(token)} characters: at most {MAX_TOKEN} are taken")
        if self._keys is not None and (owner := self._keys.name(token)) is not None:
            return Principal(f"key:{owner}", f"key:{owner}")
        if not self._takes_jwt or token.count(".") != 2:  # header.payload.signature
            raise Unauthorized("no such key: ask the operator for one" if self._keys is not None else "no such key: this server takes JWTs")
        try:
            header = jwt.get_unverified_header(token)
            key = await self._key(str(header.get("alg")), header.get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=[str(header["alg"])],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "sub"], "verify_aud": self._audience is not None},
            )
            if not claims["sub"].strip():
                raise jwt.InvalidTokenError("Subject must not be empty")
            name, expires = f"jwt:{claims['sub'].encode().decode()}", float(claims["exp"])
        except UNREADABLE as error:
            raise Unauthorized(f"the token is not valid: {shorten(str(error))}") from error
        return Principal(name, name, expires)

    async def _key(self, algorithm: str, kid: Any) -> Any:
        if algorithm == "HS256" and self._secret is not None:
            return self._secret
        if algorithm in self._pems:
            if (pem := self._pems[algorithm]) is not None:
                return pem
            if self._jwks is not None:
                if (found := await self._jwks.find(algorithm, kid)) is None:
                    raise jwt.InvalidKeyError("its key is not known here")
                return found.key
        raise jwt.InvalidAlgorithmError("its algorithm is not one that is accepted here")


def _pem(setting: str, value: str | None) -> str | None:
    """A PEM, or the file of one; ``\\n`` in an environment variable is a line break."""
    if value is None:
        return None
    try:
        text = value.replace("\\n", "\n") if value.lstrip().startswith("-----BEGIN") else files.read(Path(expand(value)))
    except OSError as error:
        raise OSError(
            f"{setting} = {shorten(repr(value))}: {error.strerror}: give a PEM (-----BEGIN PUBLIC KEY-----), or its file"
        ) from error
    if "PUBLIC KEY" not in text:
        raise ValueError(f"{setting}: must be PEM (-----BEGIN PUBLIC KEY-----), or the path of such a file")
    return text
