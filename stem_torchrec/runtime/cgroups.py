"""Limits of the control groups (cgroups v1 and v2) that this process runs in, such as those of a container or a job."""

from pathlib import Path


def cgroup_values(name: str, *, controller: str | None = None, root: Path = Path("/")) -> list[str]:
    """What a file of the control groups says, in the process's own group and in all groups above it.

    A limit holds if any of them sets it: a container sees its own group as the uppermost one, a SLURM job is several
    groups below it, and systemd sets limits in between.

    Args:
        name: of the file, such as `memory.max`.
        controller: of cgroups v1, such as `memory`; None for cgroups v2.
        root: where /proc and /sys are.

    Returns an empty list where the controller is absent.

    Example::

        cgroup_values("memory.max")  # ["max", "68719476736"]
        cgroup_values("memory.limit_in_bytes", controller="memory")  # []
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    values = []
    for line in lines:
        # 0::/user.slice/session.scope (v2) or 4:cpu,cpuacct:/docker/1f3a (v1)
        number, controllers, group = line.split(":", 2)
        if controller not in (controllers.split(",") if number != "0" else [None]):
            continue
        mount = root / "sys/fs/cgroup" / (controller or "")
        own = mount / group.lstrip("/")
        for folder in (own, *(parent for parent in own.parents if parent.is_relative_to(mount))):
            # In a container, the path of v1 is the host's, of which only the container's own group is mounted.
            if (folder / name).is_file():
                values.append((folder / name).read_text().strip())
    return values
