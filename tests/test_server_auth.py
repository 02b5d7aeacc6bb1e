"""Who may ask, and how much: JWT of three kinds, API keys, browsers' origins, deadlines, limits, and voices of others."""

import base64
import hashlib
import hmac
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from websockets.exceptions import InvalidStatus

from server.http.origins import origin_allowed
from server.ops.auth import LEEWAY, Authenticator, Unauthorized
from server.ops.keys import KeyFile, new_key, read_keys
from server.ops.limits import Limited, Quotas
from server.settings import Settings
from tests.fake_engine import LIMIT, FakeEngine
from tests.serving import client, closed, connect, hear, running, say, until, utterance
from tests.test_server_voices import CONSENT, sound, speech

DAY = 86_400.0  # no run takes as long
SECRET = "a secret of more than thirty-two bytes"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


def pem(key: Any) -> str:
    public: bytes = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return public.decode()


def token(key: Any = SECRET, algorithm: str = "HS256", *, kid: str | None = None, **claims: Any) -> str:
    made = {"sub": "user", "exp": time.time() + DAY} | claims
    return jwt.encode({name: value for name, value in made.items() if value is not None}, key, algorithm, {"kid": kid} if kid else None)


async def who(settings: Settings, text: str | None) -> str:
    return (await Authenticator(settings).authenticate(text)).id


async def test_three_algorithms_and_keys_in_files(tmp_path: Path) -> None:
    (tmp_path / "ec.pem").write_text(pem(EC))
    chosen = Settings(jwt_secret=SECRET, jwt_public_key=str(tmp_path / "ec.pem"), jwt_rsa_public_key=pem(RSA).replace("\n", "\\n"))
    for made in (token(), token(EC, "ES256"), token(RSA, "RS256")):
        assert await who(chosen, made) == "jwt:user"


@pytest.mark.parametrize(
    "made",
    [
        None,
        "",
        "nonsense",
        "a.b.c",
        "\udc00",
        token("another secret of more than thirty-two bytes"),
        token(exp=time.time() - 60),
        token(exp=None),
        token(sub=None),
        token(aud="others"),
        token(iss="others", aud="us"),
        token(RSA, "RS256"),
        jwt.encode({"sub": "user", "exp": time.time() + DAY, "aud": "us", "iss": "we"}, None, "none"),
        token(aud="us", iss="we", nbf=time.time() + DAY),
    ],
)
async def test_what_is_not_valid_is_refused(made: str | None) -> None:
    chosen = Settings(jwt_secret=SECRET, jwt_audience="us", jwt_issuer="we")
    with pytest.raises(Unauthorized):
        await who(chosen, made)
    assert await who(chosen, token(aud="us", iss="we")) == "jwt:user"


def signed(header: str, claims: str) -> str:
    """A token of any JSON, which PyJWT would not make."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    body = f"{part(header.encode())}.{part(claims.encode())}"
    return f"{body}.{part(hmac.digest(SECRET.encode(), body.encode(), hashlib.sha256))}"


ODD_TOKENS = {
    "nested header": signed("[" * 3000, "{}"),
    "nested claims": signed('{"alg": "HS256"}', "[" * 3000),
    "end beyond floats": signed('{"alg": "HS256"}', '{"sub": "user", "exp": 1' + "0" * 400 + "}"),
    "endless": signed('{"alg": "HS256"}', '{"sub": "user", "exp": Infinity}'),
    "no end": signed('{"alg": "HS256"}', '{"sub": "user", "exp": NaN}'),
    "nobody": signed('{"alg": "HS256"}', '{"sub": " ", "exp": 9000000000}'),
    "half a surrogate pair": signed('{"alg": "HS256"}', '{"sub": "\\ud800", "exp": 9000000000}'),
}


@pytest.mark.parametrize("made", ODD_TOKENS.values(), ids=ODD_TOKENS)
async def test_odd_tokens_are_refused_on_every_route(made: str, voices: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert await who(Settings(jwt_secret=SECRET), signed('{"alg": "HS256"}', '{"sub": "user", "exp": 9000000000}')) == "jwt:user"
    async with running(voices, FakeEngine(), jwt_secret=SECRET) as server:
        async with server.http_client() as http:
            answer = await http.get("/v1/models", headers={"Authorization": f"Bearer {made}"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "UNAUTHORIZED")
        async with client(server.url) as connection:
            await say(connection, type="start", authToken=made)
            assert (await hear(connection))["code"] == "UNAUTHORIZED"
            assert await closed(connection) == 4401
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_secret_that_can_be_guessed_is_told(caplog: pytest.LogCaptureFixture) -> None:
    Authenticator(Settings(jwt_secret=SECRET))
    assert not caplog.records
    Authenticator(Settings(jwt_secret="short"))
    assert "TTS_JWT_SECRET has 5 bytes" in caplog.text and "openssl rand -base64 32" in caplog.text and "short" not in caplog.text


async def test_over_http_the_refusal_names_the_header(voices: Path) -> None:
    async with running(voices, FakeEngine(), jwt_secret=SECRET) as server, server.http_client() as http:
        answer = await http.get("/v1/models", params={"token": token()})
    assert (answer.status_code, answer.json()["error"]["message"]) == (401, "no token: send the header Authorization: Bearer TOKEN")


@pytest.mark.parametrize("name", ["", " ", "a:b", "#a", "a\nb", " a", "a ", "\x1b[2J"])
def test_a_name_that_the_file_would_not_give_back_gets_no_key(name: str) -> None:
    with pytest.raises(ValueError, match="letters without a colon are taken"):
        new_key(name)


async def test_a_public_key_is_no_secret() -> None:
    """The classic confusion: HS256 with the RSA key's own PEM as its secret."""

    def part(value: Any) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    body = part({"alg": "HS256"}) + b"." + part({"sub": "user", "exp": time.time() + DAY})
    signed = body + b"." + base64.urlsafe_b64encode(hmac.digest(pem(RSA).encode(), body, hashlib.sha256)).rstrip(b"=")
    with pytest.raises(Unauthorized):
        await who(Settings(jwt_rsa_public_key=pem(RSA)), signed.decode())


def test_a_key_that_is_taken_out_of_its_file_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (one, first), (two, second) = new_key("one"), new_key("two")
    path = tmp_path / "keys"
    path.write_text(f"{first}\n{second}\n", "utf-8")
    keys = KeyFile(path)
    assert (keys.name(one), keys.name(two), keys.name(first)) == ("one", "two", None)
    path.write_text(f"{second}\n", "utf-8")
    keys.refresh()
    assert (keys.name(one), keys.name(two)) == (None, "two")
    for _ in range(3):
        path.write_text("no key at all", "utf-8")
        keys.refresh()
        assert keys.name(two) == "two", "the last keys stand"
    assert sum("must be name:sha256" in record.message for record in caplog.records) == 1
    path.unlink()
    keys.refresh()
    path.write_text(f"{first}\n", "utf-8")
    keys.refresh()
    assert (keys.name(one), keys.name(two)) == ("one", None)


async def test_a_server_looks_at_its_key_file(tmp_path: Path, voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.ops.keys.LOOK_SECONDS", 0.02)
    key, line = new_key("one")
    (tmp_path / "keys").write_text(f"{line}\n", "utf-8")
    async with running(voices, FakeEngine(), api_keys=tmp_path / "keys") as server, server.http_client() as http:
        headers = {"Authorization": f"Bearer {key}"}
        assert (await http.get("/api/v1/voices", headers=headers)).status_code == 200
        (tmp_path / "keys").write_text("", "utf-8")
        await until(lambda: server.context.auth._keys.name(key) is None)
        assert (await http.get("/api/v1/voices", headers=headers)).status_code == 401


async def test_api_keys_are_kept_as_hashes(tmp_path: Path) -> None:
    key, line = new_key("operator")
    assert key not in line
    (tmp_path / "keys").write_text(f"# ours\n{line}\n\n")
    assert await who(Settings(api_keys=tmp_path / "keys"), key) == "key:operator"
    with pytest.raises(Unauthorized):
        await who(Settings(api_keys=tmp_path / "keys"), line.split(":")[1])
    (tmp_path / "bad").write_text("operator:123\n")
    with pytest.raises(ValueError, match=r"line 1.*python -m server key"):
        read_keys(tmp_path / "bad")
    made = subprocess.run([sys.executable, "-m", "server", "key", "me"], capture_output=True, text=True, timeout=5 * LIMIT, check=True)
    (tmp_path / "made").write_text(made.stdout)
    assert await who(Settings(api_keys=tmp_path / "made"), made.stderr.split()[-1]) == "key:me"


def test_a_key_file_may_begin_with_a_byte_order_mark_and_lie_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    line = new_key("anna")[1]
    (tmp_path / "keys").write_text(f"{line}\n", "utf-8-sig")
    assert list(read_keys(Path("~/keys")).values()) == ["anna"]
    (tmp_path / "keys").write_text(f"{line}\n", "utf-16")
    with pytest.raises(ValueError, match="keys is not UTF-8: it looks like UTF-16; save it as UTF-8"):
        read_keys(Path("~/keys"))


def test_only_loopback_is_served_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="TTS_AUTH=off"):
        Settings(host="0.0.0.0")
    assert not Settings(host="0.0.0.0", auth="off").auth_required
    assert Settings(host="0.0.0.0", jwt_secret=SECRET).auth_required
    assert not Settings(jwt_secret=SECRET, auth="off").auth_required
    monkeypatch.setenv("SUPABASE_URL", "https://x.supabase.co")
    monkeypatch.setenv("SUPABASE_JWT_PUBLIC_KEY", pem(EC))
    chosen = Settings()
    assert (chosen.auth_required, chosen.jwt_public_key) == (True, pem(EC))
    assert SECRET not in (shown := Settings(jwt_secret=SECRET).changed()) and "TTS_JWT_SECRET=" in shown


def test_names_without_a_prefix_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TTS_{name.upper()}", raising=False)
        if name != "host":
            monkeypatch.setenv(name.upper(), "of another program")
    monkeypatch.delenv("SUPABASE_URL")
    assert Settings().changed() == ""
    monkeypatch.setenv("SUPABASE_URL", "https://b.supabase.co")
    monkeypatch.setenv("SUPABASE_JWT_PUBLIC_KEY", pem(EC))
    assert (Settings().supabase_url, Settings().jwt_public_key) == ("https://b.supabase.co", pem(EC))
    monkeypatch.setenv("TTS_SUPABASE_URL", "https://a.supabase.co")
    assert Settings().supabase_url == "https://a.supabase.co"
    assert Settings(supabase_url="https://c.supabase.co").supabase_url == "https://c.supabase.co"


async def test_supabase_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Settings(supabase_url="https://x.supabase.co/", jwt_public_key=pem(EC))
    assert await who(chosen, token(EC, "ES256", aud="authenticated", iss="https://x.supabase.co/auth/v1")) == "jwt:user"
    with pytest.raises(Unauthorized):
        await who(chosen, token(EC, "ES256", aud="anon", iss="https://x.supabase.co/auth/v1"))


async def test_a_token_in_start_in_the_header_or_in_the_query(voices: Path) -> None:
    engine = FakeEngine()
    async with running(voices, engine, jwt_secret=SECRET) as server:
        async with client(server.url) as connection:
            await say(connection, type="start", authToken=token())
            assert (await hear(connection))["type"] == "started"
            await say(connection, type="speak", text="Hello.")
            assert (await utterance(connection))[1]["type"] == "complete"
        headers = {"Authorization": f"Bearer {token()}"}
        for url, options in ((server.url, {"additional_headers": headers}), (f"{server.url}?token={token()}", {})):
            async with client(url, **options) as connection:
                await say(connection, type="speak", text="Hello.")
                assert (await utterance(connection))[1]["type"] == "complete"


async def test_without_a_valid_token_nothing_is_done(voices: Path) -> None:
    engine = FakeEngine()
    async with running(voices, engine, wait=False, jwt_secret=SECRET, load="lazy") as server:
        for message in ({"type": "start"}, {"type": "start", "authToken": "x"}, {"type": "speak", "text": "Hello."}):
            async with client(server.url) as connection:
                await say(connection, **message)
                error = await hear(connection)
                assert (error["code"], error["recoverable"]) == ("UNAUTHORIZED", False)
                assert await closed(connection) == 4401
        async with connect(f"{server.url}?token=x") as connection:
            assert (await hear(connection))["code"] == "UNAUTHORIZED"
            assert await closed(connection) == 4401
        async with server.http_client() as http:
            for method, path in (
                ("GET", "/api/v1/voices"),
                ("POST", "/api/v1/voices"),
                ("GET", "/metrics"),
                ("DELETE", "/api/v1/voices/anna"),
            ):
                answer = await http.request(method, path)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert (await http.get("/healthz")).status_code == 200
    assert (engine.loads, engine.requests) == (0, [])


async def test_the_deadline_for_a_token(voices: Path) -> None:
    async with running(voices, FakeEngine(), jwt_secret=SECRET, auth_timeout=0.1) as server, client(server.url) as connection:
        assert "no valid token" in (await hear(connection))["message"]
        assert await closed(connection) == 4408


async def test_a_token_that_expires_is_renewed_by_start(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(voices, FakeEngine(), jwt_secret=SECRET) as server, client(server.url) as connection:
        await say(connection, type="start", authToken=token(exp=time.time() + DAY))
        assert (await hear(connection))["type"] == "started"
        later = time.time() + DAY + LEEWAY + 1
        monkeypatch.setattr("server.ops.auth.time", SimpleNamespace(time=lambda: later))
        await say(connection, type="speak", text="Hello.", requestId="r")
        error = await hear(connection)
        assert (error["code"], error["recoverable"], error["requestId"]) == ("UNAUTHORIZED", True, "r")
        await say(connection, type="start", authToken=token(exp=later + DAY))
        assert (await hear(connection))["type"] == "started"
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[1]["type"] == "complete"


@pytest.mark.parametrize("change", ["taken away", "another's"])
async def test_a_session_whose_key_is_taken_away_speaks_no_more(
    tmp_path: Path, voices: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr("server.ops.keys.LOOK_SECONDS", 0.02)
    (key, line), (fresh, other) = new_key("one"), new_key("two")
    (tmp_path / "keys").write_text(f"{line}\n{other}\n", "utf-8")
    left = other if change == "taken away" else f"{line.replace('one:', 'somebody-else:')}\n{other}"
    why = "no such key" if change == "taken away" else "another client's now"
    engine = FakeEngine()
    async with running(voices, engine, api_keys=tmp_path / "keys") as server:
        async with client(f"{server.url}?token={key}") as connection, client(server.url) as quiet:
            await say(quiet, type="start", authToken=key)
            assert (await hear(quiet))["type"] == "started"
            for one in (connection, quiet):
                await say(one, type="speak", text="Hello.")
                assert (await utterance(one))[1]["type"] == "complete"
            (tmp_path / "keys").write_text(f"{left}\n", "utf-8")
            await until(lambda: server.context.auth._keys.name(key) != "one")
            for one in (connection, quiet):
                for more in ({}, {"continue": True}):
                    await say(one, type="speak", text="Hello.", requestId="r", **more)
                    error = await hear(one)
                    assert (error["code"], error["requestId"], error["final"]) == ("UNAUTHORIZED", "r", True)
                    assert why in error["message"] and "send start with a fresh authToken" in error["message"]
            assert len(engine.requests) == 2
            await say(connection, type="start", authToken=fresh)
            assert (await hear(connection))["type"] == "started"
            await say(connection, type="speak", text="Hello.")
            assert (await utterance(connection))[1]["type"] == "complete"
            await say(quiet, type="start")
            assert (await hear(quiet))["code"] == "UNAUTHORIZED"
            assert await closed(quiet) == 4401
        assert [request.owner for request in engine.requests] == ["key:one", "key:one", "key:two"]


async def test_voices_of_others_are_invisible(voices: Path) -> None:
    mine, theirs = ({"Authorization": f"Bearer {token(sub=name)}"} for name in ("me", "them"))
    async with running(voices, FakeEngine(), jwt_secret=SECRET) as server, server.http_client() as http:
        made = (await http.post("/api/v1/voices", headers=mine, files={"audio": ("a.wav", sound(speech()))}, data=CONSENT)).json()["id"]
        for headers, seen in ((mine, 3), (theirs, 2)):
            assert len((await http.get("/api/v1/voices", headers=headers)).json()["voices"]) == seen
        for method, path in (("GET", f"/api/v1/voices/{made}/sample.wav"), ("DELETE", f"/api/v1/voices/{made}")):
            assert (await http.request(method, path, headers=theirs)).status_code == 404
        async with client(server.url, additional_headers=theirs) as connection:
            await say(connection, type="speak", text="Hello.", voice=made)
            error = await hear(connection)
            assert error["code"] == "VOICE_NOT_FOUND"
            assert made not in error["message"].split("is not here", 1)[1]
        async with connect(server.url) as connection:
            assert made not in (await hear(connection))["capabilities"]["voices"]
        async with connect(server.url, additional_headers=mine) as connection:
            assert made in (await hear(connection))["capabilities"]["voices"]
        assert (await http.delete(f"/api/v1/voices/{made}", headers=mine)).status_code == 204


@pytest.mark.parametrize(
    ("origin", "host", "chosen", "allowed"),
    [
        (None, "localhost:8000", {}, True),
        ("http://localhost:8000", "localhost:8000", {}, True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", {}, True),
        ("http://evil.example", "localhost:8000", {}, False),
        ("null", "localhost:8000", {}, False),
        ("http://[", "localhost:8000", {}, False),  # urlsplit raises
        ("http://[::1", "[::1:8000", {"jwt_secret": SECRET}, False),
        ("http://evil.example:8000", "evil.example:8000", {}, False),  # DNS rebinding
        ("https://tts.example", "tts.example", {"jwt_secret": SECRET}, True),
        ("https://app.example", "tts.example", {"jwt_secret": SECRET}, False),
        ("https://app.example", "tts.example", {"allowed_origins": "https://app.example, https://b.example"}, True),
        ("https://any.example", "tts.example", {"allowed_origins": "*"}, True),
    ],
)
def test_origins(origin: str | None, host: str, chosen: dict[str, Any], allowed: bool) -> None:
    assert origin_allowed(Settings(**chosen), origin, host) is allowed


async def test_pages_of_other_origins_are_kept_out(voices: Path) -> None:
    chosen = {"allowed_origins": "https://app.example"}
    async with running(voices, FakeEngine(), **chosen) as server, server.http_client() as http:
        with pytest.raises(InvalidStatus) as refused:
            await connect(server.url, origin="http://evil.example")
        assert refused.value.response.status_code == 403
        async with client(server.url, origin="https://app.example"):
            pass
        assert (await http.get("/api/v1/voices", headers={"Origin": "http://evil.example"})).status_code == 403
        answer = await http.options("/api/v1/voices", headers={"Origin": "https://app.example", "Access-Control-Request-Method": "POST"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, "https://app.example")


@pytest.fixture
def one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is counted is counted at once, however long the test takes."""
    now = time.time()
    monkeypatch.setattr("limits.storage.memory.time", SimpleNamespace(time=lambda: now))


@pytest.mark.usefixtures("one_moment")
async def test_limits_of_a_principal(voices: Path) -> None:
    chosen = {"limit_utterances": 2, "limit_characters": 30, "limit_sessions": 2}
    async with running(voices, FakeEngine(), jwt_secret=SECRET, **chosen) as server:
        mine = {"Authorization": f"Bearer {token(sub='me')}"}
        async with client(server.url, additional_headers=mine) as connection, client(server.url, additional_headers=mine):
            for text, code in (("Hello.", None), ("x" * 30, "RATE_LIMITED"), ("Hello.", None), ("Hello.", "RATE_LIMITED")):
                await say(connection, type="speak", text=text, requestId="r")
                message = (await utterance(connection))[1]
                assert message.get("code") == code
                if code is not None:
                    assert 0 < message["retryAfterMs"] <= 60_000
                    assert message["requestId"] == "r"
            async with connect(server.url, additional_headers=mine) as third:
                assert (await hear(third))["code"] == "RATE_LIMITED"
                assert await closed(third) == 4429
            async with client(server.url, additional_headers={"Authorization": f"Bearer {token(sub='another')}"}) as other:
                await say(other, type="speak", text="Hello.")
                assert (await utterance(other))[1]["type"] == "complete"


@pytest.mark.usefixtures("one_moment")
async def test_addresses_behind_a_trusted_proxy(voices: Path) -> None:
    for proxies, codes in ((0, [None, 4429]), (1, [None, None])):
        async with running(voices, FakeEngine(), proxies=proxies, limit_connects=1) as server:
            seen = []
            for address in ("1.1.1.1", "2.2.2.2"):
                async with connect(server.url, additional_headers={"X-Forwarded-For": f"9.9.9.9, {address}"}) as connection:
                    seen.append(None if (await hear(connection))["type"] == "ready" else await closed(connection))
            assert seen == codes


@pytest.mark.usefixtures("one_moment")
async def test_an_ipv6_network_is_one_user(voices: Path) -> None:
    async with running(voices, FakeEngine(), proxies=1, limit_connects=1) as server:
        seen = []
        for address in ("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1", "::ffff:1.1.1.1", "1.1.1.1"):
            async with connect(server.url, additional_headers={"X-Forwarded-For": address}) as connection:
                seen.append(None if (await hear(connection))["type"] == "ready" else await closed(connection))
        assert seen == [None, 4429, None, None, 4429]


@pytest.mark.usefixtures("one_moment")
async def test_a_flood_of_connects_is_held_off(voices: Path) -> None:
    """1000 connects within a minute from one address: the allowed ones get a session, all others 4429, and the server stays small."""
    codes: list[int | None] = []
    async with running(voices, FakeEngine()) as server:
        for _ in range(1000):
            async with connect(server.url) as connection:
                if (await hear(connection))["type"] == "ready":
                    codes.append(None)
                else:
                    codes.append(await closed(connection))
        assert len(server.context.sessions) <= 1
    assert codes.count(None) == 120
    assert set(codes[120:]) == {4429}


@pytest.mark.usefixtures("one_moment")
async def test_uploads_have_a_limit(voices: Path) -> None:
    async with running(voices, FakeEngine(), limit_uploads=1) as server, server.http_client() as http:
        statuses = [(await http.post("/api/v1/voices", data=CONSENT)) for _ in range(2)]
        assert [answer.status_code for answer in statuses] == [400, 429]
        assert statuses[1].json()["error"]["retryAfterMs"] > 0
        assert int(statuses[1].headers["retry-after"]) > 0


@pytest.mark.usefixtures("one_moment")
async def test_what_is_too_much_is_not_counted() -> None:
    limits = Quotas(Settings(limit_characters=10))
    someone = Authenticator(Settings()).anonymous("1.2.3.4")
    await limits.count(someone, "characters", 6)
    with pytest.raises(Limited, match="more than 10 characters in one minute"):
        await limits.count(someone, "characters", 5)
    await limits.count(someone, "characters", 4)
