"""Faults at the wire: what a peer may do wrong at one step of a conversation."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    RST = "rst"  # the connection is reset
    FIN = "fin"  # the connection is closed
    STALL = "stall"  # nothing comes until the fault ends, then the connection is closed
    SLOW = "slow"  # the answer trickles until the fault ends
    SPLIT = "split"  # the answer comes in single bytes, but it comes
    GARBAGE = "garbage"  # bytes of no protocol, then the connection is closed
    HALF = "half"  # half of the answer, then the connection is closed
    # IMAP
    BYE = "bye"
    NO = "no"
    BAD = "bad"
    GLUED = "glued"  # further lines in the same segment, before and after the answer
    LONG_LINE = "long_line"  # a line of more than a million bytes
    # SMTP
    R421 = "421"
    R4XX = "4xx"
    R5XX = "5xx"


@dataclass
class Fault:
    """One fault at one step, for ``times`` occurrences; it has ended when it has struck that often."""

    step: str
    kind: Kind
    times: int = 1
    struck: int = 0
    struck_at: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)

    def strikes(self, step: str) -> bool:
        if step != self.step or self.struck >= self.times:
            return False
        self.struck += 1
        self.struck_at = time.monotonic()
        return True


class Cut(Exception):
    """The fault ended this connection."""


class Wire:
    """One connection of a scripted server: lines in, bytes out, with the fault in between."""

    def __init__(self, sock: socket.socket, fault: Fault | None) -> None:
        self.sock = sock
        self.fault = fault
        self._buffer = b""
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the connection; safe from any thread.

        The descriptor is the serving thread's to give back (:meth:`release`): given back under its hands, the number
        becomes that of some other connection, which it would then read from or write to.
        """
        with self._lock, contextlib.suppress(OSError):
            # not an SSLSocket's own shutdown, which touches its TLS state
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def reset(self) -> None:
        """End the connection with an RST, from the thread that serves it."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.release()

    def release(self) -> None:
        """Give the descriptor back, from the thread that serves the connection."""
        with self._lock, contextlib.suppress(OSError):
            self.sock.close()

    def line(self) -> bytes:
        """The next line without its end; Cut when the peer has gone."""
        while b"\n" not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.rstrip(b"\r")

    def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _more(self) -> None:
        try:
            data = self.sock.recv(65536)
        except OSError as error:
            raise Cut from error
        if not data:
            raise Cut
        self._buffer += data

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise Cut from error

    def answer(self, step: str, data: bytes, *, failure: dict[Kind, bytes] | None = None) -> None:
        """Send an answer, unless the fault has something else in mind.

        ``failure`` gives the protocol's own negative answers by kind. Raises
        Cut when the connection is over.
        """
        fault = self.fault
        if fault is None or not fault.strikes(step):
            self.send(data)
            return
        kind = fault.kind
        if kind is Kind.RST:
            self.reset()
            raise Cut
        if kind is Kind.FIN:
            self.close()
            raise Cut
        if kind is Kind.STALL:
            fault.ended.wait(60)
            self.close()
            raise Cut
        if kind is Kind.SLOW:
            self._trickle(data, fault)
        elif kind is Kind.SPLIT:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for i in range(min(len(data), 40)):
                self.send(data[i : i + 1])
            self.send(data[40:])
        elif kind is Kind.GARBAGE:
            self.send(bytes(range(256)) + b"\r\n")
            self.close()
            raise Cut
        elif kind is Kind.HALF:
            self.send(data[: max(1, len(data) // 2)])
            self.close()
            raise Cut
        elif kind is Kind.GLUED:
            self.send(b"* OK [ALERT] hello\r\n" + data + b"* OK still here\r\n")
        elif kind is Kind.LONG_LINE:
            self.send(b"* " + b"9 " * 600_000 + b"\r\n" + data)
        else:
            negative = (failure or {}).get(kind)
            if negative is None:
                self.send(data)
            else:
                self.send(negative)
                if kind in {Kind.BYE, Kind.R421}:
                    self.close()
                    raise Cut

    def _trickle(self, data: bytes, fault: Fault) -> None:
        for i in range(len(data)):
            if fault.ended.is_set():
                self.send(data[i:])
                return
            self.send(data[i : i + 1])
            time.sleep(0.05)


class Server:
    """A scripted server on a port of its own: one thread per connection, until it is closed."""

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self._live: set[Wire] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._closed = False
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def converse(self, wire: Wire) -> None:
        raise NotImplementedError

    def _accept(self) -> None:
        while not self._closed:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        wire = Wire(sock, self.fault)
        self._live.add(wire)
        try:
            # an answer after another one would wait for the client's acknowledgement, which is put off for 40 ms
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire.answer("connect", b"")
            self.converse(wire)
        except (Cut, OSError, ValueError):
            pass
        finally:
            self._live.discard(wire)
            wire.release()

    def start_tls(self, wire: Wire, context: ssl.SSLContext, *, step: str) -> None:
        """Turn a connection into a TLS one; a fault at that step spoils the handshake."""
        wire.answer(step, b"")
        secured = context.wrap_socket(wire.sock, server_side=True, do_handshake_on_connect=False)
        wire.sock = secured
        secured.do_handshake()

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(10)  # a thread left in accept() could take what comes to the next server with its descriptor
        self._listener.close()
        for wire in list(self._live):
            wire.close()
