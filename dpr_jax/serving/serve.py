"""`dpr serve`: the retrievers of a work directory over HTTP and MCP. It writes nothing there."""

import asyncio
import contextlib
import importlib.util
import socket
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from dpr_jax.config import ServeConfig
from dpr_jax.console import say
from dpr_jax.errors import InputError
from dpr_jax.workdir import WorkDir

NEEDED = ("fastapi", "uvicorn", "httptools", "prometheus_client", "mcp")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
PORT = 8080
BACKLOG = 2048
SWITCH_S = 0.0005  # of 5 ms: a request changes threads four times while programs compile


def run(
    workdir: WorkDir,
    settings: ServeConfig,
    *,
    names: tuple[str, ...] = (),
    host: str = "127.0.0.1",
    port: int = PORT,
    keys: str | None = None,
    verify: bool = False,
    mcp: bool = False,
) -> None:
    """Serves until SIGTERM or SIGINT; running requests end first.

    Args:
      workdir: a finished work directory.
      settings: limits.
      names: of the retrievers, the default first; empty: the best on dev. Parts of a hybrid are
        served too.
      host: address to bind to.
      port: 0 takes a free one.
      keys: file of API keys; None: everybody may ask.
      verify: hash every file before the server is ready.
      mcp: speak MCP on stdin and stdout instead of HTTP.

    Raises:
      InputError: a retriever cannot be served, the address is taken, the keys cannot be read, or a
        package is missing.
    """
    begun_s = time.monotonic()
    sys.setswitchinterval(SWITCH_S)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"dpr serve needs {', '.join(missing)}: pip install 'dpr_jax[serve]'")
    with contextlib.ExitStack() as stack:
        sockets = [] if mcp else [stack.enter_context(_bind(host, port))]
        service, known = _open(stack, workdir, settings, names, keys)
        if host not in LOOPBACK and not known and not mcp:
            say(f"serve: bound to {host} without --keys: everybody who reaches it may ask")
        service.wants_check = verify
        running = threading.Event()
        given = (service, begun_s, running)
        watcher = threading.Thread(target=_background, args=given, name="dpr-watch")
        stack.callback(_end, service, watcher)
        watcher.start()  # compiles while the interfaces are imported
        if mcp:
            running.set()
            _speak_mcp(service, settings)
        else:
            _speak_http(service, settings, known, host, sockets, running)


def _open(
    stack: contextlib.ExitStack,
    workdir: WorkDir,
    settings: ServeConfig,
    names: tuple[str, ...],
    keys: str | None,
) -> tuple[Any, Any]:
    """Opens the retrievers and reads the keys; no request is taken yet."""
    from dpr_jax.serving.batches import Workers
    from dpr_jax.serving.catalog import Catalog
    from dpr_jax.serving.keys import Keys
    from dpr_jax.serving.metrics import Metrics
    from dpr_jax.serving.service import Service

    known = Keys(Path(keys).expanduser()) if keys else None
    metrics, workers = Metrics(), Workers.start()
    stack.callback(workers.stop)
    catalog = Catalog(workdir, names, settings, workers, metrics)
    table = catalog.open()
    for name, why in table.refused.items():
        say(f"serve: {name} is not served: {why}")
    return Service(catalog, settings, workers, metrics), known


def _end(service: Any, watcher: threading.Thread) -> None:
    """Waits for the threads: one that still compiles would crash the interpreter's exit."""
    service.catalog.stopping.set()
    watcher.join()
    service.catalog.close()


def _bind(host: str, port: int) -> socket.socket:
    """Binds to the address before anything is loaded, so that a taken one fails at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)  # who connects from now on waits for the first answer
    except (OSError, OverflowError) as error:
        bound.close()
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot bind to {host}:{port}: {why}; give another --port") from None
    return bound


def _background(service: Any, begun_s: float, running: threading.Event) -> None:
    """Warms up, hashes files, then watches the work directory; runs in a thread."""
    catalog, stopping = service.catalog, service.catalog.stopping
    table = catalog.live
    default = table.served[table.default]
    if service.wants_check:
        catalog.check()
        service.checked = True
    try:
        default.warm_first()
    except Exception as error:  # noqa: BLE001 - questions will say it again
        say(f"serve: the first question failed: {error}")
    service.warm = True
    while not running.wait(0.1) and not stopping.is_set():
        pass  # a server is ready once it takes requests and signals
    why = service.why_not_ready()
    if not why:
        say(f"serve: ready after {time.monotonic() - begun_s:.1f} s")
    else:
        say(f"serve: not ready: {why}")
    for one in table.served.values():
        with contextlib.suppress(InputError, OSError):
            one.warm(stopping)
            one.language()
    if not service.checked and not stopping.is_set():
        catalog.check()
        service.checked = True
    while service.settings.watch_s and not stopping.wait(service.settings.watch_s):
        try:
            catalog.watch()
        except Exception:  # noqa: BLE001 - a bug: the live table goes on, and so does watching
            traceback.print_exc()


def _speak_http(
    service: Any,
    settings: ServeConfig,
    keys: Any,
    host: str,
    sockets: list[socket.socket],
    running: threading.Event,
) -> None:
    import uvicorn

    from dpr_jax.serving import compatible, wire
    from dpr_jax.serving.app import make_app
    from dpr_jax.serving.gate import AccessLog, Gate

    mcp = McpRoute(service, settings)
    app = make_app(service, [compatible.make_router(service)], {"/mcp": mcp}, mcp.lifespan)
    hosts = frozenset(settings.allowed_hosts) or None
    if host in LOOPBACK:
        hosts = frozenset(("127.0.0.1", "localhost", "[::1]", *settings.allowed_hosts))
    log = AccessLog(settings.access_log, service.metrics)
    gate = Gate(
        app,
        settings,
        keys,
        service.metrics,
        log,
        hosts=hosts,
        is_draining=lambda: service.draining,
    )

    def drain() -> float:
        service.draining = True
        say("serve: draining: requests that run are answered, no new ones are taken")
        return settings.drain_delay_s

    config = uvicorn.Config(
        gate,
        http=wire.protocol(settings.read_timeout_s),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=settings.drain_s,
    )
    server = wire.Server(config, drain, running)
    address = sockets[0].getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    table = service.catalog.live
    say(
        f"serve: http://{shown}:{address[1]} answers by {table.default} ({table.why});"
        f" served are {', '.join(table.served)}"
    )
    server.run(sockets)
    log.close()


class McpRoute:
    """MCP over HTTP; its packages take half a second to import, so the first request does it."""

    def __init__(self, service: Any, settings: ServeConfig) -> None:
        self._service, self._url = service, settings.public_url
        self._started: asyncio.Future[Any] | None = None
        self._task: asyncio.Task[None] | None = None
        self._end = asyncio.Event()

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Ends the sessions with the server."""
        yield
        self._end.set()
        if self._task is not None:
            await self._task

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers a request."""
        if self._started is None:
            self._started = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run(self._started))
        manager = await asyncio.shield(self._started)
        await manager.handle_request(scope, receive, send)

    async def _run(self, started: "asyncio.Future[Any]") -> None:
        try:
            manager = await asyncio.to_thread(self._make)
        except Exception as error:  # noqa: BLE001 - every request fails with it
            started.set_exception(error)
            return
        async with manager.run():
            started.set_result(manager)
            await self._end.wait()

    def _make(self) -> Any:
        from dpr_jax.serving import tools

        server = tools.make_tools(self._service, self._url)
        server.streamable_http_app(json_response=True, stateless_http=True, host="0.0.0.0")
        return server.session_manager


def _speak_mcp(service: Any, settings: ServeConfig) -> None:
    """Speaks MCP by stdio until stdin ends; stdout is the protocol's."""
    from dpr_jax.serving import tools

    server = tools.make_tools(service, settings.public_url)
    table = service.catalog.live
    say(f"serve: MCP by stdio answers by {table.default} ({table.why})")
    asyncio.run(server.run_stdio_async())
