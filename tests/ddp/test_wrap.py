"""The life of a weight up to the first step: every rank holds rank 0's, and says so."""

import pytest
import torch
from torch import nn

from configs.schema import Ddp
from ddp import wrap as wrapping
from ddp.collectives import broadcast_from_rank0, same_on_all_ranks
from ddp.optimizer import receive_optimizer_state
from ddp.rank0 import Rank0Failed, on_rank0, rank0_only
from ddp.wrap import Alone, Disagreement, Wrapped, agreement, tensors_of, wrap
from models.build import build_model, find_builder
from models.memory_format import lay_out
from tests.ranks import run_ranks
from utils.errors import BadInput


def model_of(rank: int, seed: int = 0) -> nn.Module:
    return build_model(find_builder("small_resnet"), 10, 1, seed=seed, initialise=rank == 0)


def wrap_with_own_seed(rank: int, channels_last: bool) -> tuple[str, bool]:
    model = build_model(find_builder("small_resnet"), 10, 1, seed=100 + rank, initialise=True)
    before = {name: t.clone() for name, t in tensors_of(model)}
    if channels_last:
        lay_out(model, torch.device("cpu"), "fp32")
    wrapped = wrap(model, Ddp())
    line = agreement(wrapped.module)
    kept = all(torch.equal(before[name], t) for name, t in tensors_of(wrapped.module))
    return line, kept


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_ranks_with_different_seeds_and_heads_agree_on_rank_0s_weights(
    world_size: int, channels_last: bool
) -> None:
    answers = run_ranks(world_size, wrap_with_own_seed, channels_last)
    assert len({line for line, _ in answers}) == 1
    assert [kept for _, kept in answers] == [True] + [False] * (world_size - 1)


def without_broadcast(rank: int) -> str:
    wrapping.broadcast_from_rank0 = lambda tensors: list(tensors) and None
    wrapped = wrap(model_of(rank), Ddp())
    with pytest.raises(Disagreement) as caught:
        agreement(wrapped.module)
    return str(caught.value)


def test_a_missing_broadcast_shows_as_nan_and_names_the_tensor_and_the_ranks() -> None:
    for message in run_ranks(3, without_broadcast):
        assert "stem.0.weight: ranks [1, 2] differ" in message
        assert "NaN on [1, 2]" in message


def one_tensor_off(rank: int) -> str:
    wrapped = wrap(model_of(rank), Ddp())
    if rank == 1:
        with torch.no_grad():
            wrapped.module.head.bias[3] += 1e-6
    with pytest.raises(Disagreement) as caught:
        agreement(wrapped.module)
    return str(caught.value)


def test_one_number_that_differs_on_one_rank_is_found_and_named() -> None:
    for message in run_ranks(3, one_tensor_off):
        assert "in 1 tensors" in message
        assert "head.bias: ranks [1] differ" in message


def gradients_of_two_passes(ddp_model: Wrapped) -> list[torch.Tensor]:
    torch.manual_seed(0)  # of the images and of dropout
    images = torch.rand(4, 1, 8, 8)
    labels = torch.arange(4)
    with ddp_model.no_sync():
        nn.functional.cross_entropy(ddp_model(images), labels).backward()
    nn.functional.cross_entropy(ddp_model(images), labels).backward()
    return [parameter.grad for parameter in ddp_model.parameters() if parameter.grad is not None]


def one_process(rank: int) -> bool:
    alone = wrap(model_of(rank), Ddp())
    ddp_model = nn.parallel.DistributedDataParallel(model_of(rank))
    assert isinstance(alone, Alone)
    assert list(alone.state_dict()) == list(ddp_model.state_dict())
    return all(map(torch.equal, *map(gradients_of_two_passes, (alone, ddp_model))))


def test_one_process_has_the_gradients_of_ddp_without_its_buckets() -> None:
    assert run_ranks(1, one_process) == [True]


def buckets(rank: int) -> tuple[bool, str]:
    ddp_model = wrap(model_of(rank), Ddp())
    assert not isinstance(ddp_model, Alone)
    for _ in range(2):
        gradients_of_two_passes(ddp_model)
    data = ddp_model._get_ddp_logging_data()
    return bool(data["has_rebuilt_buckets"]), data["rebuilt_bucket_sizes"]


def test_on_a_cpu_a_small_network_s_gradients_travel_in_one_bucket() -> None:
    for has_rebuilt, sizes in run_ranks(2, buckets):
        assert has_rebuilt
        assert sizes == str(308_074 * 4), "torch's first bucket of 1 MiB would make them two"


def other_architecture(rank: int) -> str:
    builder = find_builder("small_resnet")
    with pytest.raises(Disagreement) as caught:
        wrap(build_model(builder, 10 + rank, 1, seed=0, initialise=True), Ddp())
    return str(caught.value)


def test_ranks_that_built_different_models_are_told_before_any_broadcast() -> None:
    assert all("different models" in message for message in run_ranks(2, other_architecture))


def without_initialisation(rank: int) -> bool:
    model = model_of(1)
    return all(t.isnan().all() for _, t in tensors_of(model) if t.is_floating_point())


def test_a_model_built_without_initialisation_is_nan_everywhere() -> None:
    assert run_ranks(1, without_initialisation) == [True]


def collective_in_gate(rank: int) -> str:
    def wrong() -> None:
        broadcast_from_rank0([torch.zeros(1)])

    try:
        rank0_only(wrong)()
    except RuntimeError as error:
        return str(error)
    return "skipped"


def test_a_collective_inside_a_rank_0_gate_is_an_error_not_a_hang() -> None:
    first, second = run_ranks(2, collective_in_gate)
    assert "never join" in first
    assert second == "skipped"


def fail_on_rank0(rank: int) -> tuple[str, str, int]:
    def refuse() -> None:
        raise BadInput("there is no file x.pt")

    try:
        on_rank0(refuse)
    except (BadInput, Rank0Failed) as error:
        return type(error).__name__, str(error), error.exit_code
    return "no error", "", 0


def test_a_failure_on_rank_0_reaches_every_rank_as_the_same_error() -> None:
    first, second, third = run_ranks(3, fail_on_rank0)
    assert first == ("BadInput", "there is no file x.pt", 2)
    assert second == third == ("Rank0Failed", "there is no file x.pt", 2)


def hand_over_optimizer(rank: int) -> list[int]:
    model = model_of(rank)
    lay_out(model, torch.device("cpu"), "fp32")
    wrapped = wrap(model, Ddp())
    optimizer = torch.optim.AdamW(wrapped.module.named_parameters(), lr=0.1)
    loaded = None
    if rank == 0:
        twin = torch.optim.AdamW(model_of(0).named_parameters(), lr=0.5)
        for group in twin.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn_like(parameter)
        twin.step()
        loaded = twin.state_dict()["state"]
    receive_optimizer_state(optimizer, loaded)
    assert optimizer.param_groups[0]["lr"] == 0.1
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].stride() == parameter.stride()
        assert state["step"].item() == 1
    return [hash(s["exp_avg_sq"].cpu().numpy().tobytes()) for s in optimizer.state.values()]


def test_optimizer_state_reaches_every_rank_in_the_layout_of_its_parameter() -> None:
    answers = run_ranks(3, hand_over_optimizer)
    assert answers[0] == answers[1] == answers[2]
    assert len(set(answers[0])) > 10


def compare(rank: int) -> tuple[bool, bool]:
    return same_on_all_ranks(torch.tensor([5, -7])), same_on_all_ranks(torch.tensor([5, rank]))


def test_a_comparison_of_ranks_sees_one_that_differs() -> None:
    assert run_ranks(3, compare) == [(True, False)] * 3
