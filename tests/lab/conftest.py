"""A real PostgreSQL for the tests that share a store, where the server's programs are installed."""

import getpass
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from missing import left_out

MISSING = "PostgreSQL is not installed here: `apt-get install postgresql` and `pip install 'monochord[postgresql]'`"


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory):
    """The URL of a fresh cluster on a free local port, stopped and removed at the end."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "/nowhere")]
    try:
        import psycopg  # noqa: F401
    except ImportError:
        left_out(MISSING)
    if not found[-1].exists():
        left_out(MISSING)
    programs = found[-1].parent
    folder = Path(f"/tmp/monochord-postgresql-{os.getpid()}")
    folder.mkdir()
    user = getpass.getuser()
    prefix = []
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres")
        prefix, user = ["runuser", "-u", "postgres", "--"], "postgres"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(program, *arguments):
        command = [*prefix, str(programs / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, capture_output=True, text=True, cwd="/tmp", timeout=60)

    try:
        call("initdb", "--auth=trust", f"--username={user}", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        call("pg_ctl", "-w", "-o", options, "-l", str(folder / "log"), "start")
        yield f"postgresql+psycopg://{user}@127.0.0.1:{port}/postgres"
        call("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """A fresh store's URL, of both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 's.sqlite'}"
    from sqlalchemy import create_engine, text

    server = request.getfixturevalue("postgresql")
    name = f"t{abs(hash(request.node.nodeid)) % 10**9}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.rpartition("/")[0] + f"/{name}"
