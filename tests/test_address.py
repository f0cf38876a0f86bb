"""Addresses: what a path means, what is refused, and that the kernel is told exactly that and no more."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest
from connections import listening
from meanwhile import PATIENCE
from real import environment, python

from udstream import UdSocketPath, UdStream, _csocket, _platform

if TYPE_CHECKING:
    from udstream.address import SocketPath


def reaches(listener: socket.socket, path: SocketPath) -> None:
    """Connect to *path*, and see that it is *listener* who answers."""
    with UdStream.connect(path, timeout=PATIENCE) as stream:
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"it is me")
            assert stream.read_exact(8) == b"it is me"


class BytesPath:
    """A PathLike whose path is bytes."""

    def __init__(self, path: bytes) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return self.path


# --- what a path means ---

FILE, NAMESPACED = UdSocketPath.file, UdSocketPath.namespaced

MEANINGS: list[tuple[Any, UdSocketPath, bytes]] = [
    ("/run/app.sock", FILE("/run/app.sock"), b"/run/app.sock"),
    (b"/run/app.sock", FILE("/run/app.sock"), b"/run/app.sock"),
    ("app.sock", FILE("app.sock"), b"app.sock"),
    (" ", FILE(" "), b" "),
    ("caf\u00e9", FILE("caf\u00e9"), "caf\u00e9".encode()),
    (b"\xff\xfe", FILE(b"\xff\xfe"), b"\xff\xfe"),
    ("\udcff", FILE(b"\xff"), b"\xff"),
    ("a@b", FILE("a@b"), b"a@b"),
    ("./@x", FILE("./@x"), b"./@x"),
    (Path("@x"), FILE("@x"), b"@x"),
    (PurePosixPath("/a/b"), FILE("/a/b"), b"/a/b"),
    (BytesPath(b"@x"), FILE("@x"), b"@x"),
    (BytesPath(b"\xff"), FILE(b"\xff"), b"\xff"),
    ("@x", NAMESPACED("x"), b"x"),
    (b"@x", NAMESPACED("x"), b"x"),
    ("\0x", NAMESPACED("x"), b"x"),
    (b"\0x", NAMESPACED(b"x"), b"x"),
    ("@@x", NAMESPACED("@x"), b"@x"),
    ("@\0x", NAMESPACED(b"\0x"), b"\0x"),
    ("\0\0", NAMESPACED(b"\0"), b"\0"),
    ("@", NAMESPACED(""), b""),
    (b"\0", NAMESPACED(b""), b""),
    ("@caf\u00e9", NAMESPACED("caf\u00e9".encode()), "caf\u00e9".encode()),
    (b"@\xff\xfe", NAMESPACED(b"\xff\xfe"), b"\xff\xfe"),
    ("@" + "x" * 107, NAMESPACED("x" * 107), b"x" * 107),
    (FILE("@x"), FILE("@x"), b"@x"),
    (NAMESPACED("/x"), NAMESPACED("/x"), b"/x"),
]


@pytest.mark.parametrize(("path", "means", "name"), MEANINGS, ids=lambda value: ascii(value)[:30])
def test_what_a_path_means(path: SocketPath, means: UdSocketPath, name: bytes) -> None:
    """str or bytes that begin with @ or NUL are abstract names; everything else, and any PathLike, is a file."""
    address = UdSocketPath.of(path)

    assert means == address
    assert name == address.name
    assert (means.is_file, means.is_namespaced) == (address.is_file, address.is_namespaced)


WRONG: list[tuple[Any, type[Exception], str]] = [
    ("", ValueError, "empty"),
    (b"", ValueError, "empty"),
    (BytesPath(b""), ValueError, "empty"),
    ("/run/a\0b", ValueError, "NUL"),
    (b"a\0", ValueError, "NUL"),
    (Path("a\0b"), ValueError, "NUL"),
    (Path("\0x"), ValueError, "NUL"),
    (BytesPath(b"\0x"), ValueError, "NUL"),
    ("@" + "x" * 108, ValueError, "108 bytes.*107"),
    (b"\0" + b"\0" * 108, ValueError, "108 bytes.*107"),
    ("@" + "\u00e9" * 54, ValueError, "108 bytes.*107"),
    ("@" + "x" * 100_000, ValueError, "100000 bytes.*107"),
    ("\ud800", ValueError, "surrogates"),
    (UdSocketPath.unnamed(), ValueError, "unnamed"),
    (None, TypeError, "NoneType"),
    (5, TypeError, "int"),
    (bytearray(b"/x"), TypeError, "bytearray"),
    (memoryview(b"/x"), TypeError, "memoryview"),
    (["/x"], TypeError, "list"),
]


@pytest.mark.parametrize(("path", "error", "says"), WRONG, ids=lambda value: ascii(value)[:30])
def test_wrong_path_is_refused_before_any_system_call(
    path: Any, error: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that cannot be one is a ValueError, or a TypeError, that says why; no socket is made for it."""
    monkeypatch.setattr(_csocket, "create", lambda *_: pytest.fail("a socket was made"))

    with pytest.raises(error, match=says) as caught:
        UdStream.connect(path)

    assert not isinstance(caught.value, OSError)


@pytest.mark.parametrize(
    ("make", "name", "error"),
    [
        (UdSocketPath.file, "", ValueError),
        (UdSocketPath.file, b"a\0b", ValueError),
        (UdSocketPath.file, "\0", ValueError),
        (UdSocketPath.file, 5, TypeError),
        (UdSocketPath.file, UdSocketPath.namespaced("x"), TypeError),
        (UdSocketPath.namespaced, b"x" * 108, ValueError),
        (UdSocketPath.namespaced, Path("x"), TypeError),
        (UdSocketPath.namespaced, None, TypeError),
        (UdSocketPath.namespaced, bytearray(b"x"), TypeError),
    ],
)
def test_makers_refuse_what_cannot_be(
    make: Callable[[Any], UdSocketPath], name: Any, error: type[Exception]
) -> None:
    """file() and namespaced() hold to the same rules as a path does."""
    with pytest.raises(error):
        make(name)


@pytest.mark.parametrize(
    ("address", "kinds"),
    [
        (UdSocketPath.file("x"), (True, False, False)),
        (UdSocketPath.namespaced("x"), (False, True, False)),
        (UdSocketPath.namespaced(""), (False, True, False)),
        (UdSocketPath.unnamed(), (False, False, True)),
    ],
)
def test_an_address_is_of_one_kind(address: UdSocketPath, kinds: tuple[bool, bool, bool]) -> None:
    """is_file, is_namespaced and is_unnamed: exactly one is True, and it is a bool."""
    assert kinds == (address.is_file, address.is_namespaced, address.is_unnamed)
    assert all(
        isinstance(flag, bool) for flag in (address.is_file, address.is_namespaced, address.is_unnamed)
    )


@pytest.mark.parametrize(
    "address",
    [
        FILE("/run/app.sock"),
        FILE("relative"),
        FILE(b"\xff\xfe"),
        FILE("caf\u00e9\n"),
        NAMESPACED("x"),
        NAMESPACED(""),
        NAMESPACED("@x"),
        NAMESPACED(b"a\0b\0"),
        NAMESPACED(b"\xff" * 107),
    ],
)
def test_str_gives_back_what_connect_takes(address: UdSocketPath) -> None:
    """Str of an address is a path that means it, @name for an abstract one."""
    assert address == UdSocketPath.of(str(address))
    assert address.is_namespaced == str(address).startswith("@")


def test_str_of_a_file_that_looks_abstract() -> None:
    """A file whose name begins with @ is spelled so that connect finds the file."""
    address = UdSocketPath.of(str(UdSocketPath.of(Path("@x"))))

    assert address.is_file
    assert os.path.normpath(str(address)) == "@x"


def test_str_of_an_unnamed_one_is_no_path() -> None:
    """Nothing can be connected to by the str of an unnamed address."""
    with pytest.raises(ValueError, match="empty"):
        UdStream.connect(str(UdSocketPath.unnamed()))


def test_equal_and_hashable_by_what_they_name() -> None:
    """Addresses are equal exactly if their kind and bytes are; str and bytes spell the same one."""
    addresses = [
        FILE("x"),
        FILE("y"),
        NAMESPACED("x"),
        NAMESPACED(""),
        NAMESPACED(b"x\0"),
        UdSocketPath.unnamed(),
    ]
    again = [
        FILE(b"x"),
        FILE(Path("y")),
        NAMESPACED(b"x"),
        NAMESPACED(b""),
        NAMESPACED("x\0"),
        UdSocketPath.unnamed(),
    ]

    for i, one in enumerate(addresses):
        for j, other in enumerate(again):
            assert (one == other) is (i == j)
            assert (one != other) is (i != j)
    assert len({*addresses, *again}) == len(addresses)
    assert FILE("x") != "x"
    assert FILE("x") != b"x"


def test_an_address_is_never_changed() -> None:
    """No public attribute of an address can be set, added or deleted."""
    address = FILE("x")
    for name in ("name", "is_file", "is_namespaced", "is_unnamed", "another"):
        with pytest.raises(AttributeError):
            setattr(address, name, b"y")
        with pytest.raises(AttributeError):
            delattr(address, name)

    assert FILE("x") == address


@pytest.mark.parametrize("address", [FILE(b"\xff"), NAMESPACED(b"a\0"), UdSocketPath.unnamed()], ids=str)
def test_copies_and_pickles(address: UdSocketPath) -> None:
    """An address is a value: its copy and its pickle are equal to it."""
    assert address == copy.copy(address) == copy.deepcopy(address)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert address == pickle.loads(pickle.dumps(address, protocol))


@pytest.mark.parametrize(
    "address",
    [FILE("/run/app.sock"), FILE("@x"), FILE(b"\xff'"), NAMESPACED(b"a\0b"), UdSocketPath.unnamed()],
)
def test_repr_says_how_to_make_it(address: UdSocketPath) -> None:
    """The repr of an address, evaluated, is equal to it."""
    assert address == eval(repr(address), {"UdSocketPath": UdSocketPath})


def test_made_only_by_its_makers() -> None:
    """UdSocketPath() itself says which makers there are."""
    with pytest.raises(TypeError, match=r"file\(\).*namespaced\(\).*unnamed\(\)"):
        UdSocketPath()


def test_what_another_kernel_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no way round the limit for paths, or no abstract namespace, that is said before any call."""
    monkeypatch.setattr(_platform, "SUN_PATH_MAX", 103)
    monkeypatch.setattr(_platform, "HAS_LONG_PATHS", False)
    monkeypatch.setattr(_platform, "HAS_ABSTRACT_NAMESPACE", False)

    assert FILE("p" * 103).sockaddr() == b"p" * 103
    with pytest.raises(ValueError, match="104 bytes long; the most this kernel takes is 103"):
        FILE("p" * 104).sockaddr()
    for use in (FILE("p" * 104), "p" * 104):
        with pytest.raises(ValueError, match="104 bytes long"):
            UdStream.connect(use)
    with pytest.raises(NotImplementedError, match="only Linux"):
        NAMESPACED("x").sockaddr()
    assert NAMESPACED("x" * 107).fits


# --- what reaches whom ---


@pytest.mark.parametrize("name", [b"s", b"@s", b"caf\xc3\xa9", b"\xff\xfe", b" ", b"a b\n"], ids=ascii)
def test_connects_to_a_file(folder: Path, name: bytes) -> None:
    """A file is reached by each of its spellings, whatever its name's bytes are."""
    path = folder / os.fsdecode(name)
    with listening(os.fsencode(path)) as listener:
        reaches(listener, str(path))
        reaches(listener, bytes(path))
        reaches(listener, path)
        reaches(listener, BytesPath(bytes(path)))
        reaches(listener, UdSocketPath.file(path))
        reaches(listener, str(UdSocketPath.of(path)))


@pytest.mark.parametrize("path", [Path("@x"), "./@x", FILE("@x"), BytesPath(b"@x")], ids=str)
def test_file_that_looks_abstract(folder: Path, path: SocketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PathLike is always a file, also Path("@x"); so is "./@x", and so is a file() address."""
    monkeypatch.chdir(folder)
    with listening("./@x") as listener:
        reaches(listener, path)
        with pytest.raises(ConnectionRefusedError):
            UdStream.connect("@x")


@pytest.fixture
def unique() -> bytes:
    """A beginning of abstract names that nobody else has."""
    return b"udstream-%d-" % os.getpid()


@pytest.mark.parametrize(
    "tail",
    [b"", b"x", b"\0", b"a\0b\0\0", b"\xff\xfe", b"@", b"/x", "caf\u00e9".encode(), None],
    ids=lambda tail: "107 bytes" if tail is None else ascii(tail),
)
def test_connects_to_an_abstract_name(unique: bytes, tail: bytes | None) -> None:
    """An abstract name, of any bytes, is reached by each of its spellings."""
    name = unique.ljust(107, b".") if tail is None else unique + tail
    with listening(b"\0" + name) as listener:
        for path in (b"@" + name, b"\0" + name, os.fsdecode(b"@" + name), os.fsdecode(b"\0" + name)):
            reaches(listener, path)
        reaches(listener, NAMESPACED(name))
        reaches(listener, str(NAMESPACED(name)))


def test_an_abstract_name_has_its_exact_length(unique: bytes) -> None:
    """A name is never padded or cut: those that differ in a NUL at the end are different."""
    names = [unique, unique + b"\0", unique + b"\0\0", unique + b"\0" * (107 - len(unique))]
    for there in names:
        with listening(b"\0" + there) as listener:
            for name in names:
                if name == there:
                    reaches(listener, b"@" + name)
                else:
                    with pytest.raises(ConnectionRefusedError):
                        UdStream.connect(b"@" + name)


def test_the_empty_abstract_name() -> None:
    """ "@" alone is the abstract name of no bytes, not an unnamed address."""
    try:
        with listening(b"\0") as listener:
            if listener.getsockname() != b"\0":
                pytest.skip("the kernel gives a name of its own instead")
            reaches(listener, "@")
            reaches(listener, NAMESPACED(b""))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        pytest.skip("another process has it")


# --- paths longer than sun_path ---


def at_length(folder: Path, length: int) -> Path:
    """A path of *length* bytes under *folder*, with its folders made."""
    while length - len(os.fsencode(folder)) - 1 > 200:
        folder = folder / ("d" * 60)
        folder.mkdir()
    return folder / ("s" * (length - len(os.fsencode(folder)) - 1))


@contextmanager
def listening_far_away(path: Path) -> Iterator[socket.socket]:
    """A plain listener on a path too long for the kernel: bound under a short name and moved."""
    short = Path("/tmp", f"uds-{os.getpid()}-short")
    with listening(str(short)) as listener:
        short.rename(path)
        yield listener


@pytest.mark.parametrize("length", [105, 106, 107, 108, 109, 300, 1000, 4000])
def test_path_of_any_length(folder: Path, length: int) -> None:
    """A path is reached whatever its length, round the kernel's limit of 107 bytes as well as beyond it."""
    path = at_length(folder, length)
    assert len(os.fsencode(path)) == length
    with listening_far_away(path) as listener:
        reaches(listener, str(path))
        reaches(listener, path)
        reaches(listener, bytes(path))


@pytest.mark.parametrize("size", [108, 200, 255])
def test_long_last_part(folder: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name too long all by itself is reached, absolute or relative."""
    path = folder / ("n" * size)
    with listening_far_away(path) as listener:
        reaches(listener, path)
        monkeypatch.chdir(folder)
        reaches(listener, path.name)


def test_long_path_through_a_symbolic_link(folder: Path) -> None:
    """Connecting follows symbolic links, for a long path as the kernel does for a short one."""
    path = at_length(folder, 300)
    short, long = folder / "link", folder / ("l" * 200)
    short.symlink_to(path)
    long.symlink_to(path)
    with listening_far_away(path) as listener:
        reaches(listener, short)
        reaches(listener, long)


def test_long_path_of_any_bytes(folder: Path) -> None:
    """A long path that is no UTF-8 is reached, and given back, byte for byte."""
    path = bytes(folder) + b"/\xff" + b"x" * 150
    with listening_far_away(Path(os.fsdecode(path))) as listener:
        with UdStream.connect(path) as stream:
            assert FILE(path) == stream.peer_path
            listener.accept()[0].close()


# --- what the kernel refuses ---


def missing(folder: Path) -> Path:
    return folder / "missing"


def missing_folder(folder: Path) -> Path:
    return folder / "missing" / "s"


def regular_file(folder: Path) -> Path:
    path = folder / "regular"
    path.write_bytes(b"")
    return path


def below_a_file(folder: Path) -> Path:
    return regular_file(folder) / "s"


def a_folder(folder: Path) -> Path:
    return folder


def stale(folder: Path) -> Path:
    path = folder / "stale"
    with listening(str(path)):
        return path


def datagrams(folder: Path) -> Path:
    path = folder / "datagrams"
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bound.bind(str(path))
    OPEN.append(bound)
    return path


def loop(folder: Path) -> Path:
    path = folder / "loop"
    path.symlink_to(path)
    return path


def long_missing(folder: Path) -> Path:
    return folder / ("x" * 200)


def long_regular_file(folder: Path) -> Path:
    path = at_length(folder, 300)
    path.write_bytes(b"")
    return path


def long_stale(folder: Path) -> Path:
    path = at_length(folder, 300)
    with listening_far_away(path):
        return path


def name_too_long(folder: Path) -> Path:
    return folder / ("x" * 256)


def path_too_long(folder: Path) -> Path:
    return folder.joinpath(*["d"] * 2100)


OPEN: list[socket.socket] = []


@pytest.fixture
def closing() -> Iterator[None]:
    """Close what an address was made with."""
    yield
    while OPEN:
        OPEN.pop().close()


REFUSALS: list[tuple[Callable[[Path], Path], type[OSError], int]] = [
    (missing, FileNotFoundError, errno.ENOENT),
    (missing_folder, FileNotFoundError, errno.ENOENT),
    (regular_file, ConnectionRefusedError, errno.ECONNREFUSED),
    (below_a_file, NotADirectoryError, errno.ENOTDIR),
    (a_folder, ConnectionRefusedError, errno.ECONNREFUSED),
    (stale, ConnectionRefusedError, errno.ECONNREFUSED),
    (datagrams, OSError, errno.EPROTOTYPE),
    (loop, OSError, errno.ELOOP),
    (long_missing, FileNotFoundError, errno.ENOENT),
    (long_regular_file, ConnectionRefusedError, errno.ECONNREFUSED),
    (long_stale, ConnectionRefusedError, errno.ECONNREFUSED),
    (name_too_long, OSError, errno.ENAMETOOLONG),
    (path_too_long, OSError, errno.ENAMETOOLONG),
]


@pytest.mark.usefixtures("closing")
@pytest.mark.parametrize(
    ("make", "kind", "number"), REFUSALS, ids=lambda value: getattr(value, "__name__", None)
)
def test_errors_name_the_path(
    folder: Path,
    make: Callable[[Path], Path],
    kind: type[OSError],
    number: int,
) -> None:
    """What the kernel refuses is its OSError subclass, with errno and with the path as filename."""
    path = make(folder)
    spellings: list[SocketPath] = [str(path), bytes(path), path, UdSocketPath.file(path)]
    for spelling in spellings:
        for timeout in (None, 5.0):
            with pytest.raises(kind) as caught:
                UdStream.connect(spelling, timeout=timeout)

            assert type(caught.value) is kind
            assert number == caught.value.errno
            assert caught.value.filename == (bytes(path) if isinstance(spelling, bytes) else str(path))
            assert str(path) in str(caught.value)


@pytest.mark.parametrize("path", ["@udstream-nobody", b"@udstream-nobody", "\0udstream-nobody"], ids=ascii)
def test_errors_name_the_abstract_name(path: str | bytes) -> None:
    """An abstract name that nobody listens on: ConnectionRefusedError, with the name as it was given as filename."""
    with pytest.raises(ConnectionRefusedError) as caught:
        UdStream.connect(path)

    assert caught.value.filename == path
    assert caught.value.errno == errno.ECONNREFUSED


def test_errors_name_a_path_that_is_no_text(folder: Path) -> None:
    """The filename of an error keeps the bytes of a path that is no UTF-8."""
    with pytest.raises(FileNotFoundError) as caught:
        UdStream.connect(bytes(folder) + b"/\xff")

    assert os.fsencode(caught.value.filename) == bytes(folder) + b"/\xff"


PERMISSION = """
import os, sys
from udstream import UdStream
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
for path in sys.argv[1:]:
    try:
        UdStream.connect(path)
    except PermissionError as error:
        print(error.errno, error.filename == path)
"""


def test_permission_denied(folder: Path) -> None:
    """A socket, or a folder on the way, without permission: PermissionError with the path, short or long."""
    folder.chmod(0o755)
    short, long, locked = folder / "s", folder / ("s" * 200), folder / "locked"
    locked.mkdir()
    with listening(str(short)), listening_far_away(long):
        short.chmod(0)
        long.chmod(0)
        locked.chmod(0)
        ran = subprocess.run(
            python(PERMISSION, short, long, locked / "s", locked / ("s" * 200)),
            env=environment(folder),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        locked.chmod(0o700)

    assert f"{errno.EACCES} True\n" * 4 == ran.stdout, ran.stderr


# --- whom a stream is between ---


def test_peer_path_is_the_path_that_was_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """peer_path is the path that connect was given, relative, long or a symbolic link, never /proc."""
    monkeypatch.chdir(folder)
    with listening("s") as listener, listening_far_away(folder / ("n" * 200)) as far:
        Path("link").symlink_to("s")
        for path in ("s", "./s", "link", str(folder / "s"), folder / "s"):
            with UdStream.connect(path) as stream:
                assert FILE(path) == stream.peer_path
                assert UdSocketPath.unnamed() == stream.local_path
                with stream.dup() as twin:
                    assert FILE(path) == twin.peer_path
            listener.accept()[0].close()
        for path in ("n" * 200, folder / ("n" * 200)):
            with UdStream.connect(path) as stream:
                assert FILE(path) == stream.peer_path
                with stream.dup() as twin:
                    assert FILE(path) == twin.peer_path
            far.accept()[0].close()


def test_accepting_side_knows_its_own_name(folder: Path) -> None:
    """Of the connection's other end the kernel tells the listener's address, and an unnamed peer."""
    with listening(str(folder / "s")) as listener, UdStream.connect(folder / "s"):
        with UdStream.from_socket(listener.accept()[0]) as accepted:
            assert FILE(folder / "s") == accepted.local_path
            assert UdSocketPath.unnamed() == accepted.peer_path


def test_client_with_a_name(folder: Path, unique: bytes) -> None:
    """A client that was bound is known to the server by its address: a file, or the exact abstract name."""
    with listening(str(folder / "s")) as listener:
        for sockaddr, address in (
            (bytes(folder) + b"/\xff", FILE(bytes(folder) + b"/\xff")),
            (b"\0" + unique + b"\0\xff\0", NAMESPACED(unique + b"\0\xff\0")),
        ):
            client = socket.socket(socket.AF_UNIX)
            client.bind(sockaddr)
            client.connect(str(folder / "s"))
            with UdStream.from_socket(client) as stream:
                with UdStream.from_socket(listener.accept()[0]) as accepted:
                    assert address == accepted.peer_path
                    assert address == stream.local_path
                    assert FILE(folder / "s") == stream.peer_path


def test_both_ends_of_a_pair_are_unnamed() -> None:
    """A pair has no addresses at all."""
    one, other = UdStream.pair()
    with one, other:
        assert [UdSocketPath.unnamed()] * 4 == [
            one.local_path,
            one.peer_path,
            other.local_path,
            other.peer_path,
        ]


def test_no_peer() -> None:
    """peer_path of a socket that was never connected: OSError, ENOTCONN; its repr works all the same."""
    with UdStream.from_socket(socket.socket(socket.AF_UNIX)) as stream:
        with pytest.raises(OSError, match="not connected") as caught:
            _ = stream.peer_path
        assert caught.value.errno == errno.ENOTCONN
        assert f"fd={stream.fileno()}" in repr(stream)
