"""The command line: what `toptune` does, for people and for scripts.

Words on a terminal enter; the verbs of the library do the work. Results leave on stdout, for people
or as JSON, and everything else on stderr. A command's options are made from the parameter classes
(`options`), where it also checks paths before it imports what it works with, and puts its flags in
messages of the library, which name parameters. A module holds the commands of one topic and what
they print.
"""

__all__ = ["main"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("toptune.cli.app"), name)
    raise AttributeError(f"module 'toptune.cli' has no attribute {name!r}")
