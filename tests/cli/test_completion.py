"""What a shell completes, and the small options every program has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from results import Run

from toptune.cli.app import app

TESTS = Path(__file__).parents[1]
COMMANDS = sorted(one.callback.__name__ for one in app.registered_commands if one.callback)
# Asks typer for the script of a shell by name, not for that of the shell that runs this test.
NAMED_SHELL = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which `toptune` is a program, with a home of its own."""
    program = tmp_path / "bin" / "toptune"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(TESTS.parent)!r})\n"
        "from toptune.cli.app import main\nmain()\n"
    )
    program.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("_TYPER", "_TOPTUNE"))}
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "HOME": str(home), "TERM": "dumb"}


def sh(line: str, environment: dict[str, str], shell: str = "bash") -> str:
    done = subprocess.run(
        [shell, "-c", line], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def completed(words: str, environment: dict[str, str], script: str) -> list[str]:
    """Ask bash, in which the script is loaded, what it offers for the last of some words."""
    n = len(words.split(" ")) - 1
    line = (
        f"source {script}; COMP_WORDS=({words}); COMP_CWORD={n}; COMP_LINE='{words}';"
        " _toptune_completion toptune; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    return sh(line, environment).split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash: not installed")
def test_bash_completes_commands_options_and_choices(
    environment: dict[str, str], tmp_path: Path
) -> None:
    # Inside bash, which it finds out by itself; the last command must not take bash's place.
    script = tmp_path / "script.sh"
    sh(f"toptune --show-completion > {script}; true", environment)
    assert "complete -o default -F _toptune_completion toptune" in script.read_text()
    assert completed("toptune ex", environment, str(script)) == ["extract"]
    assert completed("toptune s", environment, str(script)) == ["simulate", "stream", "sweep"]
    assert completed("toptune fit --permu", environment, str(script)) == ["--permutations"]
    assert completed("toptune extract --device cu", environment, str(script)) == ["cuda"]
    # Files are left to the shell.
    assert completed("toptune inspect rec", environment, str(script)) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash: not installed")
def test_completion_is_installed_for_the_shell_that_runs(environment: dict[str, str]) -> None:
    assert "bash completion installed in" in sh("toptune --install-completion; true", environment)
    home = Path(environment["HOME"])
    (script,) = home.rglob("toptune.sh")
    assert str(script) in (home / ".bashrc").read_text()
    assert completed("toptune in", environment, str(script)) == ["inspect"]


@pytest.mark.parametrize(
    ("shell", "registers"),
    [
        ("bash", "complete -o default -F _toptune_completion toptune"),
        ("zsh", "compdef _toptune_completion toptune"),
        ("fish", "complete --command toptune"),
    ],
)
def test_every_shell_has_a_script_and_is_answered(
    shell: str, registers: str, environment: dict[str, str], tmp_path: Path
) -> None:
    script = sh(f"toptune --show-completion {shell}", {**environment, **NAMED_SHELL})
    assert registers in script
    asked = {
        "bash": {"COMP_WORDS": "toptune ins", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "toptune ins"},
        "fish": {"_TYPER_COMPLETE_ARGS": "toptune ins", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    answer = sh("toptune", {**environment, **asked, "_TOPTUNE_COMPLETE": f"complete_{shell}"})
    assert "inspect" in answer
    assert "extract" not in answer
    if shutil.which(shell) is None:
        pytest.skip(f"{shell}: not installed, so its script was not loaded")
    (tmp_path / "script").write_text(script)
    loaded = {
        "bash": "complete -p toptune",
        "zsh": "whence -w _toptune_completion",
        "fish": "complete --do-complete 'toptune ins'",
    }[shell]
    # As in a zsh whose user has completion switched on at all.
    first = "autoload -Uz compinit && compinit -u -D && " if shell == "zsh" else ""
    told = sh(f"{first}source {tmp_path / 'script'}; {loaded}", environment, shell)
    assert ("inspect" if shell == "fish" else "_toptune_completion") in told


# --- the small options


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_a_short_name_everywhere(command: str, run: Run) -> None:
    words = [command] if command else []
    short, long = run(*words, "-h"), run(*words, "--help")
    assert (short.code, short.err) == (0, "")
    assert short.out == long.out
    assert "-h" in short.out


def test_the_version_is_told(run: Run) -> None:
    assert run("--version") == (0, f"toptune {version('toptune')}\n", "")


def test_the_package_is_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "toptune", "--version"],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"toptune {version('toptune')}\n"
