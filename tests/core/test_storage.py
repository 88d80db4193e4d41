"""Files are whole or absent, checked when read, and never pickles; a fingerprint names the base."""

import pickle
import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from monochord.core import tensorfile
from monochord.core.storage import (
    StorageError,
    fingerprint,
    load_folder,
    load_tensors,
    save_folder,
    save_tensors,
)


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "b": torch.randn(3, 5, generator=generator),
        "a": torch.randn(7, generator=generator).to(torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "turned": torch.randn(4, 6, generator=generator).T,
    }


def test_round_trip_is_bit_exact_and_readable_by_the_library(tmp_path):
    from safetensors.torch import load_file

    save_tensors(tmp_path / "x.safetensors", tensors(), {"rank": 4, "sites": ["a", "b"]})
    loaded, metadata = load_tensors(tmp_path / "x.safetensors")
    library = load_file(tmp_path / "x.safetensors")
    assert metadata == {"rank": 4, "sites": ["a", "b"]}
    assert loaded.keys() == tensors().keys() == library.keys()
    for name, value in tensors().items():
        assert loaded[name].dtype == value.dtype and torch.equal(loaded[name], value)
        assert torch.equal(library[name], value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_reads_what_the_library_wrote(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.arange(6.0).reshape(2, 3)}, tmp_path / "x.safetensors", {"format": "pt"})
    loaded, metadata = load_tensors(tmp_path / "x.safetensors")
    assert torch.equal(loaded["w"], torch.arange(6.0).reshape(2, 3)) and metadata == {"format": "pt"}


@pytest.mark.parametrize("cut", [1, 4, 100])
def test_a_truncated_file_is_refused(tmp_path, cut):
    path = tmp_path / "x.safetensors"
    save_tensors(path, tensors())
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(StorageError, match=r"x\.safetensors is truncated"):
        load_tensors(path)


def test_one_altered_bit_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, tensors())
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match="altered"):
        load_tensors(path)
    assert load_tensors(path, strict=False)[0].keys() == tensors().keys()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_refused_without_being_run(tmp_path, protocol):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle ran",))

    path = tmp_path / "adapter.safetensors"
    path.write_bytes(pickle.dumps(Trap(), protocol=protocol) + b"." * 50)
    with pytest.raises(StorageError, match="is a pickle"):
        load_tensors(path)
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(StorageError, match="is a pickle"):
        load_tensors(path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"w":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}',
        b'{"w":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
        b'{"w":7}',
        b"[]",
        b"{",
    ],
)
def test_a_malicious_header_is_one_clear_line(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(StorageError, match=re.escape(str(path))) as caught:
        load_tensors(path)
    assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_old_file_and_no_trace(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"w": torch.ones(3)})
    before = path.read_bytes()

    def full(tensor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorfile, "as_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save_tensors(path, {"w": torch.zeros(3)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_names_are_checked(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(1), "b": torch.ones(1)})
    with pytest.raises(StorageError, match="lacks 1 tensors, the first is 'c'"):
        load_tensors(path, names=["a", "c"])
    with pytest.raises(StorageError, match="1 tensors too many, the first is 'b'"):
        load_tensors(path, names=["a"])
    assert list(load_tensors(path, names=["a"], strict=False)[0]) == ["a"]


def test_a_folder_keeps_its_configuration_with_its_tensors(tmp_path):
    save_folder(tmp_path / "tuned", {"w": torch.ones(2)}, {"tuner": "lora", "rank": 2})
    loaded, config = load_folder(tmp_path / "tuned")
    assert config == {"tuner": "lora", "rank": 2} and torch.equal(loaded["w"], torch.ones(2))
    (tmp_path / "tuned" / "config.json").write_text('{"rank": 99}')
    with pytest.warns(UserWarning, match="was changed"):
        assert load_folder(tmp_path / "tuned")[1]["rank"] == 2
    (tmp_path / "tuned" / "config.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_folder(tmp_path / "tuned")[1]["rank"] == 2
    with pytest.raises(StorageError, match="does not exist"):
        load_folder(tmp_path)
    with pytest.raises(StorageError, match="is not a folder"):
        load_folder(tmp_path / "nowhere")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight


def model():
    torch.manual_seed(0)
    return Tied()


def test_fingerprint_is_the_models_not_its_form():
    base = fingerprint(model())
    assert fingerprint(model().state_dict()) == base
    assert fingerprint(model().double()) == base
    assert fingerprint(model().bfloat16()) == base
    statistics = model()
    statistics.norm.running_mean += 1
    assert fingerprint(statistics) == fingerprint(statistics.state_dict()) == base


def test_fingerprint_sees_values_names_and_shapes():
    base = fingerprint({"w": torch.arange(6.0)})
    assert fingerprint({"w": torch.arange(6.0) + 0.1}) != base
    assert fingerprint({"v": torch.arange(6.0)}) != base
    assert fingerprint({"w": torch.arange(6.0).reshape(2, 3)}) != base
    assert fingerprint({"w": torch.arange(6.0), "b": torch.zeros(1)}) != base


def test_fingerprint_ignores_attachments_and_parametrizations():
    class Plus(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.ones(6))

        def forward(self, weight):
            return weight + self.shift

    tuned = model()
    tuned.add_module("monochord", nn.Linear(3, 3))
    parametrize.register_parametrization(tuned.embed, "weight", Plus())
    assert fingerprint(tuned) == fingerprint(model())
    assert fingerprint(tuned.state_dict()) == fingerprint(model())


def test_fingerprint_of_absent_weights_is_an_error():
    with pytest.raises(ValueError, match="bias is on the meta device"):
        fingerprint(nn.Linear(2, 2, device="meta"))
