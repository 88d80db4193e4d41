"""Layouts of brain data: fixtures laid out by hand as the real ones are, and the simulator's round trips."""

import json
import pickle

import numpy as np
import pytest

from monochord.data import DataError, data, formats
from monochord.data.formats.algonauts import algonauts_images, load_algonauts
from monochord.data.formats.bids import load_bids
from monochord.data.formats.nsd import load_nsd, nsd_images, nsd_shared
from monochord.data.formats.parcellated import load_parcellated
from monochord.data.neural import NeuralData, estimate_ncsnr
from monochord.data.simbrain import SimBrain, parcels, pictures, series

h5py = pytest.importorskip("h5py")
nibabel = pytest.importorskip("nibabel")


def save(file, volume):
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), file)


@pytest.fixture
def nsd(tmp_path):
    """Subject 2 of the Natural Scenes Dataset in small: a grid of 3 by 4 by 5, two sessions, the second cut short."""
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    design = tmp_path / "nsddata/experiments/nsd/nsd_expdesign.mat"
    design.parent.mkdir(parents=True)
    ordering = rng.permutation(np.repeat(np.arange(1, 301), 3))
    seen = np.stack([rng.permutation(400)[:300] + 1 for _ in range(8)])
    shared = np.sort(seen[1][:20])
    savemat(design, {"masterordering": ordering[None], "subjectim": seen, "sharedix": shared[None]})
    home = tmp_path / "nsddata/ppdata/subj02/func1pt8mm/roi"
    mask, visual = np.full((3, 4, 5), -1, np.int16), np.zeros((3, 4, 5), np.int16)
    mask[1], visual[1, 0], visual[1, 1] = 1, 1, 3
    save(home / "nsdgeneral.nii.gz", mask)
    save(home / "prf-visualrois.nii.gz", visual)
    save(home / "floc-faces.nii.gz", np.broadcast_to(np.int16(2) * (np.arange(5) == 4), (3, 4, 5)).astype(np.int16))
    labels = tmp_path / "nsddata/freesurfer/subj02/label"
    labels.mkdir(parents=True)
    (labels / "prf-visualrois.mgz.ctab").write_text("0 Unknown\n1 V1v\n2 V1d\n3 V2v\n")
    (labels / "floc-faces.mgz.ctab").write_text("0 Unknown\n1 OFA\n2 FFA-1\n")
    stored = tmp_path / "nsddata_betas/ppdata/subj02/func1pt8mm/betas_fithrf_GLMdenoise_RR"
    betas = rng.integers(-900, 900, (900, 3, 4, 5), np.int16)
    save(stored / "ncsnr.nii.gz", rng.random((3, 4, 5), np.float32))
    with h5py.File(stored / "betas_session01.hdf5", "w") as file:
        file["betas"] = betas[:750].transpose(0, 3, 2, 1)  # as MATLAB writes x, y, z, trials
    save(stored / "betas_session02.nii.gz", betas[750:].transpose(1, 2, 3, 0))
    stimuli = tmp_path / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    stimuli.parent.mkdir(parents=True)
    bricks = rng.integers(0, 256, (400, 6, 6, 3), np.uint8)
    with h5py.File(stimuli, "w") as file:
        file["imgBrick"] = bricks
    return tmp_path, betas, seen[1][ordering - 1] - 1, bricks


def test_nsd_betas_belong_to_their_pictures_and_voxels(nsd):
    root, betas, shown, bricks = nsd
    found = load_nsd(root, 2)
    assert found.shape == (900, 20) and found.subject == "subj02"
    assert np.array_equal(found.stimulus_ids, shown) and found.runs.tolist() == [1] * 750 + [2] * 150
    place = found.coords[7]
    assert np.allclose(found.responses[:, 7], betas[(slice(None), *place)] / 300)
    assert found.roi.reshape(4, 5).tolist() == [
        ["V1v"] * 4 + ["FFA-1"],  # the first atlas in order of names has the word
        ["V2v"] * 4 + ["FFA-1"],
        [""] * 4 + ["FFA-1"],
        [""] * 4 + ["FFA-1"],
    ]
    assert np.array_equal(nsd_images(root, shown[[5, 2, 5]]), bricks[shown[[5, 2, 5]]])
    assert set(nsd_shared(root)) <= set(shown)
    averaged = load_nsd(root, 2, average=True)
    assert averaged.shape == (300, 20)
    assert np.allclose(
        averaged.responses[4], found.responses[shown == averaged.stimulus_ids[4]].mean(axis=0), atol=1e-5
    )
    assert NeuralData.of(data(root, subject=2)).shape == (900, 20)
    assert found.select("V*").shape[1] == 8
    with pytest.raises(DataError, match=r"no voxel in MT.*: regions are FFA-1, V1v, V2v"):
        found.select("MT")


def test_nsd_says_what_is_missing(nsd):
    root = nsd[0]
    with pytest.raises(DataError, match="no subj01 in func1pt8mm: subjects are subj02"):
        load_nsd(root)
    stored = root / "nsddata_betas/ppdata/subj02/func1pt8mm/betas_fithrf_GLMdenoise_RR"
    with h5py.File(stored / "betas_session03.hdf5", "w") as file:
        file["betas"] = np.zeros((10, 5, 4, 3), np.int16)
    with pytest.raises(DataError, match="trials to 1510, the design has 900"):
        load_nsd(root, 2)
    with h5py.File(stored / "betas_session01.hdf5", "w") as file:
        file["betas"] = np.zeros((10, 5, 4, 4), np.int16)
    with pytest.raises(DataError, match=r"volumes \(4, 4, 5\), the mask is \(3, 4, 5\)"):
        load_nsd(root, 2)


@pytest.fixture
def algonauts(tmp_path):
    from PIL import Image

    root, rng = tmp_path / "subj01", np.random.default_rng(0)
    for split, ids in (("training", (13, 27, 8)), ("test", (845,))):
        folder = root / f"{split}_split/{split}_images"
        folder.mkdir(parents=True)
        for place, number in enumerate(ids, start=1):
            name = f"{split.removesuffix('ing')}-{place:04d}_nsd-{number:05d}.png"
            Image.fromarray(np.full((4, 4, 3), number % 256, np.uint8)).save(folder / name)
    responses = {side: rng.standard_normal((3, count), np.float32) for side, count in (("lh", 5), ("rh", 4))}
    (root / "training_split/training_fmri").mkdir()
    (root / "roi_masks").mkdir()
    for side, values in responses.items():
        np.save(root / f"training_split/training_fmri/{side}_training_fmri.npy", values)
        np.save(root / f"roi_masks/{side}.floc-bodies_challenge_space.npy", np.arange(values.shape[1]) % 3)
    np.save(root / "roi_masks/mapping_floc-bodies.npy", {0: "Unknown", 1: "EBA", 2: "FBA-1"})
    return root, responses


def test_algonauts_hemispheres_lie_side_by_side(algonauts):
    root, responses = algonauts
    found = load_algonauts(root)
    assert np.array_equal(found.responses, np.concatenate([responses["lh"], responses["rh"]], axis=1))
    assert found.stimulus_ids.tolist() == [13, 27, 8] and found.subject == "subj01"
    assert found.roi.tolist() == ["", "lh.EBA", "lh.FBA-1", "", "lh.EBA", "", "rh.EBA", "rh.FBA-1", ""]
    assert found.coords[5].tolist() == [1, 0]
    ids, images = algonauts_images(root)
    assert ids.tolist() == [13, 27, 8] and images[:, 0, 0, 0].tolist() == [13, 27, 8]
    assert algonauts_images(root, "test")[0].tolist() == [845]
    assert formats.find(root) == "algonauts" and NeuralData.of(data(root)).shape == (3, 9)
    (root / "training_split/training_images/train-0003_nsd-00008.png").unlink()
    with pytest.raises(DataError, match="3 rows for 2 training pictures"):
        load_algonauts(root)


def test_a_table_of_regions_that_would_run_code_is_refused(algonauts, tmp_path):
    root, _ = algonauts
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return open, (str(marker), "w")

    file = root / "roi_masks/mapping_floc-bodies.npy"
    np.save(file, np.array(Attack(), dtype=object))
    with pytest.raises(DataError, match=r"refers to .*open, which is refused"):
        load_algonauts(root)
    assert not marker.exists()
    file.write_bytes(pickle.dumps({0: "x"}))
    with pytest.raises(DataError, match="not a table of region names"):
        load_algonauts(root)


@pytest.fixture
def bids(tmp_path):
    root, rng = tmp_path / "study", np.random.default_rng(0)
    volumes = rng.standard_normal((2, 2, 2, 3, 10)).astype(np.float32)
    volumes[:, 0, 0, 0] = 7  # a voxel that never changes
    for subject in ("01", "02"):
        for run in (1, 2):
            stem = root / f"sub-{subject}/func/sub-{subject}_task-faces_run-{run}"
            save(stem.with_name(stem.name + "_bold.nii.gz"), volumes[run - 1] + (subject == "02"))
            table = "onset\tduration\ttrial_type\tresponse_time\n2\t4\tface\t0.5\n8\t4\thouse\tn/a\n"
            stem.with_name(stem.name + "_events.tsv").write_text(table)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "study", "BIDSVersion": "1.10.0"}))
    (root / "task-faces_bold.json").write_text(json.dumps({"RepetitionTime": 2.0}))  # inherited by every run
    return root, volumes


def test_bids_runs_have_their_events(bids):
    root, volumes = bids
    found = load_bids(root)
    assert found.shape == (20, 11) and found.tr == 2.0 and found.subject == "01"
    assert found.stimulus_ids[:10].tolist() == ["", "face", "face", "", "house", "house", "", "", "", ""]
    assert found.runs.tolist() == [1] * 10 + [2] * 10 and found.events["run"].tolist() == [1, 1, 2, 2]
    place = found.coords[3]
    assert np.array_equal(found.responses[10:, 3], volumes[(1, *place)])
    assert load_bids(root, "sub-02").responses[0, 0] == found.responses[0, 0] + 1
    assert formats.find(root) == "bids" and set(data(root).splits) == {"trials", "voxels", "events"}
    again = NeuralData.of(data(root), tr=2.0)
    assert again.events["trial_type"].tolist() == ["face", "house"] * 2
    with pytest.raises(DataError, match="no sub-03: there are 01, 02"):
        load_bids(root, "03")
    with pytest.raises(DataError, match="task 'words' is not among faces"):
        load_bids(root, "01", "words")
    save(root / "mask.nii.gz", np.ones((2, 2, 2), np.int16))
    with pytest.raises(DataError, match="the mask"):
        load_bids(root, mask=root / "mask.nii.gz")
    (root / "task-faces_bold.json").unlink()
    assert load_bids(root).tr == 1.0  # of the volume's header


def test_parcellated_series_of_tables_and_arrays(tmp_path):
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    values = rng.standard_normal((12, 3))
    for subject in ("01", "02"):
        for run in ("03", "07"):
            rows = ["V1\tA1\tM1", *("\t".join(map(str, row)) for row in values.tolist())]
            (tmp_path / f"sub-{subject}_ts_run_{run}.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "sub-02_task-heat_run-07_events.tsv").write_text("onset\tduration\ttrial_type\n4\t2\thot\n")
    with pytest.raises(DataError, match=r"repetition time is not stated: pass tr=2\.0"):
        load_parcellated(tmp_path)
    found = load_parcellated(tmp_path, "02", tr=2.0)
    assert np.allclose(found.responses, np.concatenate([values, values])) and found.roi.tolist() == ["V1", "A1", "M1"]
    assert np.flatnonzero(found.stimulus_ids == "hot").tolist() == [14] and found.events["run"].tolist() == [2]
    (tmp_path / "timeseries.json").write_text('{"RepetitionTime": 0.72}')
    (tmp_path / "regions.tsv").write_text("name\tnetwork\nV1\tVIS\nA1\tAUD\nM1\tMOT\n")
    assert formats.find(tmp_path) == "parcellated"
    assert NeuralData.of(data(tmp_path), tr=0.72).roi.tolist() == ["VIS", "AUD", "MOT"]
    savemat(tmp_path / "TC_rest.mat", {"tc": values.T})
    np.save(tmp_path / "rest.npy", values)
    for name in ("TC_rest.mat", "rest.npy"):
        assert np.allclose(load_parcellated(tmp_path / name, tr=0.72).responses, values)
    (tmp_path / "sub-01_ts_run_03.tsv").write_text("V1\tA1\n1\t2\n3\n")
    with pytest.raises(DataError, match="line 3 has 1 fields, the header 2"):
        load_parcellated(tmp_path, "01")


@pytest.fixture(scope="module")
def brain():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=40)
    plain = pictures(rng.integers(0, 256, (40, 16, 16, 3), np.uint8), labels, ("cup", "ball", "tree"))
    encode = lambda captions: np.random.default_rng(1).standard_normal((len(captions), 48))
    return SimBrain(plain, subjects=2, voxels=(150, 120), shared=10, encode=encode)


needs_crops = pytest.mark.material("fashion-mnist")  # the simulator's own features are learnt on these


@needs_crops
def test_simulated_subjects_come_back_from_the_nsd_layout(brain, tmp_path):
    root = brain.write(tmp_path / "nsd")
    for number in (0, 1):
        truth, found = brain.subject(number).data, load_nsd(root, number + 1)
        assert np.abs(found.responses - truth.responses).max() <= 0.5 / 300 + 1e-5
        for name in ("stimulus_ids", "roi"):
            assert np.array_equal(getattr(found, name), getattr(truth, name))
        assert np.allclose(found.ncsnr, truth.ncsnr, atol=1e-6) and np.array_equal(found.coords[:, :2], truth.coords)
        assert np.allclose(estimate_ncsnr(found), estimate_ncsnr(truth), atol=0.02)
    assert np.array_equal(nsd_images(root, np.array([3, 38])), brain.images(np.array([3, 38])))
    assert np.array_equal(nsd_shared(root), np.arange(10))
    assert formats.find(root) == "nsd"
    with pytest.raises(DataError, match="is not empty: nothing was written"):
        brain.write(root)
    with pytest.raises(DataError, match="no layout 'nds': use one of nsd, algonauts, bids, parcellated"):
        brain.write(tmp_path / "other", "nds")


@needs_crops
def test_simulated_subjects_come_back_from_the_other_layouts(brain, tmp_path):
    found = load_algonauts(brain.write(tmp_path / "algonauts", "algonauts", [1]) / "subj02")
    truth = brain.subject(1).train.average()
    order = np.lexsort((np.arange(120), truth.coords[:, 1] >= 32))
    assert np.allclose(found.responses, truth.responses[:, order]) and np.array_equal(
        found.stimulus_ids, truth.stimulus_ids
    )
    assert [name.split(".")[1] for name in found.roi.tolist()] == truth.roi[order].tolist()
    scans = load_bids(brain.write(tmp_path / "bids", "bids", [0], scans=40, runs=2))
    expected = series(brain, 0, 40, 2)
    assert scans.shape == (80, 150) and scans.tr == 1.5
    assert np.allclose(scans.responses[40:], expected.responses, atol=1e-4)
    assert scans.stimulus_ids[40:].tolist() == expected.stimulus_ids.astype(str).tolist()
    regions = load_parcellated(brain.write(tmp_path / "parcels", "parcellated", scans=30, runs=1), "02")
    expected = parcels(brain, 1, 30)
    assert np.allclose(regions.responses, expected.responses, atol=1e-4) and regions.tr == 1.5
    assert np.array_equal(regions.roi, expected.roi) and len(regions.events["onset"]) == 15
