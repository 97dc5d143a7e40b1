"""Several writers of one store: who may begin, who waits, and what dead ones leave."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from toptune.errors import InputError, StorageError
from toptune.features.table import RecordingInfo
from toptune.machine.locks import held
from toptune.params import SpikeSettings
from toptune.store.feature_store import FeatureStore
from toptune.store.session import Ticket, alone, joined_session, writing_session

SETTINGS = SpikeSettings().to_json()


def listed(*names: str) -> tuple[RecordingInfo, ...]:
    return tuple(RecordingInfo(name, f"dev-{name}", "A", {}) for name in names)


def locks(path: Path) -> Path:
    return path.with_name(f".{path.name}.locks")


def test_a_session_makes_the_store_and_lists_its_recordings(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    with writing_session(path, SETTINGS, listed("a", "b")) as session:
        assert session.store.recordings == listed("a", "b")
    assert FeatureStore(path).recordings == listed("a", "b")
    assert [p.name for p in locks(path).iterdir()] == ["store.lock"]


def test_writers_of_the_same_recordings_share_them(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    with (
        writing_session(path, SETTINGS, listed("a", "b")) as one,
        writing_session(path, SETTINGS, listed("a", "b")) as two,
        one.claim("a", wait=False) as ours,
        two.claim("a", wait=False) as theirs,
        two.claim("b", wait=False) as rest,
    ):
        assert (ours, theirs, rest) == (True, False, True)
    assert [p.name for p in locks(path).iterdir()] == ["store.lock"]


def test_a_claim_waits_until_the_other_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    order = []
    with writing_session(path, SETTINGS, listed("a")) as session:
        claimed = threading.Event()

        def other() -> None:
            with session.claim("a", wait=True):
                claimed.set()
                order.append("other")

        with session.claim("a", wait=True):
            thread = threading.Thread(target=other)
            thread.start()
            assert not claimed.wait(0.2)
            order.append("first")
        thread.join()
    assert order == ["first", "other"]


def test_writers_of_other_recordings_are_refused_and_lose_no_list(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    with writing_session(path, SETTINGS, listed("a", "b")):
        with (
            pytest.raises(InputError, match="another process is extracting other recordings"),
            writing_session(path, SETTINGS, listed("c")),
        ):
            pass
        assert FeatureStore(path).recordings == listed("a", "b")
    with writing_session(path, SETTINGS, listed("c")):
        assert FeatureStore(path).recordings == listed("c")


def test_a_store_is_not_made_anew_under_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    with (
        writing_session(path, SETTINGS, listed("a")),
        pytest.raises(InputError, match="so it cannot be made anew: wait until"),
        writing_session(path, SETTINGS, listed("a"), anew=True),
    ):
        pass
    with writing_session(path, SETTINGS, listed("b"), anew=True) as session:
        assert session.store.recordings == listed("b")


def test_what_dead_writers_left_goes_and_what_living_ones_write_stays(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    FeatureStore.create(path, SETTINGS)
    dead = [path / ".writing-s00000000-11111111", path / ".writing-4999999-11111111"]
    dead += [tmp_path / ".writing-4999999-11111111-s.zarr"]
    for folder in dead:
        (folder / "spikes").mkdir(parents=True)
    part = path / ".zarr.json.11111111.partial"
    part.write_text("{")
    (locks(path)).mkdir()
    (locks(path) / "session-s00000000-0123456789abcdef.lock").touch()
    parent_alive = path / f".writing-{os.getppid()}-11111111"
    not_ours = tmp_path / ".writing-4999999-11111111-other-s.zarr"
    for folder in (parent_alive, not_ours):
        folder.mkdir()
    with writing_session(path, SETTINGS, listed("a")) as first:
        alive = path / f".writing-{first.store.writer}-22222222"
        alive.mkdir()
        with writing_session(path, SETTINGS, listed("a")):
            assert alive.exists()
    assert not any(p.exists() for p in (*dead, part))
    assert parent_alive.exists()
    assert not_ours.exists()
    with writing_session(path, SETTINGS, listed("a")):
        assert not alive.exists()


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    FeatureStore.create(path, SETTINGS)
    other: dict[str, Any] = {**SETTINGS, "stream": "x"}
    with (
        pytest.raises(InputError, match=r"found with stream = None, not 'x'"),
        writing_session(path, other, listed("a")),
    ):
        pass
    with alone(path):  # the refused one holds nothing
        pass


def test_others_join_a_session_and_what_they_leave_goes_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    with writing_session(path, SETTINGS, listed("a", "b")) as host:
        with (
            joined_session(host.ticket) as guest,
            guest.claim("a", wait=False) as theirs,
            host.claim("a", wait=False) as ours,
        ):
            assert guest.store.recordings == listed("a", "b")
            assert (theirs, ours) == (True, False)
            mine = path / f".writing-{guest.store.writer}-22222222"
            mine.mkdir()
            with writing_session(path, SETTINGS, listed("a", "b")):
                assert mine.exists()
            assert mine.exists()
        dead = path / ".writing-s00000000-11111111"
        dead.mkdir()
    assert not mine.exists()
    assert not dead.exists()
    assert [p.name for p in locks(path).iterdir()] == ["store.lock"]


def test_who_joins_keeps_others_out_when_the_host_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    with writing_session(path, SETTINGS, listed("a")) as host:
        joined = joined_session(host.ticket)
        joined.__enter__()
    with (
        pytest.raises(InputError, match="extracting other recordings"),
        writing_session(path, SETTINGS, listed("c")),
    ):
        pass
    joined.__exit__(None, None, None)
    with writing_session(path, SETTINGS, listed("c")):
        pass


def test_a_session_that_has_ended_or_is_not_to_be_seen_is_not_joined(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    with writing_session(path, SETTINGS, listed("a")) as host:
        ticket = host.ticket
    with pytest.raises(InputError, match="writes for has ended"), joined_session(ticket):
        pass
    elsewhere = Ticket(tmp_path / "elsewhere" / "s.zarr", ticket.token, ticket.listing)
    with pytest.raises(InputError, match="not to be seen on"), joined_session(elsewhere):
        pass


def test_an_error_while_writing_lets_go_of_everything(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    with (
        pytest.raises(RuntimeError),
        writing_session(path, SETTINGS, listed("a")) as session,
        session.claim("a", wait=True),
    ):
        raise RuntimeError
    with writing_session(path, SETTINGS, listed("b"), anew=True):
        pass


@pytest.mark.usefixtures("no_locks")
def test_a_file_system_without_locks_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"cannot lock files .*write to a local disk and copy"),
        held(tmp_path / "x.lock"),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"), held(tmp_path / "file" / "x.lock"):
        pass
