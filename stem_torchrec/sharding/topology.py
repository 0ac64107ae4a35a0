"""The ranks for TorchRec's planner: their number, memory and bandwidths."""

from dataclasses import dataclass

import torch
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import HardwareConfig, KernelConfig, TopologyFactory, TrainerConfig

from stem_torchrec.runtime.memory import host_memory
from stem_torchrec.runtime.process import Process

_GIB = 2**30


@dataclass(frozen=True)
class Bandwidths:
    """Bandwidths of memory and links in GB/s (10^9 bytes) per rank; None is TorchRec's own figure."""

    hbm: float | None = None
    """GPU memory."""
    ddr: float | None = None
    """Host memory."""
    hbm_to_ddr: float | None = None
    """Between GPU and host memory, for tables in UVM."""
    intra_host: float | None = None
    """Between the ranks of a host."""
    inter_host: float | None = None
    """Between hosts."""


def make_topology(
    *,
    world_size: int,
    local_world_size: int,
    device: str,
    hbm_gib: float | None = None,
    ddr_gib: float | None = None,
    bandwidths: Bandwidths | None = None,
) -> Topology:
    """A topology of ranks that may not exist yet.

    Args:
        world_size: number of ranks.
        local_world_size: number of ranks per host.
        device: cuda or cpu.
        hbm_gib: GPU memory per rank.
        ddr_gib: host memory per rank.
        bandwidths: of memory and links.
    """

    def bytes_per_ms(gb_per_second: float | None) -> float | None:
        return None if gb_per_second is None else gb_per_second * 1e6

    speed = bandwidths or Bandwidths()
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=world_size, local_world_size=local_world_size),
        HardwareConfig(
            hbm_cap_bytes=None if hbm_gib is None else int(hbm_gib * _GIB),
            ddr_cap_bytes=None if ddr_gib is None else int(ddr_gib * _GIB),
            hbm_mem_bw=bytes_per_ms(speed.hbm),
            ddr_mem_bw=bytes_per_ms(speed.ddr),
            hbm_to_ddr_mem_bw=bytes_per_ms(speed.hbm_to_ddr),
            intra_host_bw=bytes_per_ms(speed.intra_host),
            inter_host_bw=bytes_per_ms(speed.inter_host),
        ),
        KernelConfig(compute_device=device, use_hardware_based_bandwidth=True),
    )


def topology_here(process: Process, *, hbm_gib: float | None = None) -> Topology:
    """The topology of this launch: its ranks and hosts, the memory of this GPU and a rank's share of this host's.

    Args:
        process: this rank.
        hbm_gib: GPU memory per rank that tables may use; by default all of it.
    """
    if hbm_gib is None and process.device.type == "cuda":
        hbm_gib = torch.cuda.get_device_properties(process.device).total_memory / _GIB
    return make_topology(
        world_size=process.world_size,
        local_world_size=process.local_world_size,
        device=process.device.type,
        hbm_gib=hbm_gib,
        ddr_gib=host_memory() / _GIB / process.local_world_size,
    )
