"""Spoken prompts, letters and captions against what is known of them; columns of sounds; how rows are split."""

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from monochord.data import Batches, DataError, Split, data
from monochord.data.audio import Clips, load_clips, read_sound, save_clips
from monochord.data.splitting import by_chance, by_class, by_group


@pytest.fixture
def clips(tmp_path):
    sounds = [np.arange(n, dtype=np.int16) + 100 * n for n in (3, 5, 1)]
    assert save_clips(tmp_path, iter(sounds)) == 3
    return load_clips(tmp_path)


def test_clips_are_what_was_saved(clips):
    assert len(clips) == 3 and isinstance(clips.samples, np.memmap)
    assert clips[1].tolist() == [500, 501, 502, 503, 504] and clips[-1].tolist() == [100]
    assert [clip.tolist() for clip in clips.take([2, 0])] == [[100], [300, 301, 302]]
    assert [len(clip) for clip in clips[1:]] == [5, 1]
    assert np.allclose(clips.seconds * 16_000, [3, 5, 1])
    assert Split({"audio": clips}).take([1])["audio"][0].tolist() == clips[1].tolist()


def test_waves_are_scaled_padded_and_cut(clips):
    waves = clips.waves([0, 1])
    assert waves.shape == (2, 5) and waves.dtype == np.float32
    assert waves[0].tolist() == pytest.approx([300 / 32768, 301 / 32768, 302 / 32768, 0, 0])
    assert clips.waves([1], seconds=2 / 16_000).shape == (1, 2)


def test_clips_that_reach_beyond_the_samples_are_refused():
    with pytest.raises(DataError, match="clips end at sample 9, there are 4: the file is cut off"):
        Clips(np.zeros(4, np.int16), np.array([0]), np.array([9]))
    with pytest.raises(DataError, match="flat int16"):
        Clips(np.zeros(4, np.float32), np.array([0]), np.array([4]))


def test_sounds_are_read_as_one_channel_at_16_kilohertz(tmp_path):
    time = np.arange(8_000) / 8_000
    tone = (8_000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16)
    wavfile.write(tmp_path / "a.wav", 8_000, np.stack([tone, tone], axis=1))
    sound = read_sound(tmp_path / "a.wav")
    assert sound.dtype == np.int16 and len(sound) == 16_000
    expected = 8_000 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(sound - expected)[500:-500].max() < 80
    import soundfile

    soundfile.write(tmp_path / "a.flac", tone, 8_000)
    assert np.abs(read_sound(tmp_path / "a.flac").astype(int) - sound).max() <= 1


def test_batches_of_sounds_go_through_a_feature_extractor(clips):
    split = Split({"audio": clips, "label": np.array([2, 0, 1])})
    plain = Batches(split, batch_size=2, shuffle=False)[0]
    assert plain["input_values"].shape == (2, 5) and plain["attention_mask"].sum(1).tolist() == [3, 5]
    assert plain["labels"].tolist() == [2, 0]

    def extract(waves, sampling_rate, return_tensors):
        return {"input_features": torch.tensor([[len(wave), sampling_rate] for wave in waves])}

    made = Batches(split, extract, batch_size=3, shuffle=False)[0]
    assert made["input_features"].tolist() == [[3, 16_000], [5, 16_000], [1, 16_000]]


def test_splits_are_disjoint_and_whole():
    labels = np.repeat([0, 1, 2], [50, 5, 20])
    for parts in (by_class(labels, seed=1), by_chance(75, seed=1), by_group([str(i % 30) for i in range(75)])):
        assert sorted(np.concatenate(list(parts.values()))) == list(range(75))
        assert list(parts) == ["train", "validation", "test"] and len(parts["train"]) > 50
    parts = by_class(labels, seed=1)
    assert np.bincount(labels[parts["test"]]).tolist() == np.bincount(labels[parts["validation"]]).tolist() == [5, 1, 2]
    assert not np.array_equal(by_class(labels, seed=2)["test"], parts["test"])
    place = {row % 30: name for name, rows in by_group([str(i % 30) for i in range(75)]).items() for row in rows}
    for name, rows in by_group([str(i % 30) for i in range(75)]).items():
        assert all(place[row % 30] == name for row in rows)


@pytest.mark.material("spoken-letters")
def test_spoken_letters_are_588_and_syllables_1248():
    letters, syllables = data("spoken-letters", kind="letter"), data("spoken-letters", kind="syllable")
    assert (len(letters), len(syllables), len(data("spoken-letters"))) == (588, 1248, 1836)
    english = [
        text
        for split in letters.splits.values()
        for text, language in zip(split["text"], split["language"], strict=True)
        if language == "en"
    ]
    assert sorted(english) == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    seconds = letters["train"]["audio"].seconds
    assert seconds.min() > 0.2 and 0.5 < np.median(seconds) < 3
    assert np.abs(letters["train"]["audio"].waves([0])).max() > 0.05  # a sound, not silence
    with pytest.raises(DataError, match="no kind 'word': use letter or syllable"):
        data("spoken-letters", kind="word")


@pytest.mark.material("spoken-prompts")
def test_spoken_prompts_hold_out_names_in_all_languages():
    dataset = data("spoken-prompts")
    assert len(dataset) == 568 + 527 + 561 + 599 + 576 - 50
    named = {part: set(zip(split["group"], split["text"], strict=True)) for part, split in dataset.splits.items()}
    assert not named["train"] & named["test"] and not named["train"] & named["validation"]
    digits = data("spoken-prompts", group="digits")
    assert set(digits["train"]["group"]) == {"digits"} and len(digits) == 525
    assert sum(dataset["train"]["audio"].seconds) > 3600


@pytest.mark.material("tuxpaint")
def test_tuxpaint_pictures_have_captions_in_many_languages():
    dataset = data("tuxpaint", also=("fr", "ja"))
    assert len(data("tuxpaint")) == 785 and 700 < len(dataset) <= 785
    rows = {name: i for i, name in enumerate(dataset["train"]["name"])}
    frog = dataset["train"][rows["animals/amphibians/frog"]]
    assert frog["text"] == "A frog." and frog["text_fr"] == "Une grenouille." and frog["topic"] == "animals"
    with pytest.raises(DataError, match="no captions in 'xx': use ach, af, "):
        data("tuxpaint", language="xx")


@pytest.mark.material("tuxpaint-speech")
def test_tuxpaint_speech_holds_out_the_same_stamps():
    speech, pictures = data("tuxpaint-speech"), data("tuxpaint")
    assert len(speech) == 7417
    for split in ("train", "validation", "test"):
        others = {name for part, rows in speech.splits.items() if part != split for name in rows["name"]}
        assert not set(pictures[split]["name"]) & others
    french = data("tuxpaint-speech", language="fr")
    assert len(french) == 928 and set(french["train"]["label"]) == {speech.label_names.index("fr")}
