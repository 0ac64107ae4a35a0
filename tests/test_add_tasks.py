"""Tasks are added to a trained STEM: its weights are kept bit for bit, on any ranks and under any plan."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor
from torchrec.datasets.utils import Batch

from stem_torchrec.checkpoints.weights import save_weights
from stem_torchrec.config.files import dump_config
from stem_torchrec.data.files import Columns
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.run_folder import BEST_WEIGHTS, CONFIG_FILE
from stem_torchrec.transfer.add_tasks import CLOSED, add_tasks
from stem_torchrec.transfer.weight_source import Source, local_pieces, weights_by_name

from distributed import run_ranks
from reference import COLUMNS, TABLES, logits_by_formula, random_batch
from runs import MODEL, Run, batches_of_ranks, config_of, of_this_rank

Weights = dict[str, Tensor]
TRAINED = COLUMNS.labels
MODELS = {
    "2 layers": dataclasses.replace(MODEL, num_task_experts=2),
    "1 layer": dataclasses.replace(MODEL, num_layers=1, num_task_experts=2),
    "own and shared": dataclasses.replace(MODEL, reads="own_shared", num_shared_experts=1),
}
# Trains to the same bits as the split layout, and can be read as if it were split.
PACKED = {"packed": dataclasses.replace(MODELS["2 layers"], layout="packed")}
ORDERS = [("finish", "like", "share"), ("share", "finish", "like"), ("like", "share", "finish")]
TYPES = ["row_wise", "column_wise", "data_parallel"]
Case = tuple[str, tuple[str, ...], str]
CASES: list[Case] = [
    ("2 layers", ORDERS[1], "row_wise"),
    ("2 layers", ORDERS[2], "column_wise"),
    ("1 layer", ORDERS[0], "data_parallel"),
    ("own and shared", ORDERS[1], "row_wise"),
]
"""Model, order of its tasks and sharding type."""
ALL_CASES: list[Case] = [
    *[("2 layers", tasks, kind) for tasks in ORDERS for kind in TYPES],
    *[(name, ORDERS[1], "row_wise") for name in ("1 layer", "own and shared")],
]


def columns_of(tasks: tuple[str, ...]) -> Columns:
    return dataclasses.replace(COLUMNS, labels=tasks)


def with_tasks(batch: Batch, tasks: tuple[str, ...], *, known: tuple[str, ...]) -> Batch:
    """The same rows with labels for `tasks`, missing but for the known ones, which are those of finish."""
    missing = torch.full((len(batch.labels),), torch.nan)
    labels = torch.stack([batch.labels[:, 0] if task in known else missing for task in tasks], dim=1)
    return dataclasses.replace(batch, labels=labels)


def save_trained(folder: Path) -> dict[str, tuple[Weights, Tensor]]:
    """Run folders of STEMs trained on two tasks; their weights, and logits of a batch."""
    trained = {}
    for name, model in (MODELS | PACKED).items():
        run = Run.build(config_of("adagrad", "row_wise", model=model))
        run.train(of_this_rank(batches_of_ranks(4, dist.get_world_size())))
        if dist.get_rank() == 0:
            (folder / name).mkdir()
            config = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, labels=TRAINED))
            (folder / name / CONFIG_FILE).write_text(dump_config(config))
        dist.barrier()
        save_weights(run.model, folder / name / BEST_WEIGHTS)
        weights = run.weights()
        trained[name] = weights, logits_by_formula(weights, random_batch(9), TRAINED, model)
    return trained


@dataclass
class Grown:
    """A STEM to which a task was added."""

    new: tuple[str, ...]
    fresh: Weights
    """Its weights before it got those of the trained one."""
    start: Weights
    logits: Tensor
    """Of a batch, at the start."""
    other_logits: Tensor
    """The same with other weights of the new task."""
    trained: Weights
    """Weights after steps on the labels of the new task alone."""
    trained_on_all: Weights
    """Weights after more steps, on the labels of all tasks."""


def grow(source: Source, model: STEMOptions, tasks: tuple[str, ...], sharding_type: str, **options) -> Grown:
    run = Run.build(config_of("adagrad", sharding_type, model=model), columns_of(tasks))
    fresh = run.weights()
    new = add_tasks(run.model, source, **options)
    start, logits = run.weights(), predictions(run)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: (piece, piece.clone())
        for name, weight in weights_by_name(run.model).items()
        for _, piece in local_pieces(weight)
    }
    for name, (piece, _) in state.items():
        if group_of(name) == "share":
            piece.copy_(torch.randn(piece.shape, generator=generator))
    other_logits = predictions(run)
    for piece, before in state.values():
        piece.copy_(before)
    steps = of_this_rank(batches_of_ranks(3, dist.get_world_size()))
    run.train([with_tasks(batch, tasks, known=("share",)) for batch in steps])
    trained = run.weights()
    run.train([with_tasks(batch, tasks, known=tasks) for batch in steps])
    return Grown(new, fresh, start, logits, other_logits, trained, run.weights())


def predictions(run: Run) -> Tensor:
    run.model.eval()
    with torch.no_grad():
        _, (_, logits) = run.model(with_tasks(random_batch(9), run.columns.labels, known=()))
    run.model.train()
    return logits


def group_of(name: str) -> str:
    """The task that a weight belongs to, or shared."""
    return next(group for group in ("share", *TRAINED, "shared") if f".{group}." in f".{name}".replace("/", "."))


def grow_all(folder: Path, cases: list[Case]) -> dict[Case, Grown]:
    return {case: grow(folder / case[0], MODELS[case[0]], *case[1:]) for case in cases}


def caches_emptied(folder: Path) -> int:
    """How often `add_tasks` emptied the cache of the fused kernel, which has none on CPU."""
    run, calls = Run.build(config_of("adagrad", "row_wise", model=MODELS["2 layers"]), columns_of(ORDERS[0])), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SplitTableBatchedEmbeddingBagsCodegen, "reset_cache_states", lambda self: calls.append(self))
        add_tasks(run.model, folder / "2 layers")
    return len(calls)


def grow_by_option(folder: Path) -> dict[str, Grown]:
    """From other sources and with other options."""
    name, order = "2 layers", ORDERS[1]
    memory = Run.build(config_of("adagrad", "column_wise", model=MODELS[name]))
    add_tasks(memory.model, folder / name)
    cases = {
        "weights folder": (folder / name / BEST_WEIGHTS, {"trained": TRAINED}),
        "state dict": (memory.model.state_dict(), {"trained": TRAINED}),
        "packed run": (folder / "packed", {}),
        "open": (folder / name, {"gate_bias": -5.0}),
        "tables": (folder / name, {"tables_from": "shared"}),
    }
    return {case: grow(source, MODELS[name], order, "row_wise", **chosen) for case, (source, chosen) in cases.items()}


def refusals(folder: Path) -> dict[str, str]:
    messages = {}
    source, order = folder / "2 layers", ORDERS[0]
    state = {f"towers.{task}.0.weight": torch.zeros(8, 8) for task in TRAINED}
    state[f"{TABLES}.finish+like+shared/uid.weight"] = torch.zeros(5000, 24)
    wide = dataclasses.replace(MODELS["2 layers"], expert_hidden=(16, 4))
    for case, (given, model, tasks, chosen) in {
        "sizes": (source, wide, order, {}),
        "task missing": (source, MODELS["2 layers"], ("finish", "share"), {}),
        "tasks unknown": (source / BEST_WEIGHTS, MODELS["2 layers"], order, {}),
        "other tasks": (source, MODELS["2 layers"], order, {"trained": ["finish", "share"]}),
        "tables": (source, MODELS["2 layers"], order, {"tables_from": "shard"}),
        "no STEM": ({"t_uid.weight": torch.zeros(1)}, MODELS["2 layers"], order, {"trained": TRAINED}),
        "packed in memory": (state, MODELS["2 layers"], order, {"trained": TRAINED}),
        "packed model": (source, PACKED["packed"], order, {}),
    }.items():
        run = Run.build(config_of("sgd", "row_wise", model=model), columns_of(tasks))
        before = run.weights()
        with pytest.raises(UserError) as error:
            add_tasks(run.model, given, **chosen)
        messages[case] = str(error.value).replace(str(folder), "RUNS")
        assert all(torch.equal(weight, before[name]) for name, weight in run.weights().items())
    return messages


def two_ranks(one: Path, two: Path, cases: list[Case]):
    return save_trained(two), grow_all(one, cases), grow_by_option(one), refusals(one), caches_emptied(one)


@pytest.fixture(
    scope="module", params=[pytest.param(CASES, id="some"), pytest.param(ALL_CASES, marks=pytest.mark.long, id="all")]
)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    [saved_by_one] = run_ranks(1, save_trained, one)
    [(saved_by_two, of_one, by_option, messages, emptied), _] = run_ranks(2, two_ranks, one, two, request.param)
    [of_two] = run_ranks(1, grow_all, two, request.param)
    grown = {
        **{("2 ranks", *case): (saved_by_one[case[0]], g) for case, g in of_one.items()},
        **{("1 rank", *case): (saved_by_two[case[0]], g) for case, g in of_two.items()},
    }
    assert len(grown) == 2 * len(request.param)
    trained = saved_by_one["2 layers"]
    return {"grown": grown, "options": by_option, "trained": trained, "messages": messages, "emptied": emptied}


def gate_rows(name: str, tasks: tuple[str, ...], model: STEMOptions) -> tuple[list[int], list[int]] | None:
    """The rows of a grown gate's last layer: of the trained experts, in their old order, and of the new ones."""
    match = re.fullmatch(r"layers\.\d\.gates\.(\w+)\.mlp\.2\.(weight|bias)", name)
    if not match or match[1] == "share" or model.reads == "own_shared":
        return None
    experts = [
        group
        for group in (*tasks, "shared")
        for _ in range(model.num_shared_experts if group == "shared" else model.num_task_experts)
    ]
    rows = {group: [row for row, other in enumerate(experts) if other == group] for group in experts}
    return [*rows["finish"], *rows["like"], *rows["shared"]], rows["share"]


def test_weights_of_the_trained_tasks_are_copied_bit_for_bit(results):
    for (_, name, tasks, _), ((before, _), grown) in results["grown"].items():
        assert grown.new == ("share",)
        assert {k for k in grown.start if group_of(k) != "share"} == set(before)
        closed = 0
        for key, weight in grown.start.items():
            if key not in before:
                assert torch.equal(weight, grown.fresh[key]), key
                continue
            if rows := gate_rows(key, tasks, MODELS[name]):
                assert weight[rows[1]].eq(CLOSED if key.endswith("bias") else 0).all()
                weight, closed = weight[rows[0]], closed + 1
            assert torch.equal(weight, before[key]), key
        # Two gates, and between layers the shared one as well; each a weight and a bias.
        assert closed == {"2 layers": 10, "1 layer": 4, "own and shared": 0}[name]


def test_trained_tasks_predict_the_same_at_the_start(results):
    for (_, _, tasks, _), ((_, logits), grown) in results["grown"].items():
        for i, task in enumerate(TRAINED):
            now = grown.logits[:, tasks.index(task)]
            # In float32, over other products and sums than those of the equations.
            torch.testing.assert_close(now, logits[:, i], rtol=1e-5, atol=1e-6)
            assert logits[:, i].abs().max() > 0.02


def test_a_closed_gate_keeps_the_new_task_out_of_the_trained_ones(results):
    for (_, _, tasks, _), (_, grown) in results["grown"].items():
        for task in TRAINED:
            assert torch.equal(grown.other_logits[:, tasks.index(task)], grown.logits[:, tasks.index(task)])
        assert not torch.equal(grown.other_logits[:, tasks.index("share")], grown.logits[:, tasks.index("share")])


def test_training_the_new_task_alone_changes_only_its_own_and_shared_weights(results):
    for _, grown in results["grown"].values():
        changed = {key for key, weight in grown.trained.items() if not torch.equal(weight, grown.start[key])}
        assert {group_of(key) for key in changed} == {"share", "shared"}
        tables = {key.removeprefix(f"{TABLES}.") for key in changed if key.startswith(TABLES)}
        assert tables == {f"{g}/{f}.weight" for g in ("share", "shared") for f in COLUMNS.sparse}


def test_closed_gates_stay_closed_and_open_ones_learn_to_read_the_new_task(results):
    tasks, model = ORDERS[1], MODELS["2 layers"]
    closed = results["grown"]["2 ranks", "2 layers", tasks, "row_wise"][1]
    opened = results["options"]["open"]
    for key in closed.start:
        if gate := gate_rows(key, tasks, model):
            rows = gate[1]
            assert torch.equal(closed.trained_on_all[key][rows], closed.start[key][rows])
            assert not torch.equal(closed.trained_on_all[key], closed.start[key])
            assert opened.start[key][rows].eq(-5.0 if key.endswith("bias") else 0).all()
            assert opened.trained_on_all[key][rows].ne(opened.start[key][rows]).any()
    for task in TRAINED:
        column = tasks.index(task)
        moved = (opened.logits[:, column] - closed.logits[:, column]).abs().max()
        assert 1e-5 < moved < 0.1


def test_every_source_gives_the_same_weights(results):
    expected = results["grown"]["2 ranks", "2 layers", ORDERS[1], "row_wise"][1].start
    for case in ("weights folder", "state dict", "packed run"):
        for key, weight in results["options"][case].start.items():
            assert torch.equal(weight, expected[key]), (case, key)


def test_tables_of_a_new_task_start_from_those_of_a_group_on_request(results):
    start = results["options"]["tables"].start
    for feature in COLUMNS.sparse:
        table = start[f"{TABLES}.share/{feature}.weight"]
        assert torch.equal(table, results["trained"][0][f"{TABLES}.shared/{feature}.weight"])


def test_the_caches_of_tables_in_host_memory_are_emptied(results):
    assert results["emptied"] == 1


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            "sizes",
            "RUNS/2 layers/best is another model: layers.0.experts.finish.2.bias is (2, 8) in it and, without the new "
            "tasks, (2, 4) in this model.",
        ),
        ("task missing", "RUNS/2 layers/best was trained on finish, like; this model must keep like."),
        (
            "tasks unknown",
            "only a run folder records its tasks; give those of the trained model, in the order of its logits: "
            "trained=[...].",
        ),
        ("other tasks", "RUNS/2 layers/best was trained on finish, like, not on finish, share."),
        (
            "tables",
            "RUNS/2 layers/best has no tables of 'shard', only of finish, like, shared; did you mean 'shared'?",
        ),
        ("no STEM", "the state dict has no models with towers, but must have one STEM."),
        (
            "packed in memory",
            "the state dict has the table 'finish+like+shared/uid' of several groups; tasks can be added only in the "
            "split layout.",
        ),
        (
            "packed model",
            "this model has the table 'finish+like+share+shared/tags' of several groups; tasks can be added only in "
            "the split layout.",
        ),
    ],
)
def test_another_model_is_refused_before_anything_changes(results, case: str, message: str):
    assert results["messages"][case] == message


def test_a_gate_bias_must_be_finite():
    with pytest.raises(UserError, match="the gate bias is -inf, but must be finite; -10000 closes a gate"):
        add_tasks(torch.nn.Module(), {}, gate_bias=-torch.inf)
