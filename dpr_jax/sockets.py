"""Connections between the processes of a run: listening, messages, and passing bytes on."""

import contextlib
import errno
import json
import socket
import threading
import time
from typing import Any

from dpr_jax.errors import InputError

FREED_S = 20.0  # in which the port of the run before has to be free
CONNECT_S = 50.0
LONGEST_LINE = 1 << 16
BACKLOG = 1024


class Link:
    """A connection that carries JSON objects, one per line.

    Attributes:
      socket: its socket.
      name: of the process at its other end, for people.
      has_left: whether that process said that it ends.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.name = ""
        self.has_left = False
        self._lock = threading.Lock()
        self._rest = b""

    def send(self, **message: Any) -> None:
        """Sends a message, where the other end still reads."""
        with self._lock, contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """Returns the next message; None for none, or for what is no message."""
        while b"\n" not in self._rest:
            try:
                read = self.socket.recv(4096)
            except OSError:  # reset, or nothing in time
                return None
            if not read or len(self._rest) > LONGEST_LINE:
                return None
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            return None
        return message if isinstance(message, dict) else None

    def receive_all(self) -> list[dict[str, Any]] | None:
        """Returns the messages that one read brings; None at the end of the connection."""
        read = self.socket.recv(4096)
        if not read:
            return None
        *lines, self._rest = (self._rest + read).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self.socket.close()


def split_address(address: str) -> tuple[str, int]:
    """Returns host and port of HOST:PORT, with or without the brackets of IPv6."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def listening(port: int, address: str) -> socket.socket:
    """Returns a socket that listens on the port; one that a run before still holds is waited for.

    Raises:
      InputError: another program has the port.
    """
    end_s = time.monotonic() + FREED_S
    while True:
        try:
            if socket.has_dualstack_ipv6():
                with contextlib.suppress(_NoAddress):
                    return _listening_on_both(port)
            return socket.create_server(("", port), backlog=BACKLOG)
        except OSError as error:
            if time.monotonic() > end_s:
                raise InputError(
                    f"process 0 cannot listen at {address}: {error.strerror}; end what listens"
                    " there, or give another port in DPR_COORDINATOR"
                ) from None
            time.sleep(0.5)


class _NoAddress(Exception):
    """The host has no IPv6 address."""


def _listening_on_both(port: int) -> socket.socket:
    """Returns a socket that listens to IPv4 and IPv6."""
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG
        )
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise _NoAddress from error
        raise


def relay(host: str, port: int) -> str:
    """Passes connections on to JAX's coordinator, and returns the address to connect to.

    A connection stays open here when the coordinator's end is gone: JAX would abort at once, before
    anything could be said.
    """
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            near, _ = server.accept()
            try:
                far = socket.create_connection((host, port), timeout=CONNECT_S)
            except OSError:
                _OPEN.append(near)  # unanswered
                continue
            far.settimeout(None)
            for one, other, closes in ((near, far, True), (far, near, False)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=_copy, args=(one, other, closes), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}"


_OPEN: list[socket.socket] = []  # kept from being closed


def _copy(source: socket.socket, target: socket.socket, closes: bool) -> None:
    """Copies bytes until the source ends; then closes the target, or leaves it open for good."""
    with contextlib.suppress(OSError):
        while read := source.recv(1 << 16):
            target.sendall(read)
    if closes:
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
    else:
        _OPEN.append(target)
