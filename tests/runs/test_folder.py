"""Run folders: whole or not there, whoever dies or is faster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toptune.errors import InputError, StorageError
from toptune.machine import durable
from toptune.machine.locks import held
from toptune.runs.folder import publish, settle, target_problems, write_params


def make_run(out: Path, seed: int, *, overwrite: bool = False) -> None:
    with publish(out, overwrite=overwrite) as folder:
        write_params(folder, {"seed": seed})


def seed_of(out: Path) -> int:
    seed: int = json.loads((out / "params.json").read_text())["seed"]
    return seed


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_run_is_replaced_and_nothing_is_left_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(durable, "exchange", lambda *_: False)
    out = tmp_path / "deep" / "run"
    make_run(out, 1)
    make_run(out, 2, overwrite=True)
    assert seed_of(out) == 2
    assert names(out.parent) == ["run"]


def test_what_was_computed_is_kept_where_another_process_took_the_name(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def overtaken() -> None:
        with publish(out, overwrite=False) as folder:
            write_params(folder, {"seed": 2})
            make_run(out, 1)

    with pytest.raises(InputError, match=r"run exists, so this result is in .*run-[0-9a-f]{4}$"):
        overtaken()
    assert seed_of(out) == 1
    (other,) = (p for p in tmp_path.iterdir() if p != out)
    assert seed_of(other) == 2


def test_a_folder_that_is_no_run_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.txt").write_text("precious")
    with pytest.raises(InputError, match="exists, so this result is in"):
        make_run(out, 1, overwrite=True)
    assert names(out) == ["chapter.txt"]


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for name in (".run.00000000.partial", ".run.11111111.partial", ".run.x.00000000.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / ".run.00000000.lock").touch()
    with held(tmp_path / ".run.11111111.lock"):
        settle(out)
        assert names(tmp_path) == [
            ".run.11111111.lock",
            ".run.11111111.partial",
            ".run.x.00000000.partial",  # of another folder, run.x
        ]
    make_run(out, 1)
    assert names(tmp_path) == [".run.x.00000000.partial", "run"]


def test_a_run_that_lost_its_name_halfway_gets_it_back(tmp_path: Path) -> None:
    # Without an exchange of names: killed after the old one went, before the new one came.
    out = tmp_path / "run"
    make_run(out, 1)
    out.rename(tmp_path / ".run.00000000.partial.old")
    (tmp_path / ".run.00000000.partial").mkdir()
    assert target_problems(out, overwrite=False) == [
        f"{out} exists; choose another name or give `overwrite=True`"
    ]
    assert seed_of(out) == 1
    assert names(tmp_path) == ["run"]


def test_a_failed_write_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with (
        pytest.raises(StorageError, match=r"run cannot be written \(No space\): make room and run"),
        publish(out, overwrite=False),
    ):
        raise OSError(28, "No space")
    assert names(tmp_path) == []


@pytest.mark.usefixtures("no_locks")
def test_a_run_is_published_where_files_cannot_be_locked(tmp_path: Path) -> None:
    out = tmp_path / "run"
    make_run(out, 1)
    (tmp_path / ".run.00000000.partial").mkdir()
    (tmp_path / ".run.00000000.lock").touch()
    make_run(out, 2, overwrite=True)
    assert seed_of(out) == 2
    assert names(tmp_path) == [".run.00000000.lock", ".run.00000000.partial", "run"]
