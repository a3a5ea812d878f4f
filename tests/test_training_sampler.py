"""The order of samples over processes, and going on in the middle of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osprey_tp.training.sampler import EpochSampler


def of_all_ranks(samples: int, batch_size: int, world_size: int, epoch: int, state: dict | None = None) -> list[list]:
    """What each rank sees."""
    seen = []
    for rank in range(world_size):
        sampler = EpochSampler(samples, batch_size, rank, world_size)
        sampler.set_epoch(epoch)
        if state is not None:
            sampler.load_state_dict(state)
        seen.append(list(sampler))
    return seen


def interleaved(of_ranks: list[list], batch_size: int) -> list:
    """The batches of all ranks in the order in which they are taken."""
    batches = [[seen[i : i + batch_size] for i in range(0, len(seen), batch_size)] for seen in of_ranks]
    return [index for step in zip(*batches, strict=True) for batch in step for index in batch]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(0, 9))
def test_any_number_of_processes_sees_the_same_order(samples, batch_size, world_size, epoch, used):
    seen = of_all_ranks(samples, batch_size, world_size, epoch)
    (alone,) = of_all_ranks(samples, batch_size * world_size, 1, epoch)
    assert interleaved(seen, batch_size) == alone
    assert len({len(indices) for indices in seen}) == 1
    assert len(EpochSampler(samples, batch_size, 0, world_size)) == len(seen[0])
    assert alone[:samples] == [(epoch, place) for place in range(samples)]
    assert alone[samples:] == [(epoch, place % samples) for place in range(samples, len(alone))]
    assert len(alone) - samples < batch_size * world_size

    used = min(used, len(seen[0]) // batch_size)
    sampler = EpochSampler(samples, batch_size, 0, world_size)
    sampler.set_epoch(epoch)
    state = sampler.state_dict(used)
    rest = of_all_ranks(samples, batch_size, world_size, 0, state)
    assert rest == [indices[used * batch_size :] for indices in seen]
    assert of_all_ranks(samples, batch_size * world_size, 1, 0, state) == [alone[used * batch_size * world_size :]]


def test_a_loaded_position_holds_for_one_epoch():
    sampler = EpochSampler(6, 2)
    sampler.load_state_dict({"epoch": 1, "position": 4})
    assert list(sampler) == [(1, 4), (1, 5)]
    sampler.set_epoch(2)
    assert list(sampler) == [(2, place) for place in range(6)]


def test_what_cannot_be_sampled_is_named():
    for arguments in ((0,), (4, 0), (4, 1, 1, 1), (4, 1, -1, 2), (4, 1, 0, 0)):
        with pytest.raises(ValueError, match="no sampler for rank"):
            EpochSampler(*arguments)
    for position in (3, -2, 8):
        with pytest.raises(ValueError, match=f"sample {position} of an epoch of 6 is not where a global batch of 2"):
            EpochSampler(5, 2).load_state_dict({"epoch": 0, "position": position})
