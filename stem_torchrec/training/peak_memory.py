"""How much memory each rank has taken."""

import resource

import torch

from stem_torchrec.metrics.collectives import gather

_KIB, _MIB = 2**10, 2**20


def peak_memory(device: torch.device) -> dict[str, float | None]:
    """The most MiB that each rank has taken since its process began: of its host, and of its GPU if it has one.

    The host's is the resident set of the rank's process without its readers' processes; the GPU's is what PyTorch has
    allocated. A process that has trained other models before counts theirs as well. All ranks call it.

    Args:
        device: of this rank.

    Example::

        peak_memory(torch.device("cpu"))  # {"memory/host_mib/rank_0": 812.4, "memory/host_mib/rank_1": 799.0}
    """
    # Linux counts in KiB.
    peaks = {"host_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB / _MIB}
    if device.type == "cuda":
        peaks["gpu_mib"] = torch.cuda.max_memory_allocated(device) / _MIB
    by_rank = gather(torch.tensor(list(peaks.values()), dtype=torch.float64, device=device)).tolist()
    return {
        f"memory/{kind}/rank_{rank}": of_rank[i] for i, kind in enumerate(peaks) for rank, of_rank in enumerate(by_rank)
    }
