"""The live page: for this computer alone, with a token, and alive in a real browser."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import Browser, browser, needs_chromium
from live_made import make_board, make_verdicts
from needs import package

from toptune.errors import InputError
from toptune.live.blocks import Note
from toptune.live.board import Board
from toptune.live.engine import CalibrationProgress
from toptune.live.page import Address, LivePage

_open: list[http.client.HTTPConnection] = []


@pytest.fixture(autouse=True)
def _server() -> Iterator[None]:
    for name in ("starlette", "uvicorn"):
        package(name)
    yield
    while _open:
        _open.pop().close()


@pytest.fixture
def board() -> Board:
    return make_board(name="lsl:<b>MEA</b>")


@pytest.fixture
def page(board: Board) -> Iterator[LivePage]:
    with LivePage(board, Address.parse("127.0.0.1:0")) as page:
        yield page


def get(page: LivePage, path: str = "", **headers: str) -> http.client.HTTPResponse:
    """Ask for a path below the token's, or for a whole one."""
    parts = urlsplit(page.url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    whole = path if path.startswith("/") else parts.path + path
    _open.append(connection)
    connection.request("GET", whole, headers={"Connection": "keep-alive", **headers})
    return connection.getresponse()


def next_state(answer: http.client.HTTPResponse) -> dict[str, object]:
    while not (line := answer.readline()).startswith(b"data: "):
        assert line, "the events have ended"
    state: dict[str, object] = json.loads(line[6:])
    return state


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", Address("127.0.0.1", 8000)),
        ("localhost:0", Address("127.0.0.1", 0)),
        ("[::1]:9", Address("::1", 9)),
        ("127.3.2.1:9", Address("127.3.2.1", 9)),
    ],
)
def test_addresses_of_this_computer_are_read(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "[::]", "8.8.8.8", "[2001:db8::1]"])
def test_an_address_that_others_can_reach_is_refused(host: str) -> None:
    with pytest.raises(InputError, match="other computers could reach"):
        Address.parse(f"{host}:8000")


@pytest.mark.parametrize(
    "text", ["", "8000", "127.0.0.1", ":80", "127.0.0.1:x", "127.0.0.1:99999", "my.host:80"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="`serve` must be an address"):
        Address.parse(text)


def test_a_port_that_is_taken_is_refused(page: LivePage, board: Board) -> None:
    port = urlsplit(page.url).port
    with pytest.raises(InputError, match=r"in use.*another port"):
        LivePage(board, Address("127.0.0.1", port or 0))


def test_nothing_is_answered_without_the_token(page: LivePage) -> None:
    token = urlsplit(page.url).path.strip("/")
    assert len(token) >= 32
    assert get(page).status == 200
    for name in ("", "live.js", "live.css", "events"):
        for wrong in ("x", token[:-1], token + "x", token.swapcase()):
            assert get(page, f"/{wrong}/{name}").status == 404
    assert get(page, "/").status == 404
    assert get(page, "/events").status == 404


def test_a_page_of_another_name_is_not_answered(page: LivePage) -> None:
    # A site whose name is made to point here could read the events of who visits it otherwise.
    assert get(page, Host="evil.example").status == 400
    assert get(page, "events", Host="evil.example").status == 400
    assert get(page, Host=f"localhost:{urlsplit(page.url).port}").status == 200


def test_the_headers_allow_nothing_from_elsewhere(page: LivePage) -> None:
    for path in ("", "live.js", "live.css", "events"):
        answer = get(page, path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store"
        answer.close()


def test_events_give_all_that_is_known_and_then_what_is_new(page: LivePage, board: Board) -> None:
    answer = get(page, "events")
    assert next_state(answer)["state"] == "calibrating"
    for verdict in make_verdicts([0, 0]):
        board.take(verdict)
    time.sleep(0.3)
    page.publish()
    state = next_state(answer)
    assert state == json.loads(json.dumps(board.to_json()))
    board.end()
    page.publish()
    assert next_state(answer)["state"] == "ended"


def test_a_reader_that_has_gone_or_is_slow_holds_nothing_up(page: LivePage, board: Board) -> None:
    get(page, "events").close()
    slow = get(page, "events")
    began = time.monotonic()
    for verdict in make_verdicts([0] * 2000):
        board.take(verdict)
        page.publish()
    assert time.monotonic() - began < 5
    board.end()
    page.publish()
    while next_state(slow)["state"] != "ended":
        pass


def test_it_ends_though_pages_are_open(board: Board) -> None:
    with LivePage(board, Address.parse("127.0.0.1:0")) as page:
        answers = [get(page, "events") for _ in range(3)]
        for answer in answers:
            next_state(answer)
        board.end()
        began = time.monotonic()
    assert time.monotonic() - began < 4
    assert all(next_state(answer)["state"] == "ended" for answer in answers)
    with pytest.raises(ConnectionRefusedError):
        get(page)


# --- in a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def wait_for(chromium: Browser, expression: str, wanted: object) -> None:
    until = time.monotonic() + 10
    while (found := chromium.evaluate(expression)) != wanted:
        assert time.monotonic() < until, f"{expression} is {found!r}, not {wanted!r}"
        time.sleep(0.05)


LEAD = "document.getElementById('lead').textContent"
STATE = "document.documentElement.dataset.state"


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_browser_shows_the_recording_as_it_goes_on(
    width: int, dark: bool, chromium: Browser, page: LivePage, board: Board
) -> None:
    chromium.emulate(dark=dark)
    visit = chromium.open(page.url, width=width, phone=width < 500)
    wait_for(chromium, LEAD, "Waiting for the first samples.")
    board.take(CalibrationProgress(done_s=3.0, span_s=30.0))
    time.sleep(0.3)
    page.publish()
    wait_for(chromium, LEAD, "Learning thresholds: 3 of 30 s.")
    for verdict in (*make_verdicts([0] * 9), *make_verdicts([0, 1], begin_s=20.0, unlike=[1])):
        board.take(verdict)
    board.take(Note(at_s=11.0, kind="gap", text="<script>alert(1)</script>", n_samples=90_000))
    time.sleep(0.3)
    page.publish()
    wait_for(chromium, LEAD, "So far 100E0I, in 1 of 2 windows.")
    # A line for each class before the gap and behind it, and the last window's bars.
    lines = "document.querySelectorAll('#classes polyline').length"
    assert chromium.evaluate(lines) == 6
    assert chromium.evaluate("document.querySelectorAll('#histogram rect').length") == 200
    ticks = "Array.from(document.querySelectorAll('.ticks div'), (t) => t.innerText.split(/\\s+/))"
    of_course, of_window = chromium.evaluate(ticks)
    assert of_course == ["0:02", "0:07", "0:13", "0:18", "0:23"]
    assert of_window[::2] == ["21.0", "21.5", "22.0", "22.5", "23.0"]
    shown = chromium.evaluate("document.body.innerText")
    for text in ("75E25I", "80\u202f%", "50\u202fms", "90,000", "9.00 s", "<script>alert(1)"):
        assert text in shown
    assert "unlike those of training" in shown
    assert chromium.evaluate("document.querySelector('h1').textContent") == "lsl:<b>MEA</b>"
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    board.end()
    page.publish()
    wait_for(chromium, STATE, "ended")
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith((page.url, "data:"))] == []


@needs_chromium
def test_a_page_says_so_when_the_program_has_gone(
    tmp_path: Path, chromium: Browser, board: Board
) -> None:
    del tmp_path
    with LivePage(board, Address.parse("127.0.0.1:0")) as page:
        chromium.open(page.url, width=800)
        wait_for(chromium, LEAD, "Waiting for the first samples.")
        board.state = "running"  # it does not end, as where it was killed
    wait_for(chromium, "document.getElementById('warning').hidden", False)
    assert "connection is lost" in chromium.evaluate("document.body.innerText")
