"""Model folders: signed versions, atomic promotion, the way back.

    MODEL_DIR/
      signing.key            made on first use, readable by its owner only
      live                   the promoted version's name, earlier ones in the lines below
      versions/<version>/
        manifest.json        versions, data digest, metrics, thresholds, digests of the files
        manifest.sig         HMAC-SHA256 of manifest.json
        model.psm            the exported form that labels mail
        model.skops          the same weights as scikit-learn objects
        report.html …

Nothing here is ever unpickled: skops opens its file with an empty list of
trusted types, and only after the signature and the digest fit.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_DEFLATED

from classifiers.errors import ModelRefused
from classifiers.inference import (
    LIVE_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    SIGNATURE_FILE,
    VERSIONS,
    Model,
    live_folder,
    load,
    sign,
    verified_manifest,
)

KEY_FILE = "signing.key"
SKOPS_FILE = "model.skops"
#: Promoted versions that ``live`` remembers, the live one included.
REMEMBERED = 20


class Version(NamedTuple):
    """One version in a model folder. ``problem`` says why it cannot be used, None when it can."""

    name: str
    live: bool
    manifest: dict[str, Any]
    problem: str | None


def signing_key(model_dir: Path, key_file: Path | None = None, *, make: bool = False) -> bytes:
    """The key that signs models; with ``make``, made where there is none yet. Raises ModelRefused for an unusable one."""
    file = key_file or model_dir / KEY_FILE
    if make and key_file is None and not file.exists():
        model_dir.mkdir(parents=True, exist_ok=True)
        _write(file, secrets.token_hex(32).encode() + b"\n", mode=0o600)
    try:
        key = file.read_bytes().strip()
    except OSError as error:
        raise ModelRefused(f"{file}: the signing key cannot be read: {error.strerror}") from error
    if len(key) < 32:
        raise ModelRefused(f"{file}: the signing key is shorter than 32 characters")
    return key


def save(model_dir: Path, packed: bytes, manifest: Mapping[str, Any], key: bytes, extra: Mapping[str, bytes]) -> Path:
    """Write a version whole or not at all, not yet promoted; the folder it lies in."""
    versions = model_dir / VERSIONS
    versions.mkdir(parents=True, exist_ok=True)
    folder = versions / str(manifest["version"])
    if folder.exists():
        raise ModelRefused(f"{folder}: there is a version of that name already")
    building = Path(tempfile.mkdtemp(dir=versions, prefix=".building-"))
    try:
        write_version(building, packed, manifest, key, extra)
        building.chmod(0o755)
        building.rename(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    _sync(versions)
    return folder


def write_version(
    folder: Path, packed: bytes, manifest: Mapping[str, Any], key: bytes | None, extra: Mapping[str, bytes]
) -> None:
    """The files of a version; without a key there is no signature, only digests."""
    files = {MODEL_FILE: packed, **extra}
    for name, data in files.items():
        _write(folder / name, data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    data = json.dumps({**manifest, "files": digests}, ensure_ascii=False, indent=1, sort_keys=True).encode() + b"\n"
    _write(folder / MANIFEST_FILE, data)
    if key is not None:
        _write(folder / SIGNATURE_FILE, sign(data, key).encode() + b"\n")


def skops_bytes(estimator: Mapping[str, Any]) -> bytes:
    """scikit-learn objects as a skops file; only types that skops trusts by itself may be in it."""
    import skops.io

    data: bytes = skops.io.dumps(dict(estimator), compression=ZIP_DEFLATED)
    if untrusted := skops.io.get_untrusted_types(data=data):
        raise ModelRefused(f"the model holds types that are not trusted: {', '.join(untrusted)}")
    return data


def open_skops(folder: Path, key: bytes | None) -> dict[str, Any]:
    """The scikit-learn objects of a version, after its signature and digest were checked. Raises ModelRefused."""
    import skops.io

    manifest = verified_manifest(folder, key)
    try:
        data = (folder / SKOPS_FILE).read_bytes()
    except OSError as error:
        raise ModelRefused(f"{folder / SKOPS_FILE}: cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != manifest["files"].get(SKOPS_FILE):
        raise ModelRefused(f"{folder / SKOPS_FILE}: is damaged or truncated, its digest is not the manifest's")
    opened: dict[str, Any] = skops.io.loads(data, trusted=[])
    return opened


def history(model_dir: Path) -> list[str]:
    """Promoted versions, the live one first."""
    try:
        return (model_dir / LIVE_FILE).read_text(encoding="ascii").split()
    except OSError:
        return []


def promote(model_dir: Path, version: str, key: bytes) -> None:
    """Make a version live, after opening it as the daemon will. Raises ModelRefused and changes nothing."""
    folder = _folder(model_dir, version)
    load(folder, key=key)
    names = [version, *(name for name in history(model_dir) if name != version)]
    _write(model_dir / LIVE_FILE, "".join(f"{n}\n" for n in names[:REMEMBERED]).encode())


def rollback(model_dir: Path, key: bytes) -> str:
    """Make the version that was live before live again; its name. Raises ModelRefused when there is none."""
    names = history(model_dir)
    if len(names) < 2:
        raise ModelRefused(f"{model_dir}: there is no earlier promoted model to go back to")
    load(_folder(model_dir, names[1]), key=key)
    _write(model_dir / LIVE_FILE, "".join(f"{n}\n" for n in names[1:]).encode())
    return names[1]


def versions(model_dir: Path, key: bytes) -> list[Version]:
    """All versions, oldest first; unusable ones with the reason."""
    live = next(iter(history(model_dir)), None)
    found = []
    for folder in sorted((model_dir / VERSIONS).glob("[!.]*")):
        manifest: dict[str, Any] = {}
        problem = None
        try:
            manifest = verified_manifest(folder, key)
            load(folder, key=key)
        except ModelRefused as refused:
            problem = str(refused)
        found.append(Version(folder.name, folder.name == live, manifest, problem))
    return found


class Opened(NamedTuple):
    """A model to label with, where it came from, and what was refused on the way."""

    model: Model
    folder: Path
    refused: tuple[str, ...]


def open_best(model_dir: Path, key: bytes, fallback: Path) -> Opened:
    """The live model; when it is refused the one that was live before, and in the end ``fallback``, which needs no key."""
    refused: list[str] = []
    for name in history(model_dir):
        try:
            folder = _folder(model_dir, name)
            return Opened(load(folder, key=key), folder, tuple(refused))
        except ModelRefused as error:
            refused.append(str(error))
    return Opened(load(fallback, key=None), fallback, tuple(refused))


def live_manifest(model_dir: Path, key: bytes) -> dict[str, Any]:
    """The manifest of the promoted version. Raises ModelRefused."""
    return verified_manifest(live_folder(model_dir), key)


def _folder(model_dir: Path, version: str) -> Path:
    if not version.replace("-", "").isalnum():
        raise ModelRefused(f"{version}: is not the name of a version")
    folder = model_dir / VERSIONS / version
    if not folder.is_dir():
        raise ModelRefused(f"{version}: there is no such version in {model_dir}")
    return folder


def _write(file: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a file as one step that survives a crash."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(mode)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync(file.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
