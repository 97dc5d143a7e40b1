"""What several test files need."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
import typer
from hypothesis import settings

# Numba's first call is slow. Otherwise the profile is that of the place: where CI is set, examples
# are the same each time, so that a red run means a change and never a draw.
_PLACE = settings.get_profile(settings.get_current_profile_name())
settings.register_profile("toptune", _PLACE, deadline=None)
settings.load_profile("toptune")


@pytest.fixture(scope="session", autouse=True)
def _commands_built_once() -> Iterator[None]:
    """Typer builds all commands at each call, of which a program makes one and tests hundreds."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Products this small are slower on several threads, and very much so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
