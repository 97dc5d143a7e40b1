"""Skips for what a machine may lack pass, and under --strict-skips only those."""

from __future__ import annotations

import pytest
from needs import MAY_BE_MISSING

TESTS = """
import pytest
from needs import missing

def test_that_runs(): pass

@pytest.mark.parametrize("what", {allowed!r})
def test_allowed(what): missing(what, "said why")

def test_in_its_body(): missing("Chromium", "not installed")

@pytest.mark.skipif(True, reason="g++: not installed")
def test_by_a_mark(): pass

@pytest.fixture
def module(): return pytest.importorskip("no_such_module", reason="a module: not installed")

def test_in_a_fixture(module): pass

@pytest.mark.xfail
def test_that_is_expected_to_fail(): assert False
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """Tests that skip for allowed and other reasons."""
    pytester.makepyfile(
        test_some=TESTS.format(allowed=MAY_BE_MISSING),
        test_none="import pytest\npytest.skip('CuPy: not installed', allow_module_level=True)",
    )
    return pytester


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    return project.runpytest_inprocess("-p", "needs", *options)


def test_skips_pass_without_the_option(project: pytest.Pytester) -> None:
    run(project).assert_outcomes(passed=1, skipped=len(MAY_BE_MISSING) + 4, xfailed=1)


def test_a_skip_that_is_not_allowed_fails_and_says_what_is_missing(
    project: pytest.Pytester,
) -> None:
    result = run(project, "--strict-skips", "--continue-on-collection-errors")
    # What skips before a test runs is an error.
    result.assert_outcomes(passed=1, skipped=len(MAY_BE_MISSING), failed=1, errors=3, xfailed=1)
    assert result.ret != 0
    for missing in ("Chromium", "g++", "a module", "CuPy"):
        result.stdout.fnmatch_lines([f"*does not allow this skip: {missing}: not installed"])
