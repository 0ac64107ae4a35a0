"""What the project relies on in private parts of torch, torchrec, fbgemm and tyro, and that one package names them."""

import ast
import importlib
import inspect
import logging
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import fbgemm_gpu
import pytest
import torch
import torch.distributed as dist
import tyro
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    CounterBasedRegularizationDefinition,
    SplitTableBatchedEmbeddingBagsCodegen,
    WeightDecayMode,
)
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, schedule
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.optim.optimizers import in_backward_optimizer_filter

import stem_torchrec
from stem_torchrec.checkpoints.storage import without_warnings
from stem_torchrec.runtime.internals import build_files, profiler_ranges, pytorch, torchrec_hooks, tyro_errors
from stem_torchrec.runtime.internals.export import load_exported
from stem_torchrec.tables import set_steps, sharded_collections

from distributed import run_ranks
from reference import TABLES
from runs import Run, batches_of_ranks, config_of, of_this_rank

pytestmark = pytest.mark.stack

ROWS = {"uid": 5000, "tags": 7}
SEAM = "stem_torchrec.runtime.internals"


def modules() -> Iterator[ModuleType]:
    """All modules of the package but those of the seam."""
    for info in pkgutil.walk_packages(stem_torchrec.__path__, "stem_torchrec."):
        if not info.name.startswith(SEAM):
            yield importlib.import_module(info.name)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_uses(module: ModuleType) -> Iterator[str]:
    """Private names that a module imports from a library, or reads from anything but its own objects."""
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            names = [] if owner in ("self", "cls", "os", "sys", "super()") else [f"{owner}.{node.attr}"]
        else:
            continue
        yield from (name for name in names if any(map(is_private, name.split("."))))
    # Private names that a class takes over from a library, or overrides.
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and hasattr(module, node.name):
            own = {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
            own |= {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
            inherited = inherited_names(getattr(module, node.name))
            yield from (f"{node.name}.{name}" for name in own & inherited if is_private(name))


def inherited_names(cls: type) -> set[str]:
    """Names that the classes of libraries which `cls` derives from define, or that their methods use."""
    names = set()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in ("torch", "torchrec", "fbgemm_gpu", "tyro", "iopath"):
            names |= {*vars(base)}
            for method in filter(inspect.isfunction, vars(base).values()):
                names |= {*method.__code__.co_names}
    return names


def test_only_the_seam_names_private_parts_of_libraries() -> None:
    uses = {module.__name__: sorted(set(private_uses(module))) for module in modules()}
    assert {name: used for name, used in uses.items() if used} == {}


def test_the_search_for_private_parts_finds_them_in_the_seam() -> None:
    assert "torch.distributed._state_dict_utils._copy_state_dict" in list(private_uses(pytorch))
    read = list(private_uses(torchrec_hooks))
    assert {"sharding._pg", "InputDistCollection._embedding_shardings", "BackwardPipeline._backward"} <= set(read)


class RecordingPipeline(torchrec_hooks.BackwardPipeline):
    """Counts the backward passes, and skips the second one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.passes = 0

    def backward_pass(self, losses: Tensor) -> None:
        self.passes += 1
        if self.passes != 2:
            super().backward_pass(losses)


def run_pipeline() -> tuple[int, list[bool]]:
    """The number of backward passes, and which steps changed the tables."""
    run = Run.build(config_of("sgd", "table_wise"))
    run.pipeline = RecordingPipeline(run.model, run.optimizer, torch.device("cpu"))
    changed = []
    for batch in of_this_rank(batches_of_ranks(3, 1)):
        before = run.weights()
        run.train([batch])
        changed.append(any(not torch.equal(w, before[name]) for name, w in run.weights().items() if TABLES in name))
    return run.pipeline.passes, changed


def test_a_pipeline_does_its_backward_pass_by_the_hook() -> None:
    assert run_ranks(1, run_pipeline) == [(3, [True, False, True])]


@dataclass
class Recorder:
    """Stands in for a sharding while the input distribution is created."""

    sharding: Any
    calls: set[str]

    def feature_names(self) -> list[str]:
        self.calls.add("feature_names")
        return self.sharding.feature_names()

    def create_input_dist(self) -> nn.Module:
        self.calls.add("create_input_dist")
        return self.sharding.create_input_dist()


class RecordingCollection(torchrec_hooks.InputDistCollection):
    """Records what TorchRec asks of its shardings."""

    def sending_shardings(self, shardings: list[Any]) -> list[Any]:
        assert self.input_device == torch.device("cpu")
        assert self.env.rank == dist.get_rank()
        self.recorders = [Recorder(sharding, set()) for sharding in shardings]
        return self.recorders


def facts_of_shardings(sharding_type: str) -> dict[str, Any]:
    """What the seam reads of a collection's shardings, and what happens to those that stand in for them."""
    run = Run.build(config_of("adagrad", sharding_type))
    [(_, collection)] = sharded_collections(run.model)
    # The class alone decides who creates the input distribution.
    assert type(collection) is ShardedEmbeddingBagCollection
    collection.__class__ = RecordingCollection
    run.train(of_this_rank(batches_of_ranks(2, 2)))
    [recorder], [sharding] = collection.recorders, collection._embedding_shardings
    facts = {"calls": recorder.calls, "restored": sharding is recorder.sharding}
    facts["ranks"] = torchrec_hooks.group_of(sharding).size()
    if sharding_type != "table_wise":
        rows = torchrec_hooks.rows_of_features(sharding)
        facts["rows"] = rows == [ROWS[name] for name in sharding.feature_names()] and len(rows) == 6
    if sharding_type in ("table_row_wise", "grid_shard"):
        facts["ranks per host"] = torchrec_hooks.ranks_per_host(sharding)
        facts["features per rank"] = torchrec_hooks.features_per_rank(sharding)
    return facts


def facts_of_copies() -> dict[str, bool]:
    """What is true of the copies of a model's state, and of its plan."""
    run = Run.build(config_of("adagrad", "row_wise"))
    batches = of_this_rank(batches_of_ranks(2, 2))
    run.train(batches[:1])
    with without_warnings():
        state = {"model": run.model.state_dict()}
        tables = {name: value for name, value in state["model"].items() if TABLES in name}
        copies = {name: pytorch.empty_like_sharded(value) for name, value in tables.items()}
        dense = {name: value for name, value in state["model"].items() if name not in tables}
        room = {"model": pytorch.empty_state_dict_on_host(dense, pin_memory=False) | copies}
        pytorch.copy_state_dict(state, room)
        same, names = equal_state(state["model"], room["model"]), list(room["model"]) == [*dense, *tables]
        run.train(batches[1:])
        changed = not equal_state(state["model"], room["model"])
    shards = [shard for copy in copies.values() for shard in copy.local_shards()]
    [tables_plan] = run.model.plan.plan.values()
    specs = [sharding.sharding_spec for sharding in tables_plan.values()]
    return {
        "sharded": all(isinstance(value, pytorch.ShardedTensor) for value in tables.values()) and len(tables) == 6,
        "sizes": all(copies[name].metadata() == value.metadata() for name, value in tables.items()),
        "own storage": all(s.tensor.untyped_storage().nbytes() == s.tensor.nbytes for s in shards),
        "equal": same and names,
        "independent": changed,
        "enumerable": all(isinstance(spec, pytorch.EnumerableShardingSpec) for spec in specs) and len(specs) == 6,
        "ranks": all([shard.placement.rank() for shard in spec.shards] == [0, 1] for spec in specs),
    }


def equal_state(left: dict[str, Any], right: dict[str, Any]) -> bool:
    def parts(value: Any) -> list[Tensor]:
        return [s.tensor for s in value.local_shards()] if isinstance(value, pytorch.ShardedTensor) else [value]

    return all(torch.equal(a, b) for name in left for a, b in zip(parts(left[name]), parts(right[name]), strict=True))


def names_in_profile() -> set[str]:
    """Names of all events of three steps."""
    run = Run.build(config_of("adagrad", "table_wise"))
    batches = iter(of_this_rank(batches_of_ranks(7, 2)))
    cycle = schedule(wait=1, warmup=1, active=3)
    with profile(activities=[ProfilerActivity.CPU], schedule=cycle, acc_events=True) as profiler:
        for _ in range(5):
            run.pipeline.progress(batches)
            profiler.step()
    return {event.name for event in profiler.events()}


def counts_of_steps() -> set[tuple[int, int]]:
    """What `set_optimizer_step` sets and what lookups count, of each FBGEMM module, after both are set to 7."""
    run = Run.build(config_of("adagrad", "table_wise"))
    modules = [
        module.emb_module
        for _, collection in sharded_collections(run.model)
        for _, module in torchrec_hooks.lookups_of(collection)
    ]
    for module in modules:
        module.iter_cpu.fill_(30)
    set_steps(run.model, run.optimizer, 7)
    return {(int(module.iter), int(module.iter_cpu)) for module in modules}


TYPES = ("table_wise", "row_wise", "table_row_wise", "grid_shard")


def read_all() -> dict[str, Any]:
    return {
        "shardings": {sharding_type: facts_of_shardings(sharding_type) for sharding_type in TYPES},
        "copies": facts_of_copies(),
        "names": names_in_profile(),
        "counts": counts_of_steps(),
    }


@pytest.fixture(scope="module")
def facts() -> list[dict[str, Any]]:
    """Of each of two ranks."""
    return run_ranks(2, read_all)


def test_shardings_have_a_group_and_rows_and_others_stand_in_for_them(facts: list[dict[str, Any]]) -> None:
    for rank in facts:
        for sharding_type, read in rank["shardings"].items():
            assert read.pop("calls") == {"feature_names", "create_input_dist"}, sharding_type
            assert read.pop("restored")
            assert read.pop("ranks") == 2
            assert read.pop("rows", True), sharding_type
            assert read in ({}, {"ranks per host": 2, "features per rank": [6, 6]})


@pytest.mark.parametrize("fact", ["sharded", "sizes", "own storage", "equal", "independent", "enumerable", "ranks"])
def test_a_sharded_state_is_copied_shard_by_shard(facts: list[dict[str, Any]], fact: str) -> None:
    assert [rank["copies"][fact] for rank in facts] == [True, True]


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("STEP", "ProfilerStep"),
        ("INPUT", "## copy_batch_to_gpu "),
        ("INPUT", "## next_batch "),
        ("INPUT", "## wait_for_batch "),
        ("INPUT_DIST", "## start_sparse_data_dist "),
        ("INPUT_DIST", "## wait_sparse_data_dist "),
        ("INPUT_DIST", "fbgemm::permute_2D_sparse_data"),
        ("LOOKUP", "[lookup]_"),
        ("OUTPUT_DIST", "[output_dist]_"),
        ("OUTPUT_DIST", "All2All_Pooled_ReqBackward"),
        ("FORWARD", "## forward "),
        ("BACKWARD", "## backward "),
        ("TABLE_BACKWARD", "torch::autograd::CppNode<SplitLookupFunction"),
        ("ALL_REDUCE", "c10d::allreduce_"),
        ("ALL_REDUCE", "torch::distributed::reducer::"),
        ("OPTIMIZER", "## optimizer "),
        ("OPTIMIZER", "## zero_grad "),
    ],
)
def test_a_profile_has_the_names_of_the_ranges(facts: list[dict[str, Any]], pattern: str, name: str) -> None:
    for rank in facts:
        names = [each for each in rank["names"] if each.startswith(name)]
        assert names
        assert all(getattr(profiler_ranges, pattern).match(each) for each in names)


def test_the_steps_that_are_set_are_those_that_lookups_count_on_from(facts: list[dict[str, Any]]) -> None:
    assert all(rank["counts"] == {(7, 7)} for rank in facts)


def test_fbgemm_leaves_the_count_of_lookups_when_the_step_is_set() -> None:
    # It fuses no Adam on CPU, but there it counts for a decay by the number of lookups as it does for Adam on CUDA.
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(10, 8, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        weight_decay_mode=WeightDecayMode.COUNTER,
        counter_based_regularization=CounterBasedRegularizationDefinition(),
    )
    counts = []
    for step in (0, 100, 7):
        table.set_optimizer_step(step)
        table(torch.tensor([1, 2]), torch.tensor([0, 1, 2]))
        counts.append((int(table.iter), int(table.iter_cpu)))
    assert counts == [(1, 1), (101, 2), (8, 3)]


def test_the_name_of_a_function_follows_autograds_prefix(facts: list[dict[str, Any]]) -> None:
    prefix = profiler_ranges.AUTOGRAD_FUNCTION
    functions = {name.removeprefix(prefix) for name in facts[0]["names"] if name.startswith(prefix)}
    assert "AddmmBackward0" in functions
    assert any(profiler_ranges.TABLE_BACKWARD.match(name) for name in functions)


def test_the_tracer_warns_by_the_logger_that_is_silenced() -> None:
    loggers = [
        v for v in vars(importlib.import_module(pytorch.TRACER_LOGGER)).values() if isinstance(v, logging.Logger)
    ]
    assert [logger.name for logger in loggers] == [pytorch.TRACER_LOGGER]


def test_needless_warnings_are_silenced_and_others_are_not() -> None:
    code = """
import logging, warnings
import stem_torchrec
def warn(text, module="torchrec.distributed.types"):
    warnings.warn_explicit(text, UserWarning, "types.py", 1, module)
logging.warning("_fbgemm_torch_compat_table has no entry for 1.6.0 of FBGEMM")
logging.warning("FBGEMM_GPU version is 1.5.0")
warn("`_get_pg_default_device` will be deprecated, it")
warn("Multiple backends are registered with this ProcessGroup.")
warn("another warning")
warn("Multiple backends are registered with this ProcessGroup.", "torch.distributed")
"""
    result = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert [line for line in result.stderr.splitlines() if line[0] != " "] == [
        "WARNING:root:FBGEMM_GPU version is 1.5.0",
        "types.py:1: UserWarning: another warning",
        "types.py:1: UserWarning: Multiple backends are registered with this ProcessGroup.",
    ]


def test_an_optimizer_in_the_backward_pass_updates_and_is_found_by_torchrec() -> None:
    fused, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    pytorch.apply_optimizer_in_backward(torch.optim.SGD, [fused], {"lr": 0.5})
    (fused.sum() + other.sum()).backward()
    assert fused.tolist() == [0.5, 0.5]
    assert fused.grad is None
    outside = in_backward_optimizer_filter([("fused", fused), ("other", other)])
    assert [name for name, _ in outside] == ["other"]


def test_the_files_of_torch_and_fbgemm_tell_for_what_they_were_built() -> None:
    assert build_files.torch_has_gpu(Path(torch.__file__).parent) == bool(torch.version.cuda or torch.version.hip)
    folder = Path(fbgemm_gpu.__file__).parent
    assert list(folder.glob("docs/target.*.json.py"))
    assert build_files.fbgemm_has_gpu(folder) == (fbgemm_gpu.__variant__ != "cpu")


@dataclass(frozen=True)
class Options:
    number: int
    kind: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    ("args", "error", "fields"),
    [
        ("--number 1 --nmber 2", tyro_errors.UnrecognizedArgs, {"tokens": ["--nmber", "2"]}),
        ("--number 1 --kind c", tyro_errors.InvalidChoice, {"argument": "--kind", "value": "c", "choices": ["a", "b"]}),
        ("--number", tyro_errors.BadValue, {"argument": "--number"}),
        ("--number x", tyro_errors.InstantiationFailure, {"argument": "--number", "message": "invalid literal"}),
        ("", tyro_errors.MissingArgs, {"missing_arguments": ["--number"]}),
    ],
)
def test_tyro_tells_why_it_refuses_a_command_line(
    args: str, error: type[tyro_errors.ParseErrorEvent], fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[tyro_errors.ParseErrorEvent] = []
    with pytest.raises(SystemExit), tyro_errors.on_parse_error(events.append):
        tyro.cli(Options, args=args.split())
    [event] = events
    assert type(event) is error
    assert isinstance(event, tyro_errors.ParseErrorEvent)
    for name, expected in fields.items():
        value = getattr(event, name)
        if name == "argument":
            assert value.display_name() == expected
        elif name == "missing_arguments":
            assert [each.arg.display_name() for each in value] == expected
        elif name == "message":
            assert expected in str(value)
        else:
            assert value == expected if isinstance(value, str) else list(value) == expected


def test_an_exported_program_compares_the_sizes_of_its_inputs_only_if_it_is_told_to(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 1), (torch.zeros(3, 2),))
    torch.export.save(program, tmp_path / "model.pt2")
    wrong = torch.zeros(4, 2)
    with pytest.raises((AssertionError, RuntimeError), match="Guard failed"):
        program.module()(wrong)
    assert load_exported(str(tmp_path / "model.pt2"))(wrong).shape == (4, 1)
