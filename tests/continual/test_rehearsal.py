"""Schedules by age, streams of tasks, springs and distances: exact shares, exact sums, nothing hidden."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import monochord as mc
from monochord.continual.ewc import EWC
from monochord.continual.rehearsal import RehearsalSchedule
from monochord.continual.retention import Retention
from monochord.continual.springs import Springs
from monochord.continual.stream import _Phase, learn_stream
from monochord.continual.synaptic_intelligence import SynapticIntelligence
from monochord.continual.without_forgetting import LearningWithoutForgetting
from monochord.objectives import CrossEntropy, NextToken

SCHEDULES = (
    RehearsalSchedule.power_law(1.0, 0.3),
    RehearsalSchedule.exponential(0.7, 0.3),
    RehearsalSchedule.uniform(0.3),
    RehearsalSchedule.recent(0.3),
    RehearsalSchedule.custom(lambda age: age, 0.3),
)


@given(st.integers(1, 60), st.integers(1, 5000), st.floats(0, 4), st.floats(0, 2))
def test_shares_follow_the_power_law_and_sum_to_the_amount(phase, rows, d, amount):
    counts = RehearsalSchedule.power_law(d, amount).counts(phase, rows)
    total = round(amount * rows)
    age = np.arange(phase, 0, -1.0)
    exact = total * age**-d / (age**-d).sum()
    assert counts.sum() == total and (np.abs(counts - exact) < 1).all()


def test_limits_of_the_exponent():
    for phase in (1, 2, 9):
        uniform, recent = RehearsalSchedule.uniform(0.5), RehearsalSchedule.recent(0.5)
        assert (RehearsalSchedule.power_law(0, 0.5).counts(phase, 100) == uniform.counts(phase, 100)).all()
        assert (RehearsalSchedule.power_law(200, 0.5).counts(phase, 100) == recent.counts(phase, 100)).all()
    assert RehearsalSchedule.exponential(3.0, 0.5).counts(900, 100).sum() == 50  # no underflow of old ages


def test_drawn_rows_follow_the_weights():
    """Rows of old tasks as a stream presents them, by chi-square over 100,000 of them."""
    seen = np.zeros(9, int)
    age = np.arange(9, 0, -1.0)
    wanted = age**-1.0 / (age**-1.0).sum()
    rng = np.random.default_rng(0)
    for _ in range(400):  # streams with few rows each: rounding must not lean to one side
        counts = RehearsalSchedule.power_law(1.0, 1.0).counts(9, int(rng.integers(200, 300)))
        seen += counts
    assert stats.chisquare(seen, wanted * seen.sum()).pvalue > 0.01


def test_clocks():
    learned, met = RehearsalSchedule.power_law(1.0, 1.0), RehearsalSchedule.power_law(1.0, 1.0, clock="encountered")
    last = np.zeros(3, int)
    for phase in (0, 1):
        last = met.meet(last, phase, met.counts(phase, 10, last))
    assert last.tolist() == [1, 1, 0] and met.counts(2, 10, last).tolist() == [5, 5]
    assert learned.meet(np.array([0, 0, 0]), 1, np.array([10])).tolist() == [0, 1, 0]
    assert learned.counts(2, 9).tolist() == [3, 6]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_thousand_tasks(schedule):
    counts = schedule.counts(999, 1000)
    assert counts.sum() == 300 and len(counts) == 999


def test_bad_schedules_are_refused():
    for make, message in (
        (lambda: RehearsalSchedule.power_law(amount=-1), "0 or more"),
        (lambda: RehearsalSchedule.power_law(clock="wall"), "use 'learned' or 'encountered'"),
        (lambda: RehearsalSchedule.power_law(mix="before"), "use 'after' or 'among'"),
        (lambda: RehearsalSchedule.custom(lambda age: -age).counts(3, 10), "at least 0 for each age"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# ---------------------------------------------------------------- streams


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 2))


def tasks(n=3, rows=120):
    """Which of two halves of the input is larger, the halves drawn anew for each task, with a mark of the task."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 8, generator=g)
    labels = (x[:, :4].sum(1) > x[:, 4:].sum(1)).long()
    orders = [torch.randperm(8, generator=g) for _ in range(n)]
    marks = 3 * torch.eye(4)
    return [{"x": torch.cat([x[:, o], marks[k].expand(rows, 4)], 1), "labels": labels} for k, o in enumerate(orders)]


def accuracy_on(given):
    return lambda model, k: (model(given[k]["x"]).argmax(1) == given[k]["labels"]).float().mean().item()


def learn(model, given, **options):
    return learn_stream(model, given, CrossEntropy(), accuracy_on(given), batch_size=20, lr=0.01, **options)


def test_no_amount_is_plain_training_bit_for_bit():
    given = tasks()
    plain, none = net(), net()
    learn(plain, given)
    learn(none, given, schedule=RehearsalSchedule.power_law(1.0, 0.0))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), none.parameters(), strict=True))


def test_the_same_seed_gives_the_same_numbers_and_another_does_not():
    given = tasks()
    found = []
    for seed in (0, 0, 1):
        model = net()
        learn(model, given, schedule=RehearsalSchedule.power_law(1.0, 0.3), seed=seed)
        found.append(next(model.parameters()).detach())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_rehearsal_keeps_the_first_task_and_rows_of_the_new_one_in_their_place_do_not():
    given = tasks(4)
    options = {"epochs": 8, "schedule": RehearsalSchedule.uniform(0.6)}
    plain = learn(net(), given, epochs=8)
    kept = learn(net(), given, **options)
    more = learn(net(), given, source=lambda phase, old: phase, **options)
    assert kept.final > plain.final + 0.05 and more.final < kept.final - 0.05
    assert np.isnan(kept.scores[0, 1]) and kept.scores.shape == (4, 4)
    assert sum(map(len, more.losses)) == sum(map(len, kept.losses))  # as many updates


def test_a_phase_shows_every_new_row_once_an_epoch_and_old_rows_after():
    given = tasks(2)
    batches = _Phase(given, [(1, row) for row in range(120)], [(0, row) for row in range(30)], 2, 50, 0, 1)
    order = [row for batch in batches.batches for row in batch]
    assert sorted(order[:240]) == sorted([(1, row) for row in range(120)] * 2)
    assert {task for task, _ in order[240:]} == {0} and len(order) == 300
    batch = batches[0]
    assert torch.equal(batch["labels"], given[1]["labels"][[row for _, row in batches.batches[0]]])


def test_any_data_set_of_rows_makes_a_task():
    rows = [{"x": x, "labels": y} for x, y in zip(tasks()[0]["x"], tasks()[0]["labels"], strict=True)]
    one, two = net(), net()
    learn(one, tasks()[:1])
    learn_stream(two, [rows], CrossEntropy(), lambda model, k: 0.0, batch_size=20, lr=0.01)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_texts_through_a_shipped_language_model():
    model = mc.load("ladder-0.3m")
    g = torch.Generator().manual_seed(0)
    topics = torch.randint(10, 2000, (3, 16), generator=g)  # each task repeats words of its own
    streams = [{"input_ids": words[torch.randint(16, (24, 20), generator=g)]} for words in topics]

    def score(model, k):
        return -NextToken()(model, streams[k]).total.item()

    options = {"batch_size": 8, "lr": 2e-3, "epochs": 3}
    plain = learn_stream(copy.deepcopy(model), streams, NextToken(), score, **options)
    kept = learn_stream(model, streams, NextToken(), score, schedule=RehearsalSchedule.power_law(1.0, 0.5), **options)
    assert kept.forgetting < 0.8 * plain.forgetting and plain.forgetting > 0


# ---------------------------------------------------------------- strategies


def test_springs_sum_to_the_separate_penalties():
    model = nn.Linear(3, 2)
    g = torch.Generator().manual_seed(0)
    springs, by_hand = Springs(), torch.zeros(())
    for _ in range(3):
        stiff = {n: torch.rand(p.shape, generator=g) for n, p in model.named_parameters()}
        place = {n: torch.randn(p.shape, generator=g) for n, p in model.named_parameters()}
        springs = springs.more(stiff, place)
        by_hand += sum((stiff[n] * (p - place[n]).square()).sum() / 2 for n, p in model.named_parameters())
    assert float(springs(model, {}).total) == pytest.approx(by_hand.item(), rel=1e-5)


def test_fisher_information_of_logistic_regression():
    """For logits w x with labels from the model: E (p - y)^2 x^2 = p (1 - p) x^2."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [1.0]]))
    x = torch.full((1500, 1), 0.7)
    ewc = EWC(1.0, samples=1500)
    ewc.after(model, [{"x": x, "labels": torch.zeros(1500, dtype=torch.long)}], CrossEntropy())
    p = float(torch.sigmoid(torch.tensor(0.7)))
    assert ewc.springs.stiffness["weight"].flatten().tolist() == pytest.approx([p * (1 - p) * 0.49] * 2, rel=0.06)


def test_the_path_of_synaptic_intelligence_is_the_fall_of_the_loss():
    """Over small plain gradient steps, minus gradient times movement sums to how far the loss fell."""
    given, model, strategy = tasks(1), net(), SynapticIntelligence(1.0)
    before = float(CrossEntropy()(model, given[0]).total)
    options = {"epochs": 60, "batch_size": 120, "lr": 0.02, "optimizer": "sgd", "strategy": strategy}
    learn_stream(model, given, CrossEntropy(), accuracy_on(given), **options)
    fell = before - float(CrossEntropy()(model, given[0]).total)
    path = sum(float(value.sum()) for value in strategy._path.values())
    assert path == pytest.approx(fell, rel=0.05) and fell > 0.1
    assert all((value >= 0).all() for value in strategy.importance.values())


@pytest.mark.parametrize("make", [lambda: EWC(300.0), lambda: SynapticIntelligence(300.0)])
def test_strong_springs_hold_the_weights(make):
    given = tasks(2)
    moved = []
    for strategy in (None, make()):
        model = net()
        learn(model, given[:1], epochs=8, strategy=strategy)
        before = [p.detach().clone() for p in model.parameters()]
        # the same strategy goes on to the second task
        learn_stream(model, given[1:], CrossEntropy(), lambda m, k: 0.0, batch_size=20, lr=0.01, strategy=strategy)
        moved.append(sum(float((p - b).square().sum()) for p, b in zip(model.parameters(), before, strict=True)))
    assert moved[1] < 0.7 * moved[0]


def test_learning_without_forgetting_stays_near_what_the_model_said():
    given = tasks(2)
    kept = []
    for strategy in (None, LearningWithoutForgetting(5.0)):
        model = net()
        learn(model, given[:1], epochs=8, strategy=strategy)
        with torch.no_grad():
            said = model(given[1]["x"]).softmax(1)
        learn_stream(
            model, given[1:], CrossEntropy(), lambda m, k: 0.0, batch_size=20, lr=0.01, strategy=strategy, epochs=4
        )
        with torch.no_grad():
            kept.append(float((model(given[1]["x"]).softmax(1) - said).abs().mean()))
    assert kept[1] < 0.8 * kept[0]


def test_measures_by_hand():
    nan = np.nan
    found = Retention(np.array([[0.9, nan, nan], [0.6, 0.8, nan], [0.5, 0.9, 0.7]]), [[2.0] * 4 + [0.0] * 6, [1.0]])
    assert found.final == pytest.approx(0.7) and found.learned == pytest.approx(0.8)
    assert found.forgetting == pytest.approx((0.4 + 0.0) / 2)
    assert found.curve().tolist() == pytest.approx([0.8, 0.75, 0.5])
    assert found.steps_to(1.0) == [2, 1]
