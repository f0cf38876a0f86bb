"""``udstream doctor``: what this kernel and platform can do, tried out rather than looked up."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from .. import Shutdown, UdSocketPath, UdStream, UdStreamListener, _platform
from ..ancillary import (
    get_passrights,
    peer_credentials,
    peer_groups,
    peer_pidfd,
    peer_security,
    set_passcred,
    set_passrights,
)
from .terminal import flush_output, printable, say, table, version

# Python has no name for it yet; the number is that of most of Linux's architectures.
SO_PASSPIDFD = getattr(socket, "SO_PASSPIDFD", 76)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    """Print a line for each thing that a program may want to know before it relies on it."""
    say(f"udstream {version()}, {sys.implementation.name} {sys.version.split()[0]}, {_kernel()}")
    say()
    with tempfile.TemporaryDirectory(prefix="udstream-") as name:
        table(_result(title, probe, Path(name)) for title, probe in PROBES)
    flush_output()
    return 0


def _kernel() -> str:
    try:
        return " ".join(
            Path("/proc/sys/kernel", name).read_text().strip() for name in ("ostype", "osrelease")
        )
    except OSError:
        return "a kernel that doesn't say its name in /proc"


class _No(Exception):
    """The thing was tried, and did not work; the message says how."""


def _result(title: str, probe: Callable[[Path], str], folder: Path) -> tuple[str, str, str]:
    try:
        return title, "yes", probe(folder)
    except (_No, NotImplementedError, ValueError) as error:
        return title, "no", printable(error)
    except OSError as error:
        return title, "no", printable(error.strerror or error)


def _connects(path: Path | UdSocketPath) -> None:
    with (
        UdStreamListener.bind(path) as listener,
        UdStream.connect(path, timeout=5) as client,
        listener.accept() as server,
    ):
        client.write(b"x")
        if server.read(1) != b"x":
            raise _No("connected, and what was sent did not arrive")


def _socket_files(folder: Path) -> str:
    _connects(folder / "s")
    return f"paths up to {_platform.SUN_PATH_MAX} bytes fit the kernel's structure"


def _long_paths(folder: Path) -> str:
    path = folder.joinpath(*["d" * 100] * 3, "s")
    path.parent.mkdir(parents=True)
    _connects(path)
    return f"bound and connected to one of {len(os.fsencode(path))} bytes"


def _abstract(folder: Path) -> str:
    # The folder's name is nobody else's, and so is this one.
    _connects(UdSocketPath.namespaced(f"{folder.name}-doctor"))
    return "bound and connected; names up to 107 bytes"


def _mode(folder: Path) -> str:
    # What the listener shows before it accepts anybody is what the first to come would have met.
    path = folder / "mode"
    with UdStreamListener.bind(path, mode=0o600):
        mode = stat.S_IMODE(path.stat().st_mode)
    if mode != 0o600:
        raise _No(f"asked for 0600, and the socket file got {mode:04o}")
    before = folder / "fchmod"
    with socket.socket(socket.AF_UNIX) as plain:
        try:
            os.fchmod(plain.fileno(), 0o600)
        except OSError as error:
            return f"by other means: a socket takes no mode before bind ({error.strerror})"
        _bind_by_a_short_name(plain, before)
        if stat.S_IMODE(before.stat().st_mode) & 0o077:
            return "by other means: a mode given before bind has no effect"
    return "a mode given to the socket before bind holds from the first instant"


def _bind_by_a_short_name(plain: socket.socket, path: Path) -> None:
    # The temporary folder's own may be longer than the kernel's structure.
    held = os.open(path.parent, _platform.HOLD_FOLDER)
    try:
        through = Path("/proc/self/fd", str(held))
        plain.bind(bytes(through / path.name if through.exists() else path))
    finally:
        os.close(held)


def _credentials(folder: Path) -> str:
    here, there = UdStream.pair()
    with here, there:
        peer = peer_credentials(here)
    if peer.uid != os.geteuid():
        raise _No(f"the kernel says uid {peer.uid} of this very process")
    return "user and group" if peer.pid is None else "process, user and group"


def _groups(folder: Path) -> str:
    here, there = UdStream.pair()
    with here, there:
        count = len(peer_groups(here))
    return f"{count} of this process"


def _pidfd(folder: Path) -> str:
    here, there = UdStream.pair()
    with here, there:
        fd = peer_pidfd(here)
    os.close(fd)
    return "the peer's process, without a race"


def _security(folder: Path) -> str:
    here, there = UdStream.pair()
    with here, there:
        label = peer_security(here)
    if label is None:
        raise _No("no security module of this kernel gives sockets a label")
    return printable(label)


def _passcred(folder: Path) -> str:
    here, there = UdStream.pair()
    with here, there:
        set_passcred(there, True)
        here.write(b"x")
        received = there.recv_ancillary(bytearray(1))
        received.fds.close()
    if received.credentials is None:
        raise _No("the option was taken, and no credentials came")
    return "each message brings its sender's process, user and group"


def _passpidfd(folder: Path) -> str:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        there.setsockopt(socket.SOL_SOCKET, SO_PASSPIDFD, 1)
        here.send(b"x")
        _, cmsgs, _, _ = there.recvmsg(1, socket.CMSG_SPACE(4))
    fds = [
        int.from_bytes(data, sys.byteorder, signed=True)
        for _, kind, data in cmsgs
        if kind == _platform.SCM_PIDFD
    ]
    for fd in fds:
        if fd >= 0:
            os.close(fd)
    if not fds:
        raise _No("the option was taken, and no pidfd came")
    return "each message brings a handle on its sender's process"


def _fds(folder: Path) -> str:
    here, there = UdStream.pair()
    with here, there:
        here.send_fds(b"x", [0, 1])
        _, fds = there.recv_fds(1)
    with fds:
        inheritable = [fd for fd in fds if os.get_inheritable(fd)]
        if len(fds) != 2 or inheritable:
            raise _No(f"sent 2, {len(fds)} came, {len(inheritable)} of them inheritable")
    return "close-on-exec once received"


def _cloexec(folder: Path) -> str:
    flag = getattr(socket, "MSG_CMSG_CLOEXEC", None)
    if flag is None:
        raise _No("descriptors become close-on-exec a moment after they come")
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        socket.send_fds(here, [b"x"], [here.fileno()])
        _, cmsgs, _, _ = there.recvmsg(1, socket.CMSG_SPACE(4), flag)
    fd = int.from_bytes(cmsgs[0][2], sys.byteorder)
    inheritable = os.get_inheritable(fd)
    os.close(fd)
    if inheritable:
        raise _No("the flag was taken, and had no effect")
    return "from their first instant"


def _passrights(folder: Path) -> str:
    here, there = UdStream.pair()
    with here, there:
        set_passrights(there, False)
        if get_passrights(there):
            raise _No("the option was taken, and had no effect")
        try:
            here.send_fds(b"x", [0])
        except PermissionError:
            return "the sender gets EPERM"
    raise _No("the option was taken, and a descriptor was sent all the same")


def _sendfile(folder: Path) -> str:
    here, there = UdStream.pair()
    with here, there, open(os.__file__, "rb") as file:
        if (
            here.sendfile(file, 0, 1000) != 1000
            or there.read_exact(1000) != Path(os.__file__).read_bytes()[:1000]
        ):
            raise _No("what was sent did not arrive")
    return "by the kernel" if hasattr(os, "sendfile") else "by reading and writing"


def _sigpipe(folder: Path) -> str:
    here, there = UdStream.pair()
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with here:
            there.close()
            here.write(b"x")
    except BrokenPipeError:
        return "a write to a closed connection is an error, whatever SIGPIPE is set to"
    finally:
        signal.signal(signal.SIGPIPE, before)
    raise _No("a write to a closed connection succeeded")


def _shutdown(folder: Path) -> str:
    with UdStreamListener.bind(folder / "end") as listener:
        listener.timeout = 5
        listener.shutdown()
        try:
            listener.accept().close()
        except TimeoutError:
            raise _No("accept() went on waiting") from None
        except OSError:
            return "ends an accept() that another thread is blocked in"
    raise _No("accept() went on")


def _half_close(folder: Path) -> str:
    here, there = UdStream.pair()
    with here, there:
        here.shutdown(Shutdown.WRITE)
        there.write(b"x")
        if there.read(1) != b"" or here.read(1) != b"x":
            raise _No("the two ways of a connection end together")
    return "a client may end what it says and hear the answer"


PROBES: list[tuple[str, Callable[[Path], str]]] = [
    ("socket files", _socket_files),
    ("paths of any length", _long_paths),
    ("abstract namespace", _abstract),
    ("mode before bind", _mode),
    ("half-close", _half_close),
    ("no SIGPIPE", _sigpipe),
    ("shutdown of a listener", _shutdown),
    ("sendfile", _sendfile),
    ("descriptor passing", _fds),
    ("MSG_CMSG_CLOEXEC", _cloexec),
    ("refusing descriptors (SO_PASSRIGHTS)", _passrights),
    ("peer credentials", _credentials),
    ("peer groups (SO_PEERGROUPS)", _groups),
    ("peer pidfd (SO_PEERPIDFD)", _pidfd),
    ("peer security (SO_PEERSEC)", _security),
    ("credentials by message (SO_PASSCRED)", _passcred),
    ("pidfd by message (SO_PASSPIDFD)", _passpidfd),
]
