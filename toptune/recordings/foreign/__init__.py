"""Recordings of other programs, opened through neo, pynwb and h5py.

A path enters that `recognition` knows by its content; an open `VoltageReader` or a `SpikeRecording`
leaves. A format of neo's is added in `neo_formats`, another one in a module of its own.
"""
