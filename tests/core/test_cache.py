import os

import pytest

from monochord.core.cache import cache_folder, cached, is_intact


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MONOCHORD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(text):
    def build(folder):
        (folder / "sub").mkdir()
        (folder / "sub/a.txt").write_text(text)

    return build


def never(folder):
    raise AssertionError("built again")


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.name.endswith(".lock"))


def test_a_folder_is_built_once(cache):
    folder = cached("kind/thing", write("one"))
    assert folder == cache / "kind/thing" == cached("kind/thing", never)
    assert (folder / "sub/a.txt").read_text() == "one"


@pytest.mark.parametrize("problem", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_build_leaves_nothing(cache, problem):
    def build(folder):
        write("half")(folder)
        raise problem

    with pytest.raises(type(problem)):
        cached("kind/thing", build)
    assert files(cache) == ["kind"]
    assert (cached("kind/thing", write("whole")) / "sub/a.txt").read_text() == "whole"


def test_what_a_killed_process_left_is_swept(cache):
    dead = cache / "kind/.thing.tmp-dead"
    dead.mkdir(parents=True)
    (dead / "half.bin").write_bytes(b"0")
    cached("kind/thing", write("one"))
    assert not dead.exists()


@pytest.mark.parametrize("damage", ["truncate", "alter", "remove", "unlist"])
def test_damage_is_seen_and_repaired(damage):
    folder = cached("thing", write("text"))
    file = folder / "sub/a.txt"
    if damage == "truncate":
        file.write_text("te")
    elif damage == "alter":  # same size, changed at another time
        file.write_text("TEXT")
        os.utime(file, (1, 1))
    elif damage == "remove":
        file.unlink()
    else:
        (folder / ".manifest.json").write_text("{")
    assert not is_intact(folder)
    assert (cached("thing", write("text")) / "sub/a.txt").read_text() == "text"
    assert is_intact(folder)


def test_a_new_time_alone_is_no_damage():
    folder = cached("thing", write("text"))
    os.utime(folder / "sub/a.txt", (1, 1))
    assert is_intact(folder)


def test_the_folder_follows_the_platform(monkeypatch, tmp_path):
    monkeypatch.delenv("MONOCHORD_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "monochord"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder().parts[-3:] == ("Library", "Caches", "monochord")
