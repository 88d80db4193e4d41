import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from monochord import models
from monochord.core.catalog import CatalogError
from monochord.models import loading


def test_listing_the_catalogs_imports_no_torch():
    code = (
        "import sys, monochord.data, monochord.models; monochord.data.catalog(), monochord.models.catalog();"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_module_is_returned_itself():
    model = nn.Linear(2, 2).train()
    assert models.load(model) is model
    assert not model.training
    assert models.load(model, dtype="bfloat16").weight.dtype == torch.bfloat16


def test_a_folder_is_loaded_as_the_class_it_names(tmp_path):
    torch.manual_seed(0)
    saved = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=32, n_positions=16))
    saved.save_pretrained(tmp_path)
    model = models.load(tmp_path)
    assert type(model) is GPT2LMHeadModel
    assert torch.equal(model.transformer.wte.weight, saved.transformer.wte.weight)
    assert models.load(str(tmp_path), dtype="bf16").dtype == torch.bfloat16


def test_unknown_names_give_the_nearest():
    with pytest.raises(CatalogError, match="unknown model 'minlm': did you mean minilm"):
        models.load("minlm")
    with pytest.raises(CatalogError, match="did you mean smollm2"):
        models.processor("smollm")
    with pytest.raises(CatalogError, match="did you mean dinov2-s"):
        models.fetch("dinov2")


def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(models.LoadError, match="not to be loaded") as caught:
        models.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unknown_dtype_names_the_choices():
    with pytest.raises(ValueError, match="unknown dtype 'int5': use float32, bfloat16 or float16"):
        models.load("glassllm", dtype="int5")


def test_weights_that_are_not_all_there_are_refused(tmp_path, monkeypatch):
    saved = BertModel(BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8))
    state = saved.state_dict()
    state.pop("encoder.layer.0.output.dense.weight")
    saved.save_pretrained(tmp_path, state_dict=state)
    entry = models.entries()["minilm"]
    monkeypatch.setattr(type(entry), "fetch", lambda self, progress: tmp_path)
    with pytest.raises(models.LoadError, match=r"minilm: 1 weights missing or misshapen, first encoder\.layer\.0"):
        models.load("minilm")


def test_the_processor_of_a_loaded_model_is_found():
    model = models.load("glassllm")
    assert models.processor(model).get_vocab() == models.processor("glassllm").get_vocab()
    with pytest.raises(CatalogError, match="Linear does not say where it is from"):
        models.processor(nn.Linear(2, 2))


def test_the_entry_of_a_cached_folder_is_known():
    assert loading._entry_of_folder(str(models.fetch("glassllm-pt"))).name == "glassllm-pt"
    assert loading._entry_of_folder("/elsewhere") is None


def test_image_sizes_must_fit_the_patches():
    with pytest.raises(ValueError, match="size=60 is not a multiple of its patches' 14: use 56"):
        models.processor("dinov2-s", size=60)
