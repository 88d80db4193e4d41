import dataclasses
import sys
import types

import pytest

from monochord.core import catalog
from monochord.core.cache import cached
from monochord.core.catalog import CatalogError, Entry, discover, unknown
from monochord.core.packages import AlteredError, FetchError, Package, is_present

PACKAGE = Package("pypi", "net", "1.0", "0" * 64, 10)
ENTRY = Entry(name="net", kind="k", title="t", licence="MIT", package=PACKAGE, hub="owner/net")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MONOCHORD_CACHE", str(tmp_path))


def failing(error):
    def ensure(package, *, progress):
        raise error

    return ensure


def test_the_hub_serves_when_the_package_cannot_be_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "ensure", failing(FetchError("no network")))
    hub = types.SimpleNamespace(snapshot_download=lambda repository, allow_patterns: str(tmp_path / repository))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert ENTRY.fetch() == tmp_path / "owner/net"
    with pytest.raises(FetchError, match="no network"):
        dataclasses.replace(ENTRY, hub=None).fetch()


def test_an_altered_package_is_never_replaced_by_the_hub(monkeypatch):
    monkeypatch.setattr(catalog, "ensure", failing(AlteredError("refused")))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(AlteredError, match="refused"):
        ENTRY.fetch()


def test_both_sources_are_named_when_neither_serves(monkeypatch):
    monkeypatch.setattr(catalog, "ensure", failing(FetchError("no network")))

    def snapshot_download(*arguments, **options):
        raise OSError("hub is away\nand more")

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(FetchError, match=r"^no network; nor could the hub serve owner/net \(hub is away\)$"):
        ENTRY.fetch()


def test_the_converted_folder_is_made_once_and_serves_alone(monkeypatch, tmp_path):
    def convert(package, folder):
        (folder / "made.txt").write_text(package.name)

    entry = dataclasses.replace(ENTRY, convert=convert)
    monkeypatch.setattr(catalog, "ensure", lambda package, *, progress: tmp_path / "raw")
    assert not entry.present
    assert (entry.fetch() / "made.txt").read_text() == "raw"
    monkeypatch.setattr(catalog, "ensure", failing(FetchError("not needed any more")))
    assert entry.present
    assert (entry.fetch() / "made.txt").read_text() == "raw"
    assert not dataclasses.replace(entry, revision=2).present


def test_an_entry_on_several_packages_keeps_those_that_are_whole(monkeypatch, tmp_path):
    other = dataclasses.replace(PACKAGE, name="other", sha256="1" * 64)
    asked = []

    def ensure(package, *, progress):
        asked.append(package.name)
        if asked == ["net", "other"]:
            raise FetchError("interrupted")
        return cached(package.key, lambda folder: (folder / "name.txt").write_text(package.name))

    def convert(folders, folder):
        (folder / "made.txt").write_text("+".join((one / "name.txt").read_text() for one in folders))

    monkeypatch.setattr(catalog, "ensure", ensure)
    entry = dataclasses.replace(ENTRY, package=(PACKAGE, other), convert=convert, hub=None)
    assert entry.size == 20 and entry.packages == (PACKAGE, other)
    with pytest.raises(FetchError, match="interrupted"):
        entry.fetch()
    assert is_present(PACKAGE) and not is_present(other) and not entry.present
    assert (entry.fetch() / "made.txt").read_text() == "net+other"
    assert entry.present and entry.row()["source"] == "pypi:net==1.0, pypi:other==1.0"
    assert entry.key != dataclasses.replace(entry, package=(other, PACKAGE)).key


def test_entries_are_found_by_module_and_names_are_unique(tmp_path, monkeypatch):
    home = tmp_path / "some_nets"
    home.mkdir()
    (home / "__init__.py").touch()
    text = "from tests_entry import ENTRY\nENTRIES = [ENTRY]\n"
    (home / "one.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tests_entry", types.SimpleNamespace(ENTRY=ENTRY))
    assert dict(discover("some_nets")) == {"net": ENTRY}
    discover.cache_clear()
    (home / "two.py").write_text(text)
    with pytest.raises(CatalogError, match=r"some_nets\.two: the name 'net' is taken"):
        discover("some_nets")
    discover.cache_clear()


def test_unknown_names_give_the_nearest():
    assert str(unknown("minlm", ["minilm", "smollm2", "dinov2-s"], "model")).startswith(
        "unknown model 'minlm': did you mean minilm"
    )
    assert "did you mean a, b?" in str(unknown("zzz", ["b", "a"], "model"))
