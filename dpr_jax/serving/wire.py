"""uvicorn with time limits for slow clients, and with signals that drain."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEADER_BYTES = 65_536
LINGER_S = 1.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def protocol(timeout_s: float) -> type[HttpToolsProtocol]:
    """Returns the HTTP protocol of a connection.

    Args:
      timeout_s: the headers of a request must have come by then, from its first byte or, for the
        first request of a connection, from when that was made.
    """

    class Protocol(HttpToolsProtocol):
        _deadline: asyncio.TimerHandle | None = None
        _header_bytes = 0
        _ended = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect()

        def data_received(self, data: bytes) -> None:
            if self._ended:
                return
            if self.cycle is None or self.cycle.response_complete:
                self._expect()
                self._header_bytes += len(data)
                if self._header_bytes > MOST_HEADER_BYTES and b"\r\n\r\n" not in data:
                    self._end(b"431 Request Header Fields Too Large")
                    return
            super().data_received(data)

        def on_headers_complete(self) -> None:
            self._forget()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _expect(self) -> None:
            if self._deadline is None:
                end = (self._end, b"408 Request Timeout")
                self._deadline = self.loop.call_later(timeout_s, *end)

        def _forget(self) -> None:
            self._header_bytes = 0
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _end(self, status: bytes) -> None:
            """Answers, and closes later: closing with unread bytes would reset the connection."""
            if self.transport.is_closing() or self._ended:
                return
            self._ended = True
            self.transport.write(
                b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.close)

    return Protocol


class Server(uvicorn.Server):
    """A uvicorn server that drains at the first signal and ends at once at the second."""

    def __init__(
        self, config: uvicorn.Config, on_signal: Callable[[], float], running: threading.Event
    ) -> None:
        """Takes what to do at the first signal, which returns the seconds until connections end;
        sets `running` once requests are taken.
        """
        super().__init__(config)
        self._on_signal, self._running = on_signal, running
        # from now on: who was told "ready" may send a signal before the server runs
        for one in SIGNALS:
            signal.signal(one, self._drain)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals to `_drain`, to the end of the process: drained is well ended."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts; drains at once if a signal has come already."""
        await super().startup(sockets=sockets)
        self._running.set()
        if self._captured_signals:
            self._begin_to_drain()

    def _drain(self, number: int, frame: FrameType | None) -> None:
        if self.should_exit or self._captured_signals:
            self.should_exit = self.force_exit = True
            return
        self._captured_signals.append(number)
        if self.started:
            self._begin_to_drain()

    def _begin_to_drain(self) -> None:
        delay_s = self._on_signal()
        if delay_s <= 0:
            self.should_exit = True
        else:
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe(loop.call_later, delay_s, self._exit)

    def _exit(self) -> None:
        self.should_exit = True
