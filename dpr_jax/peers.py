"""The other processes of a run: they meet before JAX starts, and the end of one is known to all.

Process 0 listens at the coordinator's address. The others connect and stay connected: a process
that is killed closes its connection, one that is stopped sends no more pulses, one that fails says
so. Process 0 tells the others. JAX alone notices late, and aborts with a stack trace.
"""

import contextlib
import os
import selectors
import socket
import sys
import threading
import time

from dpr_jax import console, sockets
from dpr_jax.errors import RUN_AGAIN, USER_ERROR, InputError, OtherProcessFailed

SILENT_S = 10  # of waiting for other processes, before that is said
JOIN_S = 50.0  # in which all processes have to come; DPR_JOIN_S in the environment
PULSE_S = 2.0
LOST_S = 20.0  # without a sign of life
GRACE_S = 1.0  # in which a process may end by itself before another's end is its end


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
        self._links: dict[int, sockets.Link] = {}
        self._join_s = _join_s()
        host, port = sockets.split_address(address)
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
                self.jax_address = sockets.relay(host, jax_port)
        finally:
            timer.cancel()
        for work in (self._watch, self._pulse):
            threading.Thread(target=work, daemon=True).start()

    # --- meeting ---------------------------------------------------------------------------------

    def _gather(self, port: int, facts: dict[str, str]) -> None:
        """Waits, as process 0, for all others and tells them where JAX's coordinator will be."""
        with sockets.listening(port, self._address) as server:
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
                self._admit(sockets.Link(connection), facts)
        with socket.socket() as free:
            free.bind(("", 0))
            self._jax_port = free.getsockname()[1]
        for link in self._links.values():
            link.send(jax=self._jax_port)

    def _admit(self, link: sockets.Link, facts: dict[str, str]) -> None:
        """Takes in a process that connected; a stranger's connection is closed."""
        link.socket.settimeout(5)
        hello = link.receive()
        wanted = {"process": int, "count": int, "host": str, "facts": dict}
        if not all(isinstance((hello or {}).get(name), kind) for name, kind in wanted.items()):
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
                link = sockets.Link(socket.create_connection((host, port), timeout=5))
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
                        if seconds > LOST_S and not self._links[number].has_left:
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


def _join_s() -> float:
    """Returns how long processes wait for each other.

    Raises:
      InputError: DPR_JOIN_S is no number above 0.
    """
    value = os.environ.get("DPR_JOIN_S") or str(JOIN_S)
    with contextlib.suppress(ValueError):
        if 0 < float(value) < float("inf"):
            return float(value)
    raise InputError(f"DPR_JOIN_S is {value!r}; it must be a number of seconds above 0")


def _exit(status: int) -> None:
    """Ends this process at once, whatever its other threads do."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
