"""Files and folders that people have: each fixture is written in the real layout, recognised, and read back whole."""

import json
import wave

import numpy as np
import pytest
from PIL import Image

from monochord.data import DataError, data, formats
from monochord.data.recording import Recording
from monochord.data.trajectories import Trajectories, joined

h5py = pytest.importorskip("h5py")
pq = pytest.importorskip("pyarrow.parquet")


def picture(seed, size=(8, 6)):
    return np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)


def tone(file, pitch, rate=8000, seconds=0.1):
    samples = (8000 * np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate)).astype("<i2")
    with wave.open(str(file), "wb") as sound:
        sound.setparams((1, 2, rate, 0, "NONE", ""))
        sound.writeframes(samples.tobytes())


@pytest.fixture
def image_folder(tmp_path):
    root = tmp_path / "animals"
    for split, count in (("train", 6), ("test", 3)):
        for number in range(count):
            for name in ("cat", "dog"):
                file = root / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture(number + 100 * (name == "dog"))).save(file)
    return root


@pytest.fixture
def sound_folder(tmp_path):
    root = tmp_path / "words"
    for name, pitch in (("yes", 300), ("no", 900)):
        (root / name).mkdir(parents=True)
        for number in range(12):
            tone(root / name / f"{number:02d}.wav", pitch, seconds=0.05 + 0.01 * number)
    return root


@pytest.fixture
def parquet_file(tmp_path):
    import pyarrow as pa

    table = pa.table({"sentence": [f"text {i}" for i in range(30)], "label": [i % 3 for i in range(30)]})
    pq.write_table(table, tmp_path / "reviews.parquet")
    return tmp_path / "reviews.parquet"


@pytest.fixture
def hub_folder(tmp_path):
    """As data sets lie on the hub: `data/SPLIT-00000-of-00002.parquet`, pictures as a struct of bytes and path."""
    import io

    import pyarrow as pa

    root = tmp_path / "pictures"
    (root / "data").mkdir(parents=True)
    for name, shards in (("train", 2), ("test", 1)):
        for shard in range(shards):
            images = []
            for number in range(4):
                stream = io.BytesIO()
                Image.fromarray(picture(10 * shard + number)).save(stream, "PNG")
                images.append({"bytes": stream.getvalue(), "path": f"{number}.png"})
            table = pa.table({"img": images, "label": [0, 1, 0, 1]})
            pq.write_table(table, root / "data" / f"{name}-{shard:05d}-of-{shards:05d}.parquet")
    return root


@pytest.fixture
def arrow_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"text": [f"line {i}" for i in range(8)], "label": [0, 1] * 4}
    both = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows), "test": datasets.Dataset.from_dict(rows)})
    both.save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def minari(tmp_path):
    """`~/.minari/datasets/door/expert-v0`: one observation more than actions, dictionary spaces as groups."""
    root = tmp_path / "expert-v0"
    (root / "data").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with h5py.File(root / "data/main_data.hdf5", "w") as file:
        file.attrs["total_episodes"], file.attrs["total_steps"] = 11, 11 * 5
        for number in range(11):
            episode = file.create_group(f"episode_{number}")
            episode.attrs["id"], episode.attrs["total_steps"] = number, 5
            seen = episode.create_group("observations")
            seen["state"], seen["goal"] = rng.random((6, 3)), np.full((6, 2), float(number))
            episode["actions"], episode["rewards"] = rng.random((5, 4)), np.arange(5.0)
            episode["terminations"] = np.arange(5) == 4
            episode["truncations"] = np.zeros(5, bool)
    (root / "data/metadata.json").write_text(json.dumps({"dataset_id": "door/expert-v0", "total_episodes": 11}))
    return root


def write_lerobot(root, version):
    import pyarrow as pa

    (root / "meta").mkdir(parents=True)
    info = {"codebase_version": version, "fps": 30, "robot_type": "so100", "total_episodes": 2, "total_frames": 7}
    (root / "meta/info.json").write_text(json.dumps(info))
    rows = [{"episode": 0, "length": 3, "task": 1}, {"episode": 1, "length": 4, "task": 0}]
    tables = []
    for row in rows:
        frames = np.arange(row["length"])
        tables.append(
            pa.table(
                {
                    "observation.state": [[float(f), float(row["episode"])] for f in frames],
                    "action": [[float(f) / 10] * 3 for f in frames],
                    "timestamp": frames / 30,
                    "frame_index": frames,
                    "episode_index": np.full(len(frames), row["episode"]),
                    "task_index": np.full(len(frames), row["task"]),
                    "next.done": frames == row["length"] - 1,
                }
            )
        )
    chunk = root / "data/chunk-000"
    chunk.mkdir(parents=True)
    if version == "v2.1":
        for number, table in enumerate(tables):
            pq.write_table(table, chunk / f"episode_{number:06d}.parquet")
        lines = [json.dumps({"task_index": i, "task": t}) for i, t in enumerate(("pick", "place"))]
        (root / "meta/tasks.jsonl").write_text("\n".join(lines))
    else:
        pq.write_table(pa.concat_tables(tables), chunk / "file-000.parquet")
        pq.write_table(pa.table({"task_index": [0, 1], "task": ["pick", "place"]}), root / "meta/tasks.parquet")
    return root


@pytest.fixture(params=["v2.1", "v3.0"])
def lerobot(tmp_path, request):
    return write_lerobot(tmp_path / "arm", request.param)


@pytest.fixture
def lerobot_v2(tmp_path):
    return write_lerobot(tmp_path / "arm", "v2.1")


@pytest.fixture
def nwb(tmp_path):
    file = tmp_path / "session.nwb"
    with h5py.File(file, "w") as root:
        root.attrs["nwb_version"] = "2.6.0"
        root["general/subject/subject_id"] = "A29"
        units = root.create_group("units")
        units.attrs["colnames"] = ["spike_times", "location", "rate"]
        units["spike_times"] = np.array([0.1, 0.5, 2.5, 0.2, 1.9])
        units["spike_times_index"] = np.array([3, 5])
        units["location"], units["rate"] = np.array(["adn", "ca1"], dtype=object), np.array([3.0, 2.0])
        head = root.create_group("processing/behavior/CompassDirection/ry")
        head["data"], head["timestamps"] = np.array([0.0, 10.0, 20.0]), np.array([0.0, 1.0, 2.0])
        head["data"].attrs["conversion"] = 0.5
        lfp = root.create_group("acquisition/lfp")
        lfp["data"], lfp["starting_time"] = np.arange(8.0).reshape(4, 2), 1.0
        lfp["starting_time"].attrs["rate"] = 2.0
        spans = root.create_group("intervals/epochs")
        spans["start_time"], spans["stop_time"] = np.array([0.0, 1.0]), np.array([1.0, 3.0])
    return file


LAYOUTS = ("image_folder", "sound_folder", "parquet_file", "hub_folder", "arrow_folder", "minari", "lerobot_v2", "nwb")


@pytest.mark.parametrize("fixture", LAYOUTS)
def test_each_layout_is_recognised_by_one_module_only(fixture, request):
    path = request.getfixturevalue(fixture)
    found = [name for name, module in formats.modules().items() if module.recognises(path)]
    assert len(found) == 1 and formats.find(str(path)) == found[0]
    assert data(path).name == data(str(path)).name == path.stem


def test_image_folders_keep_classes_and_splits(image_folder):
    dataset = data(str(image_folder))
    assert dataset.task == "image-classification" and dataset.label_names == ("cat", "dog")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 12, "test": 6}
    test = dataset["test"]
    assert np.array_equal(test["image"][test["label"] == 1][0], picture(100))
    assert test["image"].shape == (6, 6, 8, 3)


def test_pictures_of_several_sizes_need_a_size(image_folder):
    Image.fromarray(picture(5, (20, 10))).save(image_folder / "train/cat/wide.png")
    with pytest.raises(DataError, match=r"pictures of 2 shapes.* pass size=64"):
        data(image_folder)
    assert data(image_folder, size=16)["train"]["image"].shape[1:] == (16, 16, 3)
    with pytest.raises(DataError, match=r"image_folder. has no option 'sise': there are size, seed"):
        data(image_folder, sise=16)
    (image_folder / "train/cat/broken.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.png: not a readable picture"):
        data(image_folder, size=16)


def test_captions_come_from_the_metadata(tmp_path):
    for number in range(3):
        Image.fromarray(picture(number)).save(tmp_path / f"{number}.png")
    with pytest.raises(DataError, match=r"0\.png: in no class folder and in no metadata"):
        data(tmp_path)
    (tmp_path / "metadata.csv").write_text('file_name,text\n2.png,"two, too"\n0.png,zero\n1.png,one\n')
    split = formats.modules()["image_folder"]._columns(tmp_path, sorted(tmp_path.glob("*.png")), None)
    assert split["text"] == ["zero", "one", "two, too"]
    (tmp_path / "metadata.csv").write_text("file_name,text\n2.png,two\n0.png,zero\n")
    with pytest.raises(DataError, match=r"1\.png: not in the column file_name"):
        data(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\n2.png,two\n0.png,zero\n1.png,b\n7.png,a\n")
    with pytest.raises(DataError, match=r"7\.png: named by the metadata but not there"):
        data(tmp_path)


def test_sound_folders_are_resampled_and_cut(sound_folder):
    dataset = data(sound_folder)
    assert dataset.task == "audio-classification" and dataset.label_names == ("no", "yes")
    assert [len(split) for split in dataset.splits.values()] == [20, 2, 2]
    assert sorted(file for split in dataset.splits.values() for file in split["file"])[0] == "no/00.wav"
    train = dataset["train"]
    for row in range(20):
        clip, file = train["audio"][row], train["file"][row]
        assert len(clip) == 2 * round(8000 * (0.05 + 0.01 * int(file[-6:-4])))
        pitch = np.argmax(np.abs(np.fft.rfft(clip))) * 16000 / len(clip)
        assert abs(pitch - (300 if file.startswith("yes") else 900)) < 30
    (sound_folder / "yes/bad.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"bad\.wav: not a readable sound"):
        data(sound_folder)


def test_parquet_files_and_hub_folders(parquet_file, hub_folder):
    dataset = data(parquet_file)
    assert dataset.task == "text-classification" and dataset.label_names == ("0", "1", "2") and len(dataset) == 30
    pictures = data(hub_folder)
    assert pictures["train"]["image"].shape == (8, 6, 8, 3) and len(pictures["test"]) == 4
    assert np.array_equal(pictures["train"]["image"][5], picture(11))
    parquet_file.write_bytes(parquet_file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"reviews\.parquet: not a readable Parquet file"):
        data(parquet_file)


def test_folders_of_csv_files_are_split_by_their_names(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("text,label\n" + "".join(f"{split} {i},{i % 2}\n" for i in range(4)))
    assert data(tmp_path)["test"]["text"] == ["test 0", "test 1", "test 2", "test 3"]
    (tmp_path / "train.csv").unlink()
    with pytest.raises(DataError, match="no table of a split train among test"):
        data(tmp_path)


def test_saved_datasets_keep_their_splits(arrow_folder):
    dataset = data(arrow_folder)
    assert dataset["test"]["text"][7] == "line 7" and dataset.label_names == ("0", "1")


def test_minari_episodes(minari):
    found = formats.modules()["minari"].load_minari(minari)
    assert len(found) == 11 and found.observations.shape == (55, 5) and found.actions.shape == (55, 4)
    assert found.observations[5 * 10, 0] == 10.0  # goal comes before state; episode_10 is the last, not the third
    assert np.array_equal(found.extra["next_observations"][:4], found.observations[1:5])
    assert found.returns.tolist() == [10.0] * 11 and found.done.sum() == 11
    again = Trajectories.of(data(minari))
    assert np.array_equal(again.observations, found.observations) and data(minari).title == "door/expert-v0"
    with h5py.File(minari / "data/main_data.hdf5", "a") as file:
        del file["episode_3"]
    with pytest.raises(DataError, match="10 episodes, 11 promised"):
        data(minari)


def test_lerobot_episodes(lerobot):
    dataset = data(lerobot)
    found = Trajectories.of(dataset)
    assert len(found) == 2 and found.tasks == ("place", "pick") and dataset.title == "so100, 30 fps"
    assert found.observations[3:, 0].tolist() == [0, 1, 2, 3] and found.actions.shape == (7, 3)
    assert [len(episode.rewards) for episode in found] == [3, 4]
    assert np.flatnonzero(found.done).tolist() == [2, 6] and found.extra["timestamps"][2] == pytest.approx(2 / 30)
    info = json.loads((lerobot / "meta/info.json").read_text())
    (lerobot / "meta/info.json").write_text(json.dumps({**info, "total_frames": 8}))
    with pytest.raises(DataError, match=r"7 of frames, meta/info.json promises 8"):
        data(lerobot)


def test_trajectories_are_taken_apart_and_joined(minari):
    found = Trajectories.of(data(minari))
    last, first = found.take([-1]), found.take([0])
    both = joined([last, first])
    assert len(both) == 2 and both.episodes.tolist() == [0] * 5 + [1] * 5
    assert np.array_equal(both.observations, np.concatenate([found.observations[-5:], found.observations[:5]]))
    with pytest.raises(DataError, match="one shape"):
        joined([first, Trajectories(np.zeros((2, 3)), np.zeros((2, 4)), np.zeros(2), np.zeros(2, bool), np.zeros(2))])
    with pytest.raises(DataError, match="ascending"):
        Trajectories(np.zeros((2, 3)), np.zeros((2, 4)), np.zeros(2), np.zeros(2, bool), np.array([1, 0]))


def test_nwb_sessions(nwb):
    session = Recording.of(data(nwb), "A29")
    assert [unit.tolist() for unit in session.spikes] == [[0.1, 0.5, 2.5], [0.2, 1.9]]
    assert session.units["location"].tolist() == ["adn", "ca1"] and session.units["rate"].tolist() == [3, 2]
    assert session.at("behavior/CompassDirection/ry", np.array([0.5, 3.0])).tolist()[0] == 2.5  # conversion 0.5
    assert np.isnan(session.at("behavior/CompassDirection/ry", np.array([3.0])))
    assert session.series["lfp"][0].tolist() == [1, 1.5, 2, 2.5]
    assert session.epochs["epochs"].tolist() == [[0, 1], [1, 3]]
    counted = session.counts(1.0, 0, 3)
    assert counted.responses.tolist() == [[2, 1], [0, 1], [1, 0]] and counted.roi.tolist() == ["adn", "ca1"]
    assert formats.modules()["nwb"].load_nwb(nwb).subject == "A29"
    nwb.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"session\.nwb: not a readable HDF5 file"):
        data(nwb)


def test_what_is_no_layout_is_said(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"none of the known layouts .algonauts"):
        data(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        data(str(tmp_path / "nowhere"))


def test_a_missing_library_is_named_with_its_extra(monkeypatch, nwb):
    import sys

    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"this needs h5py: pip install 'monochord\[data\]'"):
        data(nwb)
