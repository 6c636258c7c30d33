"""A TCP proxy that spoils what passes: it cuts, delays and throttles connections to a server on this host."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_PIECE = 16 * 1024


@dataclass
class Toxic:
    """What is done to connections; it may be changed while they are open.

    Args:
        cut_after: bytes in either direction after which a connection is reset; None for never.
        cuts: how many connections are cut at most.
        delay_seconds: before each piece of 16 KiB or less goes on.
        refuse: every new connection is closed at once.
        lose_answers: how many connections are reset when the server says something next.
        hangs: how many pieces are held back until `heal`, and then go on: what was given up arrives late.
    """

    cut_after: int | None = None
    cuts: int = 1 << 30
    delay_seconds: float = 0.0
    refuse: bool = False
    lose_answers: int = 0
    hangs: int = 0
    connections: int = 0
    was_cut: int = 0
    passed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _healed: threading.Event = field(default_factory=threading.Event)

    def heal(self) -> None:
        """Let everything pass from now on, also what was held back."""
        with self._lock:
            self.cut_after, self.delay_seconds, self.refuse, self.lose_answers, self.hangs = None, 0.0, False, 0, 0
            self._healed.set()
            self._healed = threading.Event()

    def pass_on(self, amount: int, so_far: int, *, is_answer: bool) -> bool:
        """Whether a piece may go on; it is counted."""
        if self.delay_seconds:
            time.sleep(self.delay_seconds)
        held = self._held()
        if held:
            held.wait()
        with self._lock:
            self.passed += amount
            if is_answer and self.lose_answers:
                self.lose_answers -= 1
                self.was_cut += 1
                return False
            if self.cut_after is not None and so_far + amount > self.cut_after and self.was_cut < self.cuts:
                self.was_cut += 1
                return False
        return True

    def _held(self) -> threading.Event | None:
        with self._lock:
            if not self.hangs:
                return None
            self.hangs -= 1
            return self._healed


@contextlib.contextmanager
def toxic_proxy(port: int) -> Iterator[tuple[int, Toxic]]:
    """A proxy before the server on `port`; yields its own port and what spoils the connections."""
    toxic = Toxic()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, port, toxic), daemon=True).start()
        try:
            yield int(listener.getsockname()[1]), toxic
        finally:
            toxic.heal()
        toxic.refuse = True
        # A thread that waits in accept() is woken by nothing but a connection.
        with contextlib.suppress(OSError):
            socket.create_connection(listener.getsockname(), timeout=1).close()


def _accept(listener: socket.socket, port: int, toxic: Toxic) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        toxic.connections += 1
        if toxic.refuse:
            client.close()
            continue
        try:
            server = socket.create_connection(("127.0.0.1", port), timeout=30)
        except OSError:
            client.close()
            continue
        seen = [0]
        for source, target in ((client, server), (server, client)):
            about = (source, target, toxic, seen, source is server)
            threading.Thread(target=_carry, args=about, daemon=True).start()


def _carry(source: socket.socket, target: socket.socket, toxic: Toxic, seen: list[int], is_answer: bool) -> None:
    while piece := _received(source.recv):
        if not toxic.pass_on(len(piece), seen[0], is_answer=is_answer):
            for end in (source, target):
                _reset(end)
            return
        seen[0] += len(piece)
        try:
            target.sendall(piece)
        except OSError:
            break
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _received(receive: Callable[[int], bytes]) -> bytes:
    try:
        return receive(_PIECE)
    except OSError:
        return b""


def _reset(end: socket.socket) -> None:
    """Close a connection so that the other side sees a reset, not an orderly end."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        end.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        end.close()
