"""half + residual = float32, bit for bit, for every bit pattern; what half breaks stays float32."""

import pytest
import torch

from checkpoint import half
from tests.checkpoint.content import same_bits
from utils.errors import BadInput


def patterns(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31 - 1, (count,), generator=generator)
    return bits.to(torch.int32).view(torch.float32)


def round_trip(state: dict[str, torch.Tensor]) -> half.Encoded:
    before = {name: tensor.clone() for name, tensor in state.items()}
    encoded = half.encode(state)
    restored = half.decode(encoded.half, encoded.residual)
    assert list(restored) == list(state)
    for name, tensor in before.items():
        assert same_bits(state[name], tensor), f"{name} was touched"
        assert same_bits(restored[name], tensor), name
    return encoded


def test_random_bit_patterns_are_restored() -> None:
    round_trip({f"w{seed}": patterns(70_000, seed) for seed in range(4)})


def test_every_float16_value_and_its_float32_neighbours_are_restored() -> None:
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    bits = halves.float().view(torch.int32)
    round_trip({str(k): (bits + k).view(torch.float32) for k in (-4097, -4096, -1, 0, 1, 4096)})


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-9, 1e-6, 1e-3, 1.0, 1e3, 1e38])
def test_weights_of_any_scale_are_restored(scale: float) -> None:
    round_trip({"w": torch.randn(3000) * scale, "v": torch.randn(8, 30) * scale})


def test_odd_shapes_and_layouts_are_restored() -> None:
    wide = torch.randn(4, 3, 5, 5)
    state = {
        "empty": torch.empty(0),
        "empty rows": torch.empty(0, 3),
        "scalar": torch.tensor(3.3),
        "channels last": wide.contiguous(memory_format=torch.channels_last),
        "slice": wide[:, 1:, ::2],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "more than a chunk": torch.randn(half._CHUNK + 3),
    }
    round_trip(state)


def test_other_dtypes_pass_as_they_are() -> None:
    dtypes = [torch.int64, torch.bool, torch.bfloat16, torch.float16, torch.float64]
    state = {str(dtype): torch.ones(3, dtype=dtype) for dtype in dtypes}
    encoded = round_trip(state)
    assert all(encoded.half[name].dtype == state[name].dtype for name in state)
    assert encoded.residual["names"] == []


def test_special_values_are_restored_whatever_the_processor_flushes() -> None:
    values = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 6e-8, -5.9e-8, 65504.0, 1.0]
    state = {"w": torch.tensor(values + [0.1] * 60), "nan": patterns(400, 9)}
    state["nan"] = torch.where(state["nan"].isnan(), state["nan"], 0.5)
    round_trip(state)
    if torch.set_flush_denormal(True):
        try:
            round_trip(state)
        finally:
            torch.set_flush_denormal(False)


def test_ordinary_weights_cost_four_bytes() -> None:
    encoded = round_trip({"w": torch.randn(500, 1000) * 0.02})
    sizes = [encoded.half["w"], *(encoded.residual[key] for key in ("low", "index", "bits"))]
    assert sum(tensor.nbytes for tensor in sizes) < 4.02 * 500_000
    assert encoded.half["w"].dtype == torch.float16 and encoded.kept == []


def test_what_half_precision_breaks_stays_float32_and_is_named() -> None:
    state = {
        "overflow": torch.tensor([1.0] * 20 + [7e4]),
        "inf": torch.tensor([1.0, float("inf")]),
        "1.running_var": torch.tensor([1.0] * 20 + [1e-9]),
        "tiny variance.running_var": torch.tensor([1.0] * 20 + [1e-44]),
        "one channel gone": torch.cat([torch.ones(3, 40), torch.full((1, 40), 1e-9)]),
        "one weight gone": torch.tensor([[1.0] * 39 + [1e-9], [1e-9] + [1.0] * 39]),
        "bias": torch.tensor([1.0] * 20 + [1e-9]),
        "zero": torch.zeros(4, 4),
    }
    encoded = round_trip(state)
    broken = ["overflow", "1.running_var", "tiny variance.running_var", "one channel gone"]
    assert encoded.kept == broken
    for name, tensor in encoded.half.items():
        assert (tensor.dtype == torch.float32) == (name in broken), name


def test_a_tensor_whose_list_would_cost_more_than_it_saves_is_kept_whole() -> None:
    encoded = round_trip({"small": torch.rand(60) * 1e-6, "a": torch.ones(5), "b": torch.ones(3)})
    assert list(encoded.residual["whole"]) == ["small"]
    assert encoded.half["small"].dtype == torch.float16
    assert len(encoded.residual["index"]) == 0 and len(encoded.residual["low"]) == 8
    assert encoded.residual["low"].untyped_storage().nbytes() == 16


def test_parts_that_do_not_belong_together_are_refused() -> None:
    one, other = half.encode({"w": torch.ones(3)}), half.encode({"w": torch.ones(4)})
    with pytest.raises(BadInput, match="other weights"):
        half.decode(one.half, other.residual)
