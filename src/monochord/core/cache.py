"""The local cache: folders that are made once, whole or not at all.

A folder is built under a temporary name, its files are listed with size and sha256 in a manifest, and only
then does it get its name. One process builds while others wait for its lock, which dies with the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

MANIFEST = ".manifest.json"


def cache_folder() -> Path:
    """`$MONOCHORD_CACHE`, or `monochord` in the platform's folder for user caches."""
    if chosen := os.environ.get("MONOCHORD_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "monochord"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/monochord"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monochord"


def cached(key: str, build: Callable[[Path], None]) -> Path:
    """The folder named `key` in the cache, made by `build(empty folder)` unless it is there and intact.

    `key` may contain slashes. Whatever `build` raises, nothing is left behind. Safe to call from several
    processes at once: one builds, the others wait and find the result.
    """
    folder = cache_folder() / key
    if is_intact(folder):
        return folder
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if is_intact(folder):  # another process was quicker
            return folder
        for dead in folder.parent.glob(f".{folder.name}.tmp-*"):  # of a killed process: we hold its lock
            shutil.rmtree(dead, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
        try:
            build(staging)
            _write_manifest(staging)
            if folder.exists():  # truncated or altered: set aside, so that the name is never half a folder
                folder.rename(staging.with_name(staging.name + "-old"))
            staging.chmod(0o755)
            staging.rename(folder)
        finally:
            for rest in folder.parent.glob(f".{folder.name}.tmp-*"):
                shutil.rmtree(rest, ignore_errors=True)
    return folder


def is_intact(folder: Path) -> bool:
    """Whether a cached folder has every file of its manifest, of the right size and unchanged.

    Files whose time of change is the one noted are not read again.
    """
    try:
        noted = json.loads((folder / MANIFEST).read_text(encoding="utf8"))
        for name, (size, changed, digest) in noted.items():
            file = folder / name
            status = file.stat()
            if status.st_size != size or (int(status.st_mtime) != changed and sha256(file) != digest):
                return False
    except (OSError, ValueError):
        return False
    return True


def sha256(file: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def folder_bytes(folder: Path) -> int:
    """Bytes in all files below a folder; files that vanish meanwhile count as nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total


def _write_manifest(folder: Path) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    noted = {
        file.relative_to(folder).as_posix(): (file.stat().st_size, int(file.stat().st_mtime), sha256(file))
        for file in files
    }
    (folder / MANIFEST).write_text(json.dumps(noted, indent=1), encoding="utf8")
