"""What a file is that toptune does not read, and how its recording can be read all the same."""

from __future__ import annotations

import re
from pathlib import Path

from toptune.machine.remote import for_hdf5
from toptune.recordings.devices import has_required_columns
from toptune.recordings.text import encoding_of

_HEAD_BYTES = 4096
# First bytes of files that people try, and what to do with each.
_KINDS = (
    (
        b"MCSSTRM",
        "a recording of MC_Rack (.mcd): convert it to HDF5 with MCS's free MC_DataManager, raw"
        " electrode data ticked",
    ),
    (b"%PDF", "a PDF: export the table itself"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet: save the table as 'CSV UTF-8'"),
    (b"AxionBio", "a raw recording of Axion's AxIS: export its spike list as CSV"),
)


def what_it_is(path: Path) -> str:
    """Say what a file or folder is, as far as it can be told, and what to do."""
    if path.is_dir():
        return (
            "a folder of peak trains needs a file per electrode (first line 'n_samples 0', or .mat"
            " files with peak_train)"
        )
    if is_hdf5(path):
        return _hdf5(path)
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    for magic, what in _KINDS:
        if head.startswith(magic):
            return what
    if head.startswith(b"PK\x03\x04"):
        sheet = b"[Content_Types].xml" in head or path.suffix.lower() in (".xlsx", ".ods")
        return _KINDS[2][1] if sheet else "an archive: unpack it and name what is inside"
    return _text(head) or "bytes of an unknown kind"


def _text(head: bytes) -> str | None:
    encoding = encoding_of(head[:4])
    text = head.decode(encoding, "replace")
    if "\0" in text or text.count("\ufffd") > 2 or not text.strip():
        return None
    line = next(line.strip() for line in text.splitlines() if line.strip())
    if "\ufffd" in line:
        return "text in an old encoding: save it as 'CSV UTF-8'"
    if re.match(r"\d+([.,]\d+)?[\s,;]", line):
        return "text without a header: add a first line with the columns' names, time_s,channel"
    if has_required_columns([name.strip(' "') for name in re.split("[,;\t]", line)]):
        return (
            "a devices file, which lists recordings for `extract` and `sweep`: name the recordings"
            " themselves here, such as folder/*.h5"
        )
    return f"text that begins with {line[:80]!r}: a table of spikes begins with time_s,channel"


# Which program's HDF5 file it is, by what its top holds or its attributes.
_PROGRAMS = (
    ({"spikes", "sCount"}, "a spike list of the R packages meaRtools or sjemea"),
    ({"layers"}, "a network's weights (Keras)"),
    ({"obs", "var"}, "an AnnData table"),
)


def is_hdf5(path: Path) -> bool:
    """Tell whether a file begins as HDF5 files do."""
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def _hdf5(path: Path) -> str:
    """Say which program's HDF5 file it is."""
    import h5py

    from toptune.recordings.hdf5_guard import reading_may_fail

    with (
        reading_may_fail(path, "its groups cannot be listed"),
        h5py.File(for_hdf5(path), "r") as file,
    ):
        names = {*file, *file.attrs}
    program = next((what for sign, what in _PROGRAMS if sign <= names), None)
    inside = ", ".join(sorted(names)[:5]) or "nothing"
    return (
        f"{program or f'an HDF5 file of another program (it holds {inside})'}, which is not read as"
        " it is: write its spikes as CSV with the columns time_s,channel"
    )
