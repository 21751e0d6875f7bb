"""ASGI middleware around the application: limits, keys, security headers, access log, counters."""

import asyncio
import json
import queue
import re
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import IO, Any

from dpr_jax.config import ServeConfig
from dpr_jax.serving.keys import Keys
from dpr_jax.serving.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

PUBLIC = ("/", "/livez", "/readyz", "/docs", "/openapi.json", "/page.js", "/page.css", "/docs.js")
REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
# a larger body is read and dropped up to so many times the limit, so that its client reads the 413
DISCARDED_BODIES = 32
CLIENT_LEFT = 499
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    b" connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", POLICY),
    (b"cache-control", b"no-store"),
]


class Gate:
    """Checks host, key, size and time of each request, then passes it on."""

    def __init__(
        self,
        app: App,
        settings: ServeConfig,
        keys: Keys | None,
        metrics: Metrics,
        log: "AccessLog",
        *,
        hosts: frozenset[str] | None,
        is_draining: Callable[[], bool],
    ) -> None:
        """Takes the application.

        Args:
          app: answers what passes.
          settings: limits.
          keys: who may ask; None: everybody.
          metrics: of the server.
          log: a line per request.
          hosts: what the Host header may name; None: anything.
          is_draining: whether connections should end.
        """
        self._app, self._settings, self._keys = app, settings, keys
        self._metrics, self._log, self._hosts = metrics, log, hosts
        self._is_draining = is_draining

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send, is_last=self._is_draining())
        try:
            await self._pass(exchange, scope, receive)
        except asyncio.CancelledError:
            exchange.status = exchange.status or CLIENT_LEFT
            raise
        finally:
            self._count(exchange, scope)

    async def _pass(self, exchange: "_Exchange", scope: Message, receive: Receive) -> None:
        headers = dict(scope["headers"])
        if self._hosts is not None and _host(headers) not in self._hosts:
            await exchange.refuse(400, "the Host header names another machine")
            return
        if self._keys is not None and scope["path"] not in PUBLIC:
            key = self._keys.find(_given(headers))
            if key is None:
                self._metrics.rejected.labels("key").inc()
                extra = [(b"www-authenticate", b"Bearer")]
                message = "give a key: Authorization: Bearer KEY, or X-API-Key: KEY"
                await exchange.refuse(401, message, extra)
                return
            exchange.facts["key"] = key.name
            scope["state"]["admin"] = key.admin
        else:
            local = (scope.get("client") or ("",))[0] in ("127.0.0.1", "::1")
            scope["state"]["admin"] = local and self._settings.open_admin
        body = await self._body(exchange, headers, receive)
        if body is None:
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        limit_s = None if scope["path"] == "/mcp" else self._settings.request_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._app(scope, replay, exchange.send)
        except TimeoutError:
            self._metrics.rejected.labels("time").inc()
            if exchange.status:
                raise  # the client reads too slowly: the connection is closed
            extra = [(b"retry-after", b"1")]
            await exchange.refuse(503, "the request took too long", extra)
        except Exception:
            traceback.print_exc()
            if exchange.done:
                return
            if exchange.status:
                raise
            await exchange.refuse(500, "the server failed; its log says how")

    async def _body(
        self, exchange: "_Exchange", headers: dict[bytes, bytes], receive: Receive
    ) -> bytes | None:
        """Returns the body; None where the request is answered or gone."""
        most = self._settings.max_body_bytes
        body, size = bytearray(), 0
        said = headers.get(b"content-length", b"0")
        known = int(said) if said.isdigit() else 0
        try:
            async with asyncio.timeout(self._settings.read_timeout_s):
                while known <= DISCARDED_BODIES * most:
                    message = await receive()
                    if message["type"] != "http.request":
                        exchange.status = CLIENT_LEFT
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    if size <= most:
                        body += part
                    if not message.get("more_body") or size > DISCARDED_BODIES * most:
                        break
        except TimeoutError:
            self._metrics.rejected.labels("slow").inc()
            limit = self._settings.read_timeout_s
            await exchange.refuse(408, f"the body did not come within {limit:g} s")
            return None
        if max(size, known) > most:
            self._metrics.rejected.labels("body").inc()
            await exchange.refuse(413, f"the body has more than {most:,} bytes")
            return None
        return bytes(body)

    def _count(self, exchange: "_Exchange", scope: Message) -> None:
        """Counts a request, and writes its line."""
        route = getattr(scope.get("route"), "path", None)
        route = route or ("/mcp" if scope["path"] == "/mcp" else "other")
        if route == "other" and scope["path"] in PUBLIC:
            route = scope["path"]
        spent_s = time.perf_counter() - exchange.begun_s
        self._metrics.requests.labels(scope["method"], route, str(exchange.status)).inc()
        self._metrics.request_s.labels(route).observe(spent_s)
        client = (scope.get("client") or ("",))[0]
        self._log.write(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "id": exchange.id.decode(),
                "client": client,
                "method": scope["method"],
                "route": route,
                "status": exchange.status,
                "ms": round(spent_s * 1000, 2),
                "bytes": exchange.bytes,
            }
            | exchange.facts
            | scope["state"].get("log", {})
        )


class _Exchange:
    """A request and the answer to it.

    Attributes:
      id: of the request.
      begun_s: when its headers had come.
      status: of the answer, 0 before it begins.
      bytes: of the answer's body.
      done: whether all of it is sent.
      facts: for the log.
    """

    def __init__(self, scope: Message, send: Send, *, is_last: bool) -> None:
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        self.id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        self.begun_s = time.perf_counter()
        self.status = self.bytes = 0
        self.done = False
        self.facts: dict[str, Any] = {}
        self._send, self._is_last = send, is_last
        scope.setdefault("state", {})

    async def send(self, message: Message) -> None:
        """Sends a part of the answer, with the security headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {name.lower() for name, _ in message.get("headers", [])}
            added = [(b"x-request-id", self.id), *(one for one in HEADERS if one[0] not in own)]
            if self._is_last and b"connection" not in own:
                added.append((b"connection", b"close"))
            message = {**message, "headers": [*message.get("headers", []), *added]}
        else:
            self.bytes += len(message.get("body", b""))
            self.done = not message.get("more_body", False)
        await self._send(message)

    async def refuse(
        self, status: int, text: str, headers: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        """Answers with an error; after 408 and 413 the connection is closed."""
        body = json.dumps(error_body(status, text)).encode()
        about = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if status in (408, 413):
            about.append((b"connection", b"close"))
        start = {"type": "http.response.start", "status": status}
        await self.send({**start, "headers": [*about, *(headers or [])]})
        await self.send({"type": "http.response.body", "body": body})


def error_body(status: int, message: str) -> dict[str, Any]:
    """Returns the JSON of every error, as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "code": status}}


def _host(headers: dict[bytes, bytes]) -> str:
    """Returns the Host header without its port."""
    host = headers.get(b"host", b"").decode("latin-1").lower()
    return host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def _given(headers: dict[bytes, bytes]) -> str:
    """Returns the key of a request; empty if there is none."""
    scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return headers.get(b"x-api-key", b"").decode("latin-1").strip()


class AccessLog:
    """An access log of JSON lines, written by a thread; lines are dropped if its reader stalls."""

    MOST_WAITING = 10_000

    def __init__(self, file: str, metrics: Metrics) -> None:
        """Opens the log: a file that is added to, "-" for stdout, "" for none."""
        self._lost = metrics.log_lines_lost
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(self.MOST_WAITING)
        self._out: IO[str] | None = None
        if file:
            self._out = sys.stdout if file == "-" else open(file, "a", encoding="utf-8")  # noqa: SIM115
            self._thread = threading.Thread(target=self._run, name="dpr-log", daemon=True)
            self._thread.start()

    def write(self, line: dict[str, Any]) -> None:
        """Adds a line."""
        if self._out is None:
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._lost.inc()

    def close(self) -> None:
        """Writes the lines that wait, for at most a second."""
        if self._out is not None:
            try:
                self._lines.put(None, timeout=1)
            except queue.Full:
                return
            self._thread.join(1)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._out.write(json.dumps(line) + "\n")
                if self._lines.empty():
                    self._out.flush()
            except (OSError, ValueError):  # its reader left
                return
