"""A socket whose reads keep the ancillary data that they met: what `UdStream.collect_ancillary` switches on."""

from __future__ import annotations

from _socket import MSG_CTRUNC

from ._timing import Around, for_one_call, keep
from .ancillary import MAX_FDS, _decoded, _discard, _is_empty, _land

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable, Sequence
    from typing import Any

    from typing_extensions import Buffer

    from .ancillary import Landed, Received


class CollectingSocket(Around):
    """A socket whose reads keep the ancillary data that came with the bytes."""

    __slots__ = ("_collected", "_offset")

    def __init__(self, sock: Any, collected: deque[tuple[int, Received]], offset: list[int]) -> None:
        self.sock = sock
        self._collected = collected
        # In a list, which those for one call share.
        self._offset = offset

    def for_one_call(self, begun: float | None = None) -> CollectingSocket:
        return CollectingSocket(for_one_call(self.sock, begun), self._collected, self._offset)

    def deadline(self) -> float | None:
        return self.sock.deadline() if isinstance(self.sock, Around) else None

    def expect_answer(self) -> None:
        if isinstance(self.sock, Around):
            self.sock.expect_answer()

    def recv_into(self, buffer: Buffer) -> int:
        return self._read((buffer,))

    def recv(self, size: int) -> bytes:
        buffer = bytearray(size)
        del buffer[self.recv_into(buffer) :]
        return bytes(buffer)

    def recvmsg_into(self, buffers: Sequence[Buffer]) -> tuple[int]:
        # readv() sees to it that there is room, and looks at nothing else.
        return (self._read(buffers),)

    def send(self, data: Buffer, flags: int) -> int:
        return self.sock.send(data, flags)  # type: ignore[no-any-return]

    def sendmsg(self, buffers: Iterable[Buffer], cmsgs: Any, flags: int) -> int:
        return self.sock.sendmsg(buffers, cmsgs, flags)  # type: ignore[no-any-return]

    def keep(self, results: list[Any], name: str, arguments: tuple[Any, ...]) -> None:
        if name == "recv_into":
            self._read(arguments[:1], results)
        elif name == "recv":
            buffer = bytearray(arguments[0])
            counts: list[int] = []
            try:
                self._read((buffer,), counts)
            finally:
                # Without a call, after which a handler might raise.
                for count in counts:
                    results += (buffer[:count],)
        else:
            before = len(results)
            try:
                keep(self.sock, results, name, *arguments)
            finally:
                # The caller has the ancillary data; here they only count.
                for landed in results[before:]:
                    if name == "recvmsg_into":
                        self._offset[0] += landed[0]
                    elif name == "recvmsg":
                        self._offset[0] += len(landed[0])

    def _read(self, buffers: Sequence[Buffer], counts: list[int] | None = None) -> int:
        """Read; *counts* gets what is returned, also when a signal handler raises before it is."""
        if len(buffers) == 1 and _is_empty(buffers[0]):
            # The kernel would give away the descriptors of the next byte, and not the byte.
            return 0
        landed: list[Landed] = []
        try:
            try:
                _land(self.sock, landed, buffers)
            finally:
                if counts is not None:
                    # Without a call, after which a handler might raise.
                    for answer in landed:
                        counts += (answer[0],)
            nbytes: int
            nbytes, cmsgs, flags, _ = landed[0]
            offset = self._offset[0]
            self._offset[0] = offset + nbytes
            # With the end of file comes nothing but the credentials of nobody.
            if nbytes and (cmsgs or flags & MSG_CTRUNC):
                self._collected.append((offset, _decoded(landed, MAX_FDS)))
            return nbytes
        except BaseException:
            _discard(landed)
            raise
