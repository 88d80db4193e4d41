import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monochord import models
from monochord.data import Batches, DataError, Split, data

TEXTS = [" ".join(["the cat"] * (1 + i % 5)) for i in range(20)]
IMAGES = np.arange(20 * 4 * 4, dtype=np.uint8).reshape(20, 4, 4)
PICTURES = Split({"image": IMAGES, "label": np.arange(20) % 2})


@pytest.fixture(scope="module")
def glass():
    return models.processor("glassllm")


@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 5), st.integers(1, 60))
def test_every_epoch_has_each_row_once_and_any_step_comes_at_once(n, size, seed, steps):
    split = Split({"image": np.zeros((n, 2, 2), np.uint8), "label": np.zeros(n, np.int64)})
    batches = Batches(split, batch_size=size, seed=seed, steps=steps)
    per_epoch = max(1, n // size)
    drawn = [batches.rows(step).tolist() for step in range(steps)]
    assert all(len(rows) == min(size, n) for rows in drawn)
    for begin in range(0, steps, per_epoch):
        epoch = [row for rows in drawn[begin : begin + per_epoch] for row in rows]
        assert len(set(epoch)) == len(epoch)
    assert [batches.rows(step).tolist() for step in reversed(range(steps))] == drawn[::-1]


def test_the_order_depends_on_the_seed_alone():
    order = lambda **how: [Batches(PICTURES, batch_size=4, steps=10, **how).rows(k).tolist() for k in range(10)]
    np.random.seed(1)
    torch.manual_seed(1)
    first = order(seed=3)
    np.random.seed(2)
    assert order(seed=3) == first != order(seed=4)
    assert first[:5] != first[5:]  # the second epoch has its own order


def test_resuming_gives_what_would_have_come():
    batches = Batches(PICTURES, batch_size=4, steps=12)
    rest = [batch["pixel_values"] for batch in batches][7:]
    resumed = batches.skip(7)
    assert len(resumed) == 5 and len(batches) == 12
    assert all(torch.equal(a, b["pixel_values"]) for a, b in zip(rest, resumed, strict=True))
    assert len(batches.skip(5).skip(6)) == 1 and list(batches.skip(20)) == []
    with pytest.raises(IndexError, match="step 12 of 12"):
        batches[12]


def test_without_shuffling_every_row_comes_in_order():
    batches = list(Batches(PICTURES, batch_size=8, shuffle=False))
    assert [len(batch["labels"]) for batch in batches] == [8, 8, 4]
    assert torch.equal(torch.cat([batch["labels"] for batch in batches]), torch.arange(20) % 2)


def test_images_without_a_processor_are_scaled():
    batch = Batches(PICTURES, batch_size=20, shuffle=False)[0]
    torch.testing.assert_close(batch["pixel_values"], torch.from_numpy(IMAGES).float()[:, None] / 255)
    colour = Split({"image": np.repeat(IMAGES[..., None], 3, axis=3)})
    assert Batches(colour, batch_size=5)[0]["pixel_values"].shape == (5, 3, 4, 4)


def test_images_go_through_their_processor():
    process = models.ImageProcessor(8)
    batch = Batches(PICTURES, process, batch_size=20, shuffle=False)[0]
    torch.testing.assert_close(batch["pixel_values"], process(IMAGES)["pixel_values"])
    assert batch["labels"].dtype == torch.int64


def test_image_processors_of_transformers_serve_too():
    from transformers import ViTImageProcessor

    batch = Batches(PICTURES, ViTImageProcessor(size={"height": 8, "width": 8}), batch_size=5)[0]
    assert batch["pixel_values"].shape == (5, 3, 8, 8)


def test_labelled_texts_are_padded_to_the_longest():
    tokenizer = models.processor("minilm")
    split = Split({"text": TEXTS, "label": np.arange(20) % 2})
    batch = Batches(split, tokenizer, batch_size=20, shuffle=False, max_length=6)[0]
    expected = tokenizer(TEXTS, padding=True, truncation=True, max_length=6, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert torch.equal(batch["labels"], torch.arange(20) % 2)
    assert models.Classifier(models.load("minilm"), 2)(**batch).loss.isfinite()


def test_plain_text_is_learned_but_for_its_padding(glass):
    batch = Batches(Split({"text": TEXTS}), glass, batch_size=20, shuffle=False)[0]
    kept = batch["attention_mask"].bool()
    assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])
    assert (batch["labels"][~kept] == -100).all() and (~kept).any()
    loss = models.load("glassllm")(**batch).loss
    assert loss.isfinite()


def test_each_row_is_tokenised_once():
    class Counting:
        pad_token_id, seen = 0, ()

        def __call__(self, texts, **options):
            self.seen += tuple(texts)
            return {"input_ids": [[1, 2]] * len(texts)}

    counting = Counting()
    texts = [str(i) for i in range(200)]
    batches = Batches(Split({"text": texts}), counting, batch_size=2, steps=300)
    assert counting.seen == ()
    batches[0]
    assert len(counting.seen) == 64
    for _ in batches:
        pass
    assert sorted(counting.seen) == sorted(texts)


CHAT = Split({"prompt": ["Say hi.", "Count to three, please."], "response": ["Hi!", "One, two, three."]})


def test_chats_are_written_in_the_models_template_and_only_responses_are_learned():
    tokenizer = models.processor("smollm2")
    batch = Batches(CHAT, tokenizer, batch_size=2, shuffle=False, response_mask=True)[0]
    for row in range(2):
        turns = [
            {"role": "user", "content": CHAT["prompt"][row]},
            {"role": "assistant", "content": CHAT["response"][row]},
        ]
        whole = tokenizer.decode(batch["input_ids"][row][batch["attention_mask"][row].bool()])
        assert whole == tokenizer.apply_chat_template(turns, tokenize=False)
        learned = batch["labels"][row] != -100
        assert tokenizer.decode(batch["input_ids"][row][learned]) == CHAT["response"][row] + "<|im_end|>\n"
        assert torch.equal(learned, batch["response_mask"][row])
    everything = Batches(CHAT, tokenizer, batch_size=2, shuffle=False, responses_only=False)[0]
    assert torch.equal(everything["labels"] != -100, everything["attention_mask"].bool())
    assert "response_mask" not in everything


def test_chats_without_a_template_end_with_the_end(glass):
    batch = Batches(CHAT, glass, batch_size=2, shuffle=False)[0]
    kept = batch["attention_mask"][1].bool()
    assert glass.decode(batch["input_ids"][1][kept]) == "Count to three, please.\nOne, two, three.<eos>"
    assert glass.decode(batch["labels"][1][batch["labels"][1] != -100]) == "One, two, three.<eos>"


def test_long_prompts_leave_room_for_the_response(glass):
    split = Split({"prompt": ["so " * 100 + "end"], "response": ["a b c d e f g h i j k l m n"]})
    batch = Batches(split, glass, max_length=32)[0]
    assert batch["input_ids"].shape == (1, 32)
    assert (batch["labels"] != -100).sum() == 8
    assert "end\na b" in glass.decode(batch["input_ids"][0])


def test_tokenised_rows_serve_as_they_are():
    split = Split({"input_ids": [[1, 2, 3], [4]], "label": np.array([0, 1])})
    batch = Batches(split, batch_size=2, shuffle=False)[0]
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_what_cannot_be_is_refused(glass):
    with pytest.raises(DataError, match="texts need a tokenizer"):
        Batches(Split({"text": TEXTS}))
    with pytest.raises(DataError, match="no column text, prompt and response, or input_ids among capital"):
        Batches(Split({"capital": ["Paris"]}), glass)
    with pytest.raises(DataError, match="pass one split of digits"):
        Batches(data("digits"))
    with pytest.raises(DataError, match="batch_size=0"):
        Batches(PICTURES, batch_size=0)
