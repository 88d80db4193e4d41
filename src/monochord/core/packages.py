"""What ships inside registry packages: pinned by version and sha256, unpacked, never installed.

    package = Package("pypi", "glassllm", "0.1.0", sha256="1611...", size=3_196_628)
    folder = ensure(package)            # folder / "glassllm/weights/en.npz"

The registries' own clients fetch (pip, apt-get, npm), so mirrors, proxies and credentials are theirs. The
artifact must have the pinned sha256, else it is refused; the wanted members alone are kept, in the cache.

None of these clients can go on with half a download in a fresh folder: an interrupted artifact is fetched anew, while
those that are already whole stay. What stands on several packages therefore resumes package by package.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from monochord.core.cache import cache_folder, cached, folder_bytes, is_intact, sha256


class FetchError(RuntimeError):
    """A package could not be brought in; the message says what to do."""


class AlteredError(FetchError):
    """A package is not the one that was pinned."""


@dataclass(frozen=True)
class Package:
    """One artifact of a registry and the members of it that are wanted.

    `kind` names the registry: a wheel of PyPI ("pypi"), a source archive of PyPI ("pypi-source"), a Debian
    package ("debian") or an npm package ("npm"). `size` is the artifact's size in bytes. `members` are glob
    patterns of paths inside the archive, where `*` also matches slashes. `tag` is that of a wheel made for one
    Python and system ("cp311-cp311-manylinux2014_x86_64") of which only data is wanted: it is fetched on any.
    """

    kind: Literal["pypi", "pypi-source", "debian", "npm"]
    name: str
    version: str
    sha256: str
    size: int
    members: tuple[str, ...] = ("*",)
    tag: str = ""

    def __str__(self) -> str:
        separator = {"debian": "=", "npm": "@"}.get(self.kind, "==")
        return f"{self.kind}:{self.name}{separator}{self.version}"

    @property
    def key(self) -> str:
        """Its folder in the cache; another version, hash or choice of members is another folder."""
        members = "" if self.members == ("*",) else "-" + _digest("\n".join(self.members))[:6]
        plain = re.sub(r"[^A-Za-z0-9.+-]", "_", f"{self.name}-{self.version}")
        return f"packages/{self.kind}-{plain}-{self.sha256[:12]}{members}"


def ensure(package: Package, *, progress: bool = False) -> Path:
    """The folder with the package's members, fetched and verified if it is not in the cache yet.

    With `progress` a bar is shown on standard error. Raises `FetchError` when it cannot be fetched and
    `AlteredError` when it is not the pinned artifact; in both cases nothing is left behind.
    """

    def build(folder: Path) -> None:
        downloads = folder / ".download"
        downloads.mkdir()
        with _progress_bar(package, downloads, progress) as tick:
            artifact = _download(package, downloads, tick)
        if artifact.is_file() and (found := sha256(artifact)) != package.sha256:
            raise AlteredError(_altered(package, found))
        _unpack(package, artifact, folder)
        shutil.rmtree(downloads)

    return cached(package.key, build)


def is_present(package: Package) -> bool:
    """Whether the package is in the cache, whole and unaltered."""
    return is_intact(cache_folder() / package.key)


# Fetching


def _download(package: Package, folder: Path, tick: Tick) -> Path:
    """Let the registry's client put the artifact into `folder`; the file it made, or the folder it unpacked."""
    command = {"pypi": _pip, "pypi-source": _pip, "debian": _apt, "npm": _npm}[package.kind](package, folder)
    before = set(folder.iterdir())
    try:
        code, output = _run(command, folder, tick)
    except FileNotFoundError:
        hint = _MISSING_CLIENT[package.kind]
        raise FetchError(f"{package}: {command[0]} is not installed here; {hint}") from None
    made = [file for file in folder.iterdir() if file not in before and file.is_file()]
    if code != 0 and package.kind == "pypi-source" and (unpacked := _left_by_pip(folder, output)):
        return unpacked
    if code != 0 or len(made) != 1:
        raise _failure(package, output)
    return made[0]


def _pip(package: Package, folder: Path) -> list[str]:
    # pip checks the hash too, before it builds anything from a source archive
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf8")
    form = "--no-binary" if package.kind == "pypi-source" else "--only-binary"
    kept = ["--no-clean"] if package.kind == "pypi-source" else []
    options = [
        "--no-deps",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--progress-bar=off",
        "--ignore-requires-python",  # what is only read runs on any
        "--ignore-requires-python",  # what is only read runs on any
    ]
    if package.tag:
        python, abi, platform = package.tag.split("-")
        options += ["--abi", abi, "--platform", platform]
        if abi != "none":
            options += ["--implementation", python[:2], "--python-version", python[2:]]
    command = [sys.executable, "-m", "pip", "download", *options, *kept, "--require-hashes"]
    return [*command, form, package.name, "--dest", str(folder), "--requirement", str(wanted)]


def _left_by_pip(folder: Path, output: str) -> Path | None:
    """The source that pip verified and unpacked before it failed to ask it for its metadata.

    Old archives whose set-up needs what is no longer there still have their data. pip compares the hash of the archive
    before it unpacks it.
    """
    if not re.search(r"subprocess-exited-with-error|metadata-generation-failed", output):
        return None
    return next((file.parent for file in sorted(folder.glob("pip-*/*/PKG-INFO"))), None)


def _apt(package: Package, folder: Path) -> list[str]:
    return ["apt-get", "download", "-q", f"{package.name}={package.version}"]


def _npm(package: Package, folder: Path) -> list[str]:
    cache = folder / "npm-cache"
    return ["npm", "pack", f"{package.name}@{package.version}", "--ignore-scripts", "--cache", str(cache)]


def _run(command: list[str], folder: Path, tick: Tick) -> tuple[int, str]:
    """Run a client inside `folder`, its temporary files there too; exit code and all it printed."""
    import os

    log = folder / "output.log"
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(folder), "LC_ALL": "C"},
        )
        try:
            while process.poll() is None:
                tick()
                time.sleep(0.05)
        finally:
            if process.poll() is None:  # interrupted: the client must not write on
                process.kill()
                process.wait()
    output = log.read_text(encoding="utf8", errors="replace")
    log.unlink()
    return process.returncode, output


_MISSING_CLIENT = {
    "pypi": "install Python with pip",
    "pypi-source": "install Python with pip",
    "debian": "it comes with Debian and Ubuntu: fetch this there and copy the cache folder",
    "npm": "install Node.js, which brings it",
}


def _failure(package: Package, output: str) -> FetchError:
    """What a client's output means, in one line with the way out."""
    if "No module named pip" in output:
        hint = f"this Python has no pip: run `{sys.executable} -m ensurepip` or `uv pip install pip`"
        return FetchError(f"{package}: {hint}")
    if "DO NOT MATCH THE HASHES" in output:
        found = re.search(r"Got\s+([0-9a-f]{64})", output)
        return AlteredError(_altered(package, found.group(1) if found else "another"))
    if package.kind == "debian" and re.search(r"Unable to locate|was not found|No packages found", output):
        hint = "run `apt-get update` (as root) to refresh the package lists"
        return FetchError(f"{package}: apt-get does not offer this version; {hint}, Debian 12 has it")
    lines = re.findall(r"^\s*(?:ERROR:|E:|npm err\S*(?: code)?)\s*(.+)", output, re.I | re.M)
    said = lines[-1] if lines else (output.strip().splitlines() or ["it printed nothing"])[-1]
    client = {"debian": "apt-get", "npm": "npm"}.get(package.kind, "pip")
    return FetchError(f"{package}: {client} could not fetch it ({said[:200]}); check the network and try again")


def _altered(package: Package, found: str) -> str:
    return (
        f"{package}: refused, its sha256 is {found}, pinned is {package.sha256}; nothing was kept "
        "(a damaged download or an altered package: try again, then check the index you use)"
    )


# Unpacking


def _unpack(package: Package, artifact: Path, folder: Path) -> None:
    """Copy the wanted members of a verified archive below `folder`; each pattern must match something."""
    unmatched = set(package.members)
    for name, stream in _members(package, artifact):
        wanted = {pattern for pattern in package.members if fnmatch.fnmatchcase(name, pattern)}
        unmatched -= wanted
        if not wanted:
            continue
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise AlteredError(f"{package}: refused, its member {name!r} points outside of the archive")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as copy:
            shutil.copyfileobj(stream, copy, 1 << 20)
    if unmatched:
        raise AlteredError(f"{package}: has no member {', '.join(sorted(unmatched))}")


def _members(package: Package, artifact: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of every plain file of an archive; links and devices are left out."""
    if artifact.is_dir():
        for file in sorted(artifact.rglob("*")):
            if file.is_file() and not file.is_symlink():
                with open(file, "rb") as stream:
                    yield f"{package.name}-{package.version}/{file.relative_to(artifact).as_posix()}", stream
        return
    if package.kind == "pypi":
        with zipfile.ZipFile(artifact) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as stream:
                        yield info.filename, stream
        return
    if package.kind == "debian":
        if shutil.which("dpkg-deb") is None:
            raise FetchError(f"{package}: dpkg-deb is not installed here; install dpkg")
        content = artifact.with_suffix(".tar")
        with open(content, "wb") as tar:
            subprocess.run(["dpkg-deb", "--fsys-tarfile", str(artifact)], stdout=tar, check=True)
        artifact = content
    with tarfile.open(artifact) as archive:
        for member in archive:
            if member.isfile() and (data := archive.extractfile(member)) is not None:
                yield member.name.removeprefix("./"), data


# Progress


class Tick:
    """Called while a client works; shows how much has arrived."""

    def __call__(self) -> None: ...


@contextmanager
def _progress_bar(package: Package, folder: Path, shown: bool) -> Iterator[Tick]:
    """A bar of the bytes that have arrived in `folder`, out of the artifact's size."""
    if not shown:
        yield Tick()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task(f"{package.name} {package.version}", total=package.size)

        class Show(Tick):
            def __call__(self) -> None:
                bar.update(task, completed=min(folder_bytes(folder), package.size))

        yield Show()
        bar.update(task, completed=package.size)


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()
