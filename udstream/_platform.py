"""The only module that asks which OS this is: constants, limits, and what is missing where."""

from __future__ import annotations

import _socket
import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    PeerCredentials: TypeAlias = tuple[int, int, int, Callable[[bytes], tuple[int, int, int]], int | None]

LINUX = sys.platform.startswith("linux")

# How many bytes of sun_path a file's path may fill. The kernel's structure has 108 bytes on Linux and
# 104 on macOS and the BSDs; one of them is the closing NUL, which an abstract name does not need.
SUN_PATH_MAX = 107 if LINUX else 103
ABSTRACT_NAME_MAX = 107

HAS_ABSTRACT_NAMESPACE = LINUX
# With O_PATH and /proc/self/fd a path of any length can be reached through a short one.
HAS_LONG_PATHS = LINUX

# A write to a connection whose reader is gone is to be an error, never a signal: Linux and the BSDs
# take this flag with each call; macOS has an option of the socket instead.
MSG_NOSIGNAL: int = getattr(_socket, "MSG_NOSIGNAL", 0)
SO_NOSIGPIPE: int | None = 0x1022 if sys.platform == "darwin" else None

# How many bytes a send without waiting takes as a whole or not at all, whatever the socket's send buffer. Linux
# splits no piece that fits into half of it, so that more is known where the size of that is.
SENT_WHOLE = 2048 if LINUX else 0


def sent_whole(sock: _socket.socket) -> int:
    """The like of `SENT_WHOLE` for one socket."""
    if not LINUX:
        return 0
    return min(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF) // 2 - 64, 1 << 15)


try:
    IOV_MAX: int = os.sysconf("SC_IOV_MAX")
except (ValueError, OSError):  # pragma: no cover - POSIX promises at least 16
    IOV_MAX = 16

# --- listening ---

# How to hold a folder by a descriptor: O_PATH asks for no right to read it.
_O_PATH: int = getattr(os, "O_PATH", 0)
HOLD_FOLDER: int = _O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# How to hold a socket file, the file itself and not what a symbolic link leads to; only O_PATH opens one.
HOLD_SOCKET_FILE: int | None = _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC if _O_PATH else None
# On Linux the mode of a socket's descriptor, less the umask, becomes that of the file that bind makes.
HAS_MODE_BEFORE_BIND = LINUX
# On the BSDs and macOS what a nonblocking listener accepts is nonblocking too.
ACCEPTED_ARE_BLOCKING = LINUX

# --- descriptors and credentials in control messages; who the peer is ---

# Linux takes no more descriptors than these in one message, and the BSDs no fewer.
SCM_MAX_FD = 253

SOL_SOCKET = _socket.SOL_SOCKET
SCM_RIGHTS: int = getattr(_socket, "SCM_RIGHTS", 1)
SCM_CREDENTIALS: int | None = getattr(_socket, "SCM_CREDENTIALS", 2) if LINUX else None
SCM_SECURITY: int | None = 3 if LINUX else None
SCM_PIDFD: int | None = 4 if LINUX else None
# Where it is missing (macOS) a descriptor can be made close-on-exec only once it is there.
MSG_CMSG_CLOEXEC: int = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)


def _linux_option(name: str, generic: int) -> int | None:
    """The number of a socket option that older Pythons have no name for."""
    if not LINUX:
        return None
    # Two architectures number their options in a way of their own: there only what Python knows is sure.
    other = os.uname().machine.startswith(("parisc", "sparc"))
    number: int | None = getattr(_socket, name, None if other else generic)
    return number


SO_PASSCRED: int | None = getattr(_socket, "SO_PASSCRED", None) if LINUX else None
SO_PEERSEC: int | None = _linux_option("SO_PEERSEC", 31)
SO_PEERGROUPS: int | None = _linux_option("SO_PEERGROUPS", 59)
SO_PEERPIDFD: int | None = _linux_option("SO_PEERPIDFD", 77)
SO_PASSRIGHTS: int | None = _linux_option("SO_PASSRIGHTS", 83)


def ucred(data: bytes) -> tuple[int, int, int]:
    """(pid, uid, gid) of Linux's ``struct ucred``."""
    pid, uid, gid = struct.unpack("=iII", data)
    return pid, uid, gid


def xucred(data: bytes) -> tuple[int, int, int]:
    """(0, uid, gid) of macOS's ``struct xucred``, which has no pid in it; gid is the first of its groups."""
    _version, uid, ngroups, gid = struct.unpack_from("=IIh2xI", data)
    return 0, uid, gid if ngroups > 0 else _NOBODY


def xucred_with_pid(data: bytes) -> tuple[int, int, int]:
    """(pid, uid, gid) of FreeBSD's ``struct xucred``: a pid, or 0, in a union that is as wide as a pointer."""
    _, uid, gid = xucred(data)
    # 64-bit kernels align the union to 8 bytes; before FreeBSD 13 it is there, and holds no pid.
    place = 80 if len(data) >= 88 else 76
    return (struct.unpack_from("=i", data, place)[0] if len(data) >= place + 4 else 0), uid, gid


def sockpeercred(data: bytes) -> tuple[int, int, int]:
    """(pid, uid, gid) of OpenBSD's ``struct sockpeercred``."""
    uid, gid, pid = struct.unpack("=IIi", data)
    return pid, uid, gid


def unpcbid(data: bytes) -> tuple[int, int, int]:
    """(pid, uid, gid) of NetBSD's ``struct unpcbid``, which has them in Linux's order."""
    return ucred(data)


_NOBODY = 0xFFFFFFFF

# Platform: level and number of the socket option, room for what it answers, how to read that, and the
# number of a second option that tells the pid, if the first does not.
PEER_CREDENTIALS_BY_PLATFORM: dict[str, PeerCredentials] = {
    "linux": (SOL_SOCKET, getattr(_socket, "SO_PEERCRED", 17), 12, ucred, None),
    "darwin": (0, 0x001, 76, xucred, 0x002),
    "freebsd": (0, 0x001, 88, xucred_with_pid, None),
    "openbsd": (SOL_SOCKET, 0x1022, 12, sockpeercred, None),
    "netbsd": (0, 0x003, 12, unpcbid, None),
}
PLATFORM = sys.platform.rstrip("0123456789")
PEER_CREDENTIALS: PeerCredentials | None = PEER_CREDENTIALS_BY_PLATFORM.get(PLATFORM)
# What a message about something missing calls this platform.
KERNEL = f"{os.uname().sysname} {os.uname().release}"
