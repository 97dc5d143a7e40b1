"""Small files of other recording programs, written by the public descriptions of their formats.

Where a header is long, its layout is taken from neo's tables; the values are ours. All voltage is
given as whole numbers (samples, channels), as the formats store it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from toptune.recordings.opening import SpikeRecording, open_recording
from toptune.recordings.trains import SpikeTrains
from toptune.recordings.voltage import VoltageReader

Counts = NDArray[np.int16]


def counts(n: int, n_channels: int, seed: int = 0) -> NDArray[np.int16]:
    """Noise as 16 bits."""
    return np.random.default_rng(seed).integers(-900, 900, (n, n_channels)).astype(np.int16)


def read_whole(path: Path, **options: Any) -> tuple[VoltageReader, NDArray[np.float32]]:
    """Read a recording's voltage in three ways, which must agree; it is closed afterwards."""
    with open_recording(path, **options) as recording:  # type: ignore[union-attr]  # no spikes
        assert isinstance(recording, VoltageReader)
        recording.check_whole()
        whole = np.concatenate(list(recording.chunks(777)), axis=1)
        assert whole.shape == (len(recording.channel_labels), recording.n_samples)
        np.testing.assert_array_equal(recording.read(0, recording.n_samples), whole)
        middle = recording.n_samples // 2
        np.testing.assert_array_equal(
            recording.read(middle - 1, middle + 2), whole[:, middle - 1 : middle + 2]
        )
        assert np.array_equal(np.concatenate(list(recording.chunks()), axis=1), whole)
    assert sum(s.n_samples for s in recording.segments) == recording.n_samples
    return recording, whole


def read_spikes(path: Path, **options: Any) -> SpikeTrains:
    """Read a recording's spikes."""
    recording = open_recording(path, **options)
    assert isinstance(recording, SpikeRecording)
    return recording.trains()


def packed(layout: Sequence[Any], **values: Any) -> bytes:
    """Write one record of a layout; what is not given is 0."""
    record = np.zeros(1, np.dtype(list(layout)))
    for name, value in values.items():
        record[name] = value
    return record.tobytes()


# --- Intan


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-le")
    return len(encoded).to_bytes(4, "little") + encoded


def _fields(header: Sequence[tuple[str, str]], values: Mapping[str, Any]) -> bytes:
    written = b""
    for name, kind in header:
        value = values.get(name, "" if kind == "QString" else 0)
        written += _text(value) if kind == "QString" else np.array(value, kind).tobytes()
    return written


def intan_header(suffix: str, names: Sequence[str], rate: float, version: tuple[int, int]) -> bytes:
    """Write the header of an .rhd or .rhs file with amplifier channels and one analog input."""
    from neo.rawio import intanrawio as intan

    if suffix == ".rhd":
        top = [
            *intan.rhd_global_header_base, *intan.rhd_global_header_part1,
            *intan.rhd_global_header_v11, *intan.rhd_global_header_v13,
            *intan.rhd_global_header_v20, *intan.rhd_global_header_final,
        ]  # fmt: skip
        group, channel, magic = (
            intan.rhd_signal_group_header,
            intan.rhd_signal_channel_header,
            0xC6912702,
        )
    else:
        top, group = intan.rhs_global_header, intan.rhs_signal_group_header
        channel, magic = intan.rhs_signal_channel_header, 0xD69127AC
    said = {
        "magic_number": magic, "major_version": version[0], "minor_version": version[1],
        "sampling_rate": rate, "nb_signal_group": 1, "note1": "a culture",
    }  # fmt: skip
    head = _fields(top, said)
    head += _fields(
        group,
        {"signal_group_name": "Port A", "signal_group_enabled": 1, "channel_num": len(names) + 1},
    )
    for order, name in enumerate([*names, "ANALOG-IN-1"]):
        signal = {"signal_type": 3 if order == len(names) else 0, "native_order": order}
        text = {"native_channel_name": name, "custom_channel_name": name, "channel_enabled": 1}
        head += _fields(channel, {**signal, **text})
    return head


def write_intan(
    path: Path, data: Counts, *, rate: float = 20_000.0, gap_after: int | None = None
) -> Path:
    """Write an .rhd or .rhs file; whole blocks of 128 samples, a gap after some of them."""
    n, n_channels = data.shape
    names = [f"A-{k:03d}" for k in range(n_channels)]
    stamps = np.arange(n, dtype=np.int32)
    if gap_after is not None:
        stamps[gap_after:] += 5000
    written = intan_header(path.suffix, names, rate, (2, 0) if path.suffix == ".rhd" else (1, 0))
    stored = (data.astype(np.int32) + 32768).astype(np.uint16)
    for block in range(0, n, 128):
        rows = slice(block, block + 128)
        written += stamps[rows].tobytes() + stored[rows].T.tobytes()
        if path.suffix == ".rhs":
            written += np.zeros((n_channels, 128), np.uint16).tobytes()  # stimuli
        written += np.full(128, 40_000, np.uint16).tobytes()  # the analog input
    path.write_bytes(written)
    return path


def write_intan_folder(
    folder: Path, data: Counts, *, rate: float = 20_000.0, per_channel: bool = False
) -> Path:
    """Write a folder with the samples in files beside the header, of all channels or of each."""
    folder.mkdir(exist_ok=True)
    names = [f"A-{k:03d}" for k in range(data.shape[1])]
    (folder / "info.rhd").write_bytes(intan_header(".rhd", names, rate, (3, 1)))
    (folder / "time.dat").write_bytes(np.arange(len(data), dtype="<i4").tobytes())
    analog = np.zeros(len(data), "<u2").tobytes()
    if per_channel:
        for k, name in enumerate(names):
            (folder / f"amp-{name}.dat").write_bytes(data[:, k].astype("<i2").tobytes())
        (folder / "board-ANALOG-IN-1.dat").write_bytes(analog)
    else:
        (folder / "amplifier.dat").write_bytes(data.astype("<i2").tobytes())
        (folder / "analogin.dat").write_bytes(analog)
    return folder


# --- Blackrock


def write_nsx(
    path: Path,
    pieces: Sequence[tuple[int, Counts]],
    *,
    names: Sequence[str] | None = None,
    largest_uv: int = 8191,
) -> Path:
    """Write an .nsX file of version 2.3, of pieces each with its first time stamp at 30 kHz."""
    from neo.rawio import blackrockrawio as blackrock

    basic = blackrock.NSX_BASIC_HEADER_TYPES["2.3"]
    extended = blackrock.NSX_EXT_HEADER_TYPES["2.3"]
    n_channels = pieces[0][1].shape[1]
    size = np.dtype(basic).itemsize + n_channels * np.dtype(extended).itemsize
    written = packed(
        basic, file_id=b"NEURALCD", ver_major=2, ver_minor=3, bytes_in_headers=size,
        label=b"30 kS/s", period=1, timestamp_resolution=30_000, year=2024, month=5, day=3,
        channel_count=n_channels,
    )  # fmt: skip
    for k, name in enumerate(names or [f"elec{k + 1}" for k in range(n_channels)]):
        written += packed(
            extended, type=b"CC", electrode_id=k + 1, electrode_label=name.encode(),
            min_digital_val=-32764, max_digital_val=32764, min_analog_val=-largest_uv,
            max_analog_val=largest_uv, units=b"mV" if name.startswith("ainp") else b"uV",
        )  # fmt: skip
    for stamp, data in pieces:
        head = blackrock.NSX_DATA_HEADER_TYPES["2.3"]
        written += packed(head, header_flag=1, timestamp=stamp, nb_data_points=len(data))
        written += data.astype("<i2").tobytes()
    path.write_bytes(written)
    return path


def write_nsx_ptp(path: Path, data: Counts, times_ns: NDArray[np.int64]) -> Path:
    """Write an .nsX file of version 3.0 in which every sample has its time of the day."""
    from neo.rawio import blackrockrawio as blackrock

    basic = blackrock.NSX_BASIC_HEADER_TYPES["3.0"]
    extended = blackrock.NSX_EXT_HEADER_TYPES["3.0"]
    n_channels = data.shape[1]
    size = np.dtype(basic).itemsize + n_channels * np.dtype(extended).itemsize
    written = packed(
        basic, file_id=b"BRSMPGRP", ver_major=3, ver_minor=0, bytes_in_headers=size, period=1,
        timestamp_resolution=10**9, year=2024, month=5, day=3, channel_count=n_channels,
    )  # fmt: skip
    for k in range(n_channels):
        written += packed(
            extended, type=b"CC", electrode_id=k + 1, electrode_label=f"elec{k + 1}".encode(),
            min_digital_val=-1000, max_digital_val=1000, min_analog_val=-250, max_analog_val=250,
            units=b"uV",
        )  # fmt: skip
    packets = np.zeros(len(data), blackrock.NSX_DATA_HEADER_TYPES["3.0-ptp"](n_channels))
    packets["timestamps"], packets["num_data_points"] = times_ns, 1
    packets["samples"] = data
    path.write_bytes(written + packets.tobytes())
    return path


_NEV_HEADER = [
    ("file_type_id", "S8"), ("ver_major", "u1"), ("ver_minor", "u1"), ("flags", "<u2"),
    ("bytes_in_headers", "<u4"), ("bytes_in_data_packets", "<u4"), ("timestamp_resolution", "<u4"),
    ("sample_resolution", "<u4"), ("date", "<u2", 8), ("application", "S32"), ("comment", "S256"),
    ("nb_ext_headers", "<u4"),
]  # fmt: skip


def write_nev(path: Path, spikes: Sequence[tuple[int, int, int]]) -> Path:
    """Write a .nev file of version 2.3, of spikes (time stamp at 30 kHz, electrode, unit)."""
    from neo.rawio import blackrockrawio as blackrock

    electrodes = sorted({electrode for _, electrode, _ in spikes})
    written = packed(
        _NEV_HEADER, file_type_id=b"NEURALEV", ver_major=2, ver_minor=3, flags=1,
        bytes_in_headers=np.dtype(_NEV_HEADER).itemsize + 32 * len(electrodes),
        bytes_in_data_packets=104, timestamp_resolution=30_000, sample_resolution=30_000,
        date=[2024, 5, 5, 3, 10, 0, 0, 0], nb_ext_headers=len(electrodes),
    )  # fmt: skip
    wave = blackrock.NEV_EXT_HEADER_TYPES_BY_SPEC["2.3"][b"NEUEVWAV"]
    for electrode in electrodes:
        written += packed(
            wave, packet_id=b"NEUEVWAV", electrode_id=electrode, digitization_factor=250,
            bytes_per_waveform=2, spike_width=48,
        )  # fmt: skip
    packet = blackrock.NEV_PACKET_DATA_TYPES_BY_SPEC["2.3"]["Spikes"](104)
    for stamp, electrode, unit in spikes:
        written += packed(packet, timestamp=stamp, packet_id=electrode, unit_class_nb=unit)
    path.write_bytes(written)
    return path


# --- Open Ephys


def write_openephys(
    folder: Path,
    streams: Mapping[str, Counts],
    *,
    names: Sequence[str] | None = None,
    rate: float = 30_000.0,
    gap_after: int | None = None,
    experiment: int = 1,
) -> Path:
    """Write a folder of the GUI's binary format, version 0.6."""
    place = folder / "Record Node 101" / f"experiment{experiment}" / "recording1"
    described = []
    for stream, data in streams.items():
        inside = place / "continuous" / stream
        inside.mkdir(parents=True)
        stamps = np.arange(len(data), dtype=np.int64) + 1000
        if gap_after is not None:
            stamps[gap_after:] += 3000
        (inside / "continuous.dat").write_bytes(data.astype("<i2").tobytes())
        np.save(inside / "sample_numbers.npy", stamps)
        channels = [
            {"channel_name": name, "bit_volts": 0.195, "units": "uV"}
            for name in (names or [f"CH{k + 1}" for k in range(data.shape[1])])
        ]
        said = {"folder_name": f"{stream}/", "sample_rate": rate, "channels": channels}
        described.append({**said, "num_channels": len(channels)})
    whole = {"GUI version": "0.6.7", "continuous": described, "events": [], "spikes": []}
    (place / "structure.oebin").write_text(json.dumps(whole), "utf-8")
    return folder


def write_continuous(
    folder: Path, data: Counts, *, rate: float = 30_000.0, gap_after: int | None = None
) -> Path:
    """Write a folder of .continuous files, whole records of 1024 samples."""
    folder.mkdir(exist_ok=True)
    record = [
        ("timestamp", "<i8"), ("n", "<u2"), ("recording", "<u2"), ("samples", ">i2", 1024),
        ("markers", "u1", 10),
    ]  # fmt: skip
    for k in range(data.shape[1]):
        records = np.zeros(len(data) // 1024, record)
        records["timestamp"] = 500 + 1024 * np.arange(len(records))
        if gap_after is not None:
            records["timestamp"][gap_after // 1024 :] += 2048
        records["n"] = 1024
        records["samples"] = data[:, k].reshape(-1, 1024)
        lines = [
            "format = 'Open Ephys Data Format'", "version = 0.4", "header_bytes = 1024",
            "date_created = '3-May-2024 100000'", f"channel = 'CH{k + 1}'",
            "channelType = 'Continuous'", f"sampleRate = {rate:g}", "blockLength = 1024",
            "bufferSize = 1024", "bitVolts = 0.195",
        ]  # fmt: skip
        head = "".join(f"header.{line};\n" for line in lines).ljust(1024).encode()
        (folder / f"100_CH{k + 1}.continuous").write_bytes(head + records.tobytes())
    return folder


# --- Plexon


def write_plx(
    path: Path,
    streams: Mapping[str, Counts],
    *,
    spikes: Sequence[tuple[int, int, int]] = (),
    gap_after: int | None = None,
    slow_bits: int = 16,
) -> Path:
    """Write a .plx file of version 106 at 40 kHz; streams of 1 kHz, blocks of 50 samples.

    Spikes are (time stamp at 40 kHz, channel, unit). A gap is a multiple of 50 samples in.
    """
    from neo.rawio import plexonrawio as plexon

    slow = [
        (f"{prefix}{k + 1:02d}", data[:, k])
        for prefix, data in streams.items()
        for k in range(data.shape[1])
    ]
    channels = sorted({channel for _, channel, _ in spikes})
    last = max([0, *(stamp for stamp, _, _ in spikes), *(40 * len(d) for _, d in slow)])
    written = packed(
        plexon.GlobalHeader, MagicNumber=0x58454C50, Version=106, ADFrequency=40_000,
        NumDSPChannels=len(channels), NumEventChannels=0, NumSlowChannels=len(slow), Year=2024,
        Month=5, Day=3, WaveformFreq=40_000, LastTimestamp=last, BitsPerSpikeSample=16,
        BitsPerSlowSample=slow_bits, SpikeMaxMagnitudeMV=3000, SlowMaxMagnitudeMV=5000,
        SpikePreAmpGain=1000,
    )  # fmt: skip
    for channel in channels:
        written += packed(
            plexon.DspChannelHeader, Name=f"SPK{channel:02d}".encode(), Channel=channel, Gain=1
        )
    for number, (name, _) in enumerate(slow):
        written += packed(
            plexon.SlowChannelHeader, Name=name.encode(), Channel=number, ADFreq=1000, Gain=10,
            Enabled=1, PreampGain=100,
        )  # fmt: skip
    for first in range(0, max((len(d) for _, d in slow), default=0), 50):
        late = 0 if gap_after is None or first < gap_after else 40 * 700
        for number, (_, data) in enumerate(slow):
            piece = data[first : first + 50]
            written += packed(
                plexon.DataBlockHeader, Type=5, TimeStamp=40 * first + late, Channel=number,
                NumberOfWaveforms=1, NumberOfWordsInWaveform=len(piece),
            ) + piece.astype("<i2").tobytes()  # fmt: skip
    for stamp, channel, unit in sorted(spikes):
        written += packed(
            plexon.DataBlockHeader, Type=1, TimeStamp=stamp, Channel=channel, Unit=unit,
            NumberOfWaveforms=1, NumberOfWordsInWaveform=4,
        ) + bytes(8)  # fmt: skip
    path.write_bytes(written)
    return path


# --- NeuroExplorer


def write_nex(
    path: Path,
    *,
    neurons: Mapping[str, Sequence[int]],
    continuous: Mapping[str, Counts] | None = None,
    waveforms: bool = False,
    fragments: Sequence[tuple[int, int]] = ((0, 0),),
    end: int = 80_000,
) -> Path:
    """Write a .nex file at 40 kHz; continuous channels at 1 kHz and 0.5 mV a step.

    Fragments are (time stamp, index of the first sample).
    """
    from neo.rawio import neuroexplorerrawio as nex

    variables: list[tuple[dict[str, Any], bytes]] = []
    for name, stamps in neurons.items():
        times = np.array(stamps, "<i4").tobytes()
        variables.append(({"type": 0, "name": name.encode(), "n": len(stamps)}, times))
        if waveforms:
            wave = {"type": 3, "name": f"{name}_wf".encode(), "n": len(stamps), "NPointsWave": 8}
            variables.append(
                ({**wave, "WFrequency": 4e4, "ADtoMV": 1e-3}, times + bytes(16 * len(stamps)))
            )
    for name, data in (continuous or {}).items():
        said = {
            "type": 5, "name": name.encode(), "n": len(fragments), "WFrequency": 1000.0,
            "ADtoMV": 0.5, "NPointsWave": len(data),
        }  # fmt: skip
        table = np.array(fragments, "<i4").T.tobytes()
        variables.append((said, table + data.astype("<i2").tobytes()))
    head = packed(
        nex.GlobalHeader, signature=b"NEX1", version=104, comment=b"a culture", freq=40_000.0,
        tbeg=0, tend=end, nvar=len(variables),
    )  # fmt: skip
    written = head.ljust(544, b"\0")
    at = 544 + 208 * len(variables)
    for told, stored in variables:
        written += packed(nex.EntityHeader, offset=at, varVersion=100, **told).ljust(208, b"\0")
        at += len(stored)
    path.write_bytes(written + b"".join(stored for _, stored in variables))
    return path


# --- MaxWell


def write_maxwell(
    path: Path,
    wells: Mapping[str, Counts],
    *,
    recordings: Sequence[str] = ("rec0000",),
    spikes: Sequence[tuple[int, int]] = (),
    gap_after: int | None = None,
    raw: bool = True,
) -> Path:
    """Write a file of version 20190530 at 10 kHz; spikes are (frame, channel).

    Recorded are the channels 3, 7, 11, ...; the table lists them in another order.
    """
    mapping = [("channel", "<i4"), ("electrode", "<i4"), ("x", "<f8"), ("y", "<f8")]
    row = [("frameno", "<i8"), ("channel", "<i4"), ("amplitude", "<f4")]
    with h5py.File(path, "w") as file:
        file["version"] = np.array([b"20190530"])
        file["mxw_version"] = np.array([b"22.1.2"])
        for number, (well, recording) in enumerate((w, r) for w in wells for r in recordings):
            data = wells[well]
            channels = 3 + 4 * np.arange(data.shape[1])
            table = np.zeros(len(channels), mapping)
            table["channel"], table["electrode"] = channels[::-1], 100 + channels[::-1]
            group = file.create_group(f"data_store/data{number:04d}")
            group["settings/mapping"] = table
            group["settings/lsb"], group["settings/sampling"] = [6.294e-6], [10_000.0]
            frames = 5000 + np.arange(len(data), dtype=np.uint64)
            if gap_after is not None:
                frames[gap_after:] += np.uint64(800)
            group["groups/routed/channels"] = channels.astype(np.uint16)
            group["groups/routed/frame_nos"] = frames
            if raw:
                stored = (data.T.astype(np.int32) + 1000).astype(np.uint16)
                how = {"chunks": (data.shape[1], min(200, len(data))), "compression": "gzip"}
                group.create_dataset("groups/routed/raw", data=stored, **how)
            else:
                del group["groups/routed/frame_nos"]
            group["spikes"] = np.array([(f, c, -4.5) for f, c in spikes], row)
            file[f"wells/{well}/{recording}"] = h5py.SoftLink(f"/data_store/data{number:04d}")
    return path


# --- 3Brain


def write_brw3(path: Path, data: Counts, *, inversion: float = 1.0) -> Path:
    """Write a .brw file of BrainWave 4: a row of electrodes, 12 bits over 8250 microvolts."""
    chs = np.array([(1, k + 1) for k in range(data.shape[1])], [("Row", "<i2"), ("Col", "<i2")])
    with h5py.File(path, "w") as file:
        file["3BData/Raw"] = (data.astype(np.int32) + 2048).astype(np.uint16).ravel()
        file["3BRecInfo/3BMeaStreams/Raw/Chs"] = chs
        variables = {
            "BitDepth": np.array([12], np.uint8), "MaxVolt": [4125.0], "MinVolt": [-4125.0],
            "NRecFrames": np.array([len(data)], np.int64), "SamplingRate": [18_000.0],
            "SignalInversion": [inversion],
        }  # fmt: skip
        for name, value in variables.items():
            file[f"3BRecInfo/3BRecVars/{name}"] = value
    return path


def write_brw4(path: Path, wells: Mapping[str, Counts], *, stored: str = "Raw") -> Path:
    """Write a .brw file of BrainWave 5; the number of channels must be a square for neo."""
    with h5py.File(path, "w") as file:
        _described(file)
        for name, data in wells.items():
            well = file.create_group(f"Well_{name}")
            well["StoredChIdxs"] = (64 * 3 + np.arange(data.shape[1])).astype(np.int32)
            well[stored] = (data.astype(np.int32) + 2048).astype(np.uint16).ravel()
        file["TOC"] = np.array([[0, len(data)]], np.int64)
    return path


def _described(file: Any) -> None:
    said = {
        "ValueConverter": {
            "MinAnalogValue": -4095.0, "MaxAnalogValue": 4095.0, "MinDigitalValue": 0,
            "MaxDigitalValue": 4095, "ScaleFactor": 1.0,
        },
        "TimeConverter": {"FrameRate": 20_000.0},
        "MeaPlate": {"Model": "CorePlate"},
    }  # fmt: skip
    file["ExperimentSettings"] = np.array([json.dumps(said)], h5py.string_dtype())


def write_bxr(
    path: Path, wells: Mapping[str, Sequence[tuple[int, int]]], *, n_channels: int = 4
) -> Path:
    """Write a .bxr file of BrainWave 5, 40,000 frames of spikes (frame, channel)."""
    with h5py.File(path, "w") as file:
        _described(file)
        file["TOC"] = np.array([[0, 20_000], [20_000, 40_000]], np.int64)
        for name, spikes in wells.items():
            well = file.create_group(f"Well_{name}")
            well["StoredChIdxs"] = np.arange(n_channels, dtype=np.int32)
            well["SpikeTimes"] = np.array([frame for frame, _ in spikes], np.int64)
            well["SpikeChIdxs"] = np.array([channel for _, channel in spikes], np.int32)
    return path


def write_bxr2(path: Path, spikes: Sequence[tuple[int, int]], *, n_channels: int = 4) -> Path:
    """Write a .bxr file of BrainWave 4: spikes (frame, channel) beside the facts of a .brw."""
    write_brw3(path, np.zeros((36_000, n_channels), np.int16))
    with h5py.File(path, "r+") as file:
        del file["3BData"]
        events = file.create_group("3BResults/3BChEvents")
        events["SpikeTimes"] = np.array([frame for frame, _ in spikes], np.int64)
        events["SpikeChIDs"] = np.array([channel for _, channel in spikes], np.int32)
    return path


# --- NWB


def write_nwb(
    path: Path,
    series: Mapping[str, Counts] | None = None,
    *,
    units: Mapping[str, Sequence[float]] | None = None,
    names: Sequence[str] | None = None,
    timestamps: NDArray[np.float64] | None = None,
    processed: Sequence[str] = (),
    **told: Any,
) -> Path:
    """Write a file by pynwb; series at 10 kHz, units with the interval in which they were seen."""
    from pynwb import NWBHDF5IO, NWBFile
    from pynwb.ecephys import ElectricalSeries

    content = NWBFile("a culture", "x1", datetime(2024, 5, 3, tzinfo=UTC))
    device = content.create_device("MEA60")
    group = content.create_electrode_group("g", "electrodes", "a dish", device)
    wide = max([1, *(data.shape[1] for data in (series or {}).values())])
    content.add_electrode_column("channel_name", "its name on the array")
    for k in range(wide):
        name = names[k] if names else f"E{k + 1}"
        content.add_electrode(group=group, location="dish", channel_name=name)
    for name, data in (series or {}).items():
        region = content.create_electrode_table_region(list(range(data.shape[1])), "all")
        timed: dict[str, Any] = (
            {"rate": 10_000.0, "starting_time": 2.0}
            if timestamps is None
            else {"timestamps": timestamps}
        )
        made = ElectricalSeries(name=name, data=data, electrodes=region, **timed, **told)
        if name in processed:
            module = content.processing.get("ecephys") or content.create_processing_module(
                "ecephys", "processed"
            )
            module.add(made)
        else:
            content.add_acquisition(made)
    if units:
        content.add_unit_column("unit_name", "its name")
        for name, times in units.items():
            content.add_unit(spike_times=list(times), obs_intervals=[[0.0, 5.0]], unit_name=name)
    with NWBHDF5IO(str(path), "w") as file:
        file.write(content)
    return path
