"""
What must come out of a connection: the kernel's part and ours, in plain Python, with no socket in it.

A model answers a call as the docs promise, or raises what they promise. `WouldBlock` stands for the wait
that, by the mode of the stream, is a `TimeoutError`, a `BlockingIOError`, None, or for ever.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

Sender = tuple[int | None, int, int]

T = TypeVar("T", bound=Exception)

# Who sent what was on its way before anybody asked for credentials: nobody, by the kernel's numbers.
ANONYMOUS: Sender = (None, 65534, 65534)


class WouldBlock(Exception):
    """The call has to wait for the other end."""


def failing(kind: type[OSError], number: int, **facts: object) -> OSError:
    """The error that a call is to raise, with the attributes that it is to carry."""
    return telling(kind(number, os.strerror(number)), **facts)


def telling(error: T, **facts: object) -> T:
    """The same error, with attributes that say how far the call had come."""
    vars(error).update(facts)
    return error


def timed_out(**facts: object) -> OSError:
    return failing(TimeoutError, errno.ETIMEDOUT, **facts)


def not_now(**facts: object) -> OSError:
    return failing(BlockingIOError, errno.EAGAIN, **facts)


def broken_pipe(**facts: object) -> OSError:
    return failing(BrokenPipeError, errno.EPIPE, **facts)


def reset() -> OSError:
    return failing(ConnectionResetError, errno.ECONNRESET)


def refused() -> OSError:
    return failing(OSError, errno.EIO)


# --- raw streams ---


@dataclass
class Message:
    """What one system call put on its way, or what is left of it; descriptors are known by their names."""

    data: bytes
    fds: tuple[int, ...]
    sender: Sender


class Arrival(NamedTuple):
    """What one system call receives; without data, the end of file."""

    data: bytes
    fds: tuple[int, ...] = ()
    sender: Sender | None = None


class Direction:
    """One of the two directions of a connection: what was sent there and not yet received."""

    def __init__(self, piece: int) -> None:
        # The most bytes that the kernel keeps together: of a longer message, its descriptors go with the first.
        self._piece = piece
        self._messages: deque[Message] = deque()
        # Nobody can send any more.
        self.ended = False
        # The reader is to hear that what it had sent itself was thrown away unread.
        self.reset = False

    def __len__(self) -> int:
        return sum(len(message.data) for message in self._messages)

    @property
    def fds(self) -> int:
        """How many descriptors are in flight."""
        return sum(len(message.fds) for message in self._messages)

    def send(self, data: bytes, fds: tuple[int, ...], sender: Sender) -> None:
        for at in range(0, len(data), self._piece):
            self._messages.append(Message(data[at : at + self._piece], fds, sender))
            fds = ()

    def receive(self, size: int, by_sender: bool) -> Arrival:
        """
        One receive of up to *size* bytes.

        Messages run together, but never those of two senders, if the reader asked for these; and with the
        bytes of a message that brings descriptors it ends.
        """
        if not self._messages:
            if self.reset:
                self.reset = False
                raise reset()
            if self.ended:
                return Arrival(b"")
            raise WouldBlock
        data = b""
        fds: tuple[int, ...] = ()
        sender = self._messages[0].sender
        while self._messages and len(data) < size and not fds:
            message = self._messages[0]
            if by_sender and message.sender != sender:
                break
            room = size - len(data)
            data += message.data[:room]
            message.data = message.data[room:]
            fds, message.fds = message.fds, ()
            if not message.data:
                self._messages.popleft()
        return Arrival(data, fds, sender if by_sender else None)

    def close_reader(self) -> bool:
        """The last reader goes: what is on its way is destroyed, descriptors too. Whether there was anything."""
        lost = bool(self._messages)
        self._messages.clear()
        self.ended = True
        return lost


class End:
    """One end of a connection, as all streams on duplicates of its descriptor share it."""

    def __init__(self, incoming: Direction, outgoing: Direction) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self.nonblocking = False
        self.passcred = False
        self.streams = 0

    def leave(self) -> None:
        """One of the streams is closed; with the last of them, this end."""
        self.streams -= 1
        if not self.streams:
            self.outgoing.ended = True
            if self.incoming.close_reader():
                self.outgoing.reset = True


class Kept(NamedTuple):
    """An item of `UdStream.collected`."""

    offset: int
    nbytes: int
    fds: tuple[int, ...]
    sender: Sender | None


@dataclass
class Stream:
    """One `UdStream` on an end."""

    end: End
    timeout: float | None = None
    closed: bool = False
    collecting: bool = False
    collected: list[Kept] = field(default_factory=list)
    _offset: int = 0

    def __post_init__(self) -> None:
        self.end.streams += 1

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.end.leave()

    def collect(self, flag: bool) -> None:
        if flag and not self.collecting:
            self._offset = 0
        self.collecting = flag

    def stalled(self, **facts: object) -> OSError:
        """The error of a call that has to wait; `WouldBlock` becomes this."""
        return not_now(**facts) if self.end.nonblocking else timed_out(**facts)

    def receive(self, size: int) -> Arrival:
        """One system call that asks for ancillary data and hands it to the caller."""
        arrival = self.end.incoming.receive(size, self.end.passcred)
        self._offset += len(arrival.data)
        return arrival

    def _recv(self, size: int) -> bytes:
        """One system call that asks for bytes: what came with them is kept if the stream collects, else lost."""
        if not size:
            return b""
        offset = self._offset
        arrival = self.receive(size)
        if self.collecting and (arrival.fds or arrival.sender):
            self.collected.append(Kept(offset, len(arrival.data), arrival.fds, arrival.sender))
        return arrival.data

    def read(self, size: int) -> bytes | None:
        """`read(size)`, and `readinto` and `readv` with room for that much."""
        try:
            return self._recv(size)
        except WouldBlock:
            if self.end.nonblocking:
                return None
            raise timed_out() from None

    def readall(self) -> bytes | None:
        data = b""
        try:
            while chunk := self._recv(1 << 16):
                data += chunk
        except WouldBlock:
            if self.end.nonblocking:
                return data or None
            raise timed_out(partial=data) from None
        except OSError as error:
            raise telling(error, partial=data) from None
        return data

    def readline(self, size: int = -1) -> bytes:
        line = b""
        try:
            while len(line) != size and not line.endswith(b"\n") and (byte := self._recv(1)):
                line += byte
        except WouldBlock:
            if not (self.end.nonblocking and line):
                # What cannot wait has nothing more to say than that.
                raise not_now() if self.end.nonblocking else timed_out(partial=line) from None
        except OSError as error:
            raise telling(error, partial=line) from None
        return line

    def readlines(self, hint: int = -1) -> list[bytes]:
        lines: list[bytes] = []
        size = 0
        try:
            while line := self.readline():
                lines.append(line)
                size += len(line)
                if 0 < hint < size:
                    break
        except OSError as error:
            partial: bytes = getattr(error, "partial", b"")
            raise telling(error, partial=b"".join(lines) + partial) from None
        return lines

    def read_exact(self, size: int) -> bytes:
        data = b""
        try:
            while len(data) < size:
                chunk = self._recv(size - len(data))
                if not chunk:
                    raise EOFError
                data += chunk
        except WouldBlock:
            raise self.stalled(nbytes=len(data), partial=data) from None
        except (OSError, EOFError) as error:
            raise telling(error, nbytes=len(data), partial=data) from None
        return data


# --- files ---


class Incoming:
    """What a buffered or text file has still to give of what was sent to it, wherever that is at the moment."""

    def __init__(self, encoding: str | None, newline: str | None) -> None:
        """Bytes without an *encoding*."""
        self._decoder = codecs.getincrementaldecoder(encoding)() if encoding else None
        self._newline = newline if encoding else "\n"
        # A carriage return, as long as it is not known what follows.
        self._held = ""
        self.pending: bytes | str = "" if encoding else b""
        self.ended = False

    def arrive(self, data: bytes, ended: bool = False) -> None:
        self.ended = ended
        self.pending += self._text(data) if self._decoder else data  # type: ignore[operator]

    def _text(self, data: bytes) -> str:
        assert self._decoder is not None
        text = self._held + self._decoder.decode(data, self.ended)
        self._held = ""
        if not self._newline and text.endswith("\r") and not self.ended:
            text, self._held = text[:-1], "\r"
        if self._newline is None:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        return text

    def _line(self) -> int:
        """How long the first line is, or -1 if its end has not come."""
        pending = self.pending
        if isinstance(pending, bytes):
            return pending.find(b"\n") + 1 or -1
        if self._newline == "":
            ends = [end for end in map(pending.find, "\r\n") if end >= 0]
            at = min(ends, default=-2)
            return at + 1 + (pending[at : at + 2] == "\r\n")
        end = self._newline or "\n"
        at = pending.find(end)
        return at + len(end) if at >= 0 else -1

    def take(self, count: int) -> bytes | str:
        taken, self.pending = self.pending[:count], self.pending[count:]
        return taken

    def read(self, size: int) -> bytes | str:
        if not self.ended and not 0 <= size <= len(self.pending):
            raise WouldBlock
        return self.take(size if size >= 0 else len(self.pending))

    def readline(self, size: int = -1) -> bytes | str:
        length = self._line()
        if 0 <= size and (size < length or (length < 0 and size <= len(self.pending))):
            length = size
        if length < 0:
            if not self.ended:
                raise WouldBlock
            length = len(self.pending)
        return self.take(length)

    def readlines(self, hint: int = -1) -> list[bytes | str]:
        """All or nothing: a call that fails has taken no line."""
        before, lines, size = self.pending, [], 0
        try:
            while line := self.readline():
                lines.append(line)
                size += len(line)
                if 0 < hint < size:
                    break
        except WouldBlock:
            self.pending = before
            raise
        return lines


class Outgoing:
    """What was written to a buffered or text file and taken, as the bytes that are to arrive."""

    def __init__(self, encoding: str | None, newline: str | None) -> None:
        if encoding == "utf-16":
            # Like any file that has no position, it writes no byte order mark.
            encoding = "utf-16-le" if sys.byteorder == "little" else "utf-16-be"
        self._encoder = codecs.getincrementalencoder(encoding)() if encoding else None
        self._newline = newline or "\n"
        self.taken = b""

    def take(self, data: bytes | str) -> None:
        if isinstance(data, str):
            assert self._encoder is not None
            data = self._encoder.encode(data.replace("\n", self._newline))
        self.taken += data
