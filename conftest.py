"""Plugins of tests and benchmarks, in how many processes they run, and which CI alone runs."""

from __future__ import annotations

import pytest

pytest_plugins = ["needs", "pytester"]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Start no other process for tests that are named: it would import longer than they run."""
    return None if config.args_source == config.ArgsSource.TESTPATHS else 0


def pytest_configure(config: pytest.Config) -> None:
    """Leave thorough tests to CI unless they are asked for, and benchmarks their time."""
    # In each process: workers are given the arguments of the first, not its options.
    whole = config.args_source == config.ArgsSource.TESTPATHS
    if whole and not config.option.markexpr:
        config.option.markexpr = "not thorough"
    if getattr(config.option, "benchmark_enable", False):
        # A benchmark may take longer than any test, which this plugin would end.
        config.pluginmanager.unregister(name="faulthandler")
