"""Who gets in: modes and owners, stale socket files, races, whose file is removed, service managers, authorize."""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from children import forked
from fakes import in_place_of_the_kernel
from meanwhile import PATIENCE, on_alarm

from udstream import UdStream, UdStreamListener, _activation, _binding, _csocket, ancillary

NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as other users")


def succeeds(work: Callable[[], object]) -> bool:
    """Whether *work* raises nothing in a process of its own."""
    return os.waitpid(forked(work), 0)[1] == 0


def become(uid: int) -> None:
    """Be another user, for good."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def permissions(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def stale(path: Path, kind: int = socket.SOCK_STREAM) -> None:
    """A socket file that nobody has open any more."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(os.path.relpath(path))


@contextmanager
def bound(path: Path, kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))
        yield sock


# --- mode, owner, group ---


@contextmanager
def watched(path: Path) -> Iterator[list[tuple[os.stat_result, bool]]]:
    """
    After and before every call that Python makes in C: what the socket file is, and whether one may connect.

    So nothing that lasts longer than one system call goes unseen.
    """
    seen: list[tuple[os.stat_result, bool]] = []

    def look(_frame: Any, event: str, _arg: Any) -> None:
        if not event.startswith("c_"):
            return
        for name in os.listdir(path.parent):
            status = os.lstat(path.parent / name)
            if not stat.S_ISSOCK(status.st_mode):
                continue
            fd = os.open(path.parent / name, os.O_PATH)
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    seen.append((status, client.connect_ex(f"/proc/self/fd/{fd}") == 0))
            finally:
                os.close(fd)

    sys.setprofile(look)
    try:
        yield seen
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("name", ["s", "s" * 200], ids=["short", "long"])
@pytest.mark.parametrize("mask", [0, 0o22, 0o77, 0o777])
@pytest.mark.parametrize("mode", [0, 0o600, 0o660, 0o666, 0o777])
def test_the_mode_holds_from_the_first_instant(folder: Path, mode: int, mask: int, name: str) -> None:
    """The file never has a bit more than *mode*, and exactly that once anyone can connect; the umask stays."""
    path = folder / name
    with umask(mask):
        with watched(path) as seen:
            listener = UdStreamListener.bind(path, mode=mode)
        assert permissions(path) == mode
        assert os.umask(mask) == mask
        listener.close()

    assert seen
    assert not any(stat.S_IMODE(status.st_mode) & ~mode for status, _ in seen)
    assert all(stat.S_IMODE(status.st_mode) == mode for status, open_to_us in seen if open_to_us)


@as_root
@pytest.mark.parametrize("name", ["s", "s" * 200], ids=["short", "long"])
@pytest.mark.parametrize("mask", [0, 0o777])
def test_the_owner_holds_from_the_first_instant(folder: Path, mask: int, name: str) -> None:
    """Nobody can connect before owner, group and mode are what was asked for."""
    path = folder / name
    with umask(mask), watched(path) as seen:
        listener = UdStreamListener.bind(path, mode=0o620, owner=NOBODY, group=12345)
    with listener:
        pass

    connectable = [status for status, open_to_us in seen if open_to_us]
    assert connectable
    for status in connectable:
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (NOBODY, 12345, 0o620)


def test_the_umask_is_never_touched(folder: Path) -> None:
    """The umask is the whole process's, so it is not changed for a moment either."""
    calls = []

    def spy(_frame: Any, event: str, arg: Any) -> None:
        if event == "c_call" and arg is os.umask:
            calls.append("umask")

    sys.setprofile(spy)
    try:
        listener = UdStreamListener.bind(folder / "s", mode=0o666)
    finally:
        sys.setprofile(None)
    listener.close()
    assert calls == []


@pytest.mark.parametrize("mask", [0, 0o22, 0o77])
def test_without_a_mode_the_umask_decides(folder: Path, mask: int) -> None:
    """mode=None leaves what bind(2) makes."""
    with umask(mask), UdStreamListener.bind(folder / "s"):
        assert permissions(folder / "s") == 0o777 & ~mask


@pytest.mark.parametrize("mode", [-1, 0o1000, 0o4755, 0o10600, 1 << 70])
def test_a_wrong_mode(folder: Path, mode: int) -> None:
    """What is more than permission bits is a ValueError, before anything is made."""
    with pytest.raises(ValueError, match="mode"):
        UdStreamListener.bind(folder / "s", mode=mode)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("keywords", [{"mode": "600"}, {"owner": 1.5}, {"group": b"x"}])
def test_access_of_a_wrong_type(folder: Path, keywords: Any) -> None:
    """A mode, owner or group of another type is a TypeError that names it."""
    with pytest.raises(TypeError, match=next(iter(keywords))):
        UdStreamListener.bind(folder / "s", **keywords)


@pytest.mark.parametrize(
    "keywords",
    [{"owner": "no such user"}, {"group": "no such group"}, {"owner": -1}, {"group": 2**32 - 1}],
)
def test_a_wrong_owner(folder: Path, keywords: Any) -> None:
    """Who does not exist, and what is no uid or gid, is a ValueError."""
    with pytest.raises(ValueError, match=next(iter(keywords))):
        UdStreamListener.bind(folder / "s", **keywords)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("keywords", [{"mode": 0o600}, {"owner": 0}, {"group": 0}])
def test_an_abstract_name_has_no_mode(keywords: Any) -> None:
    """An abstract name has no file, so mode and owner are ValueErrors rather than ignored."""
    with pytest.raises(ValueError, match="abstract"):
        UdStreamListener.bind("@" + os.urandom(8).hex(), **keywords)


@as_root
def test_owner_and_group_by_name(folder: Path) -> None:
    """Names do as well as numbers, and either may be given alone."""
    user = pwd.getpwuid(NOBODY)
    group = grp.getgrgid(1)
    # Whose own group has another number.
    for other in pwd.getpwall():
        if other.pw_uid != other.pw_gid:
            with UdStreamListener.bind(folder / "s", owner=other.pw_name):
                assert os.lstat(folder / "s").st_uid == pwd.getpwnam(other.pw_name).pw_uid
            break
    with UdStreamListener.bind(folder / "s", owner=user.pw_name):
        assert (os.lstat(folder / "s").st_uid, os.lstat(folder / "s").st_gid) == (NOBODY, os.getegid())
    with UdStreamListener.bind(folder / "s", group=group.gr_name):
        assert (os.lstat(folder / "s").st_uid, os.lstat(folder / "s").st_gid) == (os.geteuid(), 1)


@as_root
def test_an_owner_one_may_not_give(folder: Path) -> None:
    """What the kernel refuses is its error with the path, and no file stays."""
    os.chown(folder, NOBODY, NOBODY)

    def give_away() -> None:
        become(NOBODY)
        for name in ("s", "s" * 200):
            with pytest.raises(PermissionError) as caught:
                UdStreamListener.bind(folder / name, owner=0)
            assert caught.value.filename == str(folder / name)
            assert os.listdir(folder) == []

    assert succeeds(give_away)


@as_root
def test_the_mode_keeps_others_out(folder: Path) -> None:
    """Another user can connect if the mode says so, and not otherwise."""
    folder.chmod(0o755)

    def connect() -> None:
        become(NOBODY)
        UdStream.connect(folder / "s").close()

    with UdStreamListener.bind(folder / "s", mode=0o660):
        with umask(0):
            assert not succeeds(connect)
    with UdStreamListener.bind(folder / "s", mode=0o666):
        assert succeeds(connect)


def test_a_file_that_takes_the_sockets_place_gets_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Owner and mode are never given to a file that somebody put where the new socket was."""
    path = folder / "s"
    victim = folder / "victim"
    victim.write_text("")
    victim.chmod(0o600)

    class Swapping(_binding.Access):
        @property
        def is_default(self) -> bool:
            if path.exists():
                path.unlink()
                os.link(victim, path)
            return False

    monkeypatch.setattr(_binding, "Access", Swapping)
    with pytest.raises(PermissionError):
        UdStreamListener.bind(path, mode=0o666)
    assert permissions(victim) == 0o600
    assert path.exists()


@pytest.mark.parametrize("name", ["s", "s" * 200], ids=["short", "long"])
@pytest.mark.parametrize(
    ("victim", "moment"),
    [
        ("moved file", "identified"),
        ("linked socket", "identified"),
        ("moved file", "given access"),
        ("linked socket", "given access"),
        ("moved socket", "given access"),
    ],
)
def test_what_is_no_new_socket_of_ours_gets_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, victim: str, moment: str, name: str
) -> None:
    """Nor to any other that comes in between, however it was put there, by the time we look."""
    kind, what = victim.split()
    other = folder / "victim"
    with socket.socket(socket.AF_UNIX) as sock:
        if what == "file":
            other.write_text("")
        else:
            sock.bind(str(other))
        other.chmod(0o600)
        held = os.open(other, os.O_PATH)
        identify = _binding.Claim.identify

        def swap() -> None:
            [new] = [entry for entry in folder.iterdir() if entry.name != "victim"]
            new.unlink()
            (os.rename if kind == "moved" else os.link)(other, new)

        def swap_and_identify(claim: _binding.Claim, at: bytes | None = None) -> None:
            if moment == "identified":
                swap()
            identify(claim, at)
            if moment == "given access":
                swap()

        monkeypatch.setattr(_binding.Claim, "identify", swap_and_identify)
        try:
            with pytest.raises(PermissionError):
                UdStreamListener.bind(folder / name, mode=0o666)
            assert stat.S_IMODE(os.fstat(held).st_mode) == 0o600
        finally:
            os.close(held)


def test_a_mode_that_the_file_system_does_not_keep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the mode cannot be had nobody is let in with another: an error, and no file."""
    monkeypatch.setattr(os, "chmod", lambda *_, **__: None)
    with umask(0o77), pytest.raises(OSError, match="does not keep the mode") as caught:
        UdStreamListener.bind(folder / "s", mode=0o666)
    assert (caught.value.errno, caught.value.filename) == (errno.EOPNOTSUPP, str(folder / "s"))
    assert os.listdir(folder) == []


@pytest.mark.parametrize("reclaim_stale", [True, False])
@pytest.mark.parametrize("name", ["s", "s" * 200], ids=["short", "long"])
def test_a_folder_that_may_not_be_written(folder: Path, name: str, reclaim_stale: bool) -> None:
    """That no file can be made there is told, whatever the length of its name."""

    def bind() -> None:
        if os.geteuid() == 0:
            become(NOBODY)
        with pytest.raises(PermissionError) as caught:
            UdStreamListener.bind(folder / name, reclaim_stale=reclaim_stale)
        assert caught.value.filename == str(folder / name)

    folder.chmod(0o555)
    try:
        assert succeeds(bind)
    finally:
        folder.chmod(0o755)


# --- stale files ---


@pytest.fixture(params=["s", "s" * 200], ids=["short", "long"])
def path(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path in a folder that is the working one too, so that a plain socket can bind long ones' short names."""
    monkeypatch.chdir(folder)
    return Path(folder / request.param)


def leave_stale(path: Path, kind: int = socket.SOCK_STREAM) -> None:
    """A socket file that nobody has open, under a name of any length."""
    stale(path.parent / "short", kind)
    os.rename(path.parent / "short", path)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_stale_file_is_replaced(path: Path, kind: int) -> None:
    """A socket file that nobody has open gives way, and nothing else is left in the folder."""
    leave_stale(path, kind)

    with UdStreamListener.bind(path, mode=0o640) as listener:
        assert os.listdir(path.parent) == [path.name]
        assert permissions(path) == 0o640
        with UdStream.connect(path), listener.accept():
            pass
    assert os.listdir(path.parent) == []


def test_a_crashed_servers_file_is_replaced(path: Path) -> None:
    """What a killed process left, its accepted connections still held by another, is stale."""
    with ExitStack() as stack:
        listener = UdStreamListener.bind(path, unlink=False)
        client = stack.enter_context(UdStream.connect(path))
        served = stack.enter_context(listener.accept())
        listener.close()
        with UdStreamListener.bind(path):
            client.write(b"x")
            assert served.read(1) == b"x"


@pytest.mark.parametrize("listening", [True, False], ids=["listening", "only bound"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_live_file_is_never_replaced(path: Path, kind: int, listening: bool) -> None:
    """A socket that a process has open, of any type, listening yet or not, is EADDRINUSE, undisturbed."""
    with bound(path.parent / "short", kind) as sock:
        if listening and kind != socket.SOCK_DGRAM:
            sock.listen(0)
        sock.setblocking(False)
        os.rename("short", path)
        inode = os.lstat(path).st_ino
        for _ in range(3):
            with pytest.raises(OSError, match="in use") as caught:
                UdStreamListener.bind(path)
            assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, str(path))
        assert os.lstat(path).st_ino == inode
        assert os.listdir(path.parent) == [path.name]
        # The probe is not in the backlog, and no datagram came.
        with pytest.raises(BlockingIOError):
            _ = sock.accept() if listening and kind != socket.SOCK_DGRAM else _nothing_came(sock, kind)


def _nothing_came(sock: socket.socket, kind: int) -> Any:
    if kind == socket.SOCK_DGRAM:
        return sock.recv(1)
    raise BlockingIOError


def test_a_full_backlog_does_not_stop_the_probe(folder: Path) -> None:
    """A server too busy to accept is alive, and is found to be at once."""
    with bound(folder / "s") as sock, ExitStack() as stack:
        sock.listen(0)
        stack.enter_context(UdStream.connect(folder / "s"))
        with pytest.raises(OSError, match="in use"):
            UdStreamListener.bind(folder / "s")


def test_a_listener_that_was_shut_down_is_alive(folder: Path) -> None:
    """Until it is closed the file is its own."""
    with UdStreamListener.bind(folder / "s") as listener:
        listener.shutdown()
        with pytest.raises(OSError, match="in use"):
            UdStreamListener.bind(folder / "s")


@pytest.mark.parametrize("what", ["file", "folder", "fifo", "link to a stale socket", "link to nothing"])
def test_what_is_no_socket_is_never_removed(path: Path, what: str) -> None:
    """A file, a folder, a FIFO and a symbolic link, wherever it leads, are EADDRINUSE and stay."""

    def link_to_stale() -> None:
        stale(path.parent / "t")
        path.symlink_to(path.parent / "t")

    make: dict[str, Callable[[], object]] = {
        "file": lambda: path.write_text("precious"),
        "folder": lambda: path.mkdir(),
        "fifo": lambda: os.mkfifo(path),
        "link to a stale socket": link_to_stale,
        "link to nothing": lambda: path.symlink_to(path.parent / "gone"),
    }
    make[what]()
    before = os.lstat(path), sorted(os.listdir(path.parent))

    with pytest.raises(OSError, match="in use") as caught:
        UdStreamListener.bind(path)

    assert caught.value.errno == errno.EADDRINUSE
    after = os.lstat(path), sorted(os.listdir(path.parent))
    assert (before[0].st_ino, before[0].st_mode, before[1]) == (after[0].st_ino, after[0].st_mode, after[1])


def test_reclaim_stale_can_be_switched_off(path: Path) -> None:
    """reclaim_stale=False: whatever is there is EADDRINUSE and stays."""
    leave_stale(path)

    with pytest.raises(OSError, match="in use") as caught:
        UdStreamListener.bind(path, reclaim_stale=False)

    assert caught.value.errno == errno.EADDRINUSE
    assert path.is_socket()


def test_the_folders_lock_is_not_waited_for_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody who may read the folder may hold its lock; that delays a reclaim, and does not prevent it."""
    stale(folder / "s")
    monkeypatch.setattr(_binding, "_LOCK_PATIENCE", 0.05)
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with UdStreamListener.bind(folder / "s"):
            pass
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", [fcntl.LOCK_EX, fcntl.LOCK_SH], ids=["exclusive", "shared"])
def test_a_reclaim_waits_for_another(folder: Path, kind: int) -> None:
    """While somebody else replaces a stale file in the folder, nobody judges or removes one."""
    stale(folder / "s")
    held = os.open(folder / "s", os.O_PATH)
    fd = os.open(folder, os.O_RDONLY)
    fcntl.flock(fd, kind)
    listeners = []
    thread = threading.Thread(target=lambda: listeners.append(UdStreamListener.bind(folder / "s")))
    thread.start()
    try:
        thread.join(0.1)
        # Its inode's number could have been used again; that it has a name tells.
        assert os.fstat(held).st_nlink == 1
    finally:
        os.close(fd)
        thread.join(PATIENCE)
    assert os.fstat(held).st_nlink == 0
    os.close(held)
    listeners[0].close()


@as_root
def test_a_folder_that_may_not_be_read(folder: Path) -> None:
    """Without the right to read the folder there is no lock, and the stale file is replaced all the same."""
    os.chown(folder, NOBODY, NOBODY)

    def bind() -> None:
        become(NOBODY)
        folder.chmod(0o700)
        stale(folder / "s")
        folder.chmod(0o300)
        with UdStreamListener.bind(folder / "s") as listener, UdStream.connect(folder / "s"):
            listener.accept().close()

    assert succeeds(bind)


@as_root
def test_a_socket_that_may_not_be_judged(folder: Path) -> None:
    """One that we may not connect to counts as alive: EADDRINUSE, and it stays."""
    stale(folder / "s")
    (folder / "s").chmod(0o600)
    folder.chmod(0o777)

    def bind() -> None:
        become(NOBODY)
        with pytest.raises(OSError, match="in use") as caught:
            UdStreamListener.bind(folder / "s")
        assert caught.value.errno == errno.EADDRINUSE

    assert succeeds(bind)
    assert (folder / "s").is_socket()


@pytest.mark.parametrize("leftover", [True, False], ids=["stale file", "no file"])
def test_of_many_that_start_at_once_one_wins(path: Path, leftover: bool) -> None:
    """Processes that bind the same path at the same instant: one listens and the others get EADDRINUSE, each round."""
    starters, rounds = 8, 25
    report, told = os.pipe()
    starts = [os.pipe() for _ in range(starters)]
    ends = [os.pipe() for _ in range(starters)]

    def starter(number: int) -> None:
        for _ in range(rounds):
            at = float(os.read(starts[number][0], 64))
            while time.monotonic() < at:
                pass
            listener = None
            try:
                listener = UdStreamListener.bind(path, unlink=False)
                outcome = b"w"
            except OSError as error:
                outcome = b"l" if error.errno == errno.EADDRINUSE else b"?"
                if outcome == b"?":
                    os.write(2, f"{error!r}\n".encode())
            os.write(told, outcome)
            os.read(ends[number][0], 1)
            if listener is not None:
                if not leftover:
                    path.unlink()
                listener.close()
                os.write(told, b"c")

    pids = [forked(lambda number=number: starter(number)) for number in range(starters)]  # type: ignore[misc]
    try:
        if leftover:
            leave_stale(path)
        for _ in range(rounds):
            at = f"{time.monotonic() + 0.01}".encode()
            for _, start in starts:
                os.write(start, at)
            outcomes = b""
            while len(outcomes) < starters:
                outcomes += os.read(report, starters)
            assert sorted(outcomes) == sorted(b"w" + b"l" * (starters - 1)), outcomes
            assert os.listdir(path.parent) == [path.name]
            # Whoever has won is who answers.
            UdStream.connect(path, timeout=PATIENCE).close()
            for _, end in ends:
                os.write(end, b"e")
            assert os.read(report, 1) == b"c"
        assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
        pids = []
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for fd in (report, told, *(fd for pipe in (*starts, *ends) for fd in pipe)):
            os.close(fd)


@pytest.mark.parametrize("moment", ["judged", "removed"])
def test_a_program_without_the_lock_that_comes_between(
    folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A server that somebody else starts in the middle of a reclaim keeps its file."""
    path = folder / "s"
    stale(path)
    with ExitStack() as stack:
        judge, remove = _binding._is_dead, os.unlink

        def other_starts() -> None:
            if path.exists():
                remove(path)
            stack.enter_context(bound(path))

        def judged(where: bytes) -> bool:
            dead = judge(where)
            if moment == "judged" and dead:
                other_starts()
            return dead

        def removed(name: Any, **folder_of_it: Any) -> None:
            remove(name, **folder_of_it)
            if moment == "removed":
                other_starts()

        monkeypatch.setattr(_binding, "_is_dead", judged)
        monkeypatch.setattr(os, "unlink", removed)
        with pytest.raises(OSError, match="in use"):
            UdStreamListener.bind(path)
        assert not judge(os.fsencode(path))


def test_a_program_that_leaves_another_dead_socket(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody else has bound in the middle of a reclaim, and left, is judged anew and replaced."""
    leave_stale(path)
    remove, left = os.unlink, [2, 1]

    def remove_and_leave(name: Any, **folder_of_it: Any) -> None:
        remove(name, **folder_of_it)
        if left and os.fsdecode(name) == path.name:
            left.pop()
            leave_stale(path)

    monkeypatch.setattr(os, "unlink", remove_and_leave)
    with UdStreamListener.bind(path, unlink=False) as listener, UdStream.connect(path):
        listener.accept().close()
    assert left == []


@pytest.mark.parametrize("proc", [True, False], ids=["with /proc", "without /proc"])
@pytest.mark.parametrize("moment", ["before it is opened", "before it is judged"])
def test_a_server_that_ends_in_the_middle_of_a_reclaim(
    folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str, proc: bool
) -> None:
    """A file that its own server removes after it was in our way leaves a free name, which is taken."""
    path = folder / "s"
    stale(path)
    if not proc:
        monkeypatch.setattr(_binding, "_OWN_FDS", b"/nowhere")
    lock, create = _binding._FolderLock.__enter__, _csocket.create

    def locked(self: _binding._FolderLock) -> None:
        lock(self)
        path.unlink()

    def created(kind: int = socket.SOCK_STREAM) -> Any:
        if kind == socket.SOCK_DGRAM:
            path.unlink(missing_ok=True)
        return create(kind)

    if moment == "before it is opened":
        monkeypatch.setattr(_binding._FolderLock, "__enter__", locked)
    else:
        monkeypatch.setattr(_csocket, "create", created)
    with UdStreamListener.bind(path) as listener, UdStream.connect(path):
        listener.accept().close()


def test_a_mode_without_proc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bare chroot a mode that the umask leaves is had; one that it does not is an error that says what is missing."""
    monkeypatch.setattr(_binding, "_OWN_FDS", b"/nowhere")
    with umask(0o077):
        UdStreamListener.bind(folder / "s", mode=0o600).close()
        with pytest.raises(OSError, match="no /proc") as caught:
            UdStreamListener.bind(folder / "s", mode=0o666)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSYS, str(folder / "s"))
    assert os.listdir(folder) == []


def test_a_reclaim_without_proc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bare chroot a stale file is found to be one by its path."""
    monkeypatch.setattr(_binding, "_OWN_FDS", b"/nowhere")
    stale(folder / "s")
    with UdStreamListener.bind(folder / "s"):
        with pytest.raises(OSError, match="in use"):
            UdStreamListener.bind(folder / "s")


def test_a_reclaim_without_locks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that has no locks a stale file is replaced without one."""

    @in_place_of_the_kernel
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    stale(folder / "s")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    UdStreamListener.bind(folder / "s").close()


# --- whose file is removed ---


def test_closing_removes_the_file(path: Path) -> None:
    """unlink=True, the default: the file goes with the listener; unlink=False: it stays."""
    UdStreamListener.bind(path).close()
    assert os.listdir(path.parent) == []

    UdStreamListener.bind(path, unlink=False).close()
    assert path.is_socket()


@pytest.mark.parametrize("replacement", ["socket", "file", "link to ours", "nothing"])
def test_a_file_that_is_not_ours_any_more_stays(path: Path, replacement: str) -> None:
    """When another has taken its place, closing removes nothing."""
    with ExitStack() as stack:
        listener = UdStreamListener.bind(path)
        if replacement == "link to ours":
            path.rename(path.parent / "moved")
            path.symlink_to(path.parent / "moved")
        else:
            path.unlink()
        if replacement == "socket":
            stack.enter_context(UdStreamListener.bind(path))
        elif replacement == "file":
            path.write_text("precious")
        listener.close()
        assert path.exists() == (replacement != "nothing")


def test_a_handler_that_raises_as_the_name_is_given(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However late it raises, the file that is there by then goes again."""
    publish = _binding._publish

    def publish_and_raise(*args: Any) -> None:
        publish(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(_binding, "_publish", publish_and_raise)
    with pytest.raises(KeyboardInterrupt):
        UdStreamListener.bind(path)
    assert os.listdir(path.parent) == []


def test_a_claim_that_is_dropped(folder: Path) -> None:
    """A name that was given leaves no descriptor when nobody holds on to it, and the file where it is."""
    with bound(folder / "s"):
        claim = _binding.Claim(os.fsencode(folder), b"s")
        claim.identify()
        fd = claim.folder
        del claim
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        assert (folder / "s").is_socket()


def test_the_folder_is_remembered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After chdir the file that was made is removed, not one of the same relative name elsewhere."""
    (path.parent / "a").mkdir()
    (path.parent / "b").mkdir()
    monkeypatch.chdir(path.parent / "a")
    listener = UdStreamListener.bind(path.name)
    monkeypatch.chdir(path.parent / "b")
    with UdStreamListener.bind(path.name, unlink=False) as other:
        assert other.local_path == listener.local_path
        os.rename(path.parent / "a", path.parent / "c")
        listener.close()
        assert os.listdir(path.parent / "c") == []
        assert os.listdir(path.parent / "b") == [path.name]


def test_a_childs_close_leaves_the_file(path: Path) -> None:
    """Only the process that made the file removes it: not a fork's close, and not its garbage collector."""
    with UdStreamListener.bind(path) as listener:
        assert succeeds(listener.close)
        assert path.is_socket()

        def drop() -> None:
            with pytest.warns(ResourceWarning):
                listener.__del__()

        assert succeeds(drop)
        assert path.is_socket()
        with UdStream.connect(path), listener.accept():
            pass


def test_adopted_sockets_keep_their_files(folder: Path) -> None:
    """from_fd() and from_socket() made no file, and remove none."""
    for adopt in (UdStreamListener.from_socket, lambda sock: UdStreamListener.from_fd(sock.detach())):
        with bound(folder / "s") as sock:
            sock.listen()
            adopt(sock).close()
        (folder / "s").unlink()


@as_root
def test_a_right_given_up_does_not_stop_the_close(folder: Path) -> None:
    """A process that may no longer remove the file closes all the same, and leaves it."""

    def bind_and_become_nobody() -> None:
        listener = UdStreamListener.bind(folder / "s")
        become(NOBODY)
        listener.close()
        assert listener.closed

    assert succeeds(bind_and_become_nobody)
    assert (folder / "s").is_socket()


def test_the_file_goes_before_the_socket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket is open while its file is judged and removed: that keeps the inode's number from being reused."""
    listener = UdStreamListener.bind(folder / "s")
    remove = os.unlink
    open_then = []

    def unlink(name: Any, **folder_of_it: Any) -> None:
        open_then.append(not listener.closed)
        remove(name, **folder_of_it)

    monkeypatch.setattr(os, "unlink", unlink)
    listener.close()
    assert open_then == [True]


# --- authorize ---


def test_authorize_by_a_set_of_uids(folder: Path) -> None:
    """Whose uid is in the set gets in; others are closed and never returned."""
    mine = os.geteuid()
    with UdStreamListener.bind(folder / "s", authorize={mine}) as listener:
        with UdStream.connect(folder / "s"), listener.accept():
            pass
    with UdStreamListener.bind(folder / "s", authorize={mine + 1}) as listener:
        listener.timeout = 0.1
        with UdStream.connect(folder / "s", timeout=PATIENCE) as client:
            with pytest.raises(TimeoutError):
                listener.accept()
            assert client.read(1) == b""
    empty: list[Any] = [set(), frozenset(), [], range(0)]
    for nobody in empty:
        with UdStreamListener.bind(folder / "s", authorize=nobody) as listener:
            listener.set_nonblocking(True)
            with UdStream.connect(folder / "s"), pytest.raises(BlockingIOError):
                listener.accept()


def test_authorize_by_uid_not_gid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set is one of users: a group of the same number lets nobody in."""
    monkeypatch.setattr(ancillary, "_peer_of", lambda _sock: ancillary.Credentials(1, 1001, 1002))
    for uid, comes_in in ((1001, True), (1002, False)):
        with UdStreamListener.bind(folder / "s", authorize={uid}) as listener:
            listener.set_nonblocking(True)
            with UdStream.connect(folder / "s"):
                if comes_in:
                    listener.accept().close()
                else:
                    with pytest.raises(BlockingIOError):
                        listener.accept()


def test_authorize_by_a_callable(folder: Path) -> None:
    """It is given the peer's Credentials; whom it refuses is skipped, and iteration goes on."""
    asked = []

    def second(peer: ancillary.Credentials) -> bool:
        asked.append(peer)
        return len(asked) == 2

    with UdStreamListener.bind(folder / "s", authorize=second) as listener:
        with UdStream.connect(folder / "s") as one, UdStream.connect(folder / "s") as two:
            one.timeout = two.timeout = PATIENCE
            with next(iter(listener)) as served:
                served.write(b"hello")
            assert one.read(10) == b""
            assert two.read(10) == b"hello"
    assert asked == [(os.getpid(), os.geteuid(), os.getegid())] * 2


def test_authorize_that_raises_stop_iteration(folder: Path) -> None:
    """It does not end the loop of the server, as if nothing were wrong."""
    allowed: set[int] = set()

    def look_up(peer: ancillary.Credentials) -> bool:
        return next(True for uid in allowed if uid == peer.uid)

    with UdStreamListener.bind(folder / "s", authorize=look_up) as listener:
        with UdStream.connect(folder / "s"), pytest.raises(RuntimeError, match="StopIteration"):
            for _ in listener:
                raise AssertionError("it let somebody in")
        allowed.add(os.geteuid())
        with UdStream.connect(folder / "s") as client, next(iter(listener)) as served:
            served.write(b"in")
            assert client.read(2) == b"in"


@as_root
def test_authorize_looks_at_the_peer(folder: Path) -> None:
    """The credentials are those of the process that connected."""
    folder.chmod(0o755)
    with UdStreamListener.bind(folder / "s", mode=0o666, authorize={NOBODY}) as listener:
        listener.timeout = PATIENCE

        def connect() -> None:
            become(NOBODY)
            with UdStream.connect(folder / "s", timeout=PATIENCE) as stream:
                assert stream.read(10) == b"welcome"

        with UdStream.connect(folder / "s"):
            pid = forked(connect)
            with listener.accept() as served:
                assert served.peer_credentials().uid == NOBODY
                served.write(b"welcome")
            assert os.waitpid(pid, 0)[1] == 0


def test_an_error_of_authorize(folder: Path) -> None:
    """What the callable raises comes through, its connection is closed, and iteration can go on."""
    answers: list[Any] = [LookupError("who?"), OSError(errno.EINVAL, "no such thing"), True]

    def answer(_peer: object) -> bool:
        given = answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return bool(given)

    with UdStreamListener.bind(folder / "s", authorize=answer) as listener, ExitStack() as stack:
        clients = [stack.enter_context(UdStream.connect(folder / "s")) for _ in range(3)]
        incoming = iter(listener)
        with pytest.raises(LookupError, match="who"):
            next(incoming)
        with pytest.raises(OSError, match="no such thing"):
            next(incoming)
        for client in clients[:2]:
            client.timeout = PATIENCE
            assert client.read(1) == b""
        next(incoming).close()


def test_an_error_of_authorize_after_a_shutdown(folder: Path) -> None:
    """An error that is not the shutdown's own does not end the iteration as if it were: others are still queued."""
    answers: list[Any] = [OSError(errno.EIO, "no such thing"), True]

    def answer(_peer: object) -> bool:
        given = answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return bool(given)

    with UdStreamListener.bind(folder / "s", authorize=answer) as listener:
        with UdStream.connect(folder / "s"), UdStream.connect(folder / "s"):
            incoming = iter(listener)
            listener.shutdown()
            with pytest.raises(OSError, match="no such thing"):
                next(incoming)
            next(incoming).close()
            assert list(incoming) == []


def test_refused_peers_do_not_lengthen_the_timeout(folder: Path) -> None:
    """A stream of peers that are refused does not keep accept() from its TimeoutError."""
    with UdStreamListener.bind(folder / "s", authorize=lambda _: False) as listener:
        listener.timeout = 0.2
        stop = threading.Event()

        def knock() -> None:
            while not stop.is_set():
                try:
                    UdStream.connect(folder / "s", timeout=PATIENCE).close()
                except OSError:
                    return  # the listener is closed

        thread = threading.Thread(target=knock)
        thread.start()
        try:
            with pytest.raises(TimeoutError):
                listener.accept()
        finally:
            stop.set()
            # Which lets go of who waits for a place in the backlog; a shutdown does not.
            listener.close()
            thread.join(PATIENCE)


def test_refused_peers_in_the_queue_are_no_reason_to_go_on(folder: Path) -> None:
    """Nor do those who are there already: what is refused after the timeout is over is the last."""
    asked: list[object] = []

    def refuse(peer: object) -> bool:
        asked.append(peer)
        time.sleep(0.02)
        return False

    with UdStreamListener.bind(folder / "s", authorize=refuse) as listener, ExitStack() as clients:
        listener.timeout = 0.05
        for _ in range(50):
            clients.enter_context(UdStream.connect(folder / "s", timeout=PATIENCE))
        with pytest.raises(TimeoutError):
            listener.accept()
        assert 0 < len(asked) < 10


@pytest.mark.parametrize("raised", [TimeoutError, KeyError])
def test_a_handler_that_raises_in_the_wait_for_the_lock(folder: Path, raised: type[Exception]) -> None:
    """What it raises comes through; nothing stays open, nothing is changed, and the next bind has what it needs."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(folder / "s"))

    def stop(*_: object) -> None:
        raise raised("from the handler")

    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        inode = os.stat(folder / "s").st_ino
        fds = set(os.listdir("/proc/self/fd"))
        with on_alarm(stop, 0.1), pytest.raises(raised) as caught:
            UdStreamListener.bind(folder / "s").close()
        assert caught.value.args == ("from the handler",)
        assert getattr(caught.value, "filename", None) is None
        assert os.stat(folder / "s").st_ino == inode
        assert set(os.listdir("/proc/self/fd")) == fds
    finally:
        os.close(held)
    UdStreamListener.bind(folder / "s").close()


@pytest.fixture(autouse=True)
def _refusals_in_threads() -> Iterator[None]:
    """A client thread may meet the listener's end."""
    before = threading.excepthook
    threading.excepthook = lambda args: None if args.exc_type is ConnectionRefusedError else before(args)
    yield
    threading.excepthook = before


@pytest.mark.parametrize("authorize", [0, "root", b"x", {"root"}, [None], object()])
def test_a_wrong_authorize(folder: Path, authorize: Any) -> None:
    """What is neither a callable nor a container of uids is a TypeError, before anything is made."""
    with pytest.raises(TypeError, match="authorize"):
        UdStreamListener.bind(folder / "s", authorize=authorize)
    assert os.listdir(folder) == []


# --- pass_fds ---


def passrights_work() -> bool:
    one, other = socket.socketpair()
    with one, other:
        try:
            ancillary.set_passrights(one.fileno(), False)
        except (NotImplementedError, OSError):
            return False
    return True


@pytest.mark.skipif(not passrights_work(), reason="SO_PASSRIGHTS is Linux's from 6.16 on")
def test_pass_fds_refused(folder: Path) -> None:
    """pass_fds=False: who sends a descriptor gets EPERM, before the accept as well; bytes go through."""
    with UdStreamListener.bind(folder / "s", pass_fds=False) as listener:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(folder / "s"))
            with pytest.raises(PermissionError):
                socket.send_fds(client, [b"x"], [0])
            with listener.accept() as served:
                with pytest.raises(PermissionError):
                    socket.send_fds(client, [b"x"], [0])
                client.send(b"y")
                assert served.read(10) == b"y"


def test_pass_fds_that_cannot_be_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no such option bind() raises NotImplementedError, and leaves nothing."""

    def lacking(*_: object) -> None:
        raise NotImplementedError("SO_PASSRIGHTS")

    monkeypatch.setattr(ancillary, "set_passrights", lacking)
    with pytest.raises(NotImplementedError, match="PASSRIGHTS"):
        UdStreamListener.bind(folder / "s", pass_fds=False)
    assert os.listdir(folder) == []


# --- sockets from a service manager ---


@pytest.fixture
def manager(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[int]]]:
    """Pass descriptors to this process, as a service manager does; they start at 900 here."""
    monkeypatch.setattr(_activation, "_FIRST", 900)
    passed: list[int] = []

    def pass_on(*things: Any, **variables: str | None) -> list[int]:
        for number, thing in enumerate(things, 900):
            os.dup2(thing.fileno(), number, inheritable=True)
            thing.close()
            passed.append(number)
        environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(things)), **variables}
        for name, value in environment.items():
            if value is not None:
                monkeypatch.setenv(name, value)
        return passed

    yield pass_on
    for fd in passed:
        try:
            os.close(fd)
        except OSError:
            continue  # its listener closed it
    for variable in _activation._VARIABLES:
        os.environ.pop(variable, None)


def listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def test_inherited_listeners(folder: Path, manager: Callable[..., list[int]]) -> None:
    """They come in order, with their names, close-on-exec; the variables are gone; their files stay."""
    manager(listening(folder / "a"), listening(folder / "b"), LISTEN_FDNAMES="web:admin", LISTEN_PIDFDID="7")

    listeners = UdStreamListener.inherited()

    assert [listener.fileno() for listener in listeners] == [900, 901]
    assert [listener.name for listener in listeners] == ["web", "admin"]
    assert [str(listener.local_path) for listener in listeners] == [str(folder / "a"), str(folder / "b")]
    assert not any(os.get_inheritable(listener.fileno()) for listener in listeners)
    assert not any(name.startswith("LISTEN_") for name in os.environ)
    assert UdStreamListener.inherited() == []
    with UdStream.connect(folder / "b"), listeners[1].accept():
        pass
    for listener in listeners:
        listener.close()
    assert sorted(os.listdir(folder)) == ["a", "b"]


def test_names_are_not_needed(folder: Path, manager: Callable[..., list[int]]) -> None:
    """Without LISTEN_FDNAMES the name is None, as it is of a listener that was bound."""
    manager(listening(folder / "a"))
    [listener] = UdStreamListener.inherited()
    with listener, UdStreamListener.bind(folder / "b") as own:
        assert listener.name is own.name is None


@pytest.mark.parametrize("pid", [None, "1"])
def test_sockets_for_another_process(
    folder: Path, manager: Callable[..., list[int]], pid: str | None
) -> None:
    """LISTEN_PID that is missing or another's: nothing is ours, and all stays as it was."""
    with listening(folder / "a") as sock:
        manager(sock, LISTEN_PID=pid)
        assert UdStreamListener.inherited() == []
        assert UdStream.inherited() == []
        assert os.environ["LISTEN_FDS"] == "1"
        assert os.get_inheritable(900)


def test_as_many_names_as_sockets(folder: Path, manager: Callable[..., list[int]]) -> None:
    """No sockets have no names, one may have an empty one; names without sockets are a ValueError."""
    manager(LISTEN_FDS="0", LISTEN_FDNAMES="")
    assert UdStreamListener.inherited() == []
    manager(listening(folder / "a"), LISTEN_FDNAMES="")
    [listener] = UdStreamListener.inherited()
    with listener:
        assert listener.name == ""
    manager(LISTEN_FDS="0", LISTEN_FDNAMES="web")
    with pytest.raises(ValueError, match="1 names, where LISTEN_FDS is 0"):
        UdStreamListener.inherited()


def test_inherited_connections(manager: Callable[..., list[int]]) -> None:
    """UdStream.inherited() takes connections (Accept=yes)."""
    ours, theirs = socket.socketpair()
    manager(ours)

    [stream] = UdStream.inherited()

    with stream, theirs:
        theirs.send(b"x")
        assert stream.read(10) == b"x"
        assert not os.get_inheritable(stream.fileno())
    assert "LISTEN_FDS" not in os.environ


@pytest.mark.parametrize("wrong", ["connection", "datagram", "TCP", "file", "closed"])
def test_an_inherited_one_of_the_wrong_kind(
    folder: Path, manager: Callable[..., list[int]], wrong: str
) -> None:
    """One that is no listening Unix stream socket: a ValueError that names it, and all of them are as before."""
    tcp = socket.socket()
    tcp.bind(("127.0.0.1", 0))
    tcp.listen()
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    one, other = socket.socketpair()
    things: dict[str, Any] = {"connection": one, "datagram": datagram, "TCP": tcp, "file": open(os.devnull)}
    with tcp, datagram, one, other, things["file"]:
        passed = [listening(folder / "a"), *([things[wrong]] if wrong in things else [])]
        manager(*passed, LISTEN_FDS="2", LISTEN_FDNAMES="good:bad")

        with pytest.raises(ValueError, match="descriptor 901"):
            UdStreamListener.inherited()

        assert all(os.get_inheritable(fd) for fd in range(900, 900 + len(passed)))
        assert os.environ["LISTEN_FDS"] == "2"
        assert os.environ["LISTEN_FDNAMES"] == "good:bad"
        assert os.environ["LISTEN_PID"] == str(os.getpid())


def test_a_listener_is_no_inherited_connection(folder: Path, manager: Callable[..., list[int]]) -> None:
    """UdStream.inherited() refuses a listening socket, which then is still there for UdStreamListener."""
    manager(listening(folder / "a"))
    with pytest.raises(ValueError, match="descriptor 900"):
        UdStream.inherited()
    [listener] = UdStreamListener.inherited()
    listener.close()


@pytest.mark.parametrize(
    "variables",
    [
        {"LISTEN_FDS": "x"},
        {"LISTEN_FDS": "\N{SUPERSCRIPT ONE}"},
        {"LISTEN_FDS": "-1"},
        {"LISTEN_FDS": "99999999999"},
        {"LISTEN_PID": "x"},
        {"LISTEN_FDNAMES": "a:b"},
        {"LISTEN_FDNAMES": ""},
    ],
)
def test_variables_that_make_no_sense(
    folder: Path,
    manager: Callable[..., list[int]],
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are a ValueError that names the variable."""
    if variables == {"LISTEN_FDNAMES": ""}:
        manager(listening(folder / "a"), listening(folder / "b"), **variables)
    else:
        manager(listening(folder / "a"), **variables)
    with pytest.raises(ValueError, match=next(iter(variables))):
        UdStreamListener.inherited()


def test_none_passed(manager: Callable[..., list[int]]) -> None:
    """LISTEN_FDS=0 is an empty list."""
    manager()
    assert UdStreamListener.inherited() == []
    assert "LISTEN_PID" not in os.environ


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not installed"
)
def test_systemd_passes_a_listener(folder: Path) -> None:
    """A real service manager's socket: served once, and its file left to the manager."""
    program = (
        "import os, udstream\n"
        "[listener] = udstream.UdStreamListener.inherited()\n"
        "with listener, listener.accept() as stream:\n"
        "    stream.write(f'{listener.name} {listener.fileno()} {len(udstream.UdStreamListener.inherited())}'.encode())\n"
    )
    path = folder / "s"
    environment = {**os.environ, "PYTHONPATH": str(Path(ancillary.__file__).parent.parent)}
    command = ["systemd-socket-activate", f"--listen={path}", "--fdname=web", "-E", "PYTHONPATH"]
    with subprocess.Popen(
        [*command, sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE
    ) as manager:
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    stream = UdStream.connect(path, timeout=PATIENCE)
                    break
                except (FileNotFoundError, ConnectionRefusedError):
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
            with stream:
                assert stream.readall() == b"web 3 0"
        finally:
            manager.terminate()
            manager.communicate(timeout=PATIENCE)
    assert path.is_socket()
