"""Keys that an identity provider adds, takes out, or cannot give for a while: over https, and in a file."""

import asyncio
import contextlib
import datetime
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from server.ops import jwks
from server.ops.auth import Authenticator, Unauthorized
from server.settings import Settings
from tests.fake_engine import LIMIT, FakeEngine
from tests.serving import client, hear, running, say, until, utterance
from tests.test_server_auth import EC, RSA, token, who

ALWAYS = 3600.0  # a lifetime in which a test is over
CURVE = ec.generate_private_key(ec.SECP256R1())


def key(private: Any, algorithm: str, kid: str) -> dict[str, Any]:
    made: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key(), as_dict=True)
    return made | {"kid": kid, "alg": algorithm}


OLD, NEW = key(EC, "ES256", "old"), key(CURVE, "ES256", "new")
OF_OLD, OF_NEW = token(EC, "ES256", kid="old"), token(CURVE, "ES256", kid="new")


def document(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


class Provider(ThreadingHTTPServer):
    """An https server of 127.0.0.1. ``held`` is set while a request waits for ``gate``."""

    daemon_threads = False  # so that closing it waits for them
    body, status, moved_to = document(OLD), 200, ""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.asked = 0
        self.gate, self.held = threading.Event(), threading.Event()
        self.gate.set()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate(folder), folder / "key.pem")
        self.url = f"https://127.0.0.1:{self.server_port}/jwks"

    def finish_request(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(OSError), self.context.wrap_socket(request, server_side=True) as secure:  # the client may have gone
            super().finish_request(secure, client_address)


class _Answer(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        provider = self.server
        provider.asked += 1
        provider.held.set()
        provider.gate.wait(LIMIT)
        provider.held.clear()
        self.send_response(provider.status)
        if provider.moved_to:
            self.send_header("Location", provider.moved_to)
        self.send_header("Content-Length", str(len(provider.body)))
        self.end_headers()
        self.wfile.write(provider.body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def certificate(folder: Path) -> Path:
    """cert.pem, of 127.0.0.1, beside its key."""
    private, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "provider")])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key()).serial_number(1)
    made = made.not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=9))
    made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private.private_bytes(*plain))
    (folder / "cert.pem").write_bytes(made.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return folder / "cert.pem"


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    with Provider(tmp_path) as made:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.gate.set()
        made.shutdown()
        thread.join()


async def eventually(auth: Authenticator, text: str, *, taken: bool) -> None:
    """Return when the token is taken, or refused."""
    async with asyncio.timeout(LIMIT):
        while (await takes(auth, text)) is not taken:  # noqa: ASYNC110  # the other side's clock decides
            await asyncio.sleep(0.01)


async def takes(auth: Authenticator, text: str) -> bool:
    try:
        await auth.authenticate(text)
    except Unauthorized:
        return False
    return True


async def test_jwks_by_key_id(tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_bytes(document(key(RSA, "RS256", "r"), OLD, {"kty": "unheard of"}, None))
    chosen = Settings(jwks=str(tmp_path / "jwks.json"))
    assert (
        await who(chosen, token(RSA, "RS256", kid="r")) == await who(chosen, OF_OLD) == await who(chosen, token(EC, "ES256")) == "jwt:user"
    )
    with pytest.raises(Unauthorized, match="not known"):
        await who(chosen, token(RSA, "RS256", kid="x"))
    with pytest.raises(ValueError, match="https"):
        Authenticator(Settings(jwks="http://example.org/jwks"))


async def test_a_key_that_is_taken_out_is_refused(provider: Provider) -> None:
    auth = Authenticator(Settings(jwks=provider.url, jwks_ttl=0.1))
    assert await takes(auth, OF_OLD) and not await takes(auth, OF_NEW)
    provider.body = document(OLD, NEW)
    await eventually(auth, OF_NEW, taken=True)
    assert await takes(auth, OF_OLD)
    provider.body = document(NEW)
    await eventually(auth, OF_OLD, taken=False)
    provider.body = document()
    await eventually(auth, OF_NEW, taken=False)
    auth.close()


async def test_a_session_whose_key_is_taken_out_speaks_no_more(tmp_path: Path, voices: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(document(OLD, NEW))
    async with running(voices, FakeEngine(), jwks=str(file), jwks_ttl=0.1) as server, client(f"{server.url}?token={OF_OLD}") as connection:
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[1]["type"] == "complete"
        file.write_bytes(document(NEW))
        await eventually(server.context.auth, OF_OLD, taken=False)
        await say(connection, type="speak", text="Hello.", requestId="r")
        error = await hear(connection)
        assert (error["code"], error["requestId"]) == ("UNAUTHORIZED", "r") and "its key is not known here" in error["message"]
        await say(connection, type="start", authToken=OF_NEW)
        assert (await hear(connection))["type"] == "started"


async def test_a_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(document(OLD))
    auth = Authenticator(Settings(jwks=str(file), jwks_ttl=0.1))
    assert await takes(auth, OF_OLD)
    file.write_bytes(document(NEW))
    await eventually(auth, OF_OLD, taken=False)
    assert await takes(auth, OF_NEW)
    auth.close()


async def test_who_has_a_known_key_does_not_wait_for_a_fetch(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "TIMEOUT", ALWAYS)
    auth = Authenticator(Settings(jwks=provider.url, jwks_ttl=0.1))
    assert await takes(auth, OF_OLD)
    provider.gate.clear()
    await until(lambda: provider.held.is_set())
    assert await asyncio.wait_for(takes(auth, OF_OLD), LIMIT)
    late = asyncio.create_task(takes(auth, OF_NEW))
    await asyncio.sleep(0)
    assert provider.held.is_set() and not late.done(), "the fetch goes on"
    provider.body = document(OLD, NEW)
    provider.gate.set()
    assert await asyncio.wait_for(late, LIMIT), "who has a key that is not known waits for the fetch that is under way"
    auth.close()


async def test_an_unknown_key_id_does_not_fetch_again_and_again(provider: Provider) -> None:
    provider.body = document()
    auth = Authenticator(Settings(jwks=provider.url, jwks_ttl=ALWAYS))
    assert not any(await asyncio.gather(*(takes(auth, token(RSA, "RS256", kid=str(number))) for number in range(5))))
    assert not await takes(auth, OF_OLD)
    assert provider.asked == 1
    auth.close()


async def test_keys_stand_for_a_time_while_they_cannot_be_fetched(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    auth = Authenticator(Settings(jwks=provider.url, jwks_ttl=0.1))
    assert await takes(auth, OF_OLD)
    for provider.status, provider.body in ((500, b""), (200, b"<html>"), (200, b"{}"), (200, b" " * (jwks.MAX_BYTES + 1))):
        before = provider.asked
        while provider.asked < before + 3:
            assert await takes(auth, OF_OLD)
            await asyncio.sleep(0.01)
    assert len([line for line in caplog.messages if "the last keys stand for 60 minutes" in line]) == 1
    monkeypatch.setattr(jwks, "STANDING", 0.05)
    await eventually(auth, OF_OLD, taken=False)
    auth.close()


async def test_a_fetch_that_fails_is_logged_once(provider: Provider, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "server.ops.jwks")
    auth = Authenticator(Settings(jwks=provider.url, jwks_ttl=0.1))
    provider.status = 503
    assert not await takes(auth, OF_OLD)
    await until(lambda: provider.asked > 4)
    [line] = caplog.records
    assert "there are no keys yet: HTTP Error 503" in line.getMessage()
    provider.status = 200
    await until(lambda: len(caplog.records) == 2)
    assert "can be read again" in caplog.records[1].getMessage() and await takes(auth, OF_OLD)
    auth.close()


async def test_a_fetch_that_hangs_ends(provider: Provider, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(jwks, "TIMEOUT", 0.1)
    provider.gate.clear()
    auth = Authenticator(Settings(jwks=provider.url, jwks_ttl=ALWAYS))
    assert not await takes(auth, OF_OLD)
    assert "no answer within 0.1 s" in caplog.text or "timed out" in caplog.text
    auth.close()


async def test_a_redirect_leads_to_https_alone(provider: Provider, caplog: pytest.LogCaptureFixture) -> None:
    provider.status, provider.moved_to = 302, f"http://127.0.0.1:{provider.server_port}/jwks"
    auth = Authenticator(Settings(jwks=provider.url, jwks_ttl=ALWAYS))
    assert not await takes(auth, OF_OLD)
    assert "is not https" in caplog.text
    auth.close()


async def test_a_server_has_the_keys_before_anybody_asks_and_ends_with_them(provider: Provider, voices: Path) -> None:
    async with running(voices, FakeEngine(), jwks=provider.url, jwks_ttl=0.1) as server, server.http_client() as http:
        await until(lambda: provider.asked > 1)
        headers = {"Authorization": f"Bearer {OF_OLD}"}
        assert (await http.get("/api/v1/voices", headers=headers)).status_code == 200
        provider.body = document(NEW)
        await eventually(server.context.auth, OF_OLD, taken=False)
        assert (await http.get("/api/v1/voices", headers=headers)).status_code == 401
    assert not [task for task in asyncio.all_tasks() if "KeySet" in repr(task.get_coro())], "nothing fetches any more"
