"""Which Host, and which pages of browsers: HTTP and WebSocket alike, before any route."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from websockets.exceptions import InvalidStatus

from server.http.origins import MAX_ASKED_HEADERS, host_allowed, hostname, origin_allowed
from server.settings import Settings
from tests.fake_engine import LIMIT, FakeEngine
from tests.serving import Server, client, connect, running
from tests.test_server_auth import SECRET
from tests.test_server_transport import HANDSHAKE

KEY = {"jwt_secret": SECRET}
LAN = {"host": "0.0.0.0", "auth": "off"}
NAMED = {"allowed_hosts": "tts.example:8443, *.tts.example"}


@pytest.mark.parametrize(
    ("host", "chosen", "allowed"),
    [
        ("", {}, True),  # HTTP/1.0, which no browser speaks
        ("localhost", {}, True),
        ("LOCALHOST:1", {}, True),
        ("localhost.", {}, True),
        ("tts.localhost:8000", {}, True),
        ("127.0.0.1:8000", {}, True),
        ("127.9.9.9", {}, True),
        ("[::1]:8000", {}, True),
        ("[::ffff:127.0.0.1]", {}, True),
        ("evil.example", {}, False),
        ("evil.example:8000", {}, False),
        ("localhost.evil.example", {}, False),
        ("evil-localhost", {}, False),
        ("192.168.1.5", {}, False),
        ("tts", {}, False),
        ("0.0.0.0", {}, False),
        ("localhost:x", {}, False),
        ("localhost@evil.example", {}, False),
        ("evil.example@localhost", {}, False),
        ("localhost/", {}, False),
        ("localhost evil", {}, False),
        ("[::1", {}, False),
        ("[", {}, False),
        (":8000", {}, False),
        ("tts.example", NAMED, True),
        ("TTS.example:1", NAMED, True),
        ("a.tts.example", NAMED, True),
        ("a-tts.example", NAMED, False),
        ("tts.example.evil.example", NAMED, False),
        ("localhost", NAMED, True),
        ("anything.example", {"allowed_hosts": "*"}, True),
        ("tts.example", KEY, True),  # who asks has to say so: a page that came by a name of its own cannot
        ("tts.example", KEY | NAMED, True),
        ("evil.example", KEY | NAMED, False),
        ("evil.example", KEY | NAMED | {"host": "0.0.0.0"}, False),
        ("anything.example", KEY | {"host": "0.0.0.0"}, True),
        ("192.168.1.5:8000", LAN, True),
        ("[2001:db8::1]", LAN, True),
        ("tts:8000", LAN, True),
        ("printer.local", LAN, True),
        ("evil.example", LAN, False),
        ("10.0.0.1:8000", LAN | NAMED, True),  # as Kubernetes' probes and Prometheus ask, whatever names clients use
        ("[2001:db8::1]:8000", KEY | NAMED | {"host": "0.0.0.0"}, True),
        ("tts", LAN | NAMED, False),
        ("192.168.1.5", NAMED, False),
        ("10.0.0.1.evil.example", LAN | NAMED, False),
        ("tts.lan.example", {"host": "tts.lan.example", "auth": "off"}, True),
    ],
)
def test_hosts(host: str, chosen: dict[str, Any], allowed: bool) -> None:
    assert host_allowed(Settings(**chosen), host) is allowed


@pytest.mark.parametrize(
    ("origin", "host", "chosen", "allowed"),
    [
        ("http://localhost:3000", "127.0.0.1:8000", {}, True),  # a page that somebody develops
        ("http://127.0.0.1:5173", "localhost:8000", {}, True),
        ("https://app.localhost", "[::1]:8000", {}, True),
        ("http://localhost:3000", "localhost:8000", KEY, True),
        ("http://localhost:3000", "127.0.0.1:8000", {"proxies": 1}, False),  # the Host is the proxy's word: whose loopback is it?
        ("http://localhost:3000", "tts.example", KEY, False),
        ("http://localhost:3000", "192.168.1.5:8000", LAN, False),
        ("http://localhost.evil.example", "localhost:8000", {}, False),
        ("http://evil.example:8000", "127.0.0.1:8000", {}, False),
        ("http://192.168.1.5:8000", "192.168.1.5:8000", LAN, True),
        ("chrome-extension://abc", "localhost:8000", {}, False),
        ("chrome-extension://abc", "localhost:8000", {"allowed_origins": "chrome-extension://*"}, True),
        ("tauri://localhost", "localhost:8000", {}, False),
        ("tauri://localhost", "localhost:8000", {"allowed_origins": "tauri://localhost"}, True),
        ("null", "localhost:8000", {}, False),
        ("null", "localhost:8000", {"allowed_origins": "null"}, True),
        ("https://app.example", "localhost:8000", {"allowed_origins": "https://App.example/"}, True),
        ("https://a.app.example", "localhost:8000", {"allowed_origins": "https://*.app.example"}, True),
        ("https://evil.example/.app.example", "localhost:8000", {"allowed_origins": "https://*.app.example"}, False),
        ("https://app.example.evil", "localhost:8000", {"allowed_origins": "https://app.example"}, False),
        ("http://10.0.0.1:3000", "localhost:8000", {"allowed_origins": "http://10.0.0.1:*"}, True),
        ("http://localhost:x", "localhost:x", {}, False),
        ("http://", "localhost:8000", {}, False),
    ],
)
def test_pages(origin: str, host: str, chosen: dict[str, Any], allowed: bool) -> None:
    assert origin_allowed(Settings(**chosen), origin, host) is allowed


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"allowed_origins": "app.example"}, "'app.example' is no origin: write scheme://host"),
        ({"allowed_origins": "https://app.example/page"}, "is no origin"),
        ({"allowed_hosts": "https://tts.example"}, "is no host: write its name"),
        ({"allowed_hosts": "a b"}, "is no host"),
    ],
)
def test_what_an_operator_may_mistake_is_told(chosen: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Settings(**chosen)


def test_hosts_are_kept_as_they_are_compared() -> None:
    assert Settings(allowed_hosts="TTS.example:8443,[::1]:1").allowed_hosts == ("tts.example", "::1")
    assert [hostname(name) for name in ("A.b.:80", "", "a/b", "a?b", "a#b", "a\\b")] == ["a.b", None, None, None, None, None]


async def handshake(server: Server, path: str, headers: dict[str, str]) -> str:
    """The answer to a handshake that is refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if name != "Host")
    asked = HANDSHAKE.format(key="A" * 22 + "==", more=more).replace("/api/v1/speak", path)
    writer.write(asked.replace("Host: localhost", f"Host: {headers['Host']}").encode())
    answer = await asyncio.wait_for(reader.read(), LIMIT)
    writer.close()
    return answer.decode()


PATHS = ("/healthz", "/api/v1/voices", "/metrics", "/api/v1/voices/anna/sample.wav", "/openapi.json", "/nothing", "/api/v1/speak")


async def test_a_name_that_is_not_ours_reaches_nothing(voices: Path) -> None:
    """DNS rebinding: the page's own name points here, so that the browser takes us for the page's own server."""
    evil = {"Host": "evil.example:8000"}
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        for path in PATHS:
            for method in ("GET", "POST", "DELETE", "OPTIONS"):
                answer = await http.request(method, path, headers=evil | {"Origin": "http://evil.example:8000"})
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "HOST_NOT_ALLOWED")
                assert "TTS_ALLOWED_HOSTS" in answer.json()["error"]["message"]
                assert "access-control-allow-origin" not in answer.headers
        for path in ("/api/v1/speak", "/nothing"):
            refused = await handshake(server, path, evil)
            assert refused.startswith("HTTP/1.1 403 ") and "HOST_NOT_ALLOWED" in refused


async def test_a_name_in_the_first_line_is_one_too(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server:
        for target, status in (("http://evil.example/healthz", 403), (f"http://localhost:{server.port}/healthz", 200)):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            assert (await asyncio.wait_for(reader.read(), LIMIT)).startswith(f"HTTP/1.1 {status} ".encode())
            writer.close()


async def test_a_page_cannot_say_that_a_proxy_said(voices: Path) -> None:
    """X-Forwarded-Host counts besides Host, not in its place: a page of the same origin may send it."""
    async with running(voices, FakeEngine(), proxies=1, allowed_hosts="tts.example") as server, server.http_client() as http:
        for host, forwarded, status in (
            ("evil.example", "localhost", 403),
            ("evil.example", "tts.example", 403),
            ("localhost", "evil.example", 403),
            ("localhost", "tts.example", 200),
            ("tts.example", None, 200),
        ):
            headers = {"Host": host} | ({} if forwarded is None else {"X-Forwarded-Host": forwarded})
            assert (await http.get("/healthz", headers=headers)).status_code == status
            if status == 403:
                assert (await handshake(server, "/api/v1/speak", headers)).startswith("HTTP/1.1 403 ")
        own = {"Host": "localhost", "X-Forwarded-Host": "tts.example", "Origin": "https://tts.example"}
        assert (await http.get("/healthz", headers=own)).headers["access-control-allow-origin"] == "https://tts.example"


@pytest.mark.parametrize(
    ("headers", "status", "policy"),
    [
        ({}, 200, "same-origin"),
        ({"Sec-Fetch-Site": "same-origin"}, 200, "same-origin"),
        ({"Sec-Fetch-Site": "none"}, 200, "same-origin"),  # typed into the address bar
        ({"Sec-Fetch-Site": "same-site"}, 200, "same-origin"),
        ({"Sec-Fetch-Site": "cross-site"}, 403, "same-origin"),
        ({"Sec-Fetch-Site": "Cross-Site", "Sec-Fetch-Mode": "navigate"}, 403, "same-origin"),
        ({"Sec-Fetch-Site": "cross-site", "Referer": "https://evil.example/"}, 403, "same-origin"),
        ({"Sec-Fetch-Site": "same-site", "Referer": "https://evil.example/"}, 403, "same-origin"),
        ({"Sec-Fetch-Site": "cross-site", "Referer": "http://localhost:3000/a"}, 200, "cross-origin"),  # <audio src> of a page
        ({"Sec-Fetch-Site": "cross-site", "Referer": "http://["}, 403, "same-origin"),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:3000"}, 200, "cross-origin"),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://app.example"}, 200, "cross-origin"),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "null", "Referer": "http://localhost:3000/"}, 403, "same-origin"),
        ({"Origin": "https://evil.example", "Referer": "http://localhost:3000/"}, 403, "same-origin"),
    ],
)
async def test_what_browsers_say_of_themselves(voices: Path, headers: dict[str, str], status: int, policy: str) -> None:
    async with running(voices, FakeEngine(), allowed_origins="https://app.example") as server, server.http_client() as http:
        answer = await http.get("/api/v1/voices/anna/sample.wav", headers=headers)
        assert (answer.status_code, answer.headers["cross-origin-resource-policy"]) == (status, policy)
        assert (answer.headers["x-content-type-options"], "Origin" in answer.headers["vary"]) == ("nosniff", True)
        allowed = answer.headers.get("access-control-allow-origin")
        assert allowed == (headers.get("Origin") if status == 200 else None)
        if status == 403:
            with pytest.raises(InvalidStatus):
                await connect(server.url, additional_headers=headers)
        else:
            async with client(server.url, additional_headers=headers):
                pass


async def test_a_page_that_is_developed_here_works_without_a_setting(voices: Path) -> None:
    """http://localhost:3000 asks http://127.0.0.1:8000: preflight, speech with JSON, WebSocket."""
    page = {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "cross-site"}
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-stainless-os"}
        answer = await http.options("/v1/audio/speech", headers=page | asked)
        assert (answer.status_code, answer.headers["access-control-allow-headers"]) == (204, "content-type, x-stainless-os")
        body = json.dumps({"input": "Hello.", "response_format": "pcm"})
        made = await http.post("/v1/audio/speech", content=body, headers=page)
        assert (made.status_code, made.headers["access-control-allow-origin"]) == (200, "http://localhost:3000")
        assert "X-Request-Id" in made.headers["access-control-expose-headers"]
        async with client(server.url, origin="http://localhost:3000"):
            pass


@pytest.mark.parametrize(("origin", "said"), [("https://evil.example", "TTS_ALLOWED_ORIGINS"), ("null", "TTS_ALLOWED_ORIGINS=null")])
async def test_who_is_refused_is_told_the_setting_and_so_is_the_log_once(
    voices: Path, caplog: pytest.LogCaptureFixture, origin: str, said: str
) -> None:
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        for method in ("GET", "OPTIONS", "POST"):
            answer = await http.request(method, "/v1/models", headers={"Origin": origin, "Access-Control-Request-Method": "GET"})
            assert answer.status_code == 403 and said in answer.json()["error"]["message"]
            assert not [name for name in answer.headers if name.startswith("access-control")]
        with pytest.raises(InvalidStatus) as refused:
            await connect(server.url, origin=origin)
        assert said.encode() in (refused.value.response.body or b"")
    assert [said in str(vars(record)["fields"]["why"]) for record in caplog.records if record.message == "refused"] == [True]


async def test_a_preflight_is_answered_with_what_it_asks_for(voices: Path) -> None:
    origin = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    async with running(voices, FakeEngine(), allowed_origins="https://app.example") as server, server.http_client() as http:

        async def asked(headers: str | None, **more: str) -> Any:
            wanted = {} if headers is None else {"Access-Control-Request-Headers": headers}
            answer = await http.options("/v1/audio/speech", headers=origin | wanted | more)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, "https://app.example")
            assert answer.headers["access-control-max-age"] == "600"
            assert {"Origin", "Access-Control-Request-Headers"} <= set(answer.headers["vary"].split(", "))
            return answer.headers

        stainless = "authorization, content-type, x-stainless-arch, x-stainless-retry-count, openai-organization"
        assert (await asked(stainless))["access-control-allow-headers"] == stainless
        assert (await asked(None))["access-control-allow-headers"] == "Authorization, Content-Type"
        assert (await asked("a, b c, d:e, <f>, , " + "x" * 65))["access-control-allow-headers"] == "a"
        many = ",".join(f"x-{number}" for number in range(1000))
        assert (await asked(many))["access-control-allow-headers"].count(",") == MAX_ASKED_HEADERS - 1
        assert "access-control-allow-private-network" not in await asked(None)
        private = await asked(None, **{"Access-Control-Request-Private-Network": "true"})
        assert private["access-control-allow-private-network"] == "true"
        plain = await http.options("/v1/audio/speech", headers={"Origin": "https://app.example"})
        assert plain.status_code == 200 and "POST" in plain.headers["allow"], "no preflight"


BAD_HEADS = {
    "an empty label": "GET /healthz HTTP/1.1\r\nHost: .localhost\r\n\r\n",
    "two dots at the end": "GET /healthz HTTP/1.1\r\nHost: localhost..\r\n\r\n",
    "an address and two dots": "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1..:80\r\n\r\n",
    "dots": "GET /healthz HTTP/1.1\r\nHost: ..\r\n\r\n",
    "a label of 64": f"GET /healthz HTTP/1.1\r\nHost: {'a' * 64}.localhost\r\n\r\n",
    "bytes that are no name": "GET /healthz HTTP/1.1\r\nHost: \x80.\xad.localhost\r\n\r\n",
    "an open bracket": "GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an escaped bracket": "GET http://%5b/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "dots in the first line": "GET http://localhost../healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "two origins": "GET /healthz HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nOrigin: http://evil.example\r\n\r\n",
    "two sites": "GET /healthz HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: none\r\nsec-fetch-site: cross-site\r\n\r\n",
}


@pytest.mark.parametrize("chosen", [{}, KEY, {"proxies": 1, "allowed_hosts": "*", "allowed_origins": "*"}], ids=["open", "key", "proxy"])
async def test_a_head_that_cannot_be_decided_upon_is_refused_before_any_route(
    voices: Path, caplog: pytest.LogCaptureFixture, chosen: dict[str, Any]
) -> None:
    """400 and a line without traceback, for HTTP and WebSocket; Werkzeug and Quart would raise before they come to a route."""
    upgrade = HANDSHAKE.partition("Host: localhost\r\n")[2].format(key="A" * 22 + "==", more="")
    async with running(voices, FakeEngine(), **chosen) as server:
        for kind, head in BAD_HEADS.items():
            for more in ("\r\n", upgrade):
                asked = head.removesuffix("\r\n") + more
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(asked.encode("latin1"))
                answer = (await asyncio.wait_for(reader.read(), LIMIT)).decode()
                writer.close()
                assert answer.startswith("HTTP/1.1 400 ") and "BAD_REQUEST" in answer, (kind, answer)
                assert "access-control" not in answer.lower() and len(answer) < 1000
        async with server.http_client() as http:
            assert (await http.get("/healthz")).status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR" or record.exc_info]
    assert [vars(record)["fields"]["reason"] for record in caplog.records if record.message == "refused"] == ["BAD_REQUEST"]


@pytest.mark.parametrize(
    "target", ["http://localhost", "http://localhost?a=b", "x://", "*", "/%", "/%ff%00", "/healthz?%ff=%", "/healthz?&&=;"]
)
async def test_odd_targets_are_answered(voices: Path, caplog: pytest.LogCaptureFixture, target: str) -> None:
    async with running(voices, FakeEngine(), proxies=1) as server:
        for forwarded in ("", "X-Forwarded-Proto: [\r\nX-Forwarded-For: [::\r\n"):
            for method in ("GET", "OPTIONS"):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{forwarded}\r\n".encode())
                assert (await asyncio.wait_for(reader.read(), LIMIT))[:10] in (b"HTTP/1.1 2", b"HTTP/1.1 4")
                writer.close()
    assert not [record for record in caplog.records if record.levelname == "ERROR" or record.exc_info]


@pytest.mark.parametrize("origins", [(), "*", "http://*"])
@pytest.mark.parametrize(
    "origin",
    ["http://evil.example@localhost", "http://localhost/x", "http://localhost#x", "http://localhost?x", "http://localhost\\x", "localhost"],
)
async def test_an_origin_has_no_user_and_no_path(voices: Path, origin: str, origins: str | tuple[str, ...]) -> None:
    async with running(voices, FakeEngine(), allowed_origins=origins) as server, server.http_client() as http:
        for method in ("GET", "OPTIONS"):
            answer = await http.request(method, "/v1/models", headers={"Origin": origin, "Access-Control-Request-Method": "GET"})
            assert answer.status_code == 403 and not [name for name in answer.headers if name.startswith("access-control")]
        assert (await handshake(server, "/api/v1/speak", {"Host": "localhost", "Origin": origin})).startswith("HTTP/1.1 403 ")


async def test_a_handshake_where_no_websocket_is(voices: Path, caplog: pytest.LogCaptureFixture) -> None:
    """404 as JSON, and one line of the log."""
    async with running(voices, FakeEngine()) as server:
        for path in ("/nope", "/v1/models", "/v1/audio/speech", "/" + "x" * 4000):
            answer = await handshake(server, path, {"Host": "localhost"})
            assert answer.startswith("HTTP/1.1 404 ") and '"NOT_FOUND"' in answer and len(answer) < 1000, answer
    refused = [vars(record)["fields"] for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert [(one.get("status"), one.get("path")) for one in refused if "times" not in one] == [(404, "/nope")]


@pytest.mark.parametrize("key", ["x", "", "A" * 24, "A" * 20 + "====", "é" * 24])
async def test_the_key_of_a_handshake_is_sixteen_bytes(voices: Path, key: str) -> None:
    async with running(voices, FakeEngine()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(HANDSHAKE.format(key=key, more="").encode("latin1"))
        assert (await asyncio.wait_for(reader.read(), LIMIT)).startswith(b"HTTP/1.1 400 ")
        writer.close()
