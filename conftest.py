"""Plugins of tests and benchmarks, and in how many processes they run."""

from __future__ import annotations

import pytest

pytest_plugins = ["needs", "pytester"]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Start no other process for tests that are named: it would import longer than they run."""
    return None if config.args_source == config.ArgsSource.TESTPATHS else 0
