"""What tests need and a machine may lack: they skip, and the reason begins with what is missing.

With ``--strict-skips``, as in `.ci/run`, a skip for anything but `MAY_BE_MISSING` is a failure, so
that no test stops running unnoticed.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Generator
from pathlib import Path
from typing import NoReturn

import pytest

MAY_BE_MISSING = ("no GPU", "falkon library", "root", "../shared", "aeon", "zsh", "fish", "16 bits")
SHARED = Path(__file__).parents[2] / "shared"


def missing(what: str, why: str) -> NoReturn:
    """Skip the test."""
    pytest.skip(f"{what}: {why}")


def no_gpu(why: str) -> NoReturn:
    """Skip the test; with TOPTUNE_GPU=1, which says that there is a GPU, fail."""
    if os.environ.get("TOPTUNE_GPU") == "1":
        pytest.fail(f"TOPTUNE_GPU=1, but {why}")
    missing("no GPU", why)


def shared(*names: str) -> Path:
    """Give a path in ../shared, or skip the test where it does not exist."""
    path = SHARED.joinpath(*names)
    if not path.exists():
        missing("../shared", f"no {'/'.join(names)}")
    return path


def package(name: str) -> None:
    """Skip the test where a package is not installed."""
    if importlib.util.find_spec(name) is None:
        missing(name, "not installed")


# --- the pytest plugin


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-skips",
        action="store_true",
        help=f"fail on skips whose reason does not begin with one of: {', '.join(MAY_BE_MISSING)}",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ask for a GPU where a test is marked `gpu`."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            no_gpu("torch finds no CUDA device")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _judge(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _judge(report, collector.config)
    return report


def _judge(report: pytest.TestReport | pytest.CollectReport, config: pytest.Config) -> None:
    """Make a failure of a skip that may not be."""
    if not config.getoption("strict_skips") or not report.skipped or hasattr(report, "wasxfail"):
        return
    assert isinstance(report.longrepr, tuple)
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if not reason.startswith(MAY_BE_MISSING):
        report.outcome = "failed"
        report.longrepr = f"--strict-skips does not allow this skip: {reason}"
