"""Loading networks from local folders in the layouts of ``transformers`` and ``diffusers``: whole, in silence, and from nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def load_pretrained(kind: Any, folder: Path, part: str = "") -> Any:
    """The network of class ``kind`` in a folder, or in its subfolder ``part``, in evaluation mode.

    Only files of the folder are read, pickled ones as plain tensors. Both packages fill tensors that are missing with noise; here that is
    an error.

    Raises:
        ValueError: some tensors are missing or have another shape.
        OSError: there is no such file.
    """
    options: dict[str, Any] = {"subfolder": part, "local_files_only": True, "output_loading_info": True}
    if kind.__module__.startswith("diffusers."):
        options["low_cpu_mem_usage"] = False  # what it would do anyway without the accelerate package, but without saying so
    with quiet():
        model, told = kind.from_pretrained(str(folder), **options)
    for trouble, names in (("lacks", told.get("missing_keys")), ("has the wrong shape of", told.get("mismatched_keys"))):
        if names:
            some = ", ".join(sorted(map(str, names))[:3])
            raise ValueError(f"{part or 'the file'} {trouble} {len(names)} tensors, among them {some}")
    return model.eval()


def load_with_processor(kind: Any, folder: Path, device: str) -> tuple[Any, Any]:
    """The image processor of a ``transformers`` folder, and its network of class ``kind`` on a device; errors as there."""
    from transformers import AutoImageProcessor

    with quiet():
        processor = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
    return processor, load_pretrained(kind, folder).to(device)


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back notes and progress bars of both packages; errors are still told."""
    logs = [sys.modules[name] for name in ("transformers.utils.logging", "diffusers.utils.logging") if name in sys.modules]
    before = [(log.get_verbosity(), getattr(log, "_tqdm_active", True)) for log in logs]
    for log in logs:
        log.set_verbosity(log.CRITICAL)
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, (verbosity, bars) in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
