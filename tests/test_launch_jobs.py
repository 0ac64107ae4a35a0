"""What TorchX would submit to each scheduler for the components of launch/: scripts and manifests, not their run."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from torchx.cli.main import main as torchx_command
from torchx.runner import Runner, get_runner
from torchx.specs.file_linter import validate
from torchx.specs.finder import ComponentValidationException

from stem_torchrec.runtime.exit_status import ExitStatus

ROOT = Path(__file__).parents[1]
COMPONENTS = ROOT / "launch/components.py"
NAMES = ("train", "compare", "tune", "bench", "prepare")
JOB = [
    *("-j", "2x8", "--out", "/shared/runs/a", "--max_retries", "3", "--env", "STEM_JOIN_TIMEOUT=300"),
    *("--image", "registry/stem:1", "--mounts", "type=volume,src=claim,dst=/shared"),
    *("--", "--recipe", "kuairand_pure", "--data.path", "a log"),
]
RANKS = "exec python -m stem_torchrec.runtime.torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d"
COMMAND = "-m stem_torchrec.train --output-dir /shared/runs/a --recipe kuairand_pure --data.path 'a log'"
PAGE = (ROOT / "docs/launch.md").read_text()


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with get_runner() as torchx:
        yield torchx


def request_for(runner: Runner, scheduler: str, name: str, *options: str, **settings: str) -> Any:
    return runner.dryrun_component(f"{COMPONENTS}:{name}", [*options], scheduler, cfg=settings).request


def slurm_script(runner: Runner, name: str, *options: str) -> str:
    return request_for(runner, "slurm", name, *options).materialize()


def run_with(commands: dict[str, str], script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script of job 7 with these commands, by their own short scripts, in the place of the cluster's."""
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    return subprocess.run(["bash", "-c", script], env=environment, text=True, capture_output=True)


@pytest.mark.parametrize("name", NAMES)
def test_torchx_takes_the_components(name: str) -> None:
    assert validate(str(COMPONENTS), name) == []


def test_slurm_gets_gpus_cores_memory_and_requeues(runner: Runner) -> None:
    script = slurm_script(runner, "train", *JOB)
    resources = "--requeue --ntasks-per-node=1 --cpus-per-task=64 --mem=480000 --gpus-per-task=8"
    assert re.findall(r"#SBATCH --job-name=train-\d (.*)", script) == [resources, resources]
    assert script.count("--rdzv-endpoint ${SLURM_JOB_NODELIST_HET_GROUP_0:=localhost}:29500") == 2
    assert script.count(f"{RANKS} ") == 2
    assert script.count("-m stem_torchrec.train --output-dir /shared/runs/a ") == 2
    assert "export TORCHX_MAX_RETRIES=3" in script
    assert "STEM_JOIN_TIMEOUT=300" in script
    assert 'scontrol requeue "$SLURM_JOB_ID"' in script


def test_the_shell_gives_each_rank_of_a_slurm_job_its_options(runner: Runner, tmp_path: Path) -> None:
    script = slurm_script(runner, "train", "--gpu", "0", *JOB)
    assert "--gpus" not in script
    assert "--cpus-per-task=16 --mem=64000" in script
    # srun runs the first of its two commands, and python prints its arguments.
    commands = {
        "srun": 'while [ "$1" != bash ]; do shift; done; exec "$1" "$2" "$3"',
        "python": 'printf "<%s>" "$@"; exit 75',
        "scontrol": 'echo "scontrol $*"',
    }
    done = run_with(commands, script, tmp_path)
    assert done.returncode == 75
    assert "<--rdzv-endpoint><localhost:29500><--rdzv-id><7><-m><stem_torchrec.train>" in done.stdout
    assert done.stdout.count("<--data.path><a log>") == 1
    assert "scontrol requeue 7" in done.stdout


@pytest.mark.filterwarnings(r"ignore:\s*Role train configured with restarts:UserWarning")
def test_volcano_gets_gpus_cores_memory_ports_mounts_and_restarts(runner: Runner) -> None:
    pytest.importorskip("kubernetes", reason="needs kubernetes, of the extra of that name")
    manifest = yaml.safe_load(str(request_for(runner, "kubernetes", "train", *JOB, queue="gpus")))
    spec = manifest["spec"]
    assert (spec["schedulerName"], spec["queue"], spec["maxRetry"], len(spec["tasks"])) == ("volcano", "gpus", 3, 2)
    hosts = []
    for task in spec["tasks"]:
        assert {"event": "PodFailed", "action": "RestartJob"} in task["policies"]
        (container,) = task["template"]["spec"]["containers"]
        assert container["image"] == "registry/stem:1"
        assert container["resources"]["limits"] == {"cpu": "64000m", "memory": "480000M", "nvidia.com/gpu": "8"}
        assert container["ports"] == [{"name": "c10d", "containerPort": 29500}]
        assert {"name": "STEM_JOIN_TIMEOUT", "value": "300"} in container["env"]
        assert "/shared" in [mount["mountPath"] for mount in container["volumeMounts"]]
        claims = [volume.get("persistentVolumeClaim") for volume in task["template"]["spec"]["volumes"]]
        assert {"claimName": "claim"} in claims
        command = container["command"][-1]
        assert command.startswith(RANKS)
        assert command.endswith(COMMAND)
        hosts += re.findall(r"endpoint \$\{(\w+):=localhost\}:29500", command)
    assert hosts == ["TORCHX_RANK0_HOST", "VC_TRAIN_0_HOSTS"]


@pytest.mark.filterwarnings("ignore:Cannot determine resource instance type:UserWarning")
def test_aws_batch_gets_gpus_cores_memory_mounts_and_attempts(runner: Runner) -> None:
    pytest.importorskip("boto3", reason="needs boto3, of the extra aws-batch")
    job = request_for(runner, "aws_batch", "train", *JOB, queue="gpus").job_def
    assert job["nodeProperties"]["numNodes"] == 2
    # TorchX gives the number of attempts, not of those after the first.
    assert job["retryStrategy"]["attempts"] == 3
    (nodes,) = job["nodeProperties"]["nodeRangeProperties"]
    container = nodes["container"]
    needs = {need["type"]: need["value"] for need in container["resourceRequirements"]}
    assert needs == {"VCPU": "64", "MEMORY": "480000", "GPU": "8"}
    assert container["volumes"][0]["efsVolumeConfiguration"] == {"fileSystemId": "claim"}
    assert container["mountPoints"][0]["containerPath"] == "/shared"
    assert container["command"][-1].endswith(COMMAND)
    assert "${AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS:=localhost}:29500" in container["command"][-1]


def test_docker_gets_gpus_cores_memory_mounts_and_restarts(runner: Runner) -> None:
    pytest.importorskip("docker", reason="needs docker, of the extra of that name")
    containers = request_for(runner, "local_docker", "train", *JOB).containers
    assert len(containers) == 2
    for container in containers:
        settings = container.kwargs
        assert settings["device_requests"][0]["Count"] == 8
        assert (settings["nano_cpus"], settings["mem_limit"], settings["shm_size"]) == (
            64 * 10**9,
            "480000m",
            "480000m",
        )
        assert settings["mounts"][0]["Target"] == "/shared"
        assert settings["restart_policy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
        assert settings["environment"]["TORCHX_RANK0_HOST"] == containers[0].kwargs["name"]
        assert "--rdzv-endpoint ${TORCHX_RANK0_HOST:=localhost}:29500 " in container.command[-1]
        assert container.command[-1].endswith(COMMAND)


def test_the_line_of_the_readme_starts_two_agents_with_eight_ranks_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "torchx run dist.ddp -j 2x8 stem_torchrec/train.py"
    assert f"\n{line}\n" in (ROOT / "README.md").read_text()
    monkeypatch.chdir(ROOT)  # Where .torchxconfig is.
    torchx_command(line.replace("run", "run --dryrun").split()[1:])
    request = " ".join(re.findall(r"[^\s'\"]+", capsys.readouterr().out.partition("SCHEDULER REQUEST")[2]))
    assert request.count("--nnodes 2 --nproc_per_node 8") == 2
    assert request.count("launch/run.py stem_torchrec/train.py") == 2


def test_local_ranks_of_one_host_take_a_free_port(runner: Runner) -> None:
    options = ["-j", "1x2", "--gpu", "0", "--out", "runs/a", "--env", "PET_MAX_RESTARTS=3", "--", "--recipe", "tiny"]
    (replica,) = request_for(runner, "local_cwd", "train", *options).role_params["train"]
    assert "--rdzv-endpoint localhost:0 " in replica.args[-1]
    assert replica.args[-1].endswith("-m stem_torchrec.train --output-dir runs/a --recipe tiny")
    assert replica.env["PET_MAX_RESTARTS"] == "3"


@pytest.mark.parametrize(
    ("name", "options", "command"),
    [
        ("compare", ["-j", "1x2"], "-m stem_torchrec.compare --out /shared/out --seeds 0"),
        ("tune", ["--ranks", "2"], "-m stem_torchrec.tune --out /shared/out --seeds 0"),
        ("bench", ["-j", "1x2"], "benchmarks/sharding.py --out /shared/out --seeds 0"),
        (
            "bench",
            ["-j", "1x2", "--script", "benchmarks/reader.py"],
            "benchmarks/reader.py --out /shared/out --seeds 0",
        ),
        ("prepare", [], "exec python -m stem_torchrec.prepare --seeds 0 --out /shared/out"),
    ],
)
def test_each_component_runs_its_command(runner: Runner, name: str, options: list[str], command: str) -> None:
    script = slurm_script(runner, name, *options, "--out", "/shared/out", "--", "--seeds", "0")
    assert f"{command}'\n" in script
    assert ("--nproc-per-node 2" in script) == (name != "prepare")
    assert ("--gpus-per-task=2" in script) == (name != "prepare")


@pytest.mark.parametrize("name", ["train", "prepare"])
def test_dollars_of_an_option_are_left_as_they_are(runner: Runner, name: str) -> None:
    [replica] = request_for(runner, "local_cwd", name, "--", "--x", "a$$b ${app_id} $HOME").role_params[name]
    assert "--x 'a$$b ${app_id} $HOME'" in replica.args[-1]


@pytest.mark.parametrize("j", ["8", "2x", "0x8", "1:2x8", "2X8"])
def test_hosts_and_ranks_that_are_not_both_numbers_are_named(runner: Runner, j: str) -> None:
    with pytest.raises(
        ComponentValidationException, match=f"^-j is '{j}', but must be hosts and ranks on each, as 2x8.$"
    ):
        request_for(runner, "slurm", "train", "-j", j)


def block_of_page(language: str, beginning: str) -> str:
    (block,) = [
        text for text in re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S) if text.startswith(beginning)
    ]
    return block


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (2, False), (75, True)])
def test_the_script_of_the_page_requeues_a_run_that_resumes(tmp_path: Path, status: int, requeued: bool) -> None:
    commands = {"srun": f"exit {status}", "scontrol": 'echo "scontrol $*"'}
    done = run_with(commands, block_of_page("bash", "#!/bin/bash"), tmp_path)
    assert (done.returncode, done.stdout) == (status, "scontrol requeue 7\n" if requeued else "")


def test_the_manifest_of_the_page_ends_at_wrong_options_and_resumes_otherwise() -> None:
    service, job = yaml.safe_load_all(block_of_page("yaml", "apiVersion: v1\nkind: Service"))
    name, spec = job["metadata"]["name"], job["spec"]
    assert "kueue.x-k8s.io/queue-name" in job["metadata"]["labels"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert spec["completions"] == spec["parallelism"] == 2
    # When a host is lost, the pods of all others fail with status 3, which counts.
    assert spec["backoffLimit"] == 6 * spec["completions"]
    (container,) = spec["template"]["spec"]["containers"]
    ignored, ended, resumed = spec["podFailurePolicy"]["rules"]
    assert ended["action"] == "FailJob"
    assert ended["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2, 74]}
    assert (ignored["action"], resumed["action"]) == ("Ignore", "Ignore")
    assert resumed["onExitCodes"] == ended["onExitCodes"] | {"values": [ExitStatus.RESUME]}
    command = container["command"]
    assert f"--rdzv-endpoint={name}-0.{service['metadata']['name']}:29500" in command
    assert "--nnodes=2" in command
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    outputs = [each.removeprefix("--output-dir=") for each in command if each.startswith("--output-dir=")]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert any(outputs[0].startswith(path) for path in mounts)


def test_kubernetes_knows_the_fields_of_the_manifest_of_the_page() -> None:
    kubernetes = pytest.importorskip("kubernetes", reason="needs kubernetes, of the extra of that name")
    _, job = yaml.safe_load_all(block_of_page("yaml", "apiVersion: v1\nkind: Service"))

    api = kubernetes.client.ApiClient()
    answer = SimpleNamespace(data=json.dumps(job))
    assert api.sanitize_for_serialization(api.deserialize(answer, "V1Job")) == job
