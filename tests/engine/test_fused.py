"""The proof after a load: the engine holds what it was given, whatever it fuses, pads, repacks or leaves out."""

from __future__ import annotations

import torch

from rockroll.digest import bit_sum
from rockroll.engine.fused import Bits, compare, wrapped

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def bits(*tensors: torch.Tensor) -> Bits:
    whole = torch.cat([tensor.reshape(-1) for tensor in tensors])
    return Bits(whole.numel(), bit_sum(whole))


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    names = ["embed", "layers.0.q_proj.weight", "layers.0.k_proj.weight", "layers.0.v_proj.weight", "layers.0.norm"]
    return {name: torch.randn(8, 4, dtype=torch.bfloat16) for name in names}


def held(given: dict[str, torch.Tensor]) -> dict[str, Bits]:
    """As an engine keeps them: q, k and v in one parameter in another order, the vocabulary padded with zeros."""
    q, k, v = (given[f"layers.0.{name}_proj.weight"] for name in "qkv")
    return {
        "embed": bits(given["embed"], torch.zeros(24, 4, dtype=torch.bfloat16)),
        "layers.0.qkv_proj.weight": bits(v, q, k),
        "layers.0.norm": bits(given["layers.0.norm"]),
    }


def named(tensors: dict[str, torch.Tensor]) -> dict[str, Bits]:
    return {name: bits(tensor) for name, tensor in tensors.items()}


def test_fused_and_padded_parameters_are_found_again() -> None:
    given = weights()
    assert compare(named(given), held(given), FUSED) == (5, None)


def test_one_bit_of_one_tensor_is_noticed_and_its_parameter_named() -> None:
    given = weights()
    corrupt = held(given)
    given["layers.0.k_proj.weight"].view(torch.int16)[3, 2] ^= 1
    assert compare(named(given), corrupt, FUSED)[1] == "layers.0.qkv_proj.weight"


def test_the_weights_before_are_not_taken_for_the_new_ones() -> None:
    given = weights()
    assert compare(named({name: tensor * 1.01 for name, tensor in given.items()}), held(given), FUSED)[1] is not None


def test_what_was_repacked_or_has_no_counterpart_proves_nothing_and_is_no_error() -> None:
    given = weights()
    engine = held(given) | {"layers.0.qkv_proj.weight": Bits(0, 0)}
    assert compare(named(given) | {"lm_head.weight": bits(given["embed"])}, engine, FUSED) == (2, None)


def test_sums_wrap_as_the_hardware_does() -> None:
    big = torch.full((3,), 2**62, dtype=torch.int64)
    assert wrapped(sum(bit_sum(big[i : i + 1]) for i in range(3))) == bit_sum(big)
