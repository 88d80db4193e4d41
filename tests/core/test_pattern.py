"""The grammar of sites: tables of what matches, and laws that hold for any pattern."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monochord.core.pattern import PORTS, Pattern, Selector, SiteError, contains, select

name = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True)
path = st.lists(name | st.integers(0, 30).map(str), min_size=1, max_size=5).map(".".join)
index = st.lists(
    st.integers(-9, 9).map(str) | st.sampled_from(["1:4", ":3", "2:", "::2", "-3:"]), min_size=1, max_size=3
)


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("blocks.*.mlp", ["blocks.3.mlp", "blocks.12.mlp"], ["blocks.3.mlp.up", "x.blocks.3.mlp"]),
        ("*.conv*.weight", ["conv1.weight", "a.b.conv2.weight"], ["a.conv.b.weight", "a.bias"]),
        ("**.weight", ["weight", "a.weight", "a.b.weight"], ["a.weight.b", "aweight"]),
        ("head.**", ["head.a", "head.a.b"], ["head", "heads.a"]),
        (
            "blocks.*.attn.{q,v}.weight",
            ["blocks.0.attn.q.weight", "blocks.9.attn.v.weight"],
            ["blocks.0.attn.k.weight"],
        ),
        ("blocks.{2..4}", ["blocks.2", "blocks.4"], ["blocks.1", "blocks.5", "blocks.24"]),
        ("a.**.z", ["a.z", "a.b.z", "a.b.c.z"], ["a", "az", "a.b"]),
        ("layer?", ["layer1", "layerx"], ["layer", "layer10"]),
    ],
)
def test_globs(pattern: str, matching: list[str], other: list[str]) -> None:
    parsed = Pattern.parse(pattern)
    assert [n for n in matching if not parsed.matches(n)] == []
    assert [n for n in other if parsed.matches(n)] == []


@given(path, st.sampled_from([None, *PORTS]), st.none() | index)
def test_a_pattern_is_its_own_text(path: str, port: str | None, tokens: list[str] | None) -> None:
    text = path + (f":{port}" if port else "") + (f"[tokens={','.join(tokens)}]" if tokens else "")
    assert Pattern.parse(str(Pattern.parse(text))) == Pattern.parse(text)
    assert Pattern.parse(text).port == port


@given(path)
def test_a_literal_path_matches_itself_and_a_double_star_everything(path: str) -> None:
    assert Pattern.parse(path).matches(path)
    assert Pattern.parse("**").matches(path)
    assert Pattern.parse(f"*.{path}").matches(path) and Pattern.parse(f"*.{path}").matches(f"a.b.{path}")


@given(path, path)
def test_alternatives_are_the_union(a: str, b: str) -> None:
    either = Pattern.parse(f"{{{a},{b}}}")
    assert either.matches(a) and either.matches(b)
    assert either.matches("another.name") == ("another.name" in (a, b))


@given(index, st.integers(10, 20))
def test_selection_is_that_of_a_list(items: list[str], length: int) -> None:
    selector = Selector.parse(f"[tokens={','.join(items)}]")
    assert selector.tokens is not None
    numbers = list(range(length))
    wanted: list[int] = []
    for item in items:
        picked = eval(f"numbers[{item}]", {"numbers": numbers})
        wanted += picked if isinstance(picked, list) else [picked]
    assert select(selector.tokens, length) == wanted


@given(st.integers(0, 30))
def test_counters_follow_ranges(step: int) -> None:
    steps = Selector.parse("[steps=2,10:20,25:]").steps
    assert steps is not None
    assert contains(steps, step) == (step == 2 or 10 <= step < 20 or step >= 25)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a b", "is no site"),
        ("a:foo", "unknown port 'foo': use one of out, in"),
        ("a[x=1]", "use one of heads"),
        ("a[tokens=]", "use one of heads"),
        ("a[tokens=x]", "integers and ranges"),
        ("a[tokens=1][tokens=2]", "given twice"),
        ("a{b", "open brace"),
    ],
)
def test_errors_teach(text: str, said: str) -> None:
    with pytest.raises(SiteError, match=said.replace("[", r"\[")):
        Pattern.parse(text).matches("a")


def test_an_index_outside_says_the_bounds() -> None:
    with pytest.raises(SiteError, match="use -4 to 3"):
        select((7,), 4)
