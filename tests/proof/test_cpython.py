"""
CPython's own tests, of sockets and of files, on udstream: what they ask for is here, or it says why not.

They are those that the running Python ships; nothing of them is copied. Each is a case of its own below.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import re
import sys
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_socket") is None:
    pytest.skip("this Python comes without its own tests", allow_module_level=True)

import cpython_files
import cpython_sockets

from udstream import UdStream

# Left to the long run: what takes its time, and the layers of io itself over a UdStream.
LONG = [
    "BufferedRWPair.*",
    "BufferedReader.*",
    "BufferedWriter.*",
    "TextIOWrapper.*",
    "*.testWithTimeoutTriggeredSend",
    "TCPTimeoutTest.*",
    "TCPCloserTest.*",
    "signals.*",
    "InterruptedSendTimeoutTest.*",
    "InterruptedRecvTimeoutTest.*",
    "SendfileUsingSendTest.*",
    "*.test_threads",
]

# What CPython asks for and udstream does otherwise, or cannot do. Each of these is run, and must fail.
OTHERWISE: dict[str, list[str]] = {
    "a stream has one owner: closing it closes its files, closing a file closes it; dup() makes another": [
        "*FileObject*.testCloseAfterMakefile",
        "*FileObject*.testMakefileAfterMakefileClose",
        "UnbufferedFileObject*.testMakefileClose",
        "UnbufferedFileObject*.testMakefileCloseSocketDestroy",
    ],
    "a closed stream raises ValueError, as any closed file, and not OSError": [
        "*FileObject*.testRealClose",
        "BasicTCPTest.testDetach",
        "*.testSendmsgAfterClose",
        "*.testRecvmsgAfterClose",
        "ContextManagersTest.testCreateConnectionClose",
    ],
    "a read that timed out can be repeated; a file that refuses to read on says why in words of its own": [
        "FileObjectClassTestCase.testReadAfterTimeout",
        "UnbufferedFileObject*.testReadAfterTimeout",
        "UnicodeReadFileObject*.testReadAfterTimeout",
    ],
    "the unbuffered file is the stream itself, which goes both ways": [
        "UnbufferedFileObject*.testAttributes",
        "open.test_invalid_operations",
        "open.test_raw_file_io",
        "misc.test_attributes",
    ],
    "a wrong argument of shutdown is a ValueError": ["BasicTCPTest.testShutdown_overflow"],
    "one buffer will do where a list of them is due": [
        "*.testSendmsgBadArgs",
        "*.testRecvmsgIntoBadArgs",
    ],
    "a tuple of two ints among the ancillary data is two descriptors": ["*.testSendmsgBadCmsg"],
    "a timeout never changes the mode of the descriptor": ["NonBlockingTCPTests.testSetBlocking"],
    "what a listener accepts has no timeout, whatever the default is": [
        "NonBlockingTCPTests.testInheritFlagsTimeout"
    ],
    "an address that cannot be one is a ValueError, before any system call": [
        "TestLinuxAbstractNamespace.testAutobind",
        "TestLinuxAbstractNamespace.testNameOverflow",
    ],
    "sendfile chooses by itself between the two ways that are tested here one by one": [
        "SendfileUsingSendTest.testNonRegularFile"
    ],
    "a call takes no flags": [
        "*.testSendmsgDontWait",
        "*.testRecvmsgPeek",
    ],
    "a UdStream is connected from the first: there is no socket before that": [
        "NonBlockingTCPTests.testInitNonBlocking",
        "TestUnixDomain.testUnbound",
        "SendfileUsingSendTest.test_errors",
    ],
    "readinto has no size beside its buffer": ["BufferIOTest.testRecvFromIntoSmallBuffer"],
    "a connection has no position: there is no seek, tell, truncate or append": [
        "*.test_truncate",
        "*.test_truncate_after_write",
        "*.test_writes_and_seeks",
        "*.test_writes_and_truncates",
        "*.test_append_bom",
        "*.test_basic_io",
        "*.test_encoded_writes",
        "*.test_issue1395_5",
        "*.test_issue25862",
        "*.test_multibyte_seek_and_tell",
        "*.test_newlines_input",
        "TextIOWrapper.test_illegal_decoder",
        "TextIOWrapper.test_readlines",
        "TextIOWrapper.test_seek*",
        "rw-text.test_readlines",
        "rw-text.test_seek*",
        "*.test_tell_after_readline_with_cr",
        "*.test_telling",
        "*.test_reconfigure_defaults",
        "TextIOWrapper.test_reconfigure_write",
        "TextIOWrapper.test_reconfigure_write_fromascii",
        "open.test_append_mode_tell",
        "open.test_array_writes",
        "open.test_buffered_file_io",
        "open.test_optional_abilities",
        "open.test_raw_bytes_io",
        "open.test_read_closed",
        "misc.test_create_fail",
        "misc.test_create_writes",
        "misc.test_open_pipe_with_append",
    ],
    "a stream has a name and a number of its own": [
        "*.test_fileno",
        "*.test_recursive_repr",
        "*.test_repr",
    ],
    "the close of a stream has nothing to flush": [
        "BufferedWriter.test_flush_error_on_close",
        "open.test_flush_error_on_close",
    ],
    "a file reads from the socket and writes to it, and does not call the methods that a test puts in the stream": [
        "r*b.test_buffering",
        "r*b.test_read1",
        "r*b.test_read1_arbitrary",
        "r*b.test_readinto1",
        "r*b.test_read_non_blocking",
        "*b.test_flush_error_on_close",
        "*b*.test_write_error_on_close",
        "rwb-writing.test_flush_error_on_close",
        "*b*.test_slow_close_from_thread",
        "rw-text.test_unreadable",
        "rw-text.test_illegal_decoder",
    ],
    "a file without anything to send closes without a flush": [
        "r*b.test_close_error_on_close",
        "r*b.test_nonnormalized_close_error_on_close",
        "rwb-writing.test_close_error_on_close",
        "rwb-writing.test_nonnormalized_close_error_on_close",
        "rw-text.test_close_error_on_close",
        "rw-text.test_flush_error_on_close",
        "rw-text.test_nonnormalized_close_error_on_close",
    ],
    "a file that goes both ways can be written to": ["rwb.test_truncate_on_read_only"],
    "a file made by open or makefile is not made again, and its class takes no other raw file": [
        "*b*.test_constructor",
        "*b*.test_initialization",
        "rw-text.test_constructor",
        "rw-text.test_initialization",
    ],
    "a file and its stream are not taken apart: there is no detach": [
        "*b*.test_detach",
        "*b*.test_detach_flush",
        "rw-text.test_detach",
    ],
    "what fails in a destructor is told of": [
        "*b*.test_error_through_destructor",
        "rw-text.test_error_through_destructor",
    ],
    "the size of an object in memory is its own affair": [
        "*b*.test_buffer_freeing",
        "*b*.test_sizeof",
    ],
    "encoding, errors, newline and buffering are settled when a text file is made": [
        "rw-text.test_reconfigure_*",
        "rw-text.test_rawio_write_through",
        "rw-text.test_chunk_size",
        "rw-text.test_internal_buffer_size",
        "rw-text.test_issue119506",
    ],
    "a stream owns its descriptor, and closes it": [
        "open.test_closefd",
        "open.test_closefd_attr",
        "misc.test_warn_on_dealloc_fd",
    ],
    "reads are what the kernel gives: the second half of a piece comes with the next piece": [
        "open.test_RawIOBase_read"
    ],
    "it opens a path; what paths udstream takes is tested with addresses": [
        "open.test_fspath_support",
        "open.test_open_handles_NUL_chars",
        "open.test_opener",
    ],
}

# Tests that are not run: in all but the last no stream is to be found, whatever stands in place of sockets and files.
ELSEWHERE: dict[str, list[str]] = {
    "it is about io's own classes and functions, or about a mock": [
        "*.test_args_error",
        "*.test_bad_readinto_*",
        "*.test_misbehaved_io*",
        "*.test_*_character_device_file",
        "*.test_read_on_closed",
        "*.test_write_and_rewind",
        "*.test_write_non_blocking",
        "BufferedRWPair.test_isatty",
        "*.test_create_at_shutdown_*",
        "*.test_illegal_encoder",
        "*.test_issue22849",
        "*.test_read_byteslike",
        "*.test_read_nonbytes",
        "*.test_reconfigure_locale",
        "TextIOWrapper.test_read_non_blocking",
        "TextIOWrapper.test_subclass_repr",
        "*.test_closed_attr_raises",
        "*.test_issue142594",
        "*.test_non_boolean_closed_attr",
        "*.test_reentrant_seek_during_tell",
        "rw-text.test_issue35928",
        "rw-text.test_read_non_blocking",
        "rw-text.test_rwpair_cleared_before_textio",
        "open.test_*IOBase_destructor",
        "open.test_IOBase_finalize",
        "open.test_BufferedIOBase_readinto",
        "open.test_RawIOBase_read_bounds_checking",
        "open.test_RawIOBase_read_gh60107",
        "open.test_buffered_readinto_mixin",
        "open.test_close_assert",
        "open.test_next_nonsizeable",
        "open.test_readline_nonsizeable",
        "open.test_startup_optimization",
        "open.test_types_have_dict",
        "misc.test___all__",
        "misc.test_abcs",
        "misc.test_blockingioerror",
        "misc.test_check_encoding_*",
        "misc.test_daemon_threads_*",
        "misc.test_openwrapper",
        "misc.test_readinto_buffer_overflow",
        "misc.test_text_encoding",
    ],
    "it makes a subclass of the class under test; ours is made by makefile": [
        "*b*.test_override_destructor",
        "*b*.test_uninitialized",
        "*.test_pickling_subclass",
        "rw-text.test_override_destructor",
        "rw-text.test_uninitialized",
        "rw-text.test_subclass_repr",
        "rw-text.test_bufio_write_through",
        "open.test_destructor",
    ],
    "it is for another kernel": ["TestUnixDomain.testEmptyAddress"],
    "it is about files on disk": [
        "open.test_bad_opener_*",
        "open.test_fileio_closefd",
        "open.test_large_file_ops",
        "open.test_no_closefd_with_filename",
        "open.test_opener_invalid_fd",
        "open.test_unbounded_file",
        "open.test_write_readline_races",
        "misc.test_open_allargs",
    ],
    "it takes seconds to ask for what another one, of the same name, has asked for": [
        "LineBuffered*.testReadAfterTimeout",
        "SmallBuffered*.testReadAfterTimeout",
        "UnicodeWrite*.testReadAfterTimeout",
        "UnicodeReadWrite*.testReadAfterTimeout",
    ],
    "it may end before its client sends, which TCP takes and a Unix socket says is a broken pipe": [
        "BufferIOTest.testRecvFromIntoEmptyBuffer"
    ],
}

# The classes of tests that have nothing for udstream as a whole.
OTHER_CLASSES: dict[str, list[str]] = {
    "another family, or type, of socket": [
        "*CAN*",
        "ISOTPTest",
        "J1939Test",
        "*RDS*",
        "*QIPCRTR*",
        "*VSOCK*",
        "*Bluetooth*",
        "*HyperV*",
        "*UDP*",
        "*TIPC*",
        "*SCTP*",
        "*TCPTest",
        "NetworkConnection*",
        "BasicTCPTest2",
        "LinuxKernelCryptoAPI",
        "TestMacOSTCPFlags",
        "TestQuickackFlag",
        "TestMSWindowsTCPFlags",
        "TestSocketSharing",
        "CreateServer*",
        "PurePythonSocketPairTest",
    ],
    "the socket module's own functions, constants and classes": [
        "GeneralModuleTests",
        "CmsgMacroTests",
        "TestExceptions",
        "FreeThreadingTests",
        "InheritanceTest",
        "NonblockConstantTest",
        "ReentrantMutationTests",
        "TestLazyImport",
    ],
    "udstream has one sendfile, which SendfileUsingSendTest tests": ["SendfileUsingSendfileTest"],
    "no raw file is in it": [
        "*IncrementalDecoder*",
        "*IncrementalNewlineDecoder*",
        "*APIMismatchTest",
        "*BufferSizeTest",
        "ProtocolsTest",
        "TestIOCTypes",
    ],
    "it needs a raw file that seeks": ["*BufferedRandomTest"],
    "the same in Python, of _pyio": ["Py*"],
}

# The releases whose tests the tables are about. Each one brings others.
GONE_THROUGH = [(3, 10, 13), (3, 11, 7), (3, 12, 1), (3, 13, 0), (3, 13, 15), (3, 14, 8), (3, 15, 0)]
KNOWN = sys.version_info[:3] in GONE_THROUGH
UNKNOWN = (
    "a release of CPython whose tests nobody has gone through: it may be about something that no stream does"
)

# What the tables say of some of these alone: from the first that is named here, up to and without the last.
ALWAYS = ((3,), (4,))
BEFORE_3_12 = ((3,), (3, 12))
BEFORE_3_13 = ((3,), (3, 13))
SINCE_3_11 = ((3, 11), (4,))
SINCE_3_12 = ((3, 12), (4,))
SINCE_3_13 = ((3, 13), (4,))
SINCE_3_13_15 = ((3, 13, 15), (4,))
SINCE_3_14 = ((3, 14), (4,))
SINCE_3_15 = ((3, 15), (4,))
IN_3_14 = ((3, 14), (3, 15))
VERSIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "*.test_*_character_device_file": SINCE_3_13,
    "*.test_reconfigure_locale": SINCE_3_11,
    "*b*.test_error_through_destructor": BEFORE_3_13,
    "rw-text.test_error_through_destructor": BEFORE_3_13,
    "TextIOWrapper.test_subclass_repr": SINCE_3_13,
    "rw-text.test_subclass_repr": SINCE_3_13,
    "rw-text.test_issue35928": SINCE_3_13,
    "rw-text.test_issue119506": SINCE_3_13,
    "misc.test_openwrapper": BEFORE_3_12,
    "misc.test_text_encoding": SINCE_3_11,
    "*HyperV*": SINCE_3_12,
    "PurePythonSocketPairTest": SINCE_3_13,
    "TestIOCTypes": SINCE_3_12,
    "*.test_issue142594": SINCE_3_13_15,
    "*.test_pickling_subclass": SINCE_3_13_15,
    "*.test_tell_after_readline_with_cr": SINCE_3_13_15,
    "open.test_RawIOBase_read_bounds_checking": SINCE_3_13_15,
    "open.test_write_readline_races": SINCE_3_13_15,
    "ReentrantMutationTests": SINCE_3_13_15,
    "*.test_reentrant_seek_during_tell": IN_3_14,
    "TextIOWrapper.test_read_non_blocking": SINCE_3_14,
    "rw-text.test_read_non_blocking": SINCE_3_14,
    "rw-text.test_chunk_size": IN_3_14,
    "open.test_startup_optimization": SINCE_3_14,
    "FreeThreadingTests": SINCE_3_14,
    "ProtocolsTest": SINCE_3_14,
    "TestLazyImport": SINCE_3_14,
    "TestQuickackFlag": SINCE_3_14,
    "*.test_closed_attr_raises": SINCE_3_15,
    "*.test_non_boolean_closed_attr": SINCE_3_15,
    "open.test_RawIOBase_read_gh60107": SINCE_3_15,
    "*BufferSizeTest": SINCE_3_15,
}

SOCKETS: Any = cpython_sockets.load()
FILES: Any = cpython_files.load()

SOCKET_CLASSES = [
    "BasicTCPTest",
    "BasicSocketPairTest",
    "NonBlockingTCPTests",
    "TCPCloserTest",
    "TCPTimeoutTest",
    "InterruptedRecvTimeoutTest",
    "InterruptedSendTimeoutTest",
    "SendmsgUnixStreamTest",
    "RecvmsgUnixStreamTest",
    "RecvmsgIntoUnixStreamTest",
    "RecvmsgSCMRightsStreamTest",
    "RecvmsgIntoSCMRightsStreamTest",
    "FileObjectClassTestCase",
    "UnbufferedFileObjectClassTestCase",
    "LineBufferedFileObjectClassTestCase",
    "SmallBufferedFileObjectClassTestCase",
    "UnicodeReadFileObjectClassTestCase",
    "UnicodeWriteFileObjectClassTestCase",
    "UnicodeReadWriteFileObjectClassTestCase",
    "TestLinuxAbstractNamespace",
    "TestUnixDomain",
    "BufferIOTest",
    "ContextManagersTest",
    "SendfileUsingSendTest",
    "SendRecvFdsTests",
]

# What stands in the place of io's classes: those of io themselves, over a UdStream, or files of udstream.
FILE_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "BufferedReader": ("CBufferedReaderTest", {}),
    "rb": ("CBufferedReaderTest", {"tp": cpython_files.buffered("rb")}),
    "rwb": ("CBufferedReaderTest", {"tp": cpython_files.buffered("rwb")}),
    "BufferedWriter": ("CBufferedWriterTest", {}),
    "wb": ("CBufferedWriterTest", {"tp": cpython_files.buffered("wb")}),
    "rwb-writing": ("CBufferedWriterTest", {"tp": cpython_files.buffered("rwb")}),
    "BufferedRWPair": ("CBufferedRWPairTest", {}),
    "TextIOWrapper": ("CTextIOWrapperTest", {}),
    "rw-text": (
        "CTextIOWrapperTest",
        {
            "TextIOWrapper": staticmethod(cpython_files.text),
            "BufferedReader": staticmethod(cpython_files.as_it_is),
            "BufferedWriter": staticmethod(cpython_files.as_it_is),
        },
    ),
    "open": ("CIOTest", {}),
    "misc": ("CMiscIOTest", {}),
    "signals": ("CSignalsTest", {}),
}


class OneEndOfAPair:
    """The receiving tests want a socket that hears nothing, a datagram one: here a stream does."""

    def setUp(self) -> None:
        self._pair = UdStream.pair()
        super().setUp()  # type: ignore[misc]

    def newSocket(self) -> cpython_sockets.Socket:
        return cpython_sockets.Socket(end=self._pair[0])

    def bindServer(self) -> None:
        self.serv_addr = "", ""

    def tearDown(self) -> None:
        super().tearDown()  # type: ignore[misc]
        self._pair[1].close()


def classes() -> Iterator[tuple[str, type[unittest.TestCase]]]:
    """The classes of tests to run, each with what its tests begin with in the tables above."""
    for name in SOCKET_CLASSES:
        cls = getattr(SOCKETS, name)
        if name == "InterruptedRecvTimeoutTest":
            cls = type(name, (OneEndOfAPair, cls), {"__module__": SOCKETS.__name__})
        yield name, cls
    for name, (base, more) in FILE_CLASSES.items():
        namespace = {**cpython_files.STREAMS, **more, "__module__": FILES.__name__}
        yield name, type(name, (getattr(FILES, base),), namespace)


CLASSES = dict(classes())
TESTS = [
    f"{name}.{test}" for name, cls in CLASSES.items() for test in unittest.TestLoader().getTestCaseNames(cls)
]


def holds(pattern: str) -> bool:
    """Whether an entry of the tables is about this Python."""
    first, last = VERSIONS.get(pattern, ALWAYS)
    return first <= sys.version_info[:3] < last


def matches(test: str, patterns: list[str]) -> bool:
    """Whether one of the patterns that are about this Python stands for the test."""
    return any(holds(pattern) and fnmatch.fnmatchcase(test, pattern) for pattern in patterns)


def reason_in(table: dict[str, list[str]], test: str) -> str | None:
    """The reason that the table gives for a test, if it names it."""
    for reason, patterns in table.items():
        if matches(test, patterns):
            return reason
    return None


def cases(otherwise: bool) -> list[Any]:
    """The tests that are to pass, or those of which the first table says that they do not."""
    return [
        pytest.param(test, id=test, marks=[pytest.mark.long] if matches(test, LONG) else [])
        for test in TESTS
        if not reason_in(ELSEWHERE, test) and (reason_in(OTHERWISE, test) is not None) is otherwise
    ]


def run(test: str) -> tuple[unittest.TestResult, bool]:
    """Run one test; how it ended, and whether there was a stream in it."""
    name, _, method = test.rpartition(".")
    result = unittest.TestResult()
    sockets = name in SOCKET_CLASSES
    used = cpython_sockets.Socket.used if sockets else cpython_files.USED
    used.clear()
    with cpython_sockets.cleaned_up() if sockets else cpython_files.OtherEnds():
        unittest.TestSuite([CLASSES[name](method)]).run(result)
    return result, bool(used)


# The tests of io drop their raw files unclosed, which for mocks is no matter.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
# As the builtin, and not socket.makefile, warns of it.
@pytest.mark.filterwarnings("ignore:line buffering:RuntimeWarning")
@pytest.mark.parametrize("test", cases(otherwise=False))
def test_cpython(test: str, record_property: Callable[[str, object], None]) -> None:
    """What CPython's own tests ask of sockets and files, a UdStream and its files do."""
    result, used = run(test)
    for _, traceback in result.errors + result.failures:
        if not KNOWN:
            pytest.xfail(UNKNOWN)
        pytest.fail(traceback, pytrace=False)
    if result.skipped:
        pytest.skip(result.skipped[0][1])
    assert used or not KNOWN, "no stream is in it: it belongs into the table of such"
    record_property("CPython tests passed", 1)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore:line buffering:RuntimeWarning")
# Other than the failure in itself, which can be that of a thread, or of a destructor.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("test", cases(otherwise=True))
def test_cpython_asks_for_something_else(test: str) -> None:
    """What is said not to apply does not: each of these tests of CPython's fails here."""
    result, _ = run(test)

    if not KNOWN and not (result.errors or result.failures):
        pytest.xfail(UNKNOWN)
    assert result.errors or result.failures, "it passes: take it out of the table"


@pytest.mark.skipif(not KNOWN, reason=UNKNOWN)
@pytest.mark.parametrize("table", [OTHERWISE, ELSEWHERE], ids=["otherwise", "elsewhere"])
def test_exclusions_are_of_tests_that_exist(table: dict[str, list[str]]) -> None:
    """Each test that is said not to apply is one that CPython has."""
    stale = [
        pattern
        for patterns in table.values()
        for pattern in patterns
        if holds(pattern) and not fnmatch.filter(TESTS, pattern)
    ]

    assert stale == []


@pytest.mark.skipif(not KNOWN, reason=UNKNOWN)
def test_every_class_is_accounted_for() -> None:
    """Each class of CPython's tests of sockets and files is run here, or has a reason why not."""
    loader = unittest.TestLoader()
    found = {
        name
        for module in (SOCKETS, FILES)
        for name, cls in vars(module).items()
        if isinstance(cls, type) and issubclass(cls, unittest.TestCase) and loader.getTestCaseNames(cls)
    }
    run = {*SOCKET_CLASSES, *(base for base, _ in FILE_CLASSES.values())}
    # The common part of a C and a Python class.
    bases = {base.__name__ for name in run for base in vars(FILES).get(name, object).__mro__[1:]}
    unknown = {name for name in found - run - bases if reason_in(OTHER_CLASSES, name) is None}
    stale = [
        pattern
        for patterns in OTHER_CLASSES.values()
        for pattern in patterns
        if holds(pattern) and not fnmatch.filter(found, pattern)
    ]

    assert unknown == set()
    assert stale == []


def test_the_documentation_gives_each_reason() -> None:
    """What CPython's tests ask for and udstream does not do, docs/proof.md tells, with the same words."""
    page = (Path(__file__).parents[2] / "docs" / "proof.md").read_text(encoding="utf-8")
    told = re.findall(r"^- (.+)$", page.partition("## What of CPython's own tests applies")[2], re.MULTILINE)
    reasons = [*OTHERWISE, *ELSEWHERE, *OTHER_CLASSES]

    assert [reason for reason in reasons if reason not in told] == []
