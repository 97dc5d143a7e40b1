"""What toptune finds on this machine, and what is missing.

Nothing enters. What leaves: one check after the other, each with what was found and, where
something is missing, the command that mends it. Nothing is installed, downloaded or changed.
"""

from __future__ import annotations

import contextlib
import sys

from toptune.cli import doctor_gpu, doctor_machine, doctor_weights
from toptune.cli.doctor_check import Check, Report


def examine() -> Report:
    """Look for everything; takes some seconds, for the imports."""
    found: list[Check] = []
    # Whatever a library says while it is imported is no part of the report.
    with contextlib.redirect_stdout(sys.stderr):
        for look in (*doctor_machine.LOOKS, *doctor_gpu.LOOKS, *doctor_weights.LOOKS):
            found += look()
    return Report(tuple(found))
