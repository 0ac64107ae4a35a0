"""TorchX components: the commands of this project as jobs of Slurm, Kubernetes, AWS Batch or Docker.

torchx run -s slurm launch/components.py:train -j 2x8 --out /shared/runs/a -- --recipe kuairand_pure --data.path DIR

The installed package has them as stem.train, stem.compare and so on; docs/launch.md has a section for each scheduler.
TorchX reads annotations and docstrings: it takes Optional[str], not str | None, and leaves an Optional[int] as text.
"""

import re
import shlex
from typing import Dict, List, Optional, Tuple

from torchx import specs
from torchx.specs.finder import ComponentValidationException


def train(
    *args: str,
    j: str = "1x1",
    out: Optional[str] = None,
    gpu: int = -1,
    cpu: int = -1,
    memMB: int = -1,
    h: Optional[str] = None,
    image: str = "stem_torchrec",
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
    name: str = "train",
) -> specs.AppDef:
    """Trains a model.

    Args:
        args: options of stem_torchrec/train.py, behind --
        j: hosts and ranks on each, as 2x8
        out: run folder, on a file system or in a store that all hosts see (--output-dir)
        gpu: GPUs of each host; -1 is one for each rank, 0 trains on CPU
        cpu: cores of each host; -1 is 8 for each GPU, or 2 for each rank without one
        memMB: megabytes of each host; -1 is 60000 for each GPU, or 8000 for each rank without one
        h: a named resource of TorchX in the place of gpu, cpu and memMB
        image: container image; Slurm and local_cwd take the installed package instead
        mounts: what containers mount, as type=bind,src=/host,dst=/path or type=volume,src=CLAIM,dst=/path
        env: variables, as NAME=value,OTHER=value
        max_retries: how often the scheduler starts a job again that has failed or was asked to end
        rdzv_port: port of the first host, where ranks of several hosts meet
        name: of the job
    """
    line = ["-m", "stem_torchrec.train", *_option("--output-dir", out), *args]
    role = _role(name, image=image, mounts=mounts, env=env, max_retries=max_retries)
    return _with_ranks(role, line, j=j, resource=_resource(j, gpu=gpu, cpu=cpu, memMB=memMB, h=h), port=rdzv_port)


def compare(
    *args: str,
    j: str = "1x1",
    out: Optional[str] = None,
    gpu: int = -1,
    cpu: int = -1,
    memMB: int = -1,
    h: Optional[str] = None,
    image: str = "stem_torchrec",
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
    name: str = "compare",
) -> specs.AppDef:
    """Trains several models with several seeds and writes a report that compares them.

    Args:
        args: options of stem_torchrec/compare.py, behind --
        j: hosts and ranks on each, as 2x8; the ranks train each model together
        out: folder of the runs and the report, on a file system that all hosts see (--out)
        gpu: GPUs of each host; -1 is one for each rank, 0 trains on CPU
        cpu: cores of each host; -1 is 8 for each GPU, or 2 for each rank without one
        memMB: megabytes of each host; -1 is 60000 for each GPU, or 8000 for each rank without one
        h: a named resource of TorchX in the place of gpu, cpu and memMB
        image: container image; Slurm and local_cwd take the installed package instead
        mounts: what containers mount, as type=bind,src=/host,dst=/path or type=volume,src=CLAIM,dst=/path
        env: variables, as NAME=value,OTHER=value
        max_retries: how often the scheduler starts a job again that has failed or was asked to end
        rdzv_port: port of the first host, where ranks of several hosts meet
        name: of the job
    """
    line = ["-m", "stem_torchrec.compare", *_option("--out", out), *args]
    role = _role(name, image=image, mounts=mounts, env=env, max_retries=max_retries)
    return _with_ranks(role, line, j=j, resource=_resource(j, gpu=gpu, cpu=cpu, memMB=memMB, h=h), port=rdzv_port)


def tune(
    *args: str,
    ranks: int = 1,
    out: Optional[str] = None,
    gpu: int = -1,
    cpu: int = -1,
    memMB: int = -1,
    h: Optional[str] = None,
    image: str = "stem_torchrec",
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    name: str = "tune",
) -> specs.AppDef:
    """Searches for the setting of a model that validates best, on one host.

    Args:
        args: options of stem_torchrec/tune.py, behind --
        ranks: trials at a time; each rank trains trials of its own
        out: folder of the study, on a file system that outlives the job (--out)
        gpu: GPUs of the host; -1 is one for each rank, 0 trains on CPU
        cpu: cores of the host; -1 is 8 for each GPU, or 2 for each rank without one
        memMB: megabytes of the host; -1 is 60000 for each GPU, or 8000 for each rank without one
        h: a named resource of TorchX in the place of gpu, cpu and memMB
        image: container image; Slurm and local_cwd take the installed package instead
        mounts: what containers mount, as type=bind,src=/host,dst=/path or type=volume,src=CLAIM,dst=/path
        env: variables, as NAME=value,OTHER=value
        max_retries: how often the scheduler starts a job again that has failed or was asked to end
        name: of the job
    """
    j = f"1x{ranks}"
    line = ["-m", "stem_torchrec.tune", *_option("--out", out), *args]
    role = _role(name, image=image, mounts=mounts, env=env, max_retries=max_retries)
    return _with_ranks(role, line, j=j, resource=_resource(j, gpu=gpu, cpu=cpu, memMB=memMB, h=h))


def bench(
    *args: str,
    j: str = "1x1",
    script: str = "benchmarks/sharding.py",
    out: Optional[str] = None,
    gpu: int = -1,
    cpu: int = -1,
    memMB: int = -1,
    h: Optional[str] = None,
    image: str = "stem_torchrec",
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
    name: str = "bench",
) -> specs.AppDef:
    """Runs a script of benchmarks/, by default the sweep over sharding types.

    Args:
        args: options of the script, behind --
        j: hosts and ranks on each, as 2x8
        script: its path in the repository; the wheel has none, the image has all
        out: folder of the results, on a file system that all hosts see (--out)
        gpu: GPUs of each host; -1 is one for each rank, 0 measures on CPU
        cpu: cores of each host; -1 is 8 for each GPU, or 2 for each rank without one
        memMB: megabytes of each host; -1 is 60000 for each GPU, or 8000 for each rank without one
        h: a named resource of TorchX in the place of gpu, cpu and memMB
        image: container image; Slurm and local_cwd take the files of the current folder instead
        mounts: what containers mount, as type=bind,src=/host,dst=/path or type=volume,src=CLAIM,dst=/path
        env: variables, as NAME=value,OTHER=value
        max_retries: how often the scheduler starts a job again that has failed or was asked to end
        rdzv_port: port of the first host, where ranks of several hosts meet
        name: of the job
    """
    line = [script, *_option("--out", out), *args]
    role = _role(name, image=image, mounts=mounts, env=env, max_retries=max_retries)
    return _with_ranks(role, line, j=j, resource=_resource(j, gpu=gpu, cpu=cpu, memMB=memMB, h=h), port=rdzv_port)


def prepare(
    *args: str,
    out: Optional[str] = None,
    cpu: int = 8,
    memMB: int = 32000,
    h: Optional[str] = None,
    image: str = "stem_torchrec",
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    name: str = "prepare",
) -> specs.AppDef:
    """Prepares a log for training from raw files, on one host without a GPU.

    Args:
        args: spec or files, and options of stem_torchrec/prepare.py, behind --
        out: folder of the log (--out)
        cpu: cores of the host
        memMB: megabytes of the host
        h: a named resource of TorchX in the place of cpu and memMB
        image: container image; Slurm and local_cwd take the installed package instead
        mounts: what the container mounts, as type=bind,src=/host,dst=/path or type=volume,src=CLAIM,dst=/path
        env: variables, as NAME=value,OTHER=value
        max_retries: how often the scheduler starts a job again that has failed or was asked to end
        name: of the job
    """
    line = ["-m", "stem_torchrec.prepare", *args, *_option("--out", out)]
    role = _role(name, image=image, mounts=mounts, env=env, max_retries=max_retries)
    return _with_command(role, "python", line, resource=specs.resource(cpu=cpu, gpu=0, memMB=memMB, h=h))


def _option(name: str, value: Optional[str]) -> List[str]:
    return [] if value is None else [name, value]


def _hosts_and_ranks(j: str) -> Tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,3})", j)
    if match is None:
        raise ComponentValidationException(f"-j is {j!r}, but must be hosts and ranks on each, as 2x8.")
    return int(match[1]), int(match[2])


def _resource(j: str, *, gpu: int, cpu: int, memMB: int, h: Optional[str]) -> specs.Resource:
    """What each host needs; `h` goes before the others."""
    _, ranks = _hosts_and_ranks(j)
    gpus = ranks if gpu < 0 else gpu
    units, cores, memory = (gpus, 8, 60_000) if gpus else (ranks, 2, 8_000)
    cpu, memMB = (units * cores if cpu < 0 else cpu), (units * memory if memMB < 0 else memMB)
    return specs.resource(cpu=cpu, gpu=gpus, memMB=memMB, h=h)


def _role(
    name: str, *, image: str, mounts: Optional[List[str]], env: Optional[Dict[str, str]], max_retries: int
) -> specs.Role:
    """A job of one host that lacks its command."""
    return specs.Role(
        name=name,
        image=image,
        entrypoint="bash",
        env=dict(env or {}),
        max_retries=max_retries,
        mounts=specs.parse_mounts(mounts) if mounts else [],
    )


def _with_ranks(
    role: specs.Role, line: List[str], *, j: str, resource: specs.Resource, port: int = 29500
) -> specs.AppDef:
    """The job with ranks on each of its hosts, which meet at the first host."""
    hosts, ranks = _hosts_and_ranks(j)
    # The scheduler sets the variable that rank0_env stands for, on some only on others. One host takes a free port.
    meeting = "localhost:0" if hosts == 1 else f"$${{{specs.macros.rank0_env}:=localhost}}:{port}"
    torchrun = (
        f"python -m stem_torchrec.runtime.torchrun --nnodes {hosts} --nproc-per-node {ranks} --rdzv-backend c10d "
        f"--rdzv-endpoint {meeting} --rdzv-id '{specs.macros.app_id}'"
    )
    role.num_replicas, role.port_map = hosts, {"c10d": port}
    return _with_command(role, torchrun, line, resource=resource)


def _with_command(role: specs.Role, command: str, line: List[str], *, resource: specs.Resource) -> specs.AppDef:
    """The job with a command and its arguments, which takes the place of the shell, so that it gets the signals."""
    # $$ is one $ of the shell: the macros of TorchX begin with $ as well.
    role.args, role.resource = ["-c", f"exec {command} {shlex.join(line).replace('$', '$$')}"], resource
    return specs.AppDef(name=role.name, roles=[role])
