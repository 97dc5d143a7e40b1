"""Ctrl-C ends the work wherever it is pressed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows: it sends no signals")
PLACES = {
    # Python drops what is raised in a weak reference's callback and in a finaliser.
    "callback": "one = Thing(); kept = weakref.ref(one, lambda _: press()); del one",
    "finaliser": "Thing.__del__ = lambda _: press(); Thing()",
    "loop": "press()",
    # The loading of one compiled module fails with an error of its own; that of the other goes on.
    "ft2font": "press_within('matplotlib.ft2font'); import matplotlib.ft2font",
    "torch": "press_within('torch._C'); import torch",
    # OpenVINO turns what is raised in Python code that it calls into an error of its own.
    "conversion": "convert()",
    "handler": "fail_after_a_press()",
}
PROGRAM = """
import os, signal, sys, time, weakref
from importlib.machinery import ExtensionFileLoader
from toptune.cli import app

class Thing: pass

def press():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000): pass

def press_within(name):
    # While it makes its first enumeration.
    def see(frame, event, _):
        if event == "call" and frame.f_code.co_filename.endswith("enum.py"):
            while frame is not None:
                loader = frame.f_locals.get("self")
                if isinstance(loader, ExtensionFileLoader) and loader.name == name:
                    sys.setprofile(None)
                    press()
                    return
                frame = frame.f_back
    sys.setprofile(see)

def convert():
    import openvino as ov, torch
    from openvino.frontend.pytorch import ts_decoder
    from toptune.features.recordings import reading
    real = ts_decoder.TorchScriptPythonDecoder.get_op_type
    def pressed(decoder):
        press()
        return real(decoder)
    ts_decoder.TorchScriptPythonDecoder.get_op_type = pressed
    one = torch.zeros(1, 1, 8, 8)
    traced = torch.jit.trace(torch.nn.Conv2d(1, 2, 3), one)
    with reading("a.h5"):
        ov.convert_model(traced, example_input=one)

def fail_after_a_press():
    try:
        press()
    except KeyboardInterrupt:
        pass
    raise RuntimeError("made of it")

def work():
    {place}
    time.sleep(60)
    print("went on")

app.app = work
app.main()
"""


@pytest.mark.parametrize("place", PLACES)
def test_the_first_one_ends_the_work_wherever_it_falls(place: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM.format(place=PLACES[place])],
        capture_output=True,
        text=True,
        timeout=30,  # half of what the work would take
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted; what was published is kept\n"
