"""Giving a socket a file's name safely: nobody's live socket replaced, no moment too open, no leftovers."""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import stat
from time import monotonic, sleep

from . import _csocket, _platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ._csocket import CSocket
    from .address import UdSocketPath

# Anybody who may read the folder can hold its lock for as long as he likes, so it is waited for, but not
# for ever: without it two starters are still kept apart, but for the time between two system calls.
_LOCK_PATIENCE = 2.0
# Other programs, which take no lock, may go on putting dead sockets in the way.
_ATTEMPTS = 100
# Missing where /proc is not mounted, in a bare chroot say.
_OWN_FDS = b"/proc/self/fd"
_UNCHANGED = -1
_TAKEN = (errno.EADDRINUSE, errno.EEXIST)


class Access:
    """Who may connect to a socket file: its mode, owner and group, each as it comes where None."""

    __slots__ = ("gid", "mode", "uid")

    def __init__(self, mode: int | None, owner: str | int | None, group: str | int | None) -> None:
        if mode is not None:
            if not isinstance(mode, int):
                raise TypeError(f"mode is a number such as 0o600, or None, not {type(mode).__name__}")
            if not 0 <= mode <= 0o777:
                raise ValueError(f"mode is permission bits alone, 0 to 0o777, not {oct(mode)}")
        self.mode = mode
        self.uid = _UNCHANGED if owner is None else _uid(owner)
        self.gid = _UNCHANGED if group is None else _gid(group)

    @property
    def is_default(self) -> bool:
        """Whether none of the three was given."""
        return self.mode is None and self.uid == self.gid == _UNCHANGED


class _Held:
    """A file or folder that is open until `close`, or until this is dropped, and that no signal's handler can leave so."""

    __slots__ = ("_fds",)

    def __init__(self, name: bytes, flags: int, folder: int | None = None) -> None:
        # In a list, into which it is opened, and out of which it is closed, in one step.
        self._fds: list[int] = []
        opener: Callable[..., int] = os.open
        if folder is not None:
            from functools import partial

            opener = partial(os.open, dir_fd=folder)
        self._fds.extend(map(opener, (name,), (flags,)))

    @property
    def fd(self) -> int:
        """Its descriptor, lent."""
        return self._fds[0]

    @property
    def closed(self) -> bool:
        """Whether it is held no longer."""
        return not self._fds

    def close(self) -> None:
        """Let go of it; a second time, do nothing."""
        if self._fds:
            any(map(os.close, map(self._fds.pop, (-1,))))

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_fds"):
            self.close()


class Claim:
    """
    A name in a folder that this process gave to a socket; it holds the folder until it is dropped.

    `remove` takes the name away again, if it still is this socket's and this still is the process that gave
    it. It must be called while the socket is open, which keeps the number of its inode from being used again.
    """

    __slots__ = ("_folder", "_inode", "_pid", "name")

    def __init__(self, folder: bytes, name: bytes) -> None:
        self.name = name
        self._pid = os.getpid()
        self._inode: tuple[int, int] | None = None
        self._folder = _Held(folder, _platform.HOLD_FOLDER)

    @property
    def folder(self) -> int:
        """The folder's descriptor."""
        return self._folder.fd

    def identify(self, name: bytes | None = None) -> None:
        """Note which inode the socket has, right after it got *name*."""
        status = os.stat(name or self.name, dir_fd=self.folder, follow_symlinks=False)
        self._inode = (status.st_dev, status.st_ino)

    def is_ours(self, status: os.stat_result) -> bool:
        """Whether this is the status of the very file that was claimed."""
        return (status.st_dev, status.st_ino) == self._inode

    def drop(self) -> None:
        """Let go of the folder, and leave the file."""
        self._folder.close()

    def remove(self) -> None:
        """Remove the file, if it is still ours, and let go of the folder."""
        if self._folder.closed:
            return
        try:
            if self._pid == os.getpid() and self.is_ours(
                os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
            ):
                os.unlink(self.name, dir_fd=self.folder)
        except OSError as error:
            # It is gone, or this process has given up the right to remove it. Closing goes on.
            if not _csocket.from_system(error):
                raise
        finally:
            self.drop()


def bind(sock: CSocket, address: UdSocketPath, access: Access, *, reclaim_stale: bool) -> Claim:
    """
    Bind *sock*, which must not listen yet, to the file *address*, with *access* from the first.

    A socket file in the way that nobody has open is replaced if *reclaim_stale*. On any error nothing is
    left behind. That it does not listen is what keeps everybody out until mode and owner are right.
    """
    folder, name = os.path.split(address.sockaddr())
    claim = Claim(folder or b".", name)
    try:
        if access.mode is not None and _platform.HAS_MODE_BEFORE_BIND:
            os.fchmod(sock.fileno(), access.mode)
        sockaddr = _sockaddr(address.name, claim)
        if sockaddr is not None:
            _bind_by_its_name(sock, sockaddr, claim, access, address.name, reclaim_stale)
        else:
            _bind_by_a_short_name(sock, claim, access, address.name, reclaim_stale)
    except BaseException:
        claim.remove()
        raise
    return claim


def _sockaddr(path: bytes, claim: Claim) -> bytes | None:
    """What to bind to: the path, or a way to it that the kernel has room for; None when there is none."""
    if len(path) <= _platform.SUN_PATH_MAX:
        return path
    through_folder = _through(claim.folder) + b"/" + claim.name
    return through_folder if len(through_folder) <= _platform.SUN_PATH_MAX else None


def _through(fd: int) -> bytes:
    return b"%s/%d" % (_OWN_FDS, fd)


def _bind_by_its_name(
    sock: CSocket, sockaddr: bytes, claim: Claim, access: Access, path: bytes, reclaim_stale: bool
) -> None:
    try:
        _publish(lambda: sock.bind(sockaddr), claim, path, reclaim_stale)
    finally:
        # Also when a signal's handler raised as the bind returned: then the file is there, to be removed.
        if sock.getsockname():
            claim.identify()
    _set_access(claim, claim.name, access)


def _bind_by_a_short_name(
    sock: CSocket, claim: Claim, access: Access, path: bytes, reclaim_stale: bool
) -> None:
    """Bind under a name that is nobody's, then link that to one that the kernel's structure cannot hold."""
    short = b".udstream-" + os.urandom(8).hex().encode()
    folder = claim.folder

    def link() -> None:
        os.link(short, claim.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)

    try:
        sock.bind(_through(folder) + b"/" + short)
        claim.identify(short)
        _set_access(claim, short, access)
        _publish(link, claim, path, reclaim_stale)
    finally:
        try:
            os.unlink(short, dir_fd=folder)
        except FileNotFoundError:
            pass  # the bind failed


def _set_access(claim: Claim, name: bytes, access: Access) -> None:
    """Give the new file its owner, group and mode, where they are not what they should be already."""
    if access.is_default:
        return
    if _platform.HOLD_SOCKET_FILE is None:
        _check_ours(claim, os.stat(name, dir_fd=claim.folder, follow_symlinks=False))
        os.chown(name, access.uid, access.gid, dir_fd=claim.folder, follow_symlinks=False)
        if access.mode is not None:
            os.chmod(name, access.mode, dir_fd=claim.folder, follow_symlinks=False)
        return
    with _Held(name, _platform.HOLD_SOCKET_FILE, claim.folder) as fd:
        _check_ours(claim, os.fstat(fd))
        try:
            if access.uid != _UNCHANGED or access.gid != _UNCHANGED:
                os.chown(_through(fd), access.uid, access.gid)
            if access.mode is not None and stat.S_IMODE(os.fstat(fd).st_mode) != access.mode:
                # The umask took bits of it.
                os.chmod(_through(fd), access.mode)
                if stat.S_IMODE(os.fstat(fd).st_mode) != access.mode:
                    raise OSError(errno.EOPNOTSUPP, "the file system does not keep the mode")
        except FileNotFoundError:
            # The file itself is held. In a bare chroot, say.
            raise OSError(
                errno.ENOSYS, "no /proc, which it takes to set a socket file's mode or owner"
            ) from None


def _check_ours(claim: Claim, made: os.stat_result) -> None:
    # Where others may write in the folder, one of them may have put a link to something else here, for us
    # to give away what is not his.
    if not (claim.is_ours(made) and stat.S_ISSOCK(made.st_mode) and made.st_nlink == 1):
        raise OSError(errno.EPERM, "another file has taken the new socket's place")


# --- the name is taken ---


def _publish(take_name: Callable[[], None], claim: Claim, path: bytes, reclaim_stale: bool) -> None:
    """Call *take_name*, after removing what is stale; ``EADDRINUSE`` when the name stays another's."""
    try:
        return take_name()
    except OSError as error:
        if error.errno not in _TAKEN or not _csocket.from_system(error):
            raise
    if reclaim_stale:
        with _FolderLock(claim.folder):
            for _ in range(_ATTEMPTS):
                if not _remove_stale(claim, path):
                    break
                try:
                    return take_name()
                except OSError as error:
                    # A starter who did not need the lock was quicker; what he made is judged anew.
                    if error.errno not in _TAKEN or not _csocket.from_system(error):
                        raise
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _remove_stale(claim: Claim, path: bytes) -> bool:
    """Remove the file with the claim's name if it is a socket nobody has; whether the name may be free now."""
    try:
        if _platform.HOLD_SOCKET_FILE is None:
            status = os.stat(claim.name, dir_fd=claim.folder, follow_symlinks=False)
            if not (stat.S_ISSOCK(status.st_mode) and _is_dead(path)):
                return False
            os.unlink(claim.name, dir_fd=claim.folder)
            return True
        # Held, its inode cannot come back as another's: the file judged is the one removed.
        with _Held(claim.name, _platform.HOLD_SOCKET_FILE, claim.folder) as fd:
            held = os.fstat(fd)
            if not (
                stat.S_ISSOCK(held.st_mode) and _is_dead(_through(fd) if os.path.isdir(_OWN_FDS) else path)
            ):
                return False
            if os.path.samestat(held, os.stat(claim.name, dir_fd=claim.folder, follow_symlinks=False)):
                os.unlink(claim.name, dir_fd=claim.folder)
            return True
    except FileNotFoundError:
        return True


def _is_dead(path: bytes) -> bool:
    """
    Whether no process has a socket open that is bound to the file at *path*, listening or not.

    A datagram socket asks: it takes no place in a backlog and wakes nobody. ``EPROTOTYPE``: a stream socket
    has it; ``ECONNREFUSED``: none has. Where the kernel will not say (``EACCES``), it counts as alive.
    """
    if len(path) > _platform.SUN_PATH_MAX:
        return False  # and cannot be asked about
    probe = _csocket.create(_socket.SOCK_DGRAM)
    try:
        probe.connect(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or not _csocket.from_system(error):
            raise
        return isinstance(error, ConnectionRefusedError)
    finally:
        probe.close()
    return False


class _FolderLock:
    """A lock among all who replace socket files in one folder; entered without it where there is none to get."""

    __slots__ = ("_folder", "_held")

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self._held: _Held | None = None

    def __enter__(self) -> None:
        try:
            self._held = _Held(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, self._folder)
        except OSError as error:
            if not _csocket.from_system(error):
                raise
            return  # a folder that may be written and not read
        try:
            patience = monotonic() + _LOCK_PATIENCE
            while not _locked(self._held.fd) and monotonic() < patience:
                sleep(0.002)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        if self._held is not None:
            self._held.close()


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if not _csocket.from_system(error):
            raise
        # Otherwise it is a file system without locks.
        return not isinstance(error, BlockingIOError)
    return True


# --- names of users ---


def _uid(owner: str | int) -> int:
    if isinstance(owner, str):
        import pwd

        try:
            return pwd.getpwnam(owner).pw_uid
        except KeyError:
            raise ValueError(f"owner: there is no user named {owner!r}") from None
    return _id("owner", owner)


def _gid(group: str | int) -> int:
    if isinstance(group, str):
        import grp

        try:
            return grp.getgrnam(group).gr_gid
        except KeyError:
            raise ValueError(f"group: there is no group named {group!r}") from None
    return _id("group", group)


def _id(what: str, number: int) -> int:
    if not isinstance(number, int):
        raise TypeError(f"{what} is a name or a number, not {type(number).__name__}")
    # The highest is the kernel's way to say "leave it as it is".
    if not 0 <= number < 2**32 - 1:
        raise ValueError(f"{what} is a number from 0 to 2**32 - 2, not {number}")
    return number
