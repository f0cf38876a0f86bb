"""Single promises that random histories (`test_histories`) found broken, each in the shortest way to break it."""

from __future__ import annotations

import pytest

from udstream import Shutdown, UdStream, ancillary

# A timeout that is over before anything can be waited for.
INSTANT = 1e-9


@pytest.mark.parametrize("how", ["recv_ancillary", "collected"])
def test_end_of_file_has_no_sender(how: str) -> None:
    """The end of file comes without credentials: the kernel's zeros there would say that root sent it."""
    here, there = UdStream.pair()
    with here, there:
        ancillary.set_passcred(there, True)
        here.shutdown(Shutdown.WRITE)
        if how == "recv_ancillary":
            with there.recv_ancillary(bytearray(1)) as received:
                assert received.nbytes == 0 and received.credentials is None
        else:
            there.collect_ancillary = True
            assert there.read(1) == b""
            assert not there.collected


@pytest.mark.parametrize("mode", ["wb", "rwb", "w", "rw"])
def test_nothing_to_send_does_not_fail(mode: str) -> None:
    """A file that has nothing to send does not say that the peer is gone: neither in `flush` nor in `close`."""
    here, there = UdStream.pair()
    there.close()
    file = here.makefile(mode)
    file.write(b"" if "b" in mode else "")
    file.flush()
    file.close()


def test_read_takes_what_is_there_however_late() -> None:
    """A read whose time was up before it began still gives what is at hand, though not all could be sent first."""
    here, there = UdStream.pair()
    there.write(b"at hand")
    here.timeout = INSTANT
    with there, here.makefile("rwb", 10_000_000) as file:
        file.write(bytes(1_000_000))
        assert file.read1() == b"at hand"
        here.shutdown(Shutdown.BOTH)
        with pytest.raises(BrokenPipeError):
            file.close()
