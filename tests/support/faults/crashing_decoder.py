"""A decoder that crashes its process, as a fault inside a library does, for images that tests have marked.

`decode` replaces the job's decoder: in this process by a test's monkeypatch, in Ray's processes by `explain`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.inputs import decode_image
from jobs.inputs.decode_image import DecodedImage
from jobs.inputs.rejected import RejectedImage
from saliency_core.model.preprocessing import Preprocessing

MARK = b"#killer "


def marked(data: bytes, deed: str) -> bytes:
    """Appends an instruction for `decode` to an image. The image stays valid: decoders ignore bytes after its end."""
    return data + MARK + deed.encode()


def decode(data: bytes, preprocessing: Preprocessing, *, max_pixels: int) -> DecodedImage | RejectedImage:
    _, _, deed = data.rpartition(MARK) if MARK in data else (b"", b"", b"")
    match deed.decode().split():
        case ["signal", name]:
            os.kill(os.getpid(), signal.Signals[name])
        case ["exit", code]:
            os._exit(int(code))
        case ["raise"]:
            raise ZeroDivisionError("of the decoder's own")
        case ["hang"]:
            time.sleep(3600)
        case ["allocate"]:
            hoard = []
            while True:
                hoard.append(bytearray(2**26))
        case ["once", path] if not Path(path).exists():
            Path(path).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return decode_image.decode(data, preprocessing, max_pixels=max_pixels)


def decode_stage(out: str, **keys: Any) -> Callable[[Any], Any]:
    """Builds the decode stage with this decoder, in any process."""
    from jobs.explain import decode_stage as stage
    from jobs.store.store_access import open_run

    stage.decode = decode
    return stage.DecodeStage(open_run(out)[1], **keys)


def explain(*arguments: str) -> None:
    """Runs the program with this decoder in all processes of its stages."""
    from jobs.cli import app
    from jobs.explain import explain_stages

    explain_stages._decode = decode_stage
    sys.argv[1:] = ["explain", *arguments]
    app.main()
