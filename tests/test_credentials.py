"""Who is at the other end, from the kernel; and who sent each message."""

from __future__ import annotations

import copy
import ctypes
import errno
import os
import pickle
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import children
import pytest
from meanwhile import PATIENCE

import udstream
from udstream import UdStream, UdStreamListener, _platform, ancillary
from udstream.ancillary import Credentials

UID, GID = 54321, 54320
# The last number that is one; as a signed int it would be -2.
HIGHEST = 2**32 - 2
NONE = 2**32 - 1
OVERFLOW = 65534

linux = pytest.mark.skipif(not _platform.LINUX, reason="these options are Linux's")
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has children under other users")
pytestmark = linux

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected sockets."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.fixture
def path(folder: Path) -> Path:
    """A place for a socket that every user may reach."""
    folder.chmod(0o711)
    return folder / "s"


@contextmanager
def listening(path: Path, **options: Any) -> Iterator[UdStreamListener]:
    with UdStreamListener.bind(path, mode=0o666, **options) as listener:
        listener.timeout = PATIENCE
        yield listener


def child(
    run: Callable[[], object],
    *,
    uid: int | None = None,
    gid: int | None = None,
    groups: list[int] | None = None,
) -> AbstractContextManager[int]:
    """A forked child that runs *run* as another user; the test fails with it."""

    def work() -> None:
        become(uid, gid, groups)
        run()

    return children.child(work)


def become(uid: int | None, gid: int | None, groups: list[int] | None) -> None:
    if groups is not None or uid is not None:
        os.setgroups(groups or [])
    if gid is not None:
        os.setgid(gid)
    if uid is not None:
        os.setuid(uid)


def me() -> Credentials:
    return Credentials(os.getpid(), os.geteuid(), os.getegid())


def receive(fd: Any, size: int = 100) -> tuple[bytes, Credentials | None]:
    buffer = bytearray(size)
    with ancillary.recv_ancillary(fd, buffer) as received:
        return bytes(buffer[: received.nbytes]), received.credentials


# --- the peer, fixed at connect ---


@pytest.mark.parametrize("how", [lambda sock: sock, lambda sock: sock.fileno()])
def test_of_a_pair(pair: Pair, how: Callable[[socket.socket], Any]) -> None:
    """The peer of one end of a pair is whoever made it; an int or a fileno() says which end."""
    for sock in pair:
        assert ancillary.peer_credentials(how(sock)) == me()
        assert isinstance(ancillary.peer_credentials(how(sock)), Credentials)


def test_of_a_stream() -> None:
    """A stream's peer_credentials() is the function of the same name, and a stream may stand for its fd."""
    one, other = UdStream.pair()
    with one, other:
        assert one.peer_credentials() == ancillary.peer_credentials(other) == me()


def test_of_a_child_with_an_inherited_pair(pair: Pair) -> None:
    """Who inherits an end sees, and shows as, whoever made the pair."""
    maker = me()

    def run() -> None:
        assert ancillary.peer_credentials(pair[0]) == maker

    with child(run):
        assert ancillary.peer_credentials(pair[1]) == maker


@root
@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (UID, GID), (HIGHEST, HIGHEST), (2**31, 2**31 + 1)])
def test_of_connect_and_accept(path: Path, uid: int, gid: int) -> None:
    """Each side tells the other's pid, uid and gid, unsigned: who connected, and who listened."""
    server = me()

    def run() -> None:
        with UdStream.connect(path) as stream:
            assert stream.peer_credentials() == server
            stream.read(1)

    with listening(path) as listener, child(run, uid=uid, gid=gid) as pid, listener.accept() as stream:
        assert stream.peer_credentials() == (pid, uid, gid)
        assert ancillary.peer_credentials(stream.fileno()) == (pid, uid, gid)


@root
def test_effective_for_the_peer_and_real_for_a_message() -> None:
    """Of a process with two users peer_credentials tells the effective one, a message and current() the real."""
    with UdStreamListener.bind(f"@udstream-test-{os.getpid()}") as listener:
        listener.timeout = PATIENCE
        ancillary.set_passcred(listener, True)

        def run() -> None:
            os.setresgid(GID, GID + 1, GID)
            os.setresuid(UID, UID + 1, UID)
            assert Credentials.current() == (os.getpid(), UID, GID)
            with UdStream.connect(listener.local_path) as stream:
                stream.write_all(b"x")
                stream.read(1)

        with child(run) as pid, listener.accept() as stream:
            assert stream.peer_credentials() == (pid, UID + 1, GID + 1)
            assert receive(stream) == (b"x", (pid, UID, GID))


@root
def test_the_connected_socket_handed_on(path: Path) -> None:
    """Whoever has the connection now, the peer is who connected, also once that process has ended."""
    own_end, other_end = UdStream.pair()

    def connect_and_hand_on() -> None:
        with UdStream.connect(path) as stream:
            other_end.send_fds(b"x", [stream])

    def use_it() -> None:
        _, fds = own_end.recv_fds(1)
        with fds, fds.stream() as stream:
            stream.write_all(b"I have it now")
            assert stream.read(1) == b"."

    with own_end, other_end, listening(path) as listener:
        with child(connect_and_hand_on, uid=UID, gid=GID) as pid:
            stream = listener.accept()
        with stream:
            stream.timeout = PATIENCE
            assert stream.peer_credentials() == (pid, UID, GID)
            with child(use_it, uid=UID + 5, gid=GID + 5) as other:
                assert stream.read(100) == b"I have it now"
                assert pid != other
                assert stream.peer_credentials() == (pid, UID, GID)
                stream.write_all(b".")


@root
def test_a_process_that_changes_its_user(path: Path) -> None:
    """What the process became after it had connected does not show."""

    def run() -> None:
        with UdStream.connect(path) as stream:
            become(UID, GID, [])
            stream.write_all(b"x")
            stream.read(1)

    with listening(path) as listener, child(run) as pid, listener.accept() as stream:
        assert stream.read(1) == b"x"
        assert stream.peer_credentials() == (pid, 0, 0)


@root
def test_the_client_sees_who_called_listen(path: Path) -> None:
    """From the client's side the peer is who called listen(), not who bound the socket, nor who accepts."""
    before, accepting = os.pipe()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        path.chmod(0o666)

        def listen() -> None:
            sock.listen()
            os.write(accepting, b"x")
            with UdStreamListener.from_fd(os.dup(sock.fileno())) as listener, listener.accept() as stream:
                stream.read(1)

        with child(listen, uid=UID, gid=GID) as pid:
            # So that, if the child dies before, the read ends.
            os.close(accepting)
            assert os.read(before, 1) == b"x"
            with UdStream.connect(path) as stream:
                assert stream.peer_credentials() == (pid, UID, GID)
            assert ancillary.peer_credentials(sock) == (pid, UID, GID)
    os.close(before)


def test_of_one_that_is_not_connected() -> None:
    """A socket without a peer: no pid, and the kernel's "none" for uid and gid, unsigned."""
    with socket.socket(socket.AF_UNIX) as sock:
        assert ancillary.peer_credentials(sock) == (None, NONE, NONE)


def in_new_pid_namespace(run: Callable[[], object]) -> None:
    """Run *run* in a child that is process 1 of a pid namespace of its own."""
    unshare = getattr(os, "unshare", None)
    if unshare is not None:
        unshare(os.CLONE_NEWPID)  # type: ignore[attr-defined,unused-ignore]
    elif ctypes.CDLL(None, use_errno=True).unshare(0x20000000):
        raise OSError(ctypes.get_errno(), "unshare")
    with child(run):
        pass


def pid_namespaces_work() -> bool:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            in_new_pid_namespace(lambda: None)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


@root
def test_no_pid_from_another_namespace(path: Path) -> None:
    """pid is None where the kernel says 0, of the peer and of a message's sender; never 0, which signals all."""
    if not pid_namespaces_work():
        pytest.skip("no pid namespace may be made here")

    def inside() -> None:
        assert os.getpid() == 1
        with UdStream.connect(path) as stream:
            ancillary.set_passcred(stream, True)
            assert stream.peer_credentials() == (None, 0, 0)
            stream.write_all(b"?")
            assert receive(stream) == (b"!", (None, 0, 0))

    with listening(path) as listener:
        ancillary.set_passcred(listener, True)
        with child(lambda: in_new_pid_namespace(inside)) as outer, listener.accept() as stream:
            seen = stream.peer_credentials()
            assert seen.pid not in (None, 0, 1, outer)
            assert receive(stream) == (b"?", seen)
            stream.write_all(b"!")
            assert stream.read(1) == b""


# --- groups ---


@root
@pytest.mark.parametrize("count", [0, 1, 3, 255, 256, 257, 300, 1000, 65536])
def test_groups(path: Path, count: int) -> None:
    """peer_groups has all the supplementary groups of the peer, however many, unsigned, as at connect time."""
    groups = [HIGHEST - index for index in range(count)]

    def run() -> None:
        with UdStream.connect(path) as stream:
            os.setgroups([1, 2, 3])
            stream.write_all(b"x")
            stream.read(1)

    with listening(path) as listener, child(run, groups=groups) as pid, listener.accept() as stream:
        assert stream.read(1) == b"x"
        found = ancillary.peer_groups(stream)
        assert isinstance(found, tuple)
        assert sorted(found) == sorted(groups)
        assert ancillary.peer_groups(stream.fileno()) == found
        assert stream.peer_credentials().pid == pid


@pytest.mark.parametrize("function", [ancillary.peer_groups, ancillary.peer_pidfd])
def test_without_a_peer(function: Callable[[Any], Any]) -> None:
    """Groups and pidfd of a socket without a peer: ENODATA."""
    with socket.socket(socket.AF_UNIX) as sock:
        with pytest.raises(OSError, match="No data available") as caught:
            function(sock)
        assert caught.value.errno == errno.ENODATA


# --- pidfd ---


def has_peer_pidfd() -> bool:
    one, other = socket.socketpair()
    with one, other:
        try:
            os.close(ancillary.peer_pidfd(one))
        except NotImplementedError:
            return False
    return True


peer_pidfds = pytest.mark.skipif(not has_peer_pidfd(), reason="SO_PEERPIDFD is Linux's from 6.5 on")


def ended(pidfd: int, patience: float) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(patience * 1000))


@peer_pidfds
def test_pidfd(path: Path) -> None:
    """peer_pidfd is the caller's, close-on-exec, each time a new one; poll says when the peer has ended."""

    def run() -> None:
        with UdStream.connect(path) as stream:
            stream.read(1)

    with listening(path) as listener, child(run) as pid:
        with listener.accept() as stream:
            pidfd, twin = ancillary.peer_pidfd(stream), ancillary.peer_pidfd(stream.fileno())
            assert type(pidfd) is int
            assert pidfd != twin
            os.close(twin)
            assert not os.get_inheritable(pidfd)
            assert f"Pid:\t{pid}\n" in Path(f"/proc/self/fdinfo/{pidfd}").read_text()
            assert not ended(pidfd, 0)
        assert ended(pidfd, PATIENCE)
        os.close(pidfd)


@peer_pidfds
def test_pidfd_takes_signals(path: Path) -> None:
    """The pidfd is good for signals to the peer."""
    got: list[int] = []

    def run() -> None:
        signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
        with UdStream.connect(path) as stream:
            stream.write_all(b"ready")
            stream.read(1)
        assert got == [signal.SIGUSR1]

    with listening(path) as listener, child(run), listener.accept() as stream:
        assert stream.read(10) == b"ready"
        pidfd = ancillary.peer_pidfd(stream)
        signal.pidfd_send_signal(pidfd, signal.SIGUSR1)
        os.close(pidfd)


@peer_pidfds
def test_pidfd_of_one_that_has_ended(path: Path) -> None:
    """Of a peer that is dead and buried: a pidfd that says so (Linux 6.16), or ProcessLookupError; no leak."""
    with listening(path) as listener:
        with child(lambda: UdStream.connect(path).detach()) as pid:
            stream = listener.accept()
        with stream:
            try:
                pidfd = ancillary.peer_pidfd(stream)
            except ProcessLookupError:
                with pytest.raises(ProcessLookupError, match="has ended"):
                    ancillary.peer_pidfd(stream)
            else:
                assert ended(pidfd, 0)
                with pytest.raises(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, 0)
                os.close(pidfd)
            # Not so the credentials: they are a number, that somebody else may have by now.
            assert stream.peer_credentials().pid == pid


# --- security label ---


def test_security(pair: Pair) -> None:
    """Without a security module there is no label; with one, the peer's, which ends in no NUL."""
    found = ancillary.peer_security(pair[0])
    if found is None:
        with pytest.raises(OSError, match="Protocol not available"):
            pair[0].getsockopt(socket.SOL_SOCKET, 31, 1000)
    else:
        assert found == pair[0].getsockopt(socket.SOL_SOCKET, 31, 1000).rstrip(b"\0")


@root
@pytest.mark.parametrize("label", [b"abcd", b"abc\0", b"abcd" * 500, b"abcd" * 499 + b"abc\0"])
def test_security_label(path: Path, monkeypatch: pytest.MonkeyPatch, label: bytes) -> None:
    """A label of any length is bytes, without a NUL at the end."""
    # Another option that answers with bytes of our choice, in ascending order.
    monkeypatch.setattr(_platform, "SO_PEERSEC", _platform.SO_PEERGROUPS)
    groups = sorted(memoryview(label).cast("I").tolist())

    def run() -> None:
        with UdStream.connect(path) as stream:
            stream.read(1)

    with listening(path) as listener, child(run, groups=groups), listener.accept() as stream:
        expected = struct.pack(f"{len(groups)}I", *groups)
        if expected.endswith(b"\0"):
            expected = expected[:-1]
        assert ancillary.peer_security(stream) == expected


# --- who sent each message ---


@pytest.mark.parametrize("how", [lambda sock: sock, lambda sock: sock.fileno()])
def test_passcred_is_off_at_first(pair: Pair, how: Callable[[socket.socket], Any]) -> None:
    """Off at first; what was set can be read, and be unset; and only then does a message have credentials."""
    one, other = pair
    assert ancillary.get_passcred(how(other)) is False
    one.send(b"a")
    assert receive(how(other)) == (b"a", None)

    ancillary.set_passcred(how(other), True)
    assert ancillary.get_passcred(how(other)) is True
    assert ancillary.get_passcred(how(one)) is False
    one.send(b"b")
    assert receive(how(other)) == (b"b", Credentials.current())

    ancillary.set_passcred(how(other), False)
    assert ancillary.get_passcred(how(other)) is False
    one.send(b"c")
    assert receive(how(other)) == (b"c", None)


@root
def test_passcred_of_a_listener_is_inherited(path: Path) -> None:
    """Set on the listener: what was sent, even by one long gone before it was accepted, has its credentials."""

    def run() -> None:
        with UdStream.connect(path) as stream:
            stream.write_all(b"the first")

    with listening(path) as listener:
        ancillary.set_passcred(listener, True)
        assert ancillary.get_passcred(listener)
        with child(run, uid=UID, gid=GID) as pid:
            pass
        with listener.accept() as stream:
            assert ancillary.get_passcred(stream)
            assert receive(stream) == (b"the first", (pid, UID, GID))


def test_what_was_sent_before(pair: Pair) -> None:
    """What was there before set_passcred has nobody's credentials: no pid, the overflow uid and gid."""
    one, other = pair
    one.send(b"before")
    ancillary.set_passcred(other, True)
    one.send(b"after")
    assert receive(other) == (b"before", (None, OVERFLOW, OVERFLOW))
    assert receive(other) == (b"after", Credentials.current())


def test_sent_by_name(pair: Pair) -> None:
    """Credentials are sent by send_ancillary, alone or with descriptors; they arrive if they were asked for."""
    one, other = pair
    own = Credentials.current()
    assert ancillary.send_ancillary(one, b"unasked", [own]) == 7
    assert receive(other) == (b"unasked", None)
    ancillary.set_passcred(other, True)
    assert ancillary.send_ancillary(one, b"alone", [own]) == 5
    assert receive(other) == (b"alone", own)
    for items in ([own, [0]], [[0], own]):
        ancillary.send_ancillary(one.fileno(), [b"with", b" fds"], items)
        buffer = bytearray(100)
        with ancillary.recv_ancillary(other, buffer) as received:
            assert received.credentials == own
            assert type(received.credentials) is Credentials
            assert len(received.fds) == 1
            assert buffer[: received.nbytes] == b"with fds"


def test_by_and_over_streams() -> None:
    """The stream's methods send and receive credentials too, and a collecting stream keeps them."""
    one, other = UdStream.pair()
    with one, other:
        ancillary.set_passcred(other, True)
        one.send_ancillary(b"x", [Credentials.current()])
        assert other.recv_ancillary(bytearray(9)).credentials == Credentials.current()
        other.collect_ancillary = True
        one.write_all(b"y")
        assert other.read(9) == b"y"
        ((offset, received),) = other.collected
        assert (offset, received.credentials) == (0, Credentials.current())


@root
def test_forged_by_root(pair: Pair) -> None:
    """Root may claim to be anybody in a message; peer_credentials tells the truth."""
    one, other = pair
    ancillary.set_passcred(other, True)
    for uid, gid in [(12345, 23456), (HIGHEST, HIGHEST)]:
        ancillary.send_ancillary(one, b"x", [Credentials(os.getpid(), uid, gid)])
        assert receive(other) == (b"x", (os.getpid(), uid, gid))
        assert ancillary.peer_credentials(other) == me()


@root
@pytest.mark.parametrize("what", ["pid", "uid", "gid"])
def test_forging_is_refused(pair: Pair, what: str) -> None:
    """Who is not root can claim only what it is: EPERM for another pid, uid or gid, and nothing is sent."""
    one, other = pair
    ancillary.set_passcred(other, True)
    wrong = {"pid": 1, "uid": 0, "gid": 0}[what]

    def run() -> None:
        own = Credentials.current()
        with pytest.raises(PermissionError, match="credentials") as caught:
            ancillary.send_ancillary(one, b"forged", [own._replace(**{what: wrong})])
        assert caught.value.errno == errno.EPERM
        ancillary.send_ancillary(one, b"true", [own])

    with child(run, uid=UID, gid=GID) as pid:
        pass
    assert receive(other) == (b"true", (pid, UID, GID))


@root
def test_a_pid_that_nobody_has(pair: Pair) -> None:
    """Not even root can claim to be a process that is none."""
    one, other = pair
    other.setblocking(False)
    with pytest.raises(ProcessLookupError):
        ancillary.send_ancillary(one, b"x", [Credentials(2**31 - 1, 0, 0)])
    with pytest.raises(BlockingIOError):
        other.recv(1)


@pytest.mark.parametrize(
    "credentials",
    [
        Credentials(None, 0, 0),
        Credentials(2**31, 0, 0),
        Credentials(1, -1, 0),
        Credentials(1, 0, 2**32),
    ],
)
def test_credentials_that_cannot_be_sent(pair: Pair, credentials: Credentials) -> None:
    """Without a pid, or with a number that is none: ValueError that shows it, and nothing is sent."""
    one, other = pair
    other.setblocking(False)
    for items in ([credentials], [credentials, [0]]):
        with pytest.raises(ValueError, match=r"Credentials\(pid=") as caught:
            ancillary.send_ancillary(one, b"x", items)
        assert repr(credentials) in str(caught.value)
    with pytest.raises(BlockingIOError):
        other.recv(1)


def test_credentials_without_a_byte(pair: Pair) -> None:
    """Credentials need a byte to carry them, too: ValueError."""
    with pytest.raises(ValueError, match="need a byte"):
        ancillary.send_ancillary(pair[0], b"", [Credentials.current()])


def test_messages_of_two_senders_do_not_merge(pair: Pair) -> None:
    """With set_passcred a read has bytes of one sender only; without it, of both."""
    one, other = pair

    def run() -> None:
        one.send(b"child")

    for asked in (False, True):
        ancillary.set_passcred(other, asked)
        one.send(b"parent")
        with child(run) as pid:
            pass
        if asked:
            assert receive(other) == (b"parent", Credentials.current())
            assert receive(other) == (b"child", Credentials(pid, os.getuid(), os.getgid()))
        else:
            assert receive(other) == (b"parentchild", None)


def test_a_message_in_two_reads(pair: Pair) -> None:
    """A message in two reads has its credentials with each."""
    one, other = pair
    ancillary.set_passcred(other, True)
    one.send(b"abcdef")
    assert receive(other, 4) == (b"abcd", Credentials.current())
    assert receive(other, 4) == (b"ef", Credentials.current())


# --- Credentials, the value ---


def test_a_named_tuple() -> None:
    """Credentials are a named tuple: fields, order, equality, hash, unpacking, _replace, _asdict, _make."""
    value: Any = Credentials(pid=1, uid=2, gid=3)
    assert (value.pid, value.uid, value.gid) == (1, 2, 3)
    pid, uid, gid = value
    assert (pid, uid, gid) == value == (1, 2, 3) == Credentials(1, 2, 3)
    assert value != Credentials(1, 2, 4) != (1, 2, 3)
    assert hash(value) == hash((1, 2, 3))
    assert issubclass(Credentials, tuple)
    assert value[1] == 2
    assert Credentials._fields == ("pid", "uid", "gid")
    assert value._asdict() == {"pid": 1, "uid": 2, "gid": 3}
    assert value._replace(pid=None) == (None, 2, 3)
    assert type(value._replace(uid=9)) is Credentials
    assert Credentials._make([1, 2, 3]) == value
    match Credentials(1, 2, 3):
        case Credentials(a, b, gid=c):
            assert (a, b, c) == (1, 2, 3)
    with pytest.raises(AttributeError):
        value.pid = 5
    with pytest.raises(AttributeError):
        value.extra = 5


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
@pytest.mark.parametrize("pid", [1, None])
def test_copies(copied: Callable[[Any], Any], pid: int | None) -> None:
    """A copy of Credentials, or one that was pickled, is one."""
    value = Credentials(pid, 2, 3)
    assert copied(value) == value
    assert type(copied(value)) is Credentials


def test_repr() -> None:
    """It shows what it is."""
    assert repr(Credentials(None, 0, NONE)) == "Credentials(pid=None, uid=0, gid=4294967295)"


def test_one_name_for_both() -> None:
    """The package has the class under the same name."""
    assert udstream.Credentials is Credentials


def test_current() -> None:
    """current() is this process: also in a fork, where the pid is another."""
    assert Credentials.current() == (os.getpid(), os.getuid(), os.getgid())
    parent = os.getpid()

    def run() -> None:
        assert Credentials.current().pid == os.getpid() != parent

    with child(run):
        pass


# --- refusing descriptors ---


def has_passrights() -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            return ancillary.get_passrights(sock)
        except NotImplementedError:
            return False


passrights = pytest.mark.skipif(not has_passrights(), reason="SO_PASSRIGHTS is Linux's from 6.16 on")


@passrights
@pytest.mark.parametrize("how", [lambda sock: sock, lambda sock: sock.fileno()])
def test_passrights(pair: Pair, how: Callable[[socket.socket], Any]) -> None:
    """True at first; False: descriptors are refused, EPERM for the sender, and no byte goes; True again."""
    one, other = pair
    assert ancillary.get_passrights(how(other)) is True
    ancillary.set_passrights(how(other), False)
    assert ancillary.get_passrights(how(other)) is False
    assert ancillary.get_passrights(how(one)) is True

    with pytest.raises(PermissionError, match="refuses descriptors") as caught:
        ancillary.send_fds(one, b"x", [0])
    assert caught.value.errno == errno.EPERM
    with pytest.raises(PermissionError, match="refuses descriptors"):
        ancillary.send_ancillary(one, b"x", [[0]])
    ancillary.send_fds(one, b"only bytes", [])
    assert receive(other) == (b"only bytes", None)

    ancillary.set_passrights(how(other), True)
    ancillary.send_fds(one, b"y", [0])
    data, fds = ancillary.recv_fds(other, 10)
    with fds:
        assert (data, len(fds)) == (b"y", 1)


@passrights
def test_passrights_and_what_is_on_its_way(pair: Pair) -> None:
    """What was sent before still arrives."""
    one, other = pair
    ancillary.send_fds(one, b"x", [0])
    ancillary.set_passrights(other, False)
    _, fds = ancillary.recv_fds(other, 10)
    with fds:
        assert len(fds) == 1


@passrights
@pytest.mark.parametrize("abstract", [False, True])
def test_pass_fds_false_from_the_first_instant(path: Path, abstract: bool) -> None:
    """bind(pass_fds=False) has it refused before anyone can connect, for all that is accepted, unaccepted too."""
    refused: dict[str, bool] = {}

    def profile(frame: Any, event: str, arg: Any) -> None:
        sock = getattr(arg, "__self__", None)
        if event == "c_call" and arg.__name__ in ("bind", "listen") and isinstance(sock, socket.SocketType):
            number = getattr(_platform, "SO_PASSRIGHTS", None)
            refused[arg.__name__] = sock.getsockopt(socket.SOL_SOCKET, number or 83) == 0

    old = sys.getprofile()
    sys.setprofile(profile)
    try:
        where: Any = f"@udstream-rights-{os.getpid()}" if abstract else path
        listener = UdStreamListener.bind(where, pass_fds=False)
    finally:
        sys.setprofile(old)
    with listener:
        assert refused["listen"] is True
        assert all(refused.values())
        with UdStream.connect(where) as client:
            with pytest.raises(PermissionError):
                client.send_fds(b"x", [0])
            client.write_all(b"bytes pass")
            with listener.accept() as stream:
                assert ancillary.get_passrights(stream) is False
                with pytest.raises(PermissionError):
                    client.send_fds(b"x", [0])
                assert stream.read(100) == b"bytes pass"
                # It is the receiver's choice: the other way is open.
                stream.send_fds(b"y", [0])
                client.recv_fds(1)[1].close()


# --- what the platform or the kernel lacks ---

CALLS: dict[str, Callable[[Any], Any]] = {
    "peer_credentials": ancillary.peer_credentials,
    "peer_groups": ancillary.peer_groups,
    "peer_pidfd": ancillary.peer_pidfd,
    "peer_security": ancillary.peer_security,
    "set_passcred": lambda fd: ancillary.set_passcred(fd, True),
    "get_passcred": ancillary.get_passcred,
    "set_passrights": lambda fd: ancillary.set_passrights(fd, False),
    "get_passrights": ancillary.get_passrights,
}
CONSTANTS = {
    "peer_credentials": "PEER_CREDENTIALS",
    "peer_groups": "SO_PEERGROUPS",
    "peer_pidfd": "SO_PEERPIDFD",
    "peer_security": "SO_PEERSEC",
    "set_passcred": "SO_PASSCRED",
    "get_passcred": "SO_PASSCRED",
    "set_passrights": "SO_PASSRIGHTS",
    "get_passrights": "SO_PASSRIGHTS",
}


@pytest.mark.parametrize("name", CALLS)
def test_missing_on_the_platform(pair: Pair, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Where the platform has no such thing: NotImplementedError that names the function and the platform."""
    monkeypatch.setattr(_platform, CONSTANTS[name], None)
    monkeypatch.setattr(_platform, "KERNEL", "Plan9 4")
    with pytest.raises(NotImplementedError, match=f"^{name} .*Plan9 4"):
        CALLS[name](pair[0])


@pytest.mark.parametrize("name", sorted(CALLS.keys() - {"peer_credentials", "peer_security"}))
def test_missing_in_the_kernel(pair: Pair, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Where this kernel is too old for it: NotImplementedError that names the function, and this kernel."""
    monkeypatch.setattr(_platform, CONSTANTS[name], 9999)
    with pytest.raises(NotImplementedError, match=f"^{name} .*Linux {os.uname().release}") as caught:
        CALLS[name](pair[0])
    assert isinstance(caught.value.__cause__, OSError)


def test_pass_fds_false_where_it_is_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bind(pass_fds=False) without the option: NotImplementedError, and nobody listens; True needs none."""
    for missing in (None, 9999):
        monkeypatch.setattr(_platform, "SO_PASSRIGHTS", missing)
        with pytest.raises(NotImplementedError, match="set_passrights"):
            UdStreamListener.bind(path, pass_fds=False)
        assert not path.exists()
    UdStreamListener.bind(path).close()


def test_sending_credentials_where_it_is_missing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials cannot be sent where no control message has them: NotImplementedError, nothing sent."""
    monkeypatch.setattr(ancillary, "SCM_CREDENTIALS", None)
    pair[1].setblocking(False)
    for items in ([Credentials.current()], [Credentials.current(), [0]]):
        with pytest.raises(NotImplementedError, match="Credentials"):
            ancillary.send_ancillary(pair[0], b"x", items)
    with pytest.raises(BlockingIOError):
        pair[1].recv(1)


# --- the structures of other kernels, made by hand ---

GROUPS = (HIGHEST, 20, 12, *[0] * 13)
XUCRED_HEAD = struct.pack("=IIhxx16I", 0, 501, 3, *GROUPS)
NO_GROUPS = struct.pack("=IIhxx16I", 0, 501, 0, *[0] * 16)

STRUCTURES = [
    pytest.param("linux", struct.pack("=iII", 7, 8, HIGHEST), (7, 8, HIGHEST), id="linux"),
    pytest.param("linux", struct.pack("=iII", 0, NONE, NONE), (0, NONE, NONE), id="linux, nobody"),
    pytest.param("darwin", XUCRED_HEAD, (0, 501, HIGHEST), id="darwin"),
    pytest.param("darwin", NO_GROUPS, (0, 501, NONE), id="darwin, no groups"),
    pytest.param(
        "freebsd", XUCRED_HEAD + struct.pack("=4xi4x", 1234), (1234, 501, HIGHEST), id="freebsd, 64 bits"
    ),
    pytest.param(
        "freebsd", XUCRED_HEAD + struct.pack("=i", 1234), (1234, 501, HIGHEST), id="freebsd, 32 bits"
    ),
    pytest.param("freebsd", XUCRED_HEAD + bytes(12), (0, 501, HIGHEST), id="freebsd before 13"),
    pytest.param("freebsd", NO_GROUPS + struct.pack("=4xi4x", 5), (5, 501, NONE), id="freebsd, no groups"),
    pytest.param("openbsd", struct.pack("=IIi", 8, HIGHEST, 7), (7, 8, HIGHEST), id="openbsd"),
    pytest.param("netbsd", struct.pack("=iII", 7, 8, HIGHEST), (7, 8, HIGHEST), id="netbsd"),
]


@pytest.mark.parametrize(("platform", "data", "expected"), STRUCTURES)
def test_structures(platform: str, data: bytes, expected: tuple[int, int, int]) -> None:
    """Each kernel's own structure is read as (pid, uid, gid), unsigned, and fits in the room made for it."""
    _level, _option, size, decode, _pid_option = _platform.PEER_CREDENTIALS_BY_PLATFORM[platform]
    assert decode(data) == expected
    assert len(data) <= size


def test_options() -> None:
    """The numbers are those of each kernel's headers; macOS alone tells the pid by an option of its own."""
    table = _platform.PEER_CREDENTIALS_BY_PLATFORM
    found = {platform: (level, option, pid) for platform, (level, option, _, _, pid) in table.items()}
    assert found == {
        "linux": (socket.SOL_SOCKET, socket.SO_PEERCRED, None),
        "darwin": (0, 1, 2),
        "freebsd": (0, 1, None),
        "openbsd": (socket.SOL_SOCKET, 0x1022, None),
        "netbsd": (0, 3, None),
    }


@pytest.mark.parametrize("told", [True, False])
def test_pid_from_an_option_of_its_own(pair: Pair, monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    """Where a second option tells the pid, that is asked, and 0 is None."""
    option = socket.SO_TYPE if told else socket.SO_ERROR

    def decode(data: bytes) -> tuple[int, int, int]:
        return 0, *struct.unpack("=4xII", data)

    how = (socket.SOL_SOCKET, socket.SO_PEERCRED, 12, decode, option)
    monkeypatch.setattr(_platform, "PEER_CREDENTIALS", how)
    expected = (int(socket.SOCK_STREAM) if told else None, os.geteuid(), os.getegid())
    assert ancillary.peer_credentials(pair[0]) == expected


# --- what is no socket ---


class WrongFileno:
    def fileno(self) -> Any:
        return "3"

    def __repr__(self) -> str:
        return "<one with a wrong fileno>"


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wrong", ["3", b"3", 3.0, None, [3], True, WrongFileno()])
def test_no_descriptor(name: str, wrong: Any) -> None:
    """What is no int and has no fileno() that gives one: TypeError that names it."""
    with pytest.raises(TypeError, match="is no file descriptor") as caught:
        CALLS[name](wrong)
    assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize("name", CALLS)
def test_not_open(name: str) -> None:
    """A negative number, a closed socket or stream: ValueError; a number that is not open: EBADF."""
    with socket.socket(socket.AF_UNIX) as sock:
        free = os.dup(sock.fileno())
    os.close(free)
    one, other = UdStream.pair()
    one.close()
    other.close()
    for wrong in (-1, sock, one):
        with pytest.raises(ValueError, match=r"-1|closed"):
            CALLS[name](wrong)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        CALLS[name](free)
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("name", CALLS)
def test_no_socket(name: str) -> None:
    """Of what is open and no socket: ENOTSOCK, and it stays open."""
    read, write = os.pipe()
    with pytest.raises(OSError, match="Socket operation on non-socket") as caught:
        CALLS[name](read)
    assert caught.value.errno == errno.ENOTSOCK
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("blocking", [True, False])
def test_borrowed(pair: Pair, name: str, blocking: bool) -> None:
    """Every function leaves the fd open and its mode as it was, also with a default timeout for sockets."""
    one, other = pair
    one.setblocking(blocking)
    for default in (None, 5.0):
        socket.setdefaulttimeout(default)
        try:
            found = CALLS[name](one.fileno())
        except NotImplementedError:
            found = None
        finally:
            socket.setdefaulttimeout(None)
        if name == "peer_pidfd" and found is not None:
            os.close(found)
        assert os.get_blocking(one.fileno()) is blocking
    if name != "set_passrights":
        other.send(b"x")
        assert one.recv(1) == b"x"
