"""Environment variables of launchers and of threads with values that are cut, mixed or no numbers."""

from hypothesis import given
from hypothesis import strategies as st

from fuzz.case import Case, train
from fuzz.targets import check, target

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
RANKS += ("SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
RANKS += ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NNODES", "SLURM_JOB_ID", "SLURM_NODEID")
NUMBERS = (
    "0",
    "0",
    "0",
    "1",
    "1",
    "2",
    "-1",
    "",
    " ",
    "a",
    "1.0",
    "0x1",
    "99999999999999999999",
    "nan",
    "1,1",
    "2(x2)",
    "\uff11",
)
PLACES = {
    "MASTER_ADDR": ("127.0.0.1", "localhost", "", "::1", "999.1.1.1", "no.such.host.invalid", " ", "a b", "http://x"),
    "MASTER_PORT": ("29500", "0", "-1", "70000", "a", "", "1.5"),
    "SLURM_JOB_NODELIST": ("localhost", "a[1-", "a[1-2]", "", "a[2-1]", "[", "a,b"),
    "SLURM_STEP_NODELIST": ("localhost", "a[1-", ""),
    "OMP_NUM_THREADS": ("1", "2", "0", "-1", "a", "", "1,2", "999999"),
    "CUDA_VISIBLE_DEVICES": ("", "0", "a", "-1"),
    "TORCHELASTIC_USE_AGENT_STORE": ("True", "False", "a"),
    "TORCHELASTIC_RUN_ID": ("none", "", "a/b", "..", "x" * 300),
    "TORCHELASTIC_RESTART_COUNT": ("0", "a"),
    "STEM_LOG": ("1",),
    "TZ": ("Nowhere/Land",),
    "LANG": ("C", "xx"),
    "PYTHONUTF8": ("0",),
}


@st.composite
def environments(draw: st.DrawFn) -> Case:
    """A training in an environment; a rank waits for others at most two seconds."""
    env = draw(st.dictionaries(st.sampled_from(RANKS), st.sampled_from(NUMBERS), min_size=1, max_size=4))
    for name in draw(st.lists(st.sampled_from(sorted(PLACES)), max_size=2)):
        env[name] = draw(st.sampled_from(PLACES[name]))
    return train("--train.timeout", "2", env=env)


@target("environments")
@given(environments())
def test_every_environment_trains_or_is_answered_by_a_sentence(case: Case) -> None:
    check("environments", case)
