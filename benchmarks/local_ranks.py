"""Ranks on this machine, as processes that their caller starts himself."""

import os

from torch.distributed.elastic.utils.distributed import get_free_port


def rank_environments(ranks: int) -> list[dict[str, str]]:
    """The environment of each rank's process, as torchrun sets it; one rank alone has no address to meet at."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port())} if ranks > 1 else {}
    here = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [os.environ | meeting | here | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
