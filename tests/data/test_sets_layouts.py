"""Conversion of packages that are too large for every test run, on small ones made in the same layout."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from monochord.data import Batches, DataError, Dataset, Split
from monochord.data.sets import clip_art, emoji, spoken_prompts, tuxpaint


def picture(file, colour, size=(64, 64)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", size, colour).save(file)


# Emoji


@pytest.fixture
def emoji_packages(tmp_path, monkeypatch):
    thumb = {
        "name": "THUMBS UP SIGN", "short_name": "+1", "unified": "1F44D", "image": "1f44d.png",
        "category": "People & Body", "subcategory": "hand-fingers-closed",
        "skin_variations": {"1F3FB": {"unified": "1F44D-1F3FB", "image": "1f44d-1f3fb.png"}},
    }  # fmt: skip
    heart = {
        "name": "HEAVY BLACK HEART", "short_name": "heart", "unified": "2764-FE0F", "image": "2764-fe0f.png",
        "category": "Smileys & Emotion", "subcategory": "heart",
    }  # fmt: skip
    words = {"👍": ["thumbs_up", "yes"], "❤️": ["red_heart", "love"]}
    packages = []
    for style, colour in (("google", "red"), ("twitter", "blue")):
        home = tmp_path / style / "package"
        for name in ("1f44d.png", "1f44d-1f3fb.png", "2764-fe0f.png"):
            picture(home / f"img/{style}/64/{name}", colour)
        (home / "emoji.json").write_text(json.dumps([thumb, heart]))
        packages.append(tmp_path / style)
    library = tmp_path / "words/package/dist"
    library.mkdir(parents=True)
    (library / "emoji-en-US.json").write_text(json.dumps(words), encoding="utf8")
    monkeypatch.setattr(emoji, "EMOJI", 2)
    monkeypatch.setattr(emoji, "PICTURES", 3)
    return (*packages, tmp_path / "words")


def test_emoji_are_converted_with_names_keywords_and_tones(emoji_packages, tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    emoji.convert(emoji_packages, folder)
    rows = json.loads((folder / "emoji.json").read_text(encoding="utf8"))
    assert [(row["emoji"], row["tone"]) for row in rows] == [("👍", ""), ("👍🏻", "1F3FB"), ("❤️", "")]
    assert rows[1]["text"] == "thumbs up sign" and rows[1]["keywords"] == "thumbs up, yes"
    assert np.load(folder / "twitter.npy")[2, 5, 5].tolist() == [0, 0, 255]


def test_a_missing_picture_is_an_error(emoji_packages, tmp_path):
    (emoji_packages[1] / "package/img/twitter/64/1f44d.png").unlink()
    with pytest.raises(DataError, match="2 pictures of twitter, 3 expected"):
        emoji.convert(emoji_packages, tmp_path)


# Clip art


SVG = """<svg><metadata><rdf:RDF><cc:Work><dc:title>Big &amp; red dog 2</dc:title><dc:subject><rdf:Bag>
<rdf:li>Animal</rdf:li><rdf:li> dog </rdf:li><rdf:li></rdf:li><rdf:li>animal</rdf:li></rdf:Bag></dc:subject></cc:Work>
</rdf:RDF></metadata></svg>"""


@pytest.fixture
def clip_art_folder(tmp_path, monkeypatch):
    png, svg = tmp_path / "png", tmp_path / "svg"
    for number in range(40):
        name = f"animals/dog_{number}"
        picture(png / clip_art.HOME / f"png/{name}.png", "red", (90, 45))
        file = svg / clip_art.HOME / f"svg/{name}.svg"
        file.parent.mkdir(parents=True, exist_ok=True)
        other = "cat" if number % 2 else "dog"
        file.write_text(SVG.replace("dog 2", f"{other} {number // 8}-{number % 8}").replace("> dog <", f">{other}<"))
    picture(png / clip_art.HOME / "png/huge.png", "red", (200, 200))
    monkeypatch.setattr(clip_art, "LARGEST", 90 * 90)
    for name, value in (("IN_PACKAGE", 41), ("PICTURES", 40), ("TITLED", 40), ("WITH_KEYWORDS", 40)):
        monkeypatch.setattr(clip_art, name, value)
    folder = tmp_path / "made"
    folder.mkdir()
    clip_art.convert((png, svg), folder)
    return folder


def test_clip_art_has_the_titles_and_keywords_of_its_drawings(clip_art_folder):
    rows = json.loads((clip_art_folder / "pictures.json").read_text(encoding="utf8"))
    assert rows[0] == {
        "folder": "animals", "file": "dog_0", "title": "Big & red dog 0-0", "keywords": ["animal", "dog"]
    }  # fmt: skip
    assert np.load(clip_art_folder / "pictures.npy").shape == (40, 64, 64, 3)  # the huge one is left out


def test_pictures_of_one_title_are_capped_and_stay_together(clip_art_folder):
    splits, notes, names = clip_art.read(clip_art_folder, per_title=15, min_images=10)
    assert names == ("animal", "cat", "dog") and sum(map(len, splits.values())) == 30
    assert len([split for split in splits.values() if "animals" in split["folder"]]) <= 2  # two titles
    assert "10 more of one title" in notes[0]


def test_batches_of_many_labels_are_floats_for_a_binary_loss():
    labels = np.array([[1, 0, 1], [0, 0, 1]], np.uint8)
    split = Split({"image": np.zeros((2, 4, 4, 3), np.uint8), "labels": labels})
    dataset = Dataset("d", "image-multilabel", {"train": split}, ("a", "b", "c"))
    assert "2 rows (image, labels), 3 labels of 0 to 2" in dataset.card()
    batch = Batches(split, batch_size=2, shuffle=False)[0]
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 0, 1]] and batch["labels"].is_floating_point()
    with pytest.raises(DataError, match="labels of 'train' are 2 by 3, not 2 by 2"):
        Dataset("d", "image-multilabel", {"train": split}, ("a", "b"))
    with pytest.raises(DataError, match="the split 'train' has no text, only image, labels"):
        Dataset("d", "image-text", {"train": split})


# Tux Paint and Asterisk


@pytest.fixture
def stamps(tmp_path, monkeypatch):
    import soundfile

    home = tmp_path / "stamps" / tuxpaint.HOME
    for name, text in (
        ("animals/frog", "A frog.\nfr.utf8=Une grenouille.\nsr@latin.utf8=Žaba.\n"),
        ("sky/sun", "Sun."),
    ):
        picture(home / f"{name}.png", "green")
        (home / f"{name}.txt").write_text(text, encoding="utf8")
    (home / "sky/moon.txt").write_text("Moon.")  # drawn as SVG only
    for name in ("animals/frog_desc", "animals/frog_desc_fr", "sky/moon_desc", "animals/frog_desc_da.ogg"):
        soundfile.write(home / f"{name}.ogg", np.zeros(4410), 44_100, format="OGG", subtype="VORBIS")
    monkeypatch.setattr(tuxpaint, "CAPTIONED", 3)
    monkeypatch.setattr(tuxpaint, "PICTURES", 2)
    monkeypatch.setattr(tuxpaint, "SPOKEN", {"en": 2, "fr": 1})
    return tmp_path / "stamps"


def test_stamps_have_captions_by_language_and_speech(stamps, tmp_path, monkeypatch):
    tuxpaint.convert(stamps, tmp_path)
    rows = json.loads((tmp_path / "captions.json").read_text(encoding="utf8"))
    assert rows[0]["captions"] == {"en": "A frog.", "fr": "Une grenouille.", "sr@latin": "Žaba."}
    assert [row["name"] for row in rows] == ["animals/frog", "sky/sun"]
    tuxpaint.convert_speech(stamps, tmp_path)
    spoken = json.loads((tmp_path / "speech.json").read_text(encoding="utf8"))
    assert [(row["name"], row["language"], row["text"]) for row in spoken] == [
        ("animals/frog", "en", "A frog."),
        ("animals/frog", "fr", "Une grenouille."),
        ("sky/moon", "en", "Moon."),
    ]
    assert np.diff(np.load(tmp_path / "offsets.npy")).tolist() == [1600] * 3


def test_prompts_are_grouped_by_folder_and_silence_is_left_out(tmp_path, monkeypatch):
    packages = []
    for language in ("en", "es"):
        home = tmp_path / language / "usr/share/asterisk/sounds" / spoken_prompts.VOICES[language][0]
        for name in ("hello", "digits/7", "silence/1"):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            wavfile.write(home / f"{name}.wav", 8_000, np.ones(800, np.int16))
        packages.append(tmp_path / language)
    voices = {language: (spoken_prompts.VOICES[language][0], 3) for language in ("en", "es")}
    monkeypatch.setattr(spoken_prompts, "VOICES", voices)
    monkeypatch.setattr(spoken_prompts, "SILENCES", 1)
    spoken_prompts.convert(tuple(packages), tmp_path)
    rows = json.loads((tmp_path / "sounds.json").read_text(encoding="utf8"))
    assert [(row["language"], row["group"], row["name"]) for row in rows] == [
        ("en", "digits", "7"), ("en", "prompts", "hello"), ("es", "digits", "7"), ("es", "prompts", "hello"),
    ]  # fmt: skip
    (tmp_path / "en" / "usr/share/asterisk/sounds/en_US_f_Allison/hello.wav").unlink()
    with pytest.raises(DataError, match="2 sounds of en_US_f_Allison, 3 expected"):
        spoken_prompts.convert(tuple(packages), tmp_path)
