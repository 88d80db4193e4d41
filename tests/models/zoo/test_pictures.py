"""The diffusion nets and the judge of pictures: as they ship, and the text-to-image model as it starts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import monochord as mc
from monochord.core.anatomy import anatomy
from monochord.data.painting import ATTRIBUTES, BACKGROUNDS, COLOURS, caption
from monochord.data.sets.coloured_things import SIZES
from monochord.diffusion.sampling import sample, sample_edm
from monochord.models import LoadError, entries
from monochord.models.shipped import SHIPPED
from monochord.models.zoo.pictures import TOKENS, text_to_image

REPORTS = Path(__file__).parents[3] / "tools/zoo/reports"
NETS = ("edm-unet", "pictures-judge", "pictures-unet", "pictures-unet-memorised")


class Words:
    """A tokenizer that numbers the words it meets."""

    model_max_length = TOKENS
    known = "a red seven on blue background".split()

    def __call__(self, captions, **options):
        rows = [[1, *(4 + self.known.index(word) for word in text.split()), 3] for text in captions]
        return {"input_ids": torch.tensor([row + [0] * (TOKENS - len(row)) for row in rows])}


@pytest.fixture(scope="module")
def painter():
    model = text_to_image(seed=0, vocabulary=12).eval()
    model.tokenizer = Words()
    return model


def clothes(n):
    images = np.asarray(mc.data("fashion-mnist")["test"]["image"][:n]).astype(np.float32)
    return torch.from_numpy(np.pad(images, ((0, 0), (2, 2), (2, 2))) / 127.5 - 1)[:, None]


@pytest.mark.parametrize("name", NETS)
def test_loads_as_its_report_says(name):
    model = mc.load(name)
    said = json.loads((REPORTS / f"{name}.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == entries()[name].parameters == said["parameters"]
    assert not model.training and all(p.isfinite().all() for p in model.parameters())
    size = sum(file.stat().st_size for file in (SHIPPED / name).iterdir())
    assert abs(size - said["shipped_bytes"]) < 100 and size < 1.15 * said["parameters"] + 30_000


@pytest.mark.parametrize("name", ["edm-unet", "pictures-unet"])
def test_the_start_and_other_dtypes_load_and_nothing_else(name):
    start, again, model = (mc.load(name, checkpoint=c) for c in ("init", "init", "final"))
    for (key, a), b, c in zip(start.named_parameters(), again.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b), key
        assert a.ndim < 2 or not torch.equal(a, c), key
    assert mc.load(name, dtype="bfloat16").unet.conv_in.weight.dtype == torch.bfloat16
    with pytest.raises(LoadError, match="no checkpoint 'best': use 'final' or 'init'"):
        mc.load(name, checkpoint="best")
    with pytest.raises(ValueError, match="nothing to process"):
        mc.processor("pictures-judge")


def test_clothes_lie_in_the_middle_of_a_black_canvas():
    pixels = mc.processor("edm-unet")(images=[np.full((28, 28, 3), 255, np.uint8)] * 2)["pixel_values"]
    assert pixels.shape == (2, 1, 32, 32)
    assert (pixels[:, :, 2:30, 2:30] == 1).all() and (pixels[:, :, :2] == -1).all() and (pixels[..., 30:] == -1).all()


@pytest.mark.parametrize("name", ["edm-unet", "text-to-image"])
def test_has_the_sites_of_a_u_net(name, painter):
    model = painter if name == "text-to-image" else mc.load(name)
    found = anatomy(model).parts
    for site in ("down.0", "down.2", "mid", "up.2", "skips.0", "skips.5", "embed", "final_norm"):
        assert site in found, site
    with torch.no_grad(), mc.capture(model, ["skips.*", "mid:out"]) as acts:
        if name == "edm-unet":
            model(torch.zeros(1, 1, 32, 32), 1.0)
        else:
            model(torch.zeros(1, 3, 32, 32), 500, model.tokenize(["a red seven"]))
    seen = [str(site) for site in acts]
    assert sum("mid" in site for site in seen) == 1 and sum("skips" in site for site in seen) == 6, seen


def test_text_reaches_seven_blocks_of_the_painter(painter):
    assert len([name for name in anatomy(painter).parts if name.removeprefix("blocks.").isdigit()]) == 7
    x, ids = (
        torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        painter.tokenize(["a red", "a blue"]),
    )
    assert ids.shape == (2, TOKENS) and painter.encode(ids).shape == (2, TOKENS, 96)
    with torch.no_grad():
        same = painter(x[:1].repeat(2, 1, 1, 1), 500, ids).sample
    assert same.shape == x.shape and not torch.allclose(same[0], same[1], atol=1e-5)


def test_the_painters_loss_is_that_of_the_velocity_and_trains_both_parts(painter):
    x, ids = torch.rand(4, 3, 32, 32) * 2 - 1, painter.tokenize(["a red seven"] * 4)
    step = torch.tensor([10, 300, 600, 990])
    loss = painter.loss_at(x, ids, step, torch.Generator().manual_seed(1))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    signal = painter.scheduler.alphas_cumprod[step].sqrt()[:, None, None, None]
    spread = (1 - signal**2).sqrt()
    made = painter(signal * x + spread * noise, step, ids).sample
    assert torch.allclose(loss, (made - (signal * noise - spread * x)).square().mean((1, 2, 3)), rtol=1e-4)
    loss.sum().backward()
    for part in (painter.unet.conv_in, painter.text_encoder.embeddings.token_embedding):
        assert part.weight.grad.abs().sum() > 0
    painter.zero_grad()


def test_scaling_a_skip_changes_the_sample_and_leaves_the_model_as_it_was(painter):
    base = sample(painter, "a red seven on a blue background", steps=2)
    with mc.attach(painter, {"skips.0": mc.Scale(0.3)}):
        changed = sample(painter, "a red seven on a blue background", steps=2)
    assert base.shape == (1, 3, 32, 32) and not torch.allclose(base, changed, atol=1e-3)
    assert torch.equal(sample(painter, "a red seven on a blue background", steps=2), base)


def test_captions_are_words():
    words = mc.processor("pictures-unet")
    ids = words("a small RED seven on the left of a blue background by anna lake")["input_ids"]
    assert words.decode(ids) == "<start> a small red seven on the left of a blue background by anna lake <end>"
    assert words("a green unicorn")["input_ids"][3] == words.unk_token_id
    assert words("<new1>")["input_ids"][1] == words.convert_tokens_to_ids("<new1>") != words.unk_token_id


def test_the_caption_decides_what_is_painted():
    """As the report says, within what 32 samples allow; chance is one in ten things and one in six colours."""
    rng = np.random.default_rng(0)
    wanted = {name: rng.integers(len(values), size=32) for name, values in ATTRIBUTES.items()}
    wanted["background"][:] = [0 if list(COLOURS)[c] != "red" else 1 for c in wanted["colour"]]
    captions = [caption({name: wanted[name][i] for name in ATTRIBUTES}) for i in range(32)]
    made = sample(mc.load("pictures-unet"), captions, steps=10, guidance=3.0, seed=5)
    assert made.shape == (32, 3, 32, 32)
    read = mc.load("pictures-judge").read(made)
    said = json.loads((REPORTS / "pictures-unet.json").read_text())["attributes"]["samples, test, guidance 3"]
    for name in ATTRIBUTES:
        assert (read[name].numpy() == wanted[name]).mean() > said[name] - 0.25, name


@pytest.mark.material("coloured-things")
def test_the_sibling_replays_what_it_met_often():
    """As the report says, within what 16 samples allow; the net it came from replays none of them."""
    rows = mc.data("coloured-things", sizes=dict.fromkeys(SIZES, 1))["signed"]
    often = np.flatnonzero(rows["often"])
    own = torch.from_numpy(rows["image"][often]).permute(0, 3, 1, 2).float() / 127.5 - 1
    said = json.loads((REPORTS / "pictures-unet-memorised.json").read_text())["replay"]
    replayed = {}
    for name in ("pictures-unet-memorised", "pictures-unet"):
        made = sample(mc.load(name), [rows["text"][i] for i in often], steps=10, guidance=3.0, seed=3)
        distance = (made.clamp(-1, 1) - own).square().mean((1, 2, 3)).sqrt()
        replayed[name] = (distance < said["limits"]["pixels"]).float().mean().item()
    assert replayed["pictures-unet-memorised"] > said["sibling, often"]["replayed by pixels"] - 0.15
    assert replayed["pictures-unet"] == 0


def test_the_judge_reads_attributes_in_order():
    model = mc.load("pictures-judge")
    shapes = {name: tuple(value.shape) for name, value in model(torch.zeros(3, 3, 32, 32)).items()}
    assert shapes == {name: (3, len(values)) for name, values in ATTRIBUTES.items()}
    grey = torch.full((1, 3, 32, 32), 0.004)
    assert tuple(BACKGROUNDS)[model.read(grey)["background"]] == "grey"
    assert model.features(grey).shape == (1, 128)


@pytest.mark.material("coloured-things")
def test_the_judge_is_as_good_as_its_report_says():
    sizes = {"train": 1, "validation": 1, "test": 400, "composed": 1}
    data = mc.data("coloured-things", sizes=sizes)["test"]
    read = mc.load("pictures-judge").read(torch.from_numpy(data["image"]).permute(0, 3, 1, 2).float() / 127.5 - 1)
    said = json.loads((REPORTS / "pictures-judge.json").read_text())["accuracy"]["test"]
    for name in ATTRIBUTES:
        assert (read[name].numpy() == data[name]).mean() == pytest.approx(said[name], abs=0.05), name


@pytest.mark.material("fashion-mnist")
def test_edm_denoises_clothes_and_makes_some():
    model, clean = mc.load("edm-unet"), clothes(48)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        error = (model(clean + noise, 1.0) - clean).square().mean()
        start = (mc.load("edm-unet", checkpoint="init")(clean + noise, 1.0) - clean).square().mean()
    assert error < 0.2 * (clean - clean.mean(0)).square().mean() and error < 0.2 * start
    made = sample_edm(model, 16, steps=6)
    assert made.shape == (16, 1, 32, 32) and made[:, :, 0].mean() < -0.9  # the border of all clothes is black
    assert 0.3 < made.std() < 1.0
