"""A token -> who it is. JWT (HS256, RS256, ES256; by secret, PEM or JWKS) and API keys, of which only hashes are kept.

Where auth is off everybody is ``anonymous``, told apart by address for the limits alone.
"""

import hashlib
import secrets
import time
from pathlib import Path
from typing import Any

import jwt
import msgspec

from qwen3_jax.folders import expand
from qwen3_jax.messages import shorten
from qwen3_jax.text import files
from server.crowd import network_of
from server.jwks import KeySet
from server.settings import Settings

ANONYMOUS = "anonymous"
MAX_TOKEN = 8192  # characters
LEEWAY = 10.0  # seconds by which clocks may differ


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
        self._keys = read_keys(settings.api_keys) if settings.api_keys is not None else {}
        self._secret = None if settings.jwt_secret is None else settings.jwt_secret.get_secret_value()
        self._pems = {"ES256": _pem(settings.jwt_public_key), "RS256": _pem(settings.jwt_rsa_public_key)}
        base = None if settings.supabase_url is None else settings.supabase_url.rstrip("/") + "/auth/v1"
        location = settings.jwks or (f"{base}/.well-known/jwks.json" if base is not None else None)
        self._jwks = None if location is None else KeySet(location, settings.jwks_ttl)
        self._issuer, self._audience = settings.jwt_issuer or base, settings.jwt_audience
        if base is not None and self._audience is None:
            self._audience = "authenticated"

    def start(self) -> None:
        """Fetch the JWKS ahead, if there is one. In the event loop."""
        if self._jwks is not None:
            self._jwks.start()

    def close(self) -> None:
        """Fetch no more."""
        if self._jwks is not None:
            self._jwks.close()

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
        digest = hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()
        if digest in self._keys:
            name = f"key:{self._keys[digest]}"
            return Principal(name, name)
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
        except (jwt.PyJWTError, UnicodeError) as error:
            raise Unauthorized(f"the token is not valid: {shorten(str(error))}") from error
        name = f"jwt:{claims['sub']}"
        return Principal(name, name, float(claims["exp"]))

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


def _pem(value: str | None) -> str | None:
    """A PEM, or the file of one; ``\\n`` in an environment variable is a line break."""
    if value is None:
        return None
    text = value.replace("\\n", "\n") if value.lstrip().startswith("-----BEGIN") else files.read(Path(expand(value)))
    if "PUBLIC KEY" not in text:
        raise ValueError("a JWT public key must be PEM (-----BEGIN PUBLIC KEY-----), or the path of such a file")
    return text


def new_key(name: str) -> tuple[str, str]:
    """A fresh API key and the line that the key file keeps of it."""
    key = f"tts-{secrets.token_urlsafe(32)}"
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


def read_keys(path: Path) -> dict[str, str]:
    """A key file -> {sha256: name}.

    Raises:
        ValueError: a line that is not name:sha256.
    """
    found = {}
    for number, line in enumerate(files.read(Path(expand(path))).splitlines(), 1):
        name, _, digest = line.strip().partition(":")
        if not line.strip() or line.startswith("#"):
            continue
        if not name or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ValueError(f"{path}, line {number}: must be name:sha256; make one with python -m server key NAME")
        found[digest] = name
    return found
