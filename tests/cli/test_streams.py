"""What is printed where nobody reads, or where the encoding lacks the characters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows: it has no sh")
CULTURE = "time_s,channel\n" + "".join(f"{k / 4},E{k % 3}\n" for k in range(40))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "K\u00f6ln.csv").write_text(CULTURE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sh(line: str, encoding: str = "utf-8", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which $T is toptune."""
    program = f"{sys.executable} -m toptune"
    return subprocess.run(
        ["bash", "-c", line.replace("$T", program)],
        env={**os.environ, **environment},
        capture_output=True,
        encoding=encoding,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"PYTHONIOENCODING": "ascii"}, "K\u00f6ln.csv"),
        ({"PYTHONIOENCODING": "latin-1:strict"}, "K\u00f6ln.csv"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "K\\udcc3\\udcb6ln.csv"),
        ({"LC_ALL": "C"}, "K\u00f6ln.csv"),
        ({"LC_ALL": "POSIX", "PYTHONUTF8": "1"}, "K\u00f6ln.csv"),
    ],
)
@pytest.mark.usefixtures("work")
def test_names_are_printed_in_every_encoding(environment: dict[str, str], name: str) -> None:
    line = "$T inspect K\u00f6ln.csv; $T inspect K\u00f6ln.csv --json; $T inspect n\u00f6.csv"
    latin = "latin-1:strict" in environment.values()
    done = sh(line, encoding="latin-1" if latin else "utf-8", **environment)
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert "UnicodeEncodeError" not in said
    assert f"recording  {name}" in said
    assert "no such file or folder" in said


@pytest.mark.usefixtures("work")
def test_names_that_the_file_system_cannot_write_are_refused_in_a_line() -> None:
    Path("devices.csv").write_text("recording,device,label\nK\u00f6ln.csv,d,a\n", "utf-8")
    done = sh(
        "$T extract devices.csv --store s.zarr --weights random",
        LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0",
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "end", [">&-", ">&- 2>&-", ">&- 2>&- <&-", "| true", "2>&1 | head -1", "2>&- | head -c 1"]
)
@pytest.mark.parametrize("options", ["", "--json"])
def test_the_work_is_done_though_nobody_reads(end: str, options: str, work: Path) -> None:
    done = sh(f"$T inspect K*.csv --png a.png {options} {end}; echo ${{PIPESTATUS[0]}} >code")
    assert ((work / "code").read_text(), done.stderr) == ("0\n", "")
    # Had it got the number of a closed stream, what is printed would be in it.
    content = (work / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content.endswith(b"IEND\xaeB`\x82")


@pytest.mark.usefixtures("work")
def test_a_full_disk_behind_stdout_is_said() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full: not on this system")
    done = sh("$T inspect K*.csv >/dev/full")
    assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")


@pytest.mark.usefixtures("work")
def test_no_bar_is_drawn_into_a_file_though_colours_are_wanted() -> None:
    done = sh(
        "$T simulate made --devices 1 --seconds 1 --json", FORCE_COLOR="1", TERM="xterm-color"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["n_devices"] == 1


@pytest.mark.usefixtures("work")
def test_refusals_keep_their_code_though_nobody_reads() -> None:
    assert sh("$T inspect no.csv 2>&-").returncode == 2
    assert sh("$T inspect no.csv >&- 2>&-").returncode == 2
