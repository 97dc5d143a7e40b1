"""An S3 server on the loopback interface: moto behind a proxy that injects faults.

A program of its own, which `s3.Server` starts: it prints two ports, the proxy's and moto's own, and
ends when its standard input does. Whoever sends ``POST /-rules`` to the proxy gives it a list of
`Rule` as JSON and is given the `Request`s since the last list; ``GET /-requests`` gives them, too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import signal
import socket
import struct
import sys
import threading
from dataclasses import asdict, dataclass
from typing import NamedTuple

# What a fault may be: see `Fault` in s3.py.
STATUS = {
    "403": ("403 Forbidden", "AccessDenied"),
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Slow Down", "SlowDown"),
}
# Of one hop of a connection.
HOP = {b"connection", b"content-length", b"transfer-encoding", b"keep-alive", b"expect"}
BODILESS = (b"204", b"304", b"100")


@dataclass
class Rule:
    """Which requests meet a fault; the first rule that says so counts."""

    fault: str
    method: str = ".*"  # regular expressions, of the whole
    path: str = ".*"  # with the query, as it is sent
    key_id: str = ".*"  # by which a process says who it is
    skip: int = 0  # so many requests pass first
    times: int | None = None  # so many meet it; None: all
    share: float = 1.0  # of the requests, drawn from `seed`
    seed: int = 0
    seconds: float = 0.0  # how long it takes, for those that are slow
    process: int = 0  # which one is killed

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def meets(self, request: Request) -> bool:
        """Whether a request meets the fault; counts it."""
        wanted = (
            (self.method, request.method), (self.path, request.path), (self.key_id, request.key_id)
        )  # fmt: skip
        if self.times == 0 or not all(re.fullmatch(*one) for one in wanted):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self._random.random() >= self.share:
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class Request:
    """A request as it came, and what became of it."""

    method: str
    path: str
    key_id: str
    range: str
    n_sent: int  # bytes of its body
    status: int = 0  # 0: no answer was sent
    n_received: int = 0  # bytes of the answer's body
    fault: str | None = None


class Message(NamedTuple):
    """A request or an answer of HTTP."""

    first: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes:
        """Give a header's value; empty: there is none."""
        return next((value for key, value in self.headers if key.lower() == name), b"")

    def packed(self, length: int | None, connection: bytes) -> bytes:
        """Give its bytes; `length` of the body, None: not said."""
        lines = [self.first, *(b": ".join(h) for h in self.headers if h[0].lower() not in HOP)]
        lines += [b"Connection: " + connection]
        lines += [] if length is None else [b"Content-Length: %d" % length]
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body


class Proxy:
    """Hands requests on to moto, but for those that meet a fault."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._rules: list[Rule] = []
        self._requests: list[Request] = []
        # moto looks, then puts: not at once, as S3 does.
        self._conditional = asyncio.Lock()
        # An event loop holds its tasks weakly: one that waits for a client may be collected.
        self._serving: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests."""
        task = asyncio.current_task()
        self._serving.add(task)
        try:
            while (message := await self._read(reader, writer)) is not None:
                if not await self._answer(message, reader, writer):
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass  # the other end is gone
        finally:
            self._serving.discard(task)
            writer.close()

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Message | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, headers = parsed(head)
        message = Message(first, headers, b"")
        if message.header(b"expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(message.header(b"content-length") or 0))
        return message._replace(body=body)

    async def _answer(
        self, message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer a request; whether the connection can be kept."""
        method, path, _ = message.first.decode().split(" ")
        if path in ("/-rules", "/-requests"):
            writer.write(self._told(path, message.body))
            await writer.drain()
            return True
        its_range = message.header(b"range").decode()
        request = Request(method, path, key_id_of(message), its_range, len(message.body))
        self._requests.append(request)
        rule = next((one for one in self._rules if one.meets(request)), None)
        if rule is None:
            answer = await self._forwarded(message)
            note(request, answer)
            writer.write(packed_answer(answer, method))
            await writer.drain()
            return True
        request.fault = rule.fault
        return await self._fault(rule, message, request, reader, writer)

    async def _fault(
        self,
        rule: Rule,
        message: Message,
        request: Request,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        if rule.fault in STATUS:
            request.status = int(rule.fault)
            writer.write(packed_answer(error_answer(rule.fault, message), request.method))
            await writer.drain()
            return True
        if lost(rule, "before", writer):
            return False
        if rule.fault == "slow":
            await asyncio.sleep(rule.seconds)
        answer = await self._forwarded(message)
        if lost(rule, "after", writer):
            return False
        if rule.fault == "flip":
            answer = answer._replace(body=flipped(answer.body))
        data = packed_answer(answer, request.method)
        if rule.fault in ("cut within", "stall"):
            # Within the body where there is one, else within the first line.
            writer.write(data[: -len(answer.body) // 2] if answer.body else data[:7])
            await writer.drain()
            if rule.fault == "stall":
                await asyncio.wait([asyncio.ensure_future(reader.read(1))], timeout=rule.seconds)
            return False
        note(request, answer)
        writer.write(data)
        await writer.drain()
        return True

    async def _forwarded(self, message: Message) -> Message:
        if not message.header(b"if-none-match"):
            return await self._from_moto(message)
        async with self._conditional:
            return await self._from_moto(message)

    async def _from_moto(self, message: Message) -> Message:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        try:
            # HTTP 1.0 has no chunks.
            asked = message._replace(first=message.first.replace(b"HTTP/1.1", b"HTTP/1.0"))
            writer.write(asked.packed(len(message.body), b"close"))
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        return Message(*parsed(head), body)

    def _told(self, path: str, body: bytes) -> bytes:
        told = json.dumps([asdict(one) for one in self._requests]).encode()
        if path == "/-rules":
            self._rules = [Rule(**one) for one in json.loads(body)]
            self._requests.clear()
        return packed_answer(Message(b"HTTP/1.1 200 OK", [], told), "GET")


def parsed(head: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    first, *lines = head.rstrip(b"\r\n").split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    return first, [(name, value.strip()) for name, _, value in pairs]


def packed_answer(answer: Message, method: str) -> bytes:
    first = answer.first.replace(b"HTTP/1.0", b"HTTP/1.1")
    length: int | None = len(answer.body)
    if method == "HEAD":
        length = int(answer.header(b"content-length") or 0)
    elif first.split()[1] in BODILESS:
        length = None
    return answer._replace(first=first).packed(length, b"keep-alive")


def error_answer(fault: str, message: Message) -> Message:
    """Answer as S3 does, which repeats the key id of who is refused."""
    status, code = STATUS[fault]
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>As was asked for</Message>"
        f"<AWSAccessKeyId>{key_id_of(message)}</AWSAccessKeyId><RequestId>0</RequestId></Error>"
    )
    headers = [(b"Content-Type", b"application/xml")]
    return Message(f"HTTP/1.1 {status}".encode(), headers, body.encode())


def key_id_of(message: Message) -> str:
    credential = re.search(rb"Credential=([^/]+)/", message.header(b"authorization"))
    return credential.group(1).decode() if credential else ""


def flipped(body: bytes) -> bytes:
    """Flip a bit in the middle."""
    at = len(body) // 2
    return body[:at] + bytes(b ^ 4 for b in body[at : at + 1]) + body[at + 1 :]


def note(request: Request, answer: Message) -> None:
    request.status, request.n_received = int(answer.first.split()[1]), len(answer.body)


def lost(rule: Rule, when: str, writer: asyncio.StreamWriter) -> bool:
    """Kill who asked, or cut the connection, where the fault is that; whether it is."""
    if rule.fault == f"kill {when}":
        os.kill(rule.process, signal.SIGKILL)
        return True
    if rule.fault != f"cut {when}":
        return False
    # The other end is told of a reset connection.
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return True


async def main(upstream: int) -> None:
    # Bodies of many MB are whole in memory here; headers are not longer than this.
    server = await asyncio.start_server(Proxy(upstream).serve, "127.0.0.1", 0, limit=2**20)
    port = server.sockets[0].getsockname()[1]
    sys.stdout.write(f"{port} {upstream}\n")
    sys.stdout.flush()
    await server.serve_forever()


def end_with_the_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    threading.Thread(target=end_with_the_parent, daemon=True).start()
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    asyncio.run(main(moto.get_host_and_port()[1]))
