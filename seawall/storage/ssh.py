"""OpenSSH's own client as the way to an SFTP server: how it is told, and what its last words mean.

Invariants: it reads no configuration of the account's or the host's, believes no server whose key is not in the one
file that it is given, asks nobody anything, forwards nothing, and changes no file. Neither a shell nor OpenSSH's own
expansions see what settings say. Its cryptography, and what becomes of it, is the distribution's.

Not guaranteed: that the server's end is OpenSSH as well.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from seawall.errors import SettingsError

CONNECT_SECONDS = 15
_KEEPALIVE_SECONDS = 15
_KEEPALIVES = 3
_GOODBYE_SECONDS = 5

# Longer than the client itself waits for a line that carries nothing.
_SEND_SECONDS = 120

# First what the processor has instructions for: half the client's time of ChaCha20, which OpenSSH prefers. All are
# among its defaults (ssh_config(5), Ciphers); a list that only puts some first is not known to OpenSSH 8.0.
_CIPHERS = (
    "aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr", "aes192-ctr",
    "aes128-ctr",
)  # fmt: skip

_OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "UpdateHostKeys": "no",
    # Up to OpenSSH 8.4 it is on, and writes addresses of servers that it knows by name into the file.
    "CheckHostIP": "no",
    "GlobalKnownHostsFile": "/dev/null",
    "PreferredAuthentications": "publickey",
    "PasswordAuthentication": "no",
    "KbdInteractiveAuthentication": "no",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "ControlMaster": "no",
    "ControlPath": "none",
    "EscapeChar": "none",
    "RequestTTY": "no",
    "Compression": "no",
    "LogLevel": "ERROR",
    "ConnectTimeout": str(CONNECT_SECONDS),
    "ServerAliveInterval": str(_KEEPALIVE_SECONDS),
    "ServerAliveCountMax": str(_KEEPALIVES),
    "Ciphers": ",".join(_CIPHERS),
}

# What `ssh` says when the server is there, but this host and it will not come together (ssh.c, sshconnect.c, kex.c).
_HOST_KEY = "Host key verification failed"
_DENIED = ("Permission denied", "Too many authentication failures", "Unable to negotiate", _HOST_KEY)

_ADVICE = ("Add correct host key", "It is also possible", "Offending")

_NO_PROGRAM = "Install OpenSSH's client: Debian's package is openssh-client."


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a connection goes, and by which keys both ends know each other.

    Args:
        user: None for the account's own name.
        key: a file with a private key; None for the account's keys and agent.
        known_hosts: a file with the public keys of servers.
    """

    host: str
    port: int
    user: str | None
    key: Path | None
    known_hosts: Path

    @property
    def address(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"{user}{self.host}" + (f":{self.port}" if self.port != 22 else "")


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a connection is gone.

    Args:
        denied: the server and this host do not admit each other; trying again changes nothing.
    """

    words: str
    denied: bool = False
    hint: str | None = None


def command(to: Destination) -> list[str]:
    """The command that speaks SFTP with a server on its standard input and output.

    Raises:
        SettingsError: a file's name cannot be told to OpenSSH.
    """
    options = {**_OPTIONS, "UserKnownHostsFile": _quoted(to.known_hosts)}
    if to.key is not None:
        options |= {"IdentityFile": _quoted(to.key), "IdentitiesOnly": "yes", "IdentityAgent": "none"}
    told = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    user = ["-l", to.user] if to.user else []
    # After `--` nothing is an option, whatever the host's name begins with.
    return ["ssh", "-F", "none", *told, *user, "-p", str(to.port), "-s", "--", to.host, "sftp"]


def check_key(path: Path) -> None:
    """Make sure that a file holds a private key that opens without a passphrase.

    Raises:
        SettingsError: it does not, or OpenSSH's client is not installed.
    """
    try:
        found = subprocess.run(
            ["ssh-keygen", "-y", "-P", "", "-f", str(path.absolute())],
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise SettingsError("ssh-keygen is not installed on this host", hint=_NO_PROGRAM) from error
    if found.returncode != 0:
        # Its own words are left away: they might repeat a part of what it read.
        raise SettingsError(f"credentials_file {path} holds no private key that opens without a passphrase")


class Line:
    """A running client; bytes go in and out by `socket`, whose two directions different threads may use.

    Raises:
        SettingsError: OpenSSH's client is not installed.
    """

    def __init__(self, to: Destination) -> None:
        arguments = command(to)
        self.socket, theirs = socket.socketpair()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_SECONDS, 0))
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._words,
                env={**os.environ, "LC_ALL": "C"},
                # An interrupt from the terminal is for us: what we then clean up needs the connection.
                process_group=0,
            )
        except FileNotFoundError as error:
            self.socket.close()
            self._words.close()
            raise SettingsError("ssh is not installed on this host", hint=_NO_PROGRAM) from error
        finally:
            theirs.close()

    def end(self) -> Ending:
        """Wait until the process is gone and say why, in its own last words."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(_GOODBYE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._words.seek(0)
        said = self._words.read().decode(errors="replace")
        self._words.close()
        return ending(said)


def ending(said: str) -> Ending:
    """What the client's messages mean."""
    lines = [line.strip() for line in said.splitlines() if line.strip(" @\r\n")]
    denied = next((line for line in lines if any(words in line for words in _DENIED)), None)
    if denied is None:
        return Ending(lines[-1] if lines else "the connection was lost")
    if any(_HOST_KEY in line for line in lines):
        hint = "The server's key is not in known_hosts_file, or another one is: find out why before you trust it."
        # Not its advice to put the new key into the file: that is for whoever found out why.
        facts = [line for line in lines if "host key" in line.lower() and not line.startswith(_ADVICE)]
        return Ending("; ".join(facts), denied=True, hint=hint)
    return Ending(denied, denied=True, hint="Put the public key of credentials_file into the server's authorized_keys.")


def _quoted(path: Path) -> str:
    """A file's name as an option's value (ssh_config(5): quotes, tokens that begin with `%`, `${…}`)."""
    text = str(path.absolute())
    if any(mark in text for mark in ('"', "\\", "\n", "${")):
        raise SettingsError(f"the name {text!r} cannot be told to OpenSSH", hint="Give the file a plainer name.")
    return '"' + text.replace("%", "%%") + '"'
