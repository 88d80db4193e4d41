"""The simulated brain keeps its promises: what is planted is found, ceilings hold, subjects differ as they should."""

import itertools

import numpy as np
import pytest

from monochord.data import DataError
from monochord.data.neural import NeuralData, estimate_ncsnr
from monochord.data.simbrain import SimBrain, calibrate, parcels, pictures, scenes, series
from monochord.data.simbrain.features import Features, gabor_energies
from monochord.data.simbrain.recovery import (
    alignment_accuracy,
    attention_iou,
    centre_error,
    correlations,
    normalised_r2,
    weight_cosine,
)
from monochord.data.simbrain.responses import Banks, attended, receptive_fields
from monochord.data.simbrain.scenes import CATEGORIES, all_captions
from monochord.data.simbrain.series import convolved, haemodynamic_response
from monochord.data.simbrain.sheet import FRACTIONS, ROIS, Sheet, counts

pytestmark = pytest.mark.material("fashion-mnist")


def bag_of_words(captions):
    """Words and pairs of words as fixed random vectors, a caption their sum: quick, and alike for alike captions."""

    def parts(caption):
        words = caption.split()
        return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]

    known = {part: row for row, part in enumerate(sorted({p for caption in all_captions() for p in parts(caption)}))}
    vectors = np.random.default_rng(0).standard_normal((len(known), 64))
    return np.stack([sum(vectors[known[part]] for part in parts(caption)) for caption in captions])


def small(seed=0, **options):
    sizes = {"subjects": 2, "voxels": (400, 300), "shared": 100, "unique": 150, "encode": bag_of_words}
    return SimBrain(seed=seed, **{**sizes, **options})


@pytest.fixture(scope="module")
def brain():
    return small()


@pytest.fixture(scope="module")
def subject(brain):
    return brain.subject(0)


@pytest.fixture(scope="module")
def banks(brain):
    return Banks.of(brain.stimuli(0), brain.features)


def test_scenes_have_exact_masks_and_true_captions():
    stimuli = scenes(60, seed=3)
    for image, labels, present, caption in zip(
        stimuli.images, stimuli.labels, stimuli.present, stimuli.captions, strict=True
    ):
        assert image.shape == (64, 64, 3) and caption in all_captions()
        assert [(labels == k + 1).any() for k in range(5)] == present.tolist()
        assert 1 <= present.sum() <= 3
        sizes = [np.ptp(np.argwhere(labels == k + 1), axis=0).max() + 1 for k in np.flatnonzero(present)]
        assert all(3 <= size <= 64 for size in sizes)
    first = [c.split(" in front of ")[0] for c in stimuli.captions]
    named = [[name for name in CATEGORIES if name in text] for text in first]
    assert np.mean([stimuli.present[i, CATEGORIES.index(n[0])] for i, n in enumerate(named)]) > 0.9
    assert len(set(all_captions())) == len(all_captions()) == 15 * 21 * 6


def test_scenes_depend_on_seed_split_and_number_alone():
    whole, tail = scenes(12, 5), scenes(4, 5, start=8)
    assert np.array_equal(whole.images[8:], tail.images) and whole.captions[8:] == tail.captions
    assert not np.array_equal(whole.images, scenes(12, 6).images)
    assert not np.array_equal(whole.images, scenes(12, 5, "test").images)


def test_gabor_energy_is_highest_for_its_own_wave():
    y, x = np.mgrid[:64, :64]
    for scale, wavelength in enumerate((4, 8, 16)):
        for orientation in (0, 2, 3):
            angle = orientation * np.pi / 6
            wave = 127 + 100 * np.cos(2 * np.pi / wavelength * (x * np.cos(angle) + y * np.sin(angle)))
            image = np.repeat(wave.astype(np.uint8)[None, :, :, None], 3, axis=3)
            middle = gabor_energies(image).reshape(4, 6, 16, 16)[:, :, 6:10, 6:10].mean(axis=(2, 3))
            assert np.unravel_index(middle.argmax(), middle.shape) == (scale, orientation)
    assert gabor_energies(np.full((1, 64, 64, 3), 90, np.uint8)).max() < 1e-4


def test_gabor_energy_ignores_phase():
    x = np.broadcast_to(np.arange(64), (64, 64))
    waves = [127 + 100 * np.cos(2 * np.pi / 8 * x + phase) for phase in (0, 1, 2, 3)]
    images = np.repeat(np.stack(waves).astype(np.uint8)[..., None], 3, axis=3)
    middle = gabor_energies(images).reshape(4, 4, 6, 16, 16)[:, 1, 0, 6:10, 6:10].mean(axis=(1, 2))
    assert np.ptp(middle) < 0.05 * middle.mean()


def test_regions_have_their_shares_of_voxels():
    for voxels in (1400, 1250, 1100, 950, 137):
        assert sum(counts(voxels)) == voxels
    assert dict(zip(ROIS, counts(1400), strict=True)) == {
        "V1": 187,
        "V2": 187,
        "V3": 186,
        "MID": 210,
        "SEM": 140,
        "NULL": 70,
        **{f"CAT_{k}": 84 for k in range(1, 6)},
    }
    assert sum(FRACTIONS.values()) == pytest.approx(1)
    with pytest.raises(DataError, match="do not fit: "):
        Sheet(0, 0, 4090, 0.7)


def test_everything_is_determined_by_the_seed(subject):
    again, other = small().subject(0), small(seed=1).subject(0)
    assert np.array_equal(again.data.responses, subject.data.responses)
    assert np.array_equal(again.data.stimulus_ids, subject.data.stimulus_ids)
    assert not np.array_equal(other.truth.roi, subject.truth.roi)


def test_every_stimulus_is_shown_three_times_and_only_the_shared_ones_to_all(brain, subject):
    for number in (0, 1):
        ids, shown = np.unique(brain.subject(number).data.stimulus_ids, return_counts=True)
        assert set(shown) == {3} and np.array_equal(ids, brain.ids(number))
    assert subject.test.shape == (300, 400) and subject.train.shape == (450, 400)
    both = set(subject.data.stimulus_ids) & set(brain.subject(1).data.stimulus_ids)
    assert both == set(subject.test.stimulus_ids) == set(range(100))
    images = brain.images(np.array([7, 251, 7]))
    assert np.array_equal(images[0], images[2]) and np.array_equal(images[1], brain.stimuli(1).images[101])


def test_planted_ceilings_are_found_in_the_data(subject):
    truth, found = subject.truth, estimate_ncsnr(subject.data)
    assert np.corrcoef(found, truth.ncsnr)[0, 1] > 0.95
    for region, median in {"V": 0.8, "MID": 0.6, "CAT": 0.5, "SEM": 0.35, "NULL": 0.0}.items():
        here = np.char.startswith(truth.roi, region)
        assert np.median(truth.ncsnr[here]) == pytest.approx(median, abs=0.12)
        assert np.median(found[here]) == pytest.approx(np.median(truth.ncsnr[here]), abs=0.08)
    averaged = subject.data.average()
    share = np.square(correlations(truth.of(averaged.stimulus_ids), averaged.responses))
    seen = truth.ncsnr > 0
    assert np.abs(100 * share - truth.ceiling)[seen].mean() < 4  # the truth itself explains what can be explained
    assert np.allclose(truth.ceiling, 100 * truth.ncsnr**2 / (truth.ncsnr**2 + 1 / 3))
    scores = normalised_r2(truth.of(averaged.stimulus_ids), averaged.responses, truth)
    assert all(0.85 < score < 1.15 for score in scores.values()) and "NULL" not in scores


def test_noise_has_its_parts():
    cells = small(snr=0).subject(0)
    residual = cells.data.responses / cells.truth.tuning.gains
    assert residual.std(axis=0).mean() == pytest.approx(1, abs=0.02)
    correlation = np.corrcoef(residual.T)
    distance = np.linalg.norm(cells.data.coords[:, None] - cells.data.coords[None], axis=2)
    assert correlation[distance > 12].mean() == pytest.approx(0.1, abs=0.03)  # what all voxels share
    assert correlation[distance == 1].mean() == pytest.approx(
        0.1 + 0.5 * np.exp(-1 / (4 * 0.849**2)), abs=0.03
    )  # FWHM of two cells


def test_planted_receptive_fields_are_found(subject, banks):
    """A grid search over centres, each with ridge weights over the channels, without noise and with it."""
    voxels = np.flatnonzero(np.isin(subject.truth.roi, ["V1", "V2"]))[::4]
    measured = subject.data.average()
    places = np.stack(np.meshgrid(np.arange(6, 60, 4), np.arange(6, 60, 4), indexing="ij"), axis=-1).reshape(-1, 2)
    fields = receptive_fields(places.astype(float), np.full(len(places), 5.0)).astype(np.float32)
    seen = np.einsum("ncp,vp->vnc", banks.energies.astype(np.float32), fields, optimize=True)
    for name, y, limit in (("truth", subject.truth.responses, 5), ("data", measured.responses, 9)):
        scores = np.stack([_held_out(x, y[:, voxels]) for x in seen])
        centres = np.full((len(subject.truth.roi), 2), np.nan)
        centres[voxels] = places[scores.argmax(axis=0)]
        error = np.nanmedian(centre_error(centres, subject.truth))
        chance = np.nanmedian(centre_error(np.roll(centres, 8, axis=0), subject.truth))
        assert error < limit, name
        assert error < 0.5 * chance, name


def _held_out(x, y, penalty=3.0):
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)
    half = len(x) // 2
    gram = x[:half].T @ x[:half] + penalty * np.eye(x.shape[1])
    return correlations(x[half:] @ np.linalg.solve(gram, x[:half].T @ y[:half]), y[half:])


def test_receptive_fields_grow_with_eccentricity_and_along_the_hierarchy(subject):
    tuned, roi = subject.truth.tuning, subject.truth.roi
    radius = np.linalg.norm(tuned.centres - 32, axis=1)
    for name in ("V1", "V2", "V3", "MID"):
        assert np.corrcoef(radius[roi == name], tuned.sizes[roi == name])[0, 1] > 0.5
    medians = [np.median(tuned.sizes[roi == name]) for name in ("V1", "V2", "V3", "MID")]
    assert medians == sorted(medians)
    assert np.isnan(tuned.sizes[np.char.startswith(roi, "CAT")]).all()


def test_planted_weights_are_found(subject, banks):
    semantic = subject.truth.responses[:, subject.truth.roi == "SEM"]
    found = np.linalg.lstsq(banks.meanings - banks.meanings.mean(axis=0), semantic, rcond=None)[0].T
    assert weight_cosine(found, subject.truth, "SEM").min() > 0.999
    assert abs(weight_cosine(np.roll(found, 1, axis=1), subject.truth, "SEM").mean()) < 0.3


def test_category_areas_look_where_their_object_is(brain, subject, banks):
    stimuli = brain.stimuli(0)
    assert np.allclose(subject.truth.attention.sum(axis=2), 1)
    assert (attention_iou(subject.truth.attention, subject.truth, stimuli.present) == 1).all()
    blind = attended(
        pictures(stimuli.images, np.zeros(len(stimuli), int), CATEGORIES), banks.patches, brain.features.queries
    )
    uniform = np.random.default_rng(0).random(blind.shape)
    scores, chance = (attention_iou(maps, subject.truth, stimuli.present) for maps in (blind, uniform))
    assert (scores > 3 * chance).all()  # the CNN finds the objects without masks too
    for k in range(5):
        area = subject.truth.roi == f"CAT_{k + 1}"
        responses = subject.truth.responses[:, area] / subject.truth.tuning.gains[area]
        with_it, without = (responses[stimuli.present[:, k] == seen].mean() for seen in (True, False))
        assert with_it > without + 0.5


def test_early_areas_follow_place_and_category_areas_do_not(brain, subject):
    """An object that moves changes V1 more than CAT: responses to one object at two places, both on plain grey."""
    k, size = 2, 24
    source = scenes(200, 9)
    row = next(i for i in range(200) if source.present[i].tolist() == [False, False, True, False, False])
    mask = source.labels[row] == k + 1
    top, left = np.argwhere(mask).min(axis=0)
    patch, cut = source.images[row][top : top + size, left : left + size], mask[top : top + size, left : left + size]
    images, labels = np.full((2, 64, 64, 3), 128, np.uint8), np.zeros((2, 64, 64), np.uint8)
    for i, (y, x) in enumerate(((4, 4), (36, 36))):
        here = slice(y, y + cut.shape[0]), slice(x, x + cut.shape[1])
        images[i][here][cut], labels[i][here][cut] = patch[cut], k + 1
    rest = scenes(150, 21)
    moved = type(rest)(
        np.concatenate([images, rest.images]),
        np.concatenate([rest.present[:0], np.eye(5, dtype=bool)[[k, k]], rest.present]),
        np.concatenate([labels, rest.labels]),
        (rest.captions[0], rest.captions[0], *rest.captions),
    )
    responses = brain.respond(0, moved) / subject.truth.tuning.gains
    change = np.abs(responses[0] - responses[1])
    category, early = subject.truth.roi == f"CAT_{k + 1}", subject.truth.roi == "V1"
    assert change[category].mean() < 0.5 * change[early].mean()


def test_share_says_how_alike_subjects_are():
    def alike(share):
        """Mean correlation of the maps at cells that both subjects have, read where the population's cell is."""
        one, other = (Sheet(0, number, 1200, share) for number in (0, 1))
        own, theirs = (sheet._warp[:, sheet.cells[:, 0], sheet.cells[:, 1]].T for sheet in (one, other))
        near = np.linalg.norm(own[:, None] - theirs[None], axis=2)
        pairs = np.argwhere(near < 0.7)
        a, b = one.maps("meaning", 16)[pairs[:, 0]], other.maps("meaning", 16)[pairs[:, 1]]
        return correlations(a, b).mean()

    assert alike(0.0) == pytest.approx(0, abs=0.1)
    assert alike(0.7) == pytest.approx(0.7, abs=0.1)
    assert alike(1.0) > 0.9


def test_neighbours_in_index_are_alike_unless_scrambled(subject):
    def neighbours(found):
        weights = found.truth.tuning.weights["SEM"]
        return correlations(weights[:-1].T, weights[1:].T).mean()

    scrambled = small(controls=["scramble_voxels"]).subject(0)
    assert neighbours(subject) > 0.35 > 0.15 > abs(neighbours(scrambled))
    assert sorted(scrambled.truth.roi) == sorted(subject.truth.roi)
    order = np.lexsort(scrambled.data.coords.T[::-1])
    assert np.array_equal(scrambled.data.responses[:, order], subject.data.responses)  # the same voxels, renumbered
    assert np.allclose(scrambled.truth.responses[:, order], subject.truth.responses)
    measured = scrambled.data.average()
    assert all(
        s > 0.8
        for s in normalised_r2(scrambled.truth.of(measured.stimulus_ids), measured.responses, scrambled.truth).values()
    )
    semantic = scrambled.truth.tuning.weights["SEM"]
    rows = np.argsort(order)[scrambled.truth.roi == "SEM"]
    places = {voxel: i for i, voxel in enumerate(np.flatnonzero(subject.truth.roi == "SEM").tolist())}
    assert np.allclose(semantic, subject.truth.tuning.weights["SEM"][[places[r] for r in rows.tolist()]])


def test_controls_spoil_what_they_name(subject):
    shuffled = small(controls=["shuffle_stimuli"]).subject(0)
    truth = shuffled.truth
    for part in (shuffled.train.average(), shuffled.test.average()):
        assert np.abs(correlations(truth.of(part.stimulus_ids), part.responses)).mean() < 0.12
    assert set(shuffled.test.stimulus_ids) == set(subject.test.stimulus_ids)
    static = small(controls=["static_only"]).subject(0)
    assert np.isfinite(static.truth.tuning.sizes[np.char.startswith(static.truth.roi, "CAT")]).all()
    silent = small(snr=0).subject(0)
    assert not silent.truth.responses.any() and not silent.truth.ceiling.any()
    loud = small(snr=3).subject(0)
    assert np.allclose(loud.truth.ncsnr, 3 * subject.truth.ncsnr)
    with pytest.raises(DataError, match="no control static: there are shuffle_stimuli"):
        small(controls=["static"])
    with pytest.raises(DataError, match="share=2"):
        small(share=2)
    with pytest.raises(DataError, match="no subject 2: there are 0 to 1"):
        small().subject(2)


def test_subjects_can_be_aligned_on_what_they_share(brain):
    """Ridge from one subject's noise-free responses to the other's, learnt on half of the shared stimuli."""
    one, other = (brain.subject(number).truth.of(np.arange(100)) for number in (0, 1))
    gram = one[:60].T @ one[:60] + 30 * np.eye(one.shape[1])
    aligned = one[60:] @ np.linalg.solve(gram, one[:60].T @ other[:60])
    assert alignment_accuracy(aligned, other[60:]) > 0.5
    assert alignment_accuracy(other[60:], other[60:]) == 1
    assert alignment_accuracy(np.roll(aligned, 1, axis=0), other[60:]) < 0.2


def test_plain_pictures_are_accepted():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=60)
    images = (rng.random((60, 28, 28)) * 80 + 60 * labels[:, None, None]).astype(np.uint8)
    plain = pictures(images, labels, ("cup", "ball", "tree"))
    assert plain.images.shape == (60, 64, 64, 3) and plain.captions[0] == f"a {('cup', 'ball', 'tree')[labels[0]]}"
    brain = SimBrain(
        plain, subjects=1, voxels=(200,), shared=10, encode=lambda c: bag_of_words(["a small bag"] * len(c))
    )
    subject = brain.subject(0)
    assert subject.data.shape == (180, 200) and brain.categories[:3] == ("cup", "ball", "tree")
    area = subject.truth.roi == "CAT_2"
    responses = subject.truth.responses[:, area]
    assert responses[labels == 1].mean() > responses[labels != 1].mean()
    assert not subject.truth.responses[:, subject.truth.roi == "SEM"].any()  # all captions are alike
    with pytest.raises(DataError, match="6 categories"):
        pictures(images, labels, tuple("abcdef"))


def test_the_surface_shows_each_voxel_at_its_cell(subject):
    values = np.arange(subject.data.shape[1], dtype=float)
    image = subject.surface(values)
    assert image.shape == (64, 64)
    assert np.array_equal(image[tuple(subject.data.coords.T)], values)


def test_calibration_brings_decoding_where_methods_can_differ(brain):
    found = calibrate(brain, low=0.1, high=0.3)
    assert 0.1 <= found.top1 <= 0.3 and found.noise_free > found.top1 and found.candidates == 100
    with pytest.raises(DataError, match="snr 0"):
        calibrate(small(snr=0))
    with pytest.raises(DataError, match="less than 99%"):
        calibrate(brain, low=0.99, high=1)


def test_the_haemodynamic_response_peaks_at_five_seconds():
    fine = haemodynamic_response(0.1)
    assert abs(np.argmax(fine) * 0.1 - 5) < 0.3 and abs(np.argmin(fine) * 0.1 - 15.5) < 1.5
    assert haemodynamic_response().sum() == pytest.approx(1)
    event = np.zeros((20, 1))
    event[3] = 1
    assert not convolved(event)[:3].any()


def test_scans_follow_the_stimuli(brain, subject):
    data = series(brain, 0, scans=400)
    assert data.shape == (400, 400) and data.tr == 1.5
    assert np.array_equal(data.events["onset"][:3], [0, 3, 6])
    expected = convolved(subject.truth.of(data.stimulus_ids))
    seen = subject.truth.ncsnr > 0
    fit = np.square(correlations(expected, data.responses))[seen]
    ceiling = (subject.truth.ncsnr**2 / (1 + subject.truth.ncsnr**2))[seen]
    assert fit.mean() == pytest.approx(ceiling.mean(), abs=0.08)
    silent = data.responses[:, ~seen]
    white = np.diff(silent, axis=0)  # without the drift
    assert np.median(correlations(silent[1:], silent[:-1])) > 0.3 > abs(np.median(correlations(white[2:], white[:-2])))
    assert not np.array_equal(series(brain, 0, 400, run=2).stimulus_ids, data.stimulus_ids)
    with pytest.raises(DataError, match="5 scans are too few"):
        series(brain, 0, 5)


def test_parcels_are_coupled_by_the_connectome_and_follow_their_networks(brain):
    rng = np.random.default_rng(0)
    connectome = np.zeros((40, 40))
    pairs = rng.permutation(40).reshape(20, 2)
    connectome[pairs[:, 0], pairs[:, 1]] = connectome[pairs[:, 1], pairs[:, 0]] = 1000
    audio = rng.standard_normal((300, 4))
    coupled, alone = (
        parcels(brain, 0, 300, connectome=c, audio=a) for c, a in ((connectome, audio), (np.eye(40), None))
    )
    assert coupled.shape == (300, 40) and sorted(set(coupled.roi)) == ["AUD", "DAN", "DMN", "LAN", "VIS"]
    tied, free = (np.corrcoef(data.responses.T)[tuple(pairs.T)].mean() for data in (coupled, alone))
    assert tied > free + 0.3
    heard = alone.ncsnr[alone.roi == "AUD"]
    assert not heard.any() and coupled.ncsnr.min() > 0
    listening = np.linalg.lstsq(convolved(audio), coupled.responses, rcond=None)[0]
    fit = correlations(convolved(audio) @ listening, coupled.responses)
    assert fit[coupled.roi == "AUD"].mean() > fit[coupled.roi == "VIS"].mean() + 0.15
    with pytest.raises(DataError, match="square table"):
        parcels(brain, 0, 300, connectome=np.zeros((3, 4)))


def test_features_are_the_simulators_own(brain):
    mine, other = Features(0, bag_of_words), Features(1, bag_of_words)
    images = brain.images(np.arange(20))
    assert not np.allclose(mine.patches(images), other.patches(images))
    meanings = mine.meanings(scenes(400, 5).captions)
    assert np.abs(meanings.mean(axis=0)).max() < 0.3 and np.abs(meanings.std(axis=0) - 1).max() < 0.35
    assert np.allclose(np.linalg.norm(mine.queries, axis=1), 1)


@pytest.mark.material("minilm")
def test_captions_are_read_by_a_real_sentence_encoder():
    from monochord.data.simbrain.features import _minilm

    near, same, far = "a small bag in front of trees", "a little handbag before a forest", "a large dress below a shirt"
    vectors = _minilm([near, same, far])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_neural_data_survives_the_way_through_a_dataset(subject):
    data = subject.data.take(np.arange(50))
    again = NeuralData.of(data.dataset("mine"), data.subject)
    for name in ("responses", "stimulus_ids", "roi", "ncsnr", "coords", "runs"):
        assert np.array_equal(getattr(again, name), getattr(data, name))
