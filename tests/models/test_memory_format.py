"""Channels last where it is fast, and the same network either way."""

import torch
from torch import nn

from models.memory_format import lay_out

CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 1024, 1),
        nn.Conv2d(1024, 128, 3, padding=1),  # wide: 1.2 million weights
        nn.Conv2d(128, 8, 3),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


def is_channels_last(layer: nn.Module) -> bool:
    assert isinstance(layer, nn.Conv2d)
    return layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_wide_convolutions_stay_plain_on_a_cpu_in_fp32_and_all_others_are_channels_last() -> None:
    model = network()
    lay_out(model, CPU, "fp32")
    seen: list[bool] = []
    model[1].register_forward_hook(lambda _, inputs, out: seen.append(out.is_contiguous()))
    model(torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last))
    assert [is_channels_last(model[n]) for n in (1, 2)] == [False, True]
    assert seen == [True], "what it computes on is laid out as its weights are"


def test_in_bf16_all_convolutions_are_channels_last() -> None:
    model = network()
    lay_out(model, CPU, "bf16")
    assert is_channels_last(model[1]) and is_channels_last(model[2])


def test_the_layout_changes_neither_weights_nor_names_nor_what_is_computed() -> None:
    plain, laid_out = network(), network()
    lay_out(laid_out, CPU, "fp32")
    assert list(plain.state_dict()) == list(laid_out.state_dict())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, laid_out.state_dict()[name])
    images = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(laid_out(images), plain(images))
