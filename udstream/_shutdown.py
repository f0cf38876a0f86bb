"""The directions of a connection."""

from __future__ import annotations

import _socket
from enum import IntEnum


class Shutdown(IntEnum):
    """Which directions `UdStream.shutdown` ends; the values are those of ``socket.SHUT_*``."""

    READ = _socket.SHUT_RD
    WRITE = _socket.SHUT_WR
    BOTH = _socket.SHUT_RDWR
