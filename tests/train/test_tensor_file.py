"""Tensors go to a safetensors file one by one, and come back as they were."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from rockroll.train import export
from rockroll.train.tensor_file import write_tensors

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b.weight": torch.ones(3, dtype=torch.bfloat16),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False, True]),
    "turned": torch.arange(6.0).reshape(2, 3).T,
}
LAYOUT = {name: (tensor.dtype, tensor.shape) for name, tensor in TENSORS.items()}


def test_safetensors_reads_what_was_written(tmp_path: Path):
    write_tensors(tmp_path / "x", LAYOUT, TENSORS.items())
    back = load_file(tmp_path / "x")
    assert back.keys() == TENSORS.keys()
    assert all(back[k].dtype == t.dtype and torch.equal(back[k], t) for k, t in TENSORS.items())
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers asks for it


def test_no_tensor_is_kept_when_the_next_one_comes(tmp_path: Path):
    living: list[weakref.ref[Tensor]] = []

    def each() -> Iterator[tuple[str, Tensor]]:
        for number in range(5):
            assert sum(ref() is not None for ref in living) <= 1
            tensor = torch.full((8,), float(number))
            living.append(weakref.ref(tensor))
            yield str(number), tensor
            del tensor

    write_tensors(tmp_path / "x", {str(n): (torch.float32, (8,)) for n in range(5)}, each())
    assert len(living) == 5


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([("a", torch.zeros(2, 2))], r"has a place for a torch.float32 \[2, 3\]; got a torch.float32 \[2, 2\]"),
        ([("z", TENSORS["a"])], "has a place for a .*; got z"),
        ([("a", TENSORS["a"])], "has a place for b.weight, which was not given"),
        ([*TENSORS.items(), ("more", TENSORS["a"])], "has a place for nothing more"),
    ],
)
def test_tensors_unlike_the_layout_are_refused(tmp_path: Path, given: list[tuple[str, Tensor]], says: str):
    with pytest.raises(ValueError, match=says):
        write_tensors(tmp_path / "x", LAYOUT, given)


def test_weights_are_gathered_by_the_bucket_and_a_larger_one_alone(monkeypatch: pytest.MonkeyPatch):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ParameterList([torch.zeros(n) for n in (10, 10, 10, 100, 10, 30)])

    monkeypatch.setattr(export, "BUCKET", 4 * 32)
    walk = export.Walk(export.weights(Model()), sharded=False, keep=True)
    assert [[p.shape[0] for p in bucket] for bucket in walk._buckets()] == [[10, 10, 10], [100], [10], [30]]
    assert [name for name, _ in walk] == list(walk.layout) and list(walk) == []
