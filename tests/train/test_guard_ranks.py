"""What one of two processes sees, both go by."""

import torch
from torch import distributed, multiprocessing

from train.guard import flag_of, over_all_ranks


def _judge(rank: int, store: str, places: list) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", world_size=2, rank=rank)
    try:
        values = [[1.0, 2.0], [float("nan"), 1.0], [2.0, float("inf")]]
        flags = [flag_of([torch.tensor(row[rank])]) for row in values]
        places[rank] = [(flag.item(), over_all_ranks(flag).item()) for flag in flags]
    finally:
        distributed.destroy_process_group()


def test_a_step_that_is_bad_on_one_rank_is_bad_on_all(tmp_path):
    with multiprocessing.Manager() as manager:
        places = manager.list([None, None])
        multiprocessing.spawn(_judge, (str(tmp_path / "store"), places), nprocs=2)
        assert list(places) == [[(0, 0), (1, 1), (0, 1)], [(0, 0), (0, 1), (1, 1)]]
