"""An SSH server for tests on a loopback port: it admits one key, and runs OpenSSH's own sftp-server for each session.

python -m tools.sftp_server PORT DIRECTORY PROGRAM [ARGUMENT ...]

DIRECTORY holds `host.key` and `authorized_keys`. PROGRAM is sftp-server, which does everything but the transport.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import asyncssh


class Session(asyncssh.SSHServerSession[bytes]):
    """One session: what the client says goes to a program's standard input, its output to the client."""

    def __init__(self, program: list[str]) -> None:
        self._program = program
        self._unsent: asyncio.Queue[bytes] = asyncio.Queue()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def subsystem_requested(self, subsystem: str) -> bool:
        return subsystem == "sftp"

    def session_started(self) -> None:
        self._running = asyncio.ensure_future(self._run())

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:  # noqa: ARG002 - asyncssh's signature
        self._unsent.put_nowait(data)

    def eof_received(self) -> bool:
        # OpenSSH's own clients say that they are done and wait for the program's end.
        self._unsent.put_nowait(b"")
        return True

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncssh's signature
        self._running.cancel()

    async def _run(self) -> None:
        running = await asyncio.create_subprocess_exec(
            *self._program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        asking = asyncio.ensure_future(self._ask(running))
        try:
            while running.stdout and (answer := await running.stdout.read(1 << 18)):
                await self._writable.wait()
                self._channel.write(answer)
            self._channel.exit(await running.wait())
        finally:
            asking.cancel()
            if running.returncode is None:
                running.kill()

    async def _ask(self, running: asyncio.subprocess.Process) -> None:
        while running.stdin:
            data = await self._unsent.get()
            if not data:
                running.stdin.close()
                return
            running.stdin.write(data)
            await running.stdin.drain()


class Server(asyncssh.SSHServer):
    """Admits whom the authorized keys name."""

    def __init__(self, program: list[str]) -> None:
        self._program = program

    def session_requested(self) -> Session:
        return Session(self._program)


async def serve(port: int, place: Path, program: list[str]) -> None:
    server = await asyncssh.listen(
        "127.0.0.1",
        port,
        server_factory=lambda: Server(program),
        server_host_keys=[str(place / "host.key")],
        authorized_client_keys=str(place / "authorized_keys"),
        encoding=None,
    )
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
