"""An extraction into a store below a URL, killed again and again, ends as one that never was."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from dying import Requests
from needs import package
from small_data import write_devices, write_mcs
from store_cases import content

from toptune.extraction import extract
from toptune.machine.remote import RemotePath, as_path
from toptune.store import claims
from toptune.store.check import check_store


def test_an_extraction_that_is_killed_goes_on_and_ends_with_the_bytes_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package("fsspec")
    rows = []
    for k in range(2):
        write_mcs(tmp_path / f"r{k}.h5", seed=k, seconds=1.0)
        rows.append((f"r{k}.h5", f"dev{k}", "AB"[k]))
    devices = write_devices(tmp_path, rows)
    extract(devices, tmp_path / "s.zarr", picture=[])
    url = as_path(f"memory://{secrets.token_hex(4)}/study/s.zarr")
    assert isinstance(url, RemotePath)
    # A process is known by when it began, and all that began before a kill are gone.
    began = [0]
    monkeypatch.setattr(claims, "_about_this_process", lambda: b"%d" % began[0])
    monkeypatch.setattr(claims, "_is_gone", lambda said: said != b"%d" % began[0])
    for _ in Requests(monkeypatch).dying(lambda: extract(devices, url, picture=[]), step=9):
        began[0] += 1
        if url.objects.is_any():
            assert all(f.kind != "damaged" for f in check_store(url).findings)
    assert began[0] > 5
    expected, made = content(tmp_path / "s.zarr"), content_of(url)
    # The root says where the devices file is, from where the store is.
    del expected["zarr.json"], made["zarr.json"]
    assert made == expected
    assert url.parent.objects.list(".s.zarr.locks") == []
    assert check_store(url).is_sound


def content_of(url: RemotePath) -> dict[str, bytes]:
    return {key: url.objects.get(key) or b"" for key in url.objects.list()}
