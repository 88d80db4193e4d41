"""Methods are found without importing them, and specs are parsed, never evaluated."""

import contextlib
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monochord.core import registry
from monochord.core.registry import MethodError, build, catalog, describe, find, methods, parse_call, split

BASE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Tuner:
    def plan(self, model, generator): ...
    def __or__(self, other): return Both((*getattr(self, 'tuners', (self,)), other))

@dataclass(frozen=True)
class Both(Tuner):
    tuners: tuple
"""
HIGH_RANK = '''
"""Add a change of high rank. More words.

From "High ranks
reach higher", May 1, 2024, and "Another", May 2, 2024.
"""
from dataclasses import dataclass
from toy_family._base import Tuner

@dataclass(frozen=True)
class HighRank(Tuner):
    """Details."""

    rank: int = 8
    alpha: float = 16.0
    sites: str = "blocks.*"
    bias: bool = False
    limit: int | None = None

class Helper: ...
class _Hidden(Tuner): ...
'''
PAIR = """
from toy_family import _base
class IA3(_base.Tuner): ...
class PromptTokens(_base.Tuner): ...
"""
NEEDS = """
import dataclasses
from toy_family._base import Tuner
@dataclasses.dataclass(frozen=True)
class Needs(Tuner):
    width: int
    depth: int
"""


@pytest.fixture(scope="module", autouse=True)
def toy_family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages") / "toy_family"
    folder.mkdir()
    files = {"__init__": "", "_base": BASE, "high_rank": HIGH_RANK, "pair": PAIR, "needs": NEEDS}
    files["broken_extra"] = "import a_module_that_is_not_installed\nclass Extra(Tuner): ..."
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    entry = EntryPoint("far-away", "toy_family.high_rank:HighRank", registry.GROUP)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder.parent))
        patch.setattr(registry, "FAMILIES", {"toy": ("toy_family", "Tuner")})
        patch.setattr(registry, "entry_points", lambda group: [entry])
        registry._all.cache_clear()
        yield folder
    registry._all.cache_clear()


def test_names_come_from_files_or_classes():
    assert methods() == ["broken-extra", "far-away", "high-rank", "ia3", "needs", "prompt-tokens"]
    assert methods("*rank*") == ["high-rank"]
    assert methods("toy.p*") == ["prompt-tokens"]
    assert methods("nothing") == []
    assert find("high-rank").summary == "Add a change of high rank."
    assert find("high-rank").paper == "High ranks reach higher, May 1, 2024"


def test_listing_imports_nothing(toy_family):
    code = (
        f"import sys; sys.path.insert(0, {str(toy_family.parent)!r})\n"
        "from monochord.core import registry\n"
        "registry.FAMILIES['toy'] = ('toy_family', 'Tuner')\n"
        "assert 'high-rank' in registry.methods()\n"
        "print(sorted({'torch', 'numpy', 'toy_family', 'toy_family.pair'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("name", ["high-rank", "high_rank", "HighRank", "toy.high-rank", " highrank ", "high"])
def test_a_method_has_several_spellings(name):
    assert type(build(name)).__name__ == "HighRank"


def test_entry_points_are_methods_too():
    assert [m.full_name for m in catalog("*far*")] == ["other.far-away"]
    assert type(build("far-away(rank=2)")).__name__ == "HighRank"


def test_arguments_are_literals():
    tuner = build("high-rank(rank=4, alpha=2, sites='blocks.{0,1}.*|x', limit=None)")
    assert (tuner.rank, tuner.alpha, tuner.sites, tuner.limit) == (4, 2, "blocks.{0,1}.*|x", None)


def test_specs_compose():
    both = build("high-rank(rank=2) | prompt-tokens|ia3")
    assert [type(t).__name__ for t in both.tuners] == ["HighRank", "PromptTokens", "IA3"]
    assert describe(both) == "high-rank(rank=2) | prompt-tokens | ia3"


def test_tuners_pass_through():
    tuner = build("high-rank")
    assert build(tuner) is tuner
    with pytest.raises(MethodError, match="got the class HighRank"):
        build(type(tuner))
    with pytest.raises(MethodError, match="got int 3"):
        build(3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("high-rnk", "unknown method 'high-rnk': did you mean high-rank?"),
        ("zzz", "unknown method 'zzz': choose from broken-extra, far-away"),
        ("high-rank(rank=four)", "rank=four is not a literal value (text needs quotes: rank='four')"),
        ("high-rank(rank=__import__('os'))", "is not a literal value"),
        ("high-rank(4)", "takes arguments by name"),
        ("high-rank(**{'rank': 1})", "takes arguments by name"),
        ("high-rank(rank=1", "has an open bracket"),
        ("high-rank(sites='x)", "has an open quote"),
        ("high-rank)(", "closes a bracket at 9"),
        ("high-rank(rank=1)(2)", "can't read the arguments"),
        ("high-rank(rank 1)", "can't read the arguments"),
        ("high-rank || ia3", "has an empty part beside a '|'"),
        ("", "has an empty part"),
        ("4rank", "can't read '4rank'"),
        ("high-rank(rank=1, rank=2)", "high-rank: rank is given twice"),
        ("needs(width=1)", "needs: depth must be given"),
        ("ia3(x=1)", "ia3: no argument x, it takes none"),
    ],
)
def test_errors_teach(spec, message):
    with pytest.raises(MethodError) as caught:
        build(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_problems_are_named_at_once():
    with pytest.raises(MethodError) as caught:
        build("high-rank(rnk=4, alpha='much', bias=1, rank=True, limit=1.5)")
    assert str(caught.value) == (
        "high-rank: no argument rnk, did you mean rank?; alpha must be float, got 'much'; "
        "bias must be bool, got 1; rank must be int, got True; limit must be int | None, got 1.5"
    )


settings = st.fixed_dictionaries(
    {},
    optional={
        "rank": st.integers(),
        "alpha": st.floats(allow_nan=False, allow_infinity=False),
        "sites": st.text(),
        "bias": st.booleans(),
        "limit": st.none() | st.integers(),
    },
)


def test_a_call_is_read_without_a_registry():
    assert parse_call(" movie-reviews(source='imdb', n=3) ") == ("movie-reviews", {"source": "imdb", "n": 3})
    assert parse_call("x") == ("x", {})
    with pytest.raises(MethodError, match=r"x: source=imdb is not a literal value \(text needs quotes"):
        parse_call("x(source=imdb)")


@given(settings)
def test_describe_and_build_are_inverse(arguments):
    spec = "high-rank(" + ", ".join(f"{k}={v!r}" for k, v in arguments.items()) + ")"
    tuner = build(spec)
    assert {name: getattr(tuner, name) for name in arguments} == arguments
    assert build(describe(tuner)) == tuner


@given(st.lists(st.sampled_from(["a", "b(x='|')", "c([1, '|)'])", 'd("\\"|")']), min_size=1))
def test_split_undoes_join(parts):
    assert split(" | ".join(parts), "|") == parts


@given(st.text(alphabet="ab(){}[]'\"|,=\\ \n.-1", max_size=30))
def test_any_text_gives_a_tuner_or_a_method_error(text):
    with contextlib.suppress(MethodError):
        build(text)
