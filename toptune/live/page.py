"""A live recording as a page in a browser of the same computer.

The server listens on a loopback address alone, answers only requests that name that address and
hold a secret token, and sends no script from elsewhere. The page gets the whole of what it shows as
a server-sent event, at most four times a second, so that it may be closed, opened again or slow.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

from toptune.errors import InputError, MissingPackagesError, ToptuneError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from toptune.live.board import Board

_PACKAGES = ("starlette", "uvicorn")
_LEAST_INTERVAL_S = 0.25
# A comment after so long a silence shows whether anybody still listens.
_SILENCE_S = 15.0
_START_S, _STOP_S = 20.0, 5.0
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Address:
    """Where a page is served: a loopback address of this computer, and a port (0: any free)."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``127.0.0.1:8000``, ``localhost:8000`` or ``[::1]:8000``.

        Raises
        ------
        InputError
            It is something else, or an address that other computers can reach.
        """
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise InputError(f"`serve` must be an address and a port, 127.0.0.1:8000, got {text!r}")
        try:
            found = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        except ValueError:
            raise InputError(
                f"`serve` must be an address of this computer, such as 127.0.0.1, got {host!r}"
            ) from None
        if not found.is_loopback:
            raise InputError(
                f"`serve` {text}: other computers could reach {host}, and the page is for this one"
                " alone: serve at 127.0.0.1, and reach it from elsewhere through a tunnel of ssh"
            )
        return cls(str(found), int(port))

    @property
    def in_url(self) -> str:
        """The host as a URL has it."""
        return f"[{self.host}]" if ":" in self.host else self.host


def require_server() -> None:
    """Refuse to serve where the packages for it are not installed."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingPackagesError(
            f"a page needs {', '.join(missing)}, not installed here: pip install 'toptune[live]'"
        )


class LivePage:
    """Serves a board while the block lasts, from a thread of its own.

    Raises
    ------
    InputError
        The address is not free.
    MissingPackagesError
        starlette or uvicorn is not installed.
    """

    def __init__(self, board: Board, address: Address) -> None:
        require_server()
        self._board = board
        self._token = secrets.token_urlsafe(24)
        self._socket = _listen(address)
        port = self._socket.getsockname()[1]
        self._hosts = [address.in_url, "localhost"]
        self.url = f"http://{address.in_url}:{port}/{self._token}/"
        self._feed = _Feed()
        self._published_s = 0.0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        import uvicorn

        self._server = uvicorn.Server(
            uvicorn.Config(
                self._application(),
                log_config=None,
                log_level="critical",
                access_log=False,  # it would hold the token
                server_header=False,
                lifespan="off",
                ws="none",
                http="h11",
                loop="asyncio",
                limit_concurrency=64,
                timeout_graceful_shutdown=1,
            )
        )
        self.publish()
        self._thread = threading.Thread(target=self._run, name="toptune-page", daemon=True)
        self._thread.start()
        until_s = time.monotonic() + _START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until_s:
                self._socket.close()
                raise ToptuneError(f"the page at {self.url} could not be served")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        """Show the last state, then stop serving."""
        self._feed.end(self._content())
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(_STOP_S)
        self._socket.close()

    def publish(self) -> None:
        """Send the board as it is now to every open page, unless that was just done."""
        now_s = time.monotonic()
        if now_s - self._published_s < _LEAST_INTERVAL_S and self._board.state != "ended":
            return
        self._published_s = now_s
        self._feed.put(self._content())

    def _content(self) -> str:
        return json.dumps(self._board.to_json(), allow_nan=False, separators=(",", ":"))

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    def _application(self) -> Starlette:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.routing import Route

        made = Starlette(
            routes=[
                Route("/{token}/", self._file("live.html", "text/html")),
                Route("/{token}/live.css", self._file("live.css", "text/css")),
                Route("/{token}/live.js", self._file("live.js", "text/javascript")),
                Route("/{token}/events", self._events),
            ],
            # A page of another site that resolves its own name to this address is not answered.
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=self._hosts)],
        )
        made.router.redirect_slashes = False
        return made

    def _file(self, name: str, kind: str) -> Callable[..., Any]:
        from starlette.responses import Response

        async def serve(request: Request) -> Response:
            self._require_token(request)
            return Response(_template(name), media_type=kind, headers=_HEADERS)

        return serve

    async def _events(self, request: Request) -> Response:
        from starlette.responses import StreamingResponse

        self._require_token(request)
        return StreamingResponse(
            self._feed.events(), media_type="text/event-stream", headers=_HEADERS
        )

    def _require_token(self, request: Request) -> None:
        from starlette.exceptions import HTTPException

        given = request.path_params["token"].encode()
        if not hmac.compare_digest(given, self._token.encode()):
            raise HTTPException(404)


class _Feed:
    """The latest content, from one thread to readers in another's event loop."""

    def __init__(self) -> None:
        self._latest = ""
        self._number = 0
        self._ended = False
        self._news: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._lock = threading.Lock()

    def put(self, content: str) -> None:
        """Replace the content, and wake all readers."""
        with self._lock:
            self._latest = content
            self._number += 1
            for event, loop in self._news.items():
                with suppress(RuntimeError):  # its loop has been closed
                    loop.call_soon_threadsafe(event.set)

    def end(self, content: str) -> None:
        """Give the last content."""
        self._ended = True
        self.put(content)

    async def events(self) -> AsyncIterator[str]:
        """Give the content as server-sent events: now, and whenever it is replaced."""
        news = asyncio.Event()
        with self._lock:
            self._news[news] = asyncio.get_running_loop()
        try:
            seen = 0
            while True:
                news.clear()
                ended, number, content = self._ended, self._number, self._latest
                yield f"data: {content}\n\n" if number > seen else ": still here\n\n"
                if ended:
                    return
                seen = number
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), _SILENCE_S)
        finally:
            with self._lock:
                del self._news[news]


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address.host, address.port))
    except OSError as error:
        made.close()
        raise InputError(
            f"`serve` {address.in_url}:{address.port}: {error.strerror}: choose another port, or 0"
            " for any that is free"
        ) from None
    return made


@cache
def _template(name: str) -> str:
    from importlib.resources import files

    text = (files("toptune.live") / "templates" / name).read_text("utf-8")
    if name == "live.css":  # it adds to the look of reports
        text = (files("toptune.reports") / "templates" / "page.css").read_text("utf-8") + text
    return text
