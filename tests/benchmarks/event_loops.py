"""
The same messages through asyncio, anyio and trio, one event loop in each process.

Waiting for the next round blocks the event loop, which between two rounds has nothing else to do. anyio and
trio may not be installed.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from .measure import Contender, Measure, Unavailable
from .processes import Rounds, between

AsyncSide = Callable[[int, socket.socket, Rounds], Coroutine[Any, Any, None]]


def optional(name: str) -> Any:
    """A module that this machine may lack."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Unavailable(f"{name.partition('.')[0]} is not installed") from None


# --- asyncio ---


@asynccontextmanager
async def asyncio_streams(
    sock: socket.socket,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """The socket as asyncio has it: a stream for each way."""
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    try:
        yield reader, writer
    finally:
        writer.close()


async def asyncio_trips(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that begins."""
    data = bytes(size)
    async with asyncio_streams(sock) as (reader, writer):
        for n in rounds:
            for _ in range(n):
                writer.write(data)
                await writer.drain()
                await reader.readexactly(size)


async def asyncio_echo(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that answers."""
    async with asyncio_streams(sock) as (reader, writer):
        for n in rounds:
            for _ in range(n):
                writer.write(await reader.readexactly(size))
                await writer.drain()


async def asyncio_sender(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that sends."""
    data = bytes(size)
    async with asyncio_streams(sock) as (_reader, writer):
        for n in rounds:
            for _ in range(n):
                writer.write(data)
                await writer.drain()
            # While the loop is blocked nothing would leave its buffer.
            writer.transport.set_write_buffer_limits(0)
            await writer.drain()
            writer.transport.set_write_buffer_limits()


async def asyncio_receiver(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that receives."""
    async with asyncio_streams(sock) as (reader, _writer):
        for n in rounds:
            for _ in range(n):
                await reader.readexactly(size)


async def asyncio_line_trips(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that begins, with lines."""
    line = b"x" * (size - 1) + b"\n"
    async with asyncio_streams(sock) as (reader, writer):
        for n in rounds:
            for _ in range(n):
                writer.write(line)
                await writer.drain()
                await reader.readline()


async def asyncio_line_echo(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that answers, with lines."""
    async with asyncio_streams(sock) as (reader, writer):
        for n in rounds:
            for _ in range(n):
                writer.write(await reader.readline())
                await writer.drain()


def in_asyncio(driver: AsyncSide, partner: AsyncSide, size: int) -> Contender:
    """Two sides under asyncio."""

    @contextmanager
    def connected() -> Iterator[Measure]:
        with between(
            lambda sock, rounds: asyncio.run(driver(size, sock, rounds)),
            lambda sock, rounds: asyncio.run(partner(size, sock, rounds)),
        ) as measure:
            yield measure

    return connected


def asyncio_round_trips(size: int) -> Contender:
    """There and back with asyncio's streams."""
    return in_asyncio(asyncio_trips, asyncio_echo, size)


def asyncio_one_way(size: int) -> Contender:
    """One way with asyncio's streams."""
    return in_asyncio(asyncio_receiver, asyncio_sender, size)


def asyncio_lines(size: int) -> Contender:
    """Lines there and back with asyncio's streams."""
    return in_asyncio(asyncio_line_trips, asyncio_line_echo, size)


# --- anyio, on asyncio ---


async def anyio_stream(sock: socket.socket) -> Any:
    """The socket as anyio has it."""
    return await optional("anyio.abc").UNIXSocketStream.from_socket(sock)


async def anyio_trips(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that begins."""
    data = bytes(size)
    async with await anyio_stream(sock) as stream:
        for n in rounds:
            for _ in range(n):
                await stream.send(data)
                await stream.receive(size)


async def anyio_echo(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that answers."""
    async with await anyio_stream(sock) as stream:
        for n in rounds:
            for _ in range(n):
                await stream.send(await stream.receive(size))


async def anyio_sender(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that sends."""
    data = bytes(size)
    async with await anyio_stream(sock) as stream:
        for n in rounds:
            for _ in range(n):
                await stream.send(data)


async def anyio_receiver(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that receives."""
    async with await anyio_stream(sock) as stream:
        for n in rounds:
            left = n * size
            while left:
                left -= len(await stream.receive(size))


def in_anyio(driver: AsyncSide, partner: AsyncSide, size: int) -> Contender:
    """Two sides under anyio."""

    @contextmanager
    def connected() -> Iterator[Measure]:
        anyio = optional("anyio")
        if not hasattr(optional("anyio.abc").UNIXSocketStream, "from_socket"):
            raise Unavailable("this anyio cannot wrap a socket")
        with between(
            lambda sock, rounds: anyio.run(driver, size, sock, rounds),
            lambda sock, rounds: anyio.run(partner, size, sock, rounds),
        ) as measure:
            yield measure

    return connected


def anyio_round_trips(size: int) -> Contender:
    """There and back with anyio."""
    return in_anyio(anyio_trips, anyio_echo, size)


def anyio_one_way(size: int) -> Contender:
    """One way with anyio."""
    return in_anyio(anyio_receiver, anyio_sender, size)


# --- trio ---


async def trio_stream(sock: socket.socket) -> Any:
    """The socket as trio has it."""
    trio = optional("trio")
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def trio_trips(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that begins."""
    data = bytes(size)
    async with await trio_stream(sock) as stream:
        for n in rounds:
            for _ in range(n):
                await stream.send_all(data)
                await stream.receive_some(size)


async def trio_echo(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that answers."""
    async with await trio_stream(sock) as stream:
        for n in rounds:
            for _ in range(n):
                await stream.send_all(await stream.receive_some(size))


async def trio_sender(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that sends."""
    data = bytes(size)
    async with await trio_stream(sock) as stream:
        for n in rounds:
            for _ in range(n):
                await stream.send_all(data)


async def trio_receiver(size: int, sock: socket.socket, rounds: Rounds) -> None:
    """The side that receives."""
    async with await trio_stream(sock) as stream:
        for n in rounds:
            left = n * size
            while left:
                count = len(await stream.receive_some(size))
                if not count:
                    raise EOFError
                left -= count


def in_trio(driver: AsyncSide, partner: AsyncSide, size: int) -> Contender:
    """Two sides under trio."""

    @contextmanager
    def connected() -> Iterator[Measure]:
        trio = optional("trio")
        with between(
            lambda sock, rounds: trio.run(driver, size, sock, rounds),
            lambda sock, rounds: trio.run(partner, size, sock, rounds),
        ) as measure:
            yield measure

    return connected


def trio_round_trips(size: int) -> Contender:
    """There and back with trio."""
    return in_trio(trio_trips, trio_echo, size)


def trio_one_way(size: int) -> Contender:
    """One way with trio."""
    return in_trio(trio_receiver, trio_sender, size)
