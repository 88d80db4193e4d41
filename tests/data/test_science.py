"""The science data sets hold what was checked by hand: counts, and the signal that a simple method finds in them."""

import json

import numpy as np
import pytest

from monochord.data import DataError, data
from monochord.data.neural import NeuralData
from monochord.data.recording import Recording


def ridge(inputs, targets, penalty):
    """Weights for centred inputs, the shorter way round."""
    if len(inputs) < inputs.shape[1]:
        return inputs.T @ np.linalg.solve(inputs @ inputs.T + penalty * np.eye(len(inputs)), targets)
    return np.linalg.solve(inputs.T @ inputs + penalty * np.eye(inputs.shape[1]), inputs.T @ targets)


@pytest.mark.material("haxby")
def test_haxby_blocks_are_told_apart():
    found = NeuralData.of(data("haxby"), "1", tr=2.5).select("brain")
    assert found.shape == (1452, 530)
    assert (found.stimulus_ids != "").sum() == 864 and len(found.events["onset"]) == 96
    names = sorted(set(found.stimulus_ids.tolist()) - {""})
    assert len(names) == 8 and {"face", "house", "cat"} <= set(names)
    x = found.responses.astype(float)
    for run in range(1, 13):
        here = found.runs == run
        trend = np.stack([np.ones(here.sum()), np.linspace(-1, 1, here.sum())], axis=1)
        x[here] -= trend @ np.linalg.lstsq(trend, x[here], rcond=None)[0]
        x[here] /= x[here].std(axis=0) + 1e-9
    hits = []
    for run in range(1, 13):
        train, test = ((found.runs != run), (found.runs == run))
        shown, asked = (rows & (found.stimulus_ids != "") for rows in (train, test))
        targets = (found.stimulus_ids[shown][:, None] == np.array(names)) - 1 / 8
        scores = x[asked] @ ridge(x[shown], targets, 1000)
        hits += [names[scores[found.stimulus_ids[asked] == name].mean(axis=0).argmax()] == name for name in names]
    assert 0.7 < np.mean(hits) < 0.9  # chance is 0.125
    assert (np.asarray(data("haxby", lag=0)["trials"]["stimulus"])[6:10] != "").any()
    with pytest.raises(DataError, match="lag=-1"):
        data("haxby", lag=-1)


@pytest.mark.material("heat-pain")
def test_heat_is_read_in_people_not_seen_before():
    dataset = data("heat-pain")
    assert dataset["trials"]["response"].shape == (66 * 191, 122)
    events = dataset["events"]
    heat = np.isfinite(events["temperature"])
    assert heat.sum() == 660 and np.isfinite(events["rating"]).sum() == 660
    assert set(events["regulate"]) == {"up", "down"} and np.nanmax(events["rating"]) == 200
    runs = np.asarray(dataset["trials"]["response"]).reshape(66, 191, 122)
    runs = (runs - runs.mean(axis=1, keepdims=True)) / (runs.std(axis=1, keepdims=True) + 1e-9)
    subject, run = events["subject"][heat], events["run"][heat]
    scans = np.round((events["onset"][heat] + 12) / 2).astype(int)
    x = np.array(
        [runs[2 * (s - 1) + (r == 7), t : t + 3].mean(axis=0) for s, r, t in zip(subject, run, scans, strict=True)]
    )
    warmth, guess = events["temperature"][heat], np.empty(660)
    for fold in range(11):
        asked = subject % 11 == fold
        guess[asked] = x[asked] @ ridge(x[~asked], warmth[~asked] - warmth[~asked].mean(), 1000)
    assert 0.3 < np.corrcoef(guess, warmth)[0, 1] < 0.5
    one = NeuralData.of(data("heat-pain", subject=5), "05", tr=2.0)
    assert one.shape == (382, 122) and set(one.stimulus_ids) == {"", "heat", "rating"}
    assert one.runs.tolist() == [3] * 191 + [7] * 191 and one.events["onset"][0] == pytest.approx(10.216)
    with pytest.raises(DataError, match="no subject 34: there are 1 to 33"):
        data("heat-pain", subject=34)


@pytest.mark.material("hcp-rest")
def test_people_at_rest_are_known_by_their_correlations():
    dataset = data("hcp-rest")
    series = np.asarray(dataset["trials"]["response"]).reshape(7, 1200, 94)
    upper = np.triu_indices(94, 1)
    first, second = (
        np.array([np.corrcoef(s[rows].T)[upper] for s in series]) for rows in (slice(600), slice(600, None))
    )
    assert (np.corrcoef(first, second)[:7, 7:].argmax(axis=1) == np.arange(7)).all()
    connectome = dataset["connectome"]
    assert connectome["weights"].shape == connectome["lengths"].shape == (94, 94)
    assert connectome["region"][0] == "Precentral_L" and np.array_equal(connectome["region"], dataset["voxels"]["roi"])
    assert data("hcp-rest", subject=3)["trials"]["response"].shape == (1200, 94)
    assert np.array_equal(data("hcp-rest", subject=3)["trials"]["response"], series[2])


@pytest.mark.material("hcp-rest", "fashion-mnist")
def test_a_real_connectome_couples_the_simulated_parcels():
    from monochord.data.simbrain import SimBrain, parcels

    weights = np.asarray(data("hcp-rest")["connectome"]["weights"])
    encode = lambda captions: np.random.default_rng(0).standard_normal((len(captions), 40))
    brain = SimBrain(subjects=1, voxels=(200,), shared=10, unique=60, encode=encode)
    found = np.corrcoef(parcels(brain, 0, 600, connectome=weights).responses.T)
    upper = np.triu_indices(94, 1)
    series = np.asarray(data("hcp-rest")["trials"]["response"]).reshape(7, 1200, 94)
    measured = np.mean([np.corrcoef(s.T) for s in series], axis=0)
    assert np.corrcoef(found[upper], measured[upper])[0, 1] > 0.4


@pytest.mark.material("event-related-bold", "grasshopper")
def test_nitime_events_and_spikes():
    bold = NeuralData.of(data("event-related-bold"), tr=2.0)
    assert bold.shape == (3360, 1) and len(bold.events["onset"]) == 576
    at = np.flatnonzero(bold.stimulus_ids > 0)
    after = np.array([bold.responses[at[at < 3340] + lag].mean() for lag in range(8)])
    assert after[1:5].min() > 0.2 > 0.1 > after[0] and after[6:].max() < 0  # blood rises, and then undershoots
    session = Recording.of(data("grasshopper"))
    assert len(session.spikes[0]) == 929 and len(Recording.of(data("grasshopper", recording=2)).spikes[0]) == 868
    times, loudness = session.series["stimulus"]
    assert len(times) == 200_000 and times[-1] == pytest.approx(10, abs=0.01)
    before = np.nanmean([session.at("stimulus", session.spikes[0] - delay) for delay in (0.004, 0.006, 0.008)])
    assert before > loudness.mean() + 0.3 * loudness.std()
    with pytest.raises(DataError, match="no recording 3: there are 1 and 2"):
        data("grasshopper", recording=3)


@pytest.mark.material("head-direction")
def test_direction_is_read_from_the_spikes():
    session = Recording.of(data("head-direction"))
    assert len(session.spikes) == 15 and sum(map(len, session.spikes)) == 98_794
    times = np.arange(671, 1199, 0.1)
    angle = session.at("CompassDirection/ry", times)
    counts = session.counts(0.1, 671 - 0.05, 1199 - 0.04).responses[: len(times)]
    smooth = np.apply_along_axis(lambda c: np.convolve(c, np.ones(5) / 5, "same"), 0, counts)
    x = np.column_stack([smooth, smooth**2, np.ones(len(times))])
    cut = int(0.7 * len(times))
    target = np.column_stack([np.cos(angle), np.sin(angle)])
    guess = x[cut:] @ ridge(x[:cut], target[:cut], 1.0)
    error = np.abs(np.angle(np.exp(1j * (np.arctan2(guess[:, 1], guess[:, 0]) - angle[cut:]))))
    assert np.degrees(np.median(error)) < 15  # chance is 90


@pytest.mark.material("ssvep-eeg")
def test_flicker_frequencies_are_in_the_eeg():
    trials = data("ssvep-eeg")["trials"]
    assert trials["eeg"].shape == (240, 9, 1250) and np.bincount(trials["label"]).tolist() == [6] * 40
    x = np.asarray(trials["eeg"][:, :, 160:410], float)
    x -= x.mean(axis=2, keepdims=True)
    hits = []
    for block in range(6):
        asked = trials["block"] == block
        templates = np.stack([x[(trials["label"] == k) & ~asked].mean(axis=0).ravel() for k in range(40)])
        found = np.corrcoef(templates, x[asked].reshape(40, -1))[:40, 40:].argmax(axis=0)
        hits.append(found == trials["label"][asked])
    assert np.mean(hits) > 0.25  # chance is 0.025


@pytest.mark.material("cvep-eeg")
def test_codes_and_trials_of_five_people():
    dataset = data("cvep-eeg")
    assert dataset["trials"]["eeg"].shape == (500, 8, 2520) and dataset["codes"]["code"].shape == (20, 504)
    assert set(dataset["trials"]["label"]) == set(range(20))
    one = data("cvep-eeg", subject=3)["trials"]
    assert np.array_equal(one["eeg"][0], dataset["trials"]["eeg"][200])
    with pytest.raises(DataError, match="no subject 6: there are 1 to 5"):
        data("cvep-eeg", subject=6)


@pytest.mark.material("reading-times", "lexical-decision")
def test_words_take_their_time():
    words = data("reading-times")["all"]
    assert len(words) == 3922 and len(set(words["paragraph"])) == 12 and len(set(words["reader"])) == 3
    seen = words["dwell"] > 0
    for measure, r in (("surprisal", 0.17), ("length", 0.25)):
        assert np.corrcoef(words["dwell"][seen], words[measure][seen])[0, 1] == pytest.approx(r, abs=0.02)
    trials = data("lexical-decision")["all"]
    assert len(trials) == 13_222 and len(set(trials["id"])) == 45
    rows = (trials["task"] == "lexdec") & (trials["stimulus"] == "word") & (trials["correct"] == 1)
    frequent, rare = (trials["rt"][rows & (trials["frequency"] == level)].mean() for level in ("high", "low"))
    assert frequent < rare - 0.03  # seconds


@pytest.mark.material("adult", "movielens-100k")
def test_tables_of_people_and_films():
    adult, films = data("adult"), data("movielens-100k")
    assert len(adult) == 48_842 and len(films) == 100_000
    rates = [split["label"].mean() for split in adult.splits.values()]
    assert max(rates) - min(rates) < 0.001 and rates[0] == pytest.approx(0.239, abs=0.001)
    train = adult["train"]
    assert train["age"][train["label"] == 1].mean() > train["age"][train["label"] == 0].mean() + 5
    assert {"Private", "?"} <= set(train["workclass"]) and "income" not in train
    assert films["train"]["time"].max() <= films["validation"]["time"].min() <= films["test"]["time"].min()
    every = np.concatenate([split["film"] for split in films.splits.values()])
    assert set(every) == set(range(1682)) and films["test"]["genres"].shape[1] == 18
    row = films["train"]["title"].tolist().index("Toy Story (1995)")
    assert (
        films["train"]["film"][row] == 0 and films["train"]["genres"][row].sum() == 3
    )  # animation, children's, comedy
    assert np.array_equal(films["train"]["label"], films["train"]["rating"] >= 4)


@pytest.mark.material("buchwald-hartwig", "cn-coupling", "thiol-addition", "direct-arylation")
@pytest.mark.parametrize(
    ("name", "rows", "column", "choices"),
    [
        ("buchwald-hartwig", 3955, "yield", {"ligand": 4, "additive": 22, "base": 3, "halide": 15}),
        ("cn-coupling", 1536, "conversion", {"nucleophile": 16, "catalyst": 16, "base": 6}),
        ("thiol-addition", 1075, "ddg", {"catalyst": 43, "imine": 5, "thiol": 5}),
        ("direct-arylation", 1728, "yield", {"base": 4, "ligand": 12, "solvent": 4}),
    ],
)
def test_reactions_depend_on_their_substances(name, rows, column, choices):
    table = data(name)["all"]
    assert len(table) == rows and {key: len(set(table[key])) for key in choices} == choices
    codes = [np.unique(table[key], return_inverse=True)[1] for key in choices]
    x = np.concatenate([np.eye(code.max() + 1)[code] for code in codes], axis=1)
    y = table[column] - table[column].mean()
    order = np.random.default_rng(0).permutation(rows)
    train, test = np.split(order, [rows // 2])
    guess = x[test] @ ridge(x[train], y[train], 1.0)
    assert np.corrcoef(guess, y[test])[0, 1] > 0.3


@pytest.mark.material("suzuki")
def test_suzuki_reactions_are_smiles():
    table = data("suzuki")["all"]
    assert len(set(table["reaction"])) == 5760 and all(reaction.count(">>") == 1 for reaction in table["reaction"])
    assert table["yield"].min() == 0 and table["yield"].max() == 1


@pytest.mark.material("nas-bench-201")
def test_every_cell_has_its_accuracy():
    best = {"cifar10": 91.6, "cifar100": 73.5, "imagenet16-120": 46.7}
    tables = {images: data("nas-bench-201", images=images)["all"] for images in best}
    for images, table in tables.items():
        assert len(table) == 15_625 and len(np.unique(table["operations"], axis=0)) == 15_625
        assert table["accuracy"].max() == pytest.approx(best[images], abs=0.1)
    a, b = (tables[name]["accuracy"] for name in ("cifar10", "cifar100"))
    assert np.corrcoef(a, b)[0, 1] > 0.9
    cell = tables["cifar100"]["cell"][tables["cifar100"]["accuracy"].argmax()]
    assert cell.split("|")[0] == "nor_conv_3x3~1<-0" and cell.count("nor_conv_3x3") == 5
    nothing = tables["cifar10"]["operations"].sum(axis=1).argmin()
    assert tables["cifar10"]["accuracy"][nothing] == pytest.approx(10, abs=0.5)  # no edge carries anything
    with pytest.raises(DataError, match="no images 'mnist'"):
        data("nas-bench-201", images="mnist")


@pytest.mark.material("tau2")
def test_tau2_tasks_have_gold_actions():
    dataset = data("tau2")
    tasks = {row: split for row, split in dataset.splits.items() if row != "policies"}
    assert {name: len(split) for name, split in tasks.items()} == {"train": 178, "test": 100}
    assert dataset["policies"]["domain"] == ["airline", "retail", "telecom"]
    retail = data("tau2", domain="retail")["train"]
    actions = json.loads(retail["actions"][0])
    assert actions[0]["name"] == "find_user_id_by_name_zip" and "keyboard" in retail["prompt"][0]
    assert sum(map(len, data("tau2", domain="telecom", full=True).splits.values())) == 2285 + 1
    with pytest.raises(DataError, match="no domain 'bank'"):
        data("tau2", domain="bank")


@pytest.mark.material("santa-fe-laser", "japanese-vowels")
def test_recorded_sequences():
    laser = data("santa-fe-laser")
    assert sum(map(len, laser.splits.values())) == 10_093
    assert laser["train"]["value"][:5, 0].tolist() == [86, 141, 95, 41, 22]
    vowels = data("japanese-vowels")
    train, test = vowels["train"], vowels["test"]
    assert (
        np.bincount(train["label"]).tolist() == [30] * 9 and 7 <= train["length"].min() <= train["length"].max() <= 29
    )
    for row in (0, 100):
        assert train["sequence"][row, train["length"][row] - 1].any()
        assert not train["sequence"][row, train["length"][row] :].any()
    means = [split["sequence"].sum(axis=1) / split["length"][:, None] for split in (train, test)]
    centres = np.stack([means[0][train["label"] == k].mean(axis=0) for k in range(9)])
    near = np.linalg.norm(means[1][:, None] - centres[None], axis=2).argmin(axis=1)
    assert (near == test["label"]).mean() > 0.8
