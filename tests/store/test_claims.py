"""Several writers of a store below a URL, where no file can be locked."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest
from dying import Requests
from s3 import Bucket, rule
from store_cases import LISTED, A, B, in_memory, write_recording

from toptune.errors import InputError, StorageError
from toptune.machine import objects
from toptune.machine.remote import RemotePath, as_path
from toptune.params import SpikeSettings
from toptune.store import claims
from toptune.store.check import check_store
from toptune.store.claims import ObjectClaims
from toptune.store.feature_store import FeatureStore
from toptune.store.session import alone, joined_session, writing_session

SETTINGS = SpikeSettings().to_json()


@pytest.fixture
def url() -> RemotePath:
    """Where no store is yet, in this process's memory."""
    return in_memory()


@pytest.fixture
def other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of other machines, of which nothing is known but when they were heard of."""
    monkeypatch.setattr(claims, "_is_gone", lambda _: False)


def left(url: RemotePath) -> list[str]:
    """List what lies beside a store for its writers."""
    return [key for key in url.parent.objects.list() if key.startswith(".s.zarr.locks/")]


def dead(url: RemotePath, token: str = "s11111111", listing: str = "0" * 16) -> str:
    """Leave the session of a process of this machine that has ended; gives its key."""
    program = (
        "from toptune.store import claims; print(claims._about_this_process().decode(), flush=True)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=60, check=True
    ).stdout
    key = f"session-{token}-{listing}"
    claims.locks_of(url).objects.put(key, said)
    return key


def test_a_recording_is_one_processs_at_a_time_and_nothing_is_left(url: RemotePath) -> None:
    with (
        writing_session(url, SETTINGS, LISTED) as one,
        writing_session(url, SETTINGS, LISTED) as two,
    ):
        with one.claim(A, wait=False) as mine, two.claim(A, wait=False) as theirs:
            assert (mine, theirs) == (True, False)
            with two.claim(B, wait=False) as another:
                assert another
            with one.claim(A, wait=False) as again:
                assert not again
        with two.claim(A, wait=False) as later:
            assert later
    assert left(url) == []
    assert FeatureStore(url).recordings == LISTED


def test_a_claim_is_waited_for(url: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_POLL_S", 0.02)
    with (
        writing_session(url, SETTINGS, LISTED) as one,
        writing_session(url, SETTINGS, LISTED) as two,
        ExitStack() as held,
    ):
        held.enter_context(one.claim(A, wait=False))
        threading.Timer(0.2, held.close).start()
        began = time.monotonic()
        with two.claim(A, wait=True) as mine:
            assert mine
        assert time.monotonic() - began >= 0.15


def test_of_many_that_claim_at_once_one_has_it(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_POLL_S", 0.05)
    store = as_path(f"{bucket.url}/s.zarr")
    assert isinstance(store, RemotePath)
    inside, most, times = 0, 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside, most, times
        mine = ObjectClaims(store)
        with ExitStack() as stack:
            mine.enter(stack, secrets.token_hex(4), "0" * 16)
            for _ in range(3):
                with mine.claim(A, wait=True):
                    with lock:
                        inside += 1
                        most = max(most, inside)
                    time.sleep(0.01)
                    with lock:
                        inside, times = inside - 1, times + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert (most, times) == (1, 12)
    assert bucket.keys() == []


def test_other_recordings_and_a_new_store_are_refused_under_a_writer(url: RemotePath) -> None:
    with writing_session(url, SETTINGS, LISTED):
        with (
            pytest.raises(InputError, match="extracting other recordings"),
            writing_session(url, SETTINGS, LISTED[:1]),
        ):
            pass
        with (
            pytest.raises(InputError, match="cannot be made anew"),
            writing_session(url, SETTINGS, LISTED, anew=True),
        ):
            pass
        with pytest.raises(InputError, match="wait until it is done"), alone(url):
            pass
    with writing_session(url, SETTINGS, LISTED[:1], anew=True):
        pass
    assert left(url) == []


def test_what_a_process_of_this_machine_left_is_gone_on_with_at_once(url: RemotePath) -> None:
    key = dead(url)
    place = claims.locks_of(url).objects
    place.put(f"recording-{A}/00000003", f"{key} 00".encode())
    place.put("store/00000001", f"{key} 00".encode())
    with (
        writing_session(url, SETTINGS, LISTED) as session,
        session.claim(A, wait=False) as mine,
    ):
        assert mine
        assert f".s.zarr.locks/recording-{A}/00000004" in left(url)
        assert key not in str(left(url))
    assert left(url) == []


@pytest.mark.usefixtures("other_machine")
def test_a_process_of_another_machine_is_dead_when_it_was_not_heard_of_for_long(
    url: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = dead(url, listing="f" * 16)
    claims.locks_of(url).objects.put(f"recording-{A}/00000001", f"{key} 00".encode())
    with (
        pytest.raises(InputError, match="extracting other recordings"),
        writing_session(url, SETTINGS, LISTED),
    ):
        pass
    time.sleep(0.3)
    monkeypatch.setattr(claims, "DEAD_S", 0.25)
    with (
        writing_session(url, SETTINGS, LISTED) as session,
        session.claim(A, wait=False) as mine,
    ):
        assert mine


@pytest.mark.usefixtures("other_machine")
def test_a_process_that_renews_stays_alive(
    url: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "RENEW_S", 0.05)
    monkeypatch.setattr(claims, "DEAD_S", 1.0)
    with writing_session(url, SETTINGS, LISTED) as one, one.claim(A, wait=False):
        time.sleep(1.5)
        with (
            writing_session(url, SETTINGS, LISTED) as two,
            two.claim(A, wait=False) as theirs,
        ):
            assert not theirs
        one.store.place.guard()


@pytest.mark.parametrize(
    "why", [objects._Trouble("no answer in time", passing=True), asyncio.CancelledError()]
)
def test_a_process_that_cannot_renew_publishes_nothing_more(
    url: RemotePath, monkeypatch: pytest.MonkeyPatch, why: BaseException
) -> None:
    monkeypatch.setattr(claims, "RENEW_S", 0.05)
    monkeypatch.setattr(claims, "STOP_S", 0.5)
    with writing_session(url, SETTINGS, LISTED) as session:
        write_recording(session.store, A, 1)
        real = objects._Root.put

        async def unheard(root: objects._Root, place: str, data: bytes) -> None:
            if ".s.zarr.locks/session-" in place:
                raise why
            await real(root, place, data)

        monkeypatch.setattr(objects._Root, "put", unheard)
        time.sleep(0.7)
        with pytest.raises(StorageError, match=r"could not say for .* that it is alive"):
            write_recording(session.store, A, 7)
        monkeypatch.setattr(objects._Root, "put", real)
        time.sleep(0.2)
        # Others may have gone on with its work by now.
        with pytest.raises(StorageError, match="could not say"):
            write_recording(session.store, B, 2)
    assert FeatureStore(url).spikes_info(B) is None
    assert FeatureStore(url).read_spikes(A)


def test_others_join_a_session_and_keep_others_out_when_the_host_is_gone(url: RemotePath) -> None:
    with writing_session(url, SETTINGS, LISTED) as host:
        with (
            joined_session(host.ticket) as guest,
            guest.claim(A, wait=False) as theirs,
            host.claim(A, wait=False) as ours,
        ):
            assert guest.store.recordings == LISTED
            assert (theirs, ours) == (True, False)
        joined = joined_session(host.ticket)
        joined.__enter__()
    with (
        pytest.raises(InputError, match="extracting other recordings"),
        writing_session(url, SETTINGS, LISTED[:1]),
    ):
        pass
    joined.__exit__(None, None, None)
    with pytest.raises(InputError, match=r"writes for has ended$"), joined_session(host.ticket):
        pass
    with writing_session(url, SETTINGS, LISTED[:1]):
        pass
    assert left(url) == []


def test_a_store_where_no_object_can_be_made_only_once_is_refused(
    url: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_CREATING", frozenset())
    with (
        pytest.raises(InputError, match="several programs cannot write here at once"),
        writing_session(url, SETTINGS, LISTED),
    ):
        pass
    assert left(url) == []


def test_an_error_while_writing_lets_go_of_everything(url: RemotePath) -> None:
    with (
        pytest.raises(RuntimeError),
        writing_session(url, SETTINGS, LISTED) as session,
        session.claim(A, wait=True),
    ):
        raise RuntimeError
    assert left(url) == []


def test_a_server_that_is_gone_is_not_waited_for_after_an_error(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_PATIENCE_S", 0.2)
    path = as_path(f"{bucket.url}/s.zarr")

    def interrupted() -> None:
        with writing_session(path, SETTINGS, LISTED) as session, session.claim(A, wait=False):
            bucket.server.faults(rule("stall", "POST|DELETE", seconds=60))
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - began < 10
    bucket.server.faults()


# Of all that a writer puts.
KEYS = ("starting-", "session-", "store", "recording-")


def test_lost_answers_cost_no_claim_and_no_session(bucket: Bucket) -> None:
    url = f"{bucket.url}/s.zarr"
    bucket.server.faults(
        *(rule("cut after", "PUT", rf".*locks.*{key}.*", times=1) for key in KEYS),
        *(rule("503", ".*", rf".*locks.*{key}.*", times=1) for key in KEYS),
    )
    path = as_path(url)
    with writing_session(path, SETTINGS, LISTED) as session:
        for name in (A, B):
            with session.claim(name, wait=False) as mine:
                assert mine
    assert bucket.keys() == ["s.zarr/zarr.json"]


def test_whenever_a_writer_is_killed_the_next_goes_on(
    url: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process is known by when it began, and all that began before a kill are gone.
    began = [0]
    monkeypatch.setattr(claims, "_about_this_process", lambda: b"%d" % began[0])
    monkeypatch.setattr(claims, "_is_gone", lambda said: said != b"%d" % began[0])
    requests = Requests(monkeypatch)

    def write() -> None:
        with writing_session(url, SETTINGS, LISTED) as session:
            for seed, name in enumerate((A, B), 1):
                with session.claim(name, wait=True):
                    write_recording(session.store, name, seed)

    # In shorter steps, what each leaves would cost the next as many requests more.
    for _ in requests.dying(write, step=9):
        began[0] += 1
    assert began[0] >= 10
    assert requests.n > 80
    assert left(url) == []
    assert check_store(url).is_sound
