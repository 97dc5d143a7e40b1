"""Buckets of an S3 server on the loopback interface, and faults on the way there."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import pytest
from needs import package
from s3_server import Request

KEY_ID = "AKIAIOSFODNN7TESTKEY"
SECRET = "wJalrXUtnFEMI-K7MDENG-testsecretkey"
TOKEN = "FwoGZXIvYXdzEBYaDtesttoken"
# What must not be found in anything that is written or printed.
SECRETS = (KEY_ID, SECRET, TOKEN)
_PROGRAM = Path(__file__).with_name("s3_server.py")
_SECONDS = 30.0
# moto gives what is private to those who name a key, whatever it is.
SIGNED = {
    "Authorization": f"AWS4-HMAC-SHA256 Credential={KEY_ID}/20260101/us-east-1/s3/aws4_request"
}

Fault = Literal[
    "403",  # such answers; moto never sees the request
    "500",
    "503",
    "slow",  # the answer comes after `seconds`
    "cut before",  # the connection is reset; moto never sees the request
    "cut within",  # the connection is closed in the middle of the answer
    "cut after",  # moto does it; the connection is reset before the answer
    "stall",  # the answer stops in its middle, for `seconds` or until the caller goes away
    "flip",  # a bit of the answer's body is another
    "kill before",  # `process` is killed before moto sees its request
    "kill after",  # or after moto did it
]


def rule(fault: Fault, method: str = ".*", path: str = ".*", **more: Any) -> dict[str, Any]:
    """Say which requests meet a fault: `s3_server.Rule` tells what else may be said."""
    return {"fault": fault, "method": method, "path": path, **more}


class Server:
    """The server's process, as long as `serving` lasts."""

    def __init__(self, port: int, direct_port: int) -> None:
        self.port = port
        self._direct_port = direct_port
        self._n_buckets = 0

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": TOKEN,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def faults(self, *rules: dict[str, Any]) -> None:
        """Let these faults happen from now on instead of those before, and forget requests."""
        self._ask(self.port, "POST", "/-rules", json.dumps(rules).encode())

    def requests(self) -> list[Request]:
        """Give all requests since `faults` was last called."""
        answer = self._ask(self.port, "GET", "/-requests")[1]
        return [Request(**one) for one in json.loads(answer)]

    def bucket(self) -> Bucket:
        """Make a bucket that nobody else has."""
        self._n_buckets += 1
        name = f"bucket-{os.getpid()}-{self._n_buckets}"
        status, _ = self.direct("PUT", f"/{name}")
        assert status == 200
        return Bucket(self, name)

    def direct(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Ask moto itself, without faults and unnoticed."""
        return self._ask(self._direct_port, method, path, body)

    def _ask(self, port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
        try:
            connection.request(method, path, body, SIGNED)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class Bucket:
    """A bucket, seen past all faults."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, data: bytes) -> None:
        assert self.server.direct("PUT", self._path(key), data)[0] == 200

    def get(self, key: str) -> bytes | None:
        """Give an object; None: there is none."""
        status, body = self.server.direct("GET", self._path(key))
        assert status in (200, 404)
        return body if status == 200 else None

    def delete(self, *keys: str) -> None:
        for key in keys:
            assert self.server.direct("DELETE", self._path(key))[0] == 204

    def keys(self, prefix: str = "") -> list[str]:
        """List what is there, sorted."""
        found: list[str] = []
        after = ""
        while True:
            words = f"list-type=2&prefix={quote(prefix)}&start-after={quote(after)}"
            status, body = self.server.direct("GET", f"/{self.name}?{words}")
            assert status == 200
            text = body.decode()
            found += map(unescape, re.findall(r"<Key>(.*?)</Key>", text, re.S))
            if "<IsTruncated>true</IsTruncated>" not in text:
                return sorted(found)
            after = found[-1]

    def content(self, prefix: str = "") -> dict[str, bytes]:
        """Give every object below a prefix, by its key relative to that."""
        return {key.removeprefix(prefix): self.get(key) or b"" for key in self.keys(prefix)}

    def upload(self, folder: Path, prefix: str = "") -> None:
        """Put every file below a folder, as `aws s3 sync` does."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(prefix + path.relative_to(folder).as_posix(), path.read_bytes())

    def _path(self, key: str) -> str:
        return f"/{self.name}/{quote(key)}"


@contextmanager
def serving() -> Iterator[Server]:
    """Start a server, which ends with the context or with this process."""
    package("moto")
    with subprocess.Popen(
        [sys.executable, str(_PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            # It ends by itself where it cannot start.
            port, direct_port = process.stdout.readline().split()
            yield Server(int(port), int(direct_port))
        finally:
            process.kill()


@contextmanager
def found_in_environment(server: Server) -> Iterator[None]:
    """Let this process and those it starts find the server, and no account of the machine's."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, os.devnull)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield
