"""A Unix socket's address as a value: a file, a name in the abstract namespace, or none at all."""

from __future__ import annotations

import os
import sys

from . import _platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias, Union

    from typing_extensions import Self

    # What connect() and bind() take.
    SocketPath: TypeAlias = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]", "UdSocketPath"]

_FILE, _NAMESPACED, _UNNAMED = "file", "namespaced", "unnamed"
# How os.fsencode would do it, without its looking up each time.
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
_AT = ord("@")
_new: Any = object.__new__
_set: Any = object.__setattr__


class UdSocketPath:
    """
    The address of a Unix socket. A value: equal and hashable by what it names, and never
    changed.

    Made by `file`, `namespaced` and `unnamed`; wherever a path is taken, a ``str``, ``bytes`` or
    `os.PathLike` does as well. ``str()`` gives back what `UdStream.connect` would take.
    """

    __slots__ = ("_kind", "_name")
    _kind: str
    _name: bytes

    def __new__(cls, *args: object) -> Self:  # noqa: D102
        raise TypeError("use UdSocketPath.file(), UdSocketPath.namespaced() or UdSocketPath.unnamed()")

    @classmethod
    def _make(cls, kind: str, name: bytes) -> Self:
        self: Self = _new(cls)
        _set(self, "_kind", kind)
        _set(self, "_name", name)
        return self

    @classmethod
    def file(cls, p: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> UdSocketPath:
        """
        The socket file at the path *p*, whatever that begins with.

        An empty path or one with a NUL in it: `ValueError`. Of any length on Linux; elsewhere the kernel's
        limit (103 bytes) is checked when the address is used.
        """
        name = p.encode(_ENCODING, _ERRORS) if isinstance(p, str) else os.fsencode(p)
        if not name:
            raise ValueError("the path of a Unix socket is empty")
        if b"\0" in name:
            raise ValueError(f"the path of a Unix socket holds a NUL byte: {p!r}")
        return cls._make(_FILE, name)

    @classmethod
    def namespaced(cls, name: str | bytes) -> UdSocketPath:
        """
        A name in Linux's abstract namespace, given without the ``@`` or NUL in front of it.

        Any bytes, NULs among them, in exactly this length: it is never padded. Longer than 107 bytes:
        `ValueError`.
        """
        if not isinstance(name, (str, bytes)):
            raise TypeError(f"an abstract name is str or bytes, not {type(name).__name__}")
        raw = os.fsencode(name)
        if len(raw) > _platform.ABSTRACT_NAME_MAX:
            raise ValueError(
                f"the abstract name {name!r} is {len(raw)} bytes long; "
                f"the most the kernel takes is {_platform.ABSTRACT_NAME_MAX}"
            )
        return cls._make(_NAMESPACED, raw)

    @classmethod
    def unnamed(cls) -> UdSocketPath:
        """The address of a socket that was never bound: most clients, and both ends of a pair."""
        return cls._make(_UNNAMED, b"")

    @classmethod
    def of(cls, path: SocketPath) -> UdSocketPath:
        """
        The address that *path* means wherever a path is taken.

        ``str`` or ``bytes`` beginning with ``@`` or NUL is a name in the abstract namespace; any other, and
        every `os.PathLike`, is a file.
        """
        if isinstance(path, UdSocketPath):
            return path
        if isinstance(path, str):
            return cls.namespaced(path[1:]) if path.startswith(("@", "\0")) else cls.file(path)
        if isinstance(path, bytes):
            return cls.namespaced(path[1:]) if path.startswith((b"@", b"\0")) else cls.file(path)
        if isinstance(path, os.PathLike):
            return cls.file(path)
        raise TypeError(
            f"a Unix socket's path is str, bytes, os.PathLike or UdSocketPath, not {type(path).__name__}"
        )

    @classmethod
    def from_kernel(cls, sockaddr: str | bytes | None) -> UdSocketPath:
        """The address in the form in which CPython's socket object gives ``getsockname`` back."""
        if not sockaddr:
            return cls.unnamed()
        if isinstance(sockaddr, bytes) and sockaddr[:1] == b"\0":
            return cls._make(_NAMESPACED, sockaddr[1:])
        return cls._make(_FILE, os.fsencode(sockaddr))

    @property
    def is_file(self) -> bool:
        """True for a socket file."""
        return self._kind == _FILE

    @property
    def is_namespaced(self) -> bool:
        """True for a name in the abstract namespace."""
        return self._kind == _NAMESPACED

    @property
    def is_unnamed(self) -> bool:
        """True for the address of a socket that was never bound."""
        return self._kind == _UNNAMED

    @property
    def name(self) -> bytes:
        """The file's path, or the abstract name without its ``@``; empty for an unnamed one."""
        return self._name

    @property
    def fits(self) -> bool:
        """Whether the kernel takes this address as it is, without a way round its limit for paths."""
        return len(self._name) <= _platform.SUN_PATH_MAX or self._kind != _FILE

    def sockaddr(self) -> bytes:
        """
        The form that CPython's socket object takes in ``connect`` and ``bind``.

        Unnamed: `ValueError`; an abstract name where there is no such namespace: `NotImplementedError`; a
        path too long for the kernel where there is no way round: `ValueError`.
        """
        if self.is_namespaced:
            if not _platform.HAS_ABSTRACT_NAMESPACE:
                raise NotImplementedError("only Linux has an abstract namespace for Unix sockets")
            return b"\0" + self._name
        if self.is_unnamed:
            raise ValueError("an unnamed address cannot be connected to or bound")
        if not self.fits and not _platform.HAS_LONG_PATHS:
            raise ValueError(
                f"the path {str(self)!r} is {len(self._name)} bytes long; "
                f"the most this kernel takes is {_platform.SUN_PATH_MAX}"
            )
        return self._name

    def __str__(self) -> str:
        text = os.fsdecode(self._name)
        if self.is_namespaced:
            return "@" + text
        return "./" + text if text.startswith("@") else text

    def __repr__(self) -> str:
        if self.is_unnamed:
            return "UdSocketPath.unnamed()"
        return f"UdSocketPath.{self._kind}({os.fsdecode(self._name)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, UdSocketPath):
            return NotImplemented
        return (self._kind, self._name) == (other._kind, other._name)

    def __hash__(self) -> int:
        return hash((self._kind, self._name))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a UdSocketPath is never changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a UdSocketPath is never changed")

    def __reduce__(self) -> tuple[object, tuple[str, bytes]]:
        return UdSocketPath._make, (self._kind, self._name)


def as_filename(path: SocketPath) -> str | bytes:
    """What an `OSError` has for ``filename``: the path as it was given."""
    return str(path) if isinstance(path, UdSocketPath) else os.fspath(path)


def sockaddr_of(path: SocketPath) -> bytes:
    """``UdSocketPath.of(path).sockaddr()``, but quicker for the commonest kind of path."""
    if isinstance(path, str):
        name: bytes = path.encode(_ENCODING, _ERRORS)
        if name and name[0] != _AT and 0 not in name and len(name) <= _platform.SUN_PATH_MAX:
            return name
    return UdSocketPath.of(path).sockaddr()
