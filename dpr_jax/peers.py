"""The other processes of a run: they meet before JAX starts, and the end of one is known to all.

Process 0 listens at the coordinator's address. The others connect and stay connected: a process
that is killed closes its connection, one that is stopped sends no more pulses, one that fails says
so. Process 0 tells the others. JAX alone notices late, and aborts with a stack trace.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from typing import Any

from dpr_jax import console
from dpr_jax.errors import RUN_AGAIN, USER_ERROR, InputError, OtherProcessFailed

SILENT_S = 10  # of waiting for other processes, before that is said
JOIN_S = 50.0  # in which all processes have to come; DPR_JOIN_S in the environment
FREED_S = 20.0  # in which the port of the run before has to be free
PULSE_S = 2.0
LOST_S = 20.0  # without a sign of life
GRACE_S = 1.0  # in which a process may end by itself before another's end is its end
LONGEST_LINE = 1 << 16


class Peers:
    """The connections between the processes of a run.

    Attributes:
      index: number of this process.
      count: of all processes.
      jax_address: HOST:PORT of JAX's own coordinator, as this process reaches it.
    """

    def __init__(self, address: str, count: int, index: int, facts: dict[str, str]) -> None:
        """Meets the other processes.

        Args:
          address: HOST:PORT of process 0.
          count: of processes.
          index: of this one.
          facts: what has to be equal on all of them, by name.

        Raises:
          InputError: the port is taken, or processes differ in `facts` or in their number.
          OtherProcessFailed: not all processes came; status 75.
        """
        self.index, self.count = index, count
        self._address = address
        self._lock = threading.Lock()
        self._is_ending = False  # one line is enough
        self._is_leaving = False  # the end of others is no failure any more
        self._links: dict[int, _Link] = {}
        self._join_s = float(os.environ.get("DPR_JOIN_S") or JOIN_S)
        host, port = split_address(address)
        whom = f"{count} processes at {address}, of which it is number {index}"
        waits = f"dpr: this process waits for {whom}; all of them have to be started"
        timer = threading.Timer(SILENT_S, console.say, [waits])
        timer.daemon = True
        timer.start()
        try:
            if index == 0:
                self._gather(port, facts)
                self.jax_address = f"127.0.0.1:{self._jax_port}"
            else:
                jax_port = self._report(host, port, facts)
                self.jax_address = _relay(host, jax_port)
        finally:
            timer.cancel()
        for work in (self._watch, self._pulse):
            threading.Thread(target=work, daemon=True).start()

    # --- meeting ---------------------------------------------------------------------------------

    def _gather(self, port: int, facts: dict[str, str]) -> None:
        """Waits, as process 0, for all others and tells them where JAX's coordinator will be."""
        with _listening(port, self._address) as server:
            end_s = time.monotonic() + self._join_s
            while len(self._links) < self.count - 1:
                server.settimeout(max(end_s - time.monotonic(), 0.01))
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    here = {0, *self._links}
                    missing = ", ".join(str(n) for n in range(self.count) if n not in here)
                    line = (
                        f"process {missing} of {self.count} did not come to {self._address} within"
                        f" {self._join_s:.0f} s; start all {self.count}, or set DPR_NUM_PROCESSES"
                        " (DPR_JOIN_S is how long to wait)"
                    )
                    self._refuse_all(RUN_AGAIN, line)
                    raise OtherProcessFailed(RUN_AGAIN, line) from None
                self._admit(_Link(connection), facts)
        with socket.socket() as free:
            free.bind(("", 0))
            self._jax_port = free.getsockname()[1]
        for link in self._links.values():
            link.send(jax=self._jax_port)

    def _admit(self, link: "_Link", facts: dict[str, str]) -> None:
        """Takes in a process that connected; a stranger's connection is closed."""
        link.socket.settimeout(5)
        hello = link.receive()
        if not hello or not {"process", "count", "host", "facts"} <= hello.keys():
            link.close()
            return
        number, host = hello["process"], hello["host"]
        who = f"process {number} ({host})"
        if hello["count"] != self.count:
            line = f"{who} was started as one of {hello['count']} processes, and process 0 of"
            line += f" {self.count}; set DPR_NUM_PROCESSES alike"
        elif number in self._links or number == 0:
            link.send(
                status=USER_ERROR,
                line=f"{who} is there already at {self._address}; give each process its own"
                " DPR_PROCESS_ID, and each run its own port",
            )
            link.close()
            return
        elif others := [name for name in facts if hello["facts"].get(name) != facts[name]]:
            line = f"{who} has another {' and '.join(others[:3])} than process 0"
            line += f" ({socket.gethostname()}); start all with the same code, packages, config and"
            line += " flags"
        else:
            link.name = who
            link.socket.settimeout(None)
            self._links[number] = link
            return
        link.send(status=USER_ERROR, line=line)
        self._refuse_all(USER_ERROR, line)
        raise InputError(line)

    def _refuse_all(self, status: int, line: str) -> None:
        for link in self._links.values():
            link.send(status=status, line=line)

    def _report(self, host: str, port: int, facts: dict[str, str]) -> int:
        """Connects to process 0, and returns the port of JAX's coordinator there."""
        end_s = time.monotonic() + self._join_s
        reason = "nothing answers there"
        while time.monotonic() < end_s:
            try:
                link = _Link(socket.create_connection((host, port), timeout=5))
            except OSError as error:
                reason = error.strerror or str(error)
                time.sleep(0.2)
                continue
            link.name = f"process 0 ({host})"
            link.send(process=self.index, count=self.count, host=socket.gethostname(), facts=facts)
            link.socket.settimeout(max(end_s - time.monotonic(), 1) + 5)  # process 0 says it first
            answer = link.receive()
            if answer and "jax" in answer:
                link.socket.settimeout(None)
                self._links[0] = link
                return answer["jax"]
            if answer and "line" in answer:
                if answer["status"] == USER_ERROR:
                    raise InputError(answer["line"])
                raise OtherProcessFailed(answer["status"], answer["line"])
            link.close()
            reason = "what listens there is not dpr"
            time.sleep(0.5)
        raise OtherProcessFailed(
            RUN_AGAIN,
            f"process {self.index} of {self.count} did not find process 0 at {self._address} within"
            f" {self._join_s:.0f} s ({reason}); start all {self.count}, and check DPR_COORDINATOR",
        )

    # --- watching --------------------------------------------------------------------------------

    def _pulse(self) -> None:
        """Sends signs of life to process 0."""
        while not self._is_leaving:
            if self.index:
                self._links[0].send(pulse=1)
            time.sleep(PULSE_S)

    def _watch(self) -> None:
        """Reads from all connections until this process ends."""
        with selectors.DefaultSelector() as selector:
            for number, link in self._links.items():
                selector.register(link.socket, selectors.EVENT_READ, number)
            silent_s = dict.fromkeys(self._links, 0.0)
            looked_s = time.monotonic()
            while selector.get_map():
                events = selector.select(timeout=1.0)
                # a process that was itself stopped, or busy, has not listened in that time
                passed_s, looked_s = min(time.monotonic() - looked_s, 2.0), time.monotonic()
                for number in silent_s:
                    silent_s[number] += passed_s
                for key, _ in events:
                    silent_s[key.data] = 0.0
                    if not self._hear(key.data):
                        selector.unregister(key.fileobj)
                        del silent_s[key.data]
                if self.index == 0:
                    for number, seconds in silent_s.items():
                        if seconds > LOST_S:
                            self._lost(number, f"was not heard of for {LOST_S:.0f} s")

    def _hear(self, number: int) -> bool:
        """Reads what a process said; returns whether it will say more."""
        link = self._links[number]
        try:
            messages = link.receive_all()
        except OSError:
            messages = None
        if messages is None:
            if not self._is_leaving and not link.has_left:
                self._lost(number, "ended without a word")
            return False
        for message in messages:
            if "bye" in message:
                link.has_left = True
            elif "status" in message:
                link.has_left = True
                self._end(message["status"], message.get("process", number), message.get("line"))
        return True

    def silent(self) -> None:
        """Ends this process because process 0, which is connected, answers nothing any more."""
        self._lost(0, f"did not answer for {LOST_S:.0f} s")

    def _lost(self, number: int, how: str) -> None:
        name = self._links[number].name
        line = f"{name} {how}: it was killed or stopped, or its host is gone; run the same again"
        self._end(RUN_AGAIN, number, line)

    def _end(self, status: int, number: int, line: str | None) -> None:
        """Ends this process because another one has ended or is lost; the others hear of it."""
        if self.index == 0:
            for other, link in self._links.items():
                if other != number:
                    link.send(status=status, process=number, line=line)
        time.sleep(GRACE_S)
        if self.claim():
            console.complain(line or f"process {number} ended with an error, which its log names")
            _exit(status)

    def claim(self) -> bool:
        """Returns whether this caller is the one that says why this process ends."""
        with self._lock:
            first, self._is_ending = not self._is_ending, True
        return first

    def end(self, status: int) -> None:
        """Tells the others that this process ends with an error."""
        for link in self._links.values():
            link.send(status=status)

    def leave(self) -> None:
        """Tells the others that this process has done its part."""
        self._is_leaving = True
        for link in self._links.values():
            link.send(bye=1)


class _Link:
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


def _listening(port: int, address: str) -> socket.socket:
    """Returns a socket that listens on the port; one that a run before still holds is waited for.

    Raises:
      InputError: another program has the port.
    """
    end_s = time.monotonic() + FREED_S
    while True:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(
                    ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
                )
            return socket.create_server(("", port), backlog=1024)
        except OSError as error:
            if time.monotonic() > end_s:
                raise InputError(
                    f"process 0 cannot listen at {address}: {error.strerror}; end what listens"
                    " there, or give another port in DPR_COORDINATOR"
                ) from None
            time.sleep(0.5)


def _relay(host: str, port: int) -> str:
    """Passes connections on to JAX's coordinator, and returns the address to connect to.

    A connection stays open here when the coordinator's end is gone: JAX would abort at once, before
    anything could be said.
    """
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            near, _ = server.accept()
            try:
                far = socket.create_connection((host, port), timeout=JOIN_S)
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


def _exit(status: int) -> None:
    """Ends this process at once, whatever its other threads do."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
