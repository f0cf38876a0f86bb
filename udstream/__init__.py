"""
Unix domain sockets as files.

General layout, from the ground up; a module imports only from those above it in this list:

* ``_platform``, ``_waiting``, ``address``: what the kernel is, waiting for it, and a socket's address.
* ``_csocket``, ``_timing``: CPython's socket object without its habits, and with a timeout nobody else sees.
* ``ancillary``: descriptors and credentials on a raw descriptor. ``files``: buffered and text files.
* ``stream``: `UdStream`, the raw file, and `open`, with ``_collecting`` under it. ``listener``: `UdStreamListener`.
* ``cli``: the command line.
"""

from __future__ import annotations

from .address import UdSocketPath
from .files import BinaryFile, TextFile
from .stream import UdStream, open

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import ancillary
    from ._shutdown import Shutdown
    from .ancillary import Credentials, FileDescriptors
    from .listener import UdStreamListener

__all__ = [
    "BinaryFile",
    "Credentials",
    "FileDescriptors",
    "Shutdown",
    "TextFile",
    "UdSocketPath",
    "UdStream",
    "UdStreamListener",
    "ancillary",
    "open",
]

__version__ = "0.1.0"

# What not every program needs is imported when it is first asked for.
_LATER = {
    "Credentials": "ancillary",
    "FileDescriptors": "ancillary",
    "Shutdown": "_shutdown",
    "UdStreamListener": "listener",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "ancillary":
        return import_module(f"{__name__}.ancillary")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    thing = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = thing
    return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
