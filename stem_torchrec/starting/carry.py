"""Carries the weights and optimizer states of a run into another one, which may have other ids, features and tasks."""

from collections.abc import Mapping

import torch
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer

from stem_torchrec.checkpoints.storage import without_warnings
from stem_torchrec.checkpoints.weights import load_state
from stem_torchrec.config import NewRows, TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.runtime.internals.torchrec_hooks import forget_cached_rows
from stem_torchrec.starting.axis_labels import CLOSED
from stem_torchrec.starting.carried import Carried
from stem_torchrec.starting.carry_plan import plan_carry
from stem_torchrec.starting.carry_planner import CarryLoadPlanner, fill_new
from stem_torchrec.starting.id_maps import IdMap
from stem_torchrec.starting.local_copies import LocalCopies
from stem_torchrec.starting.mean_rows import start_from_mean
from stem_torchrec.starting.source import StartSource
from stem_torchrec.tables import clear_states, set_steps, sharded_collections


@torch.no_grad()
def carry(
    model: nn.Module,
    optimizer: CombinedOptimizer,
    source: StartSource,
    *,
    config: TrainConfig,
    columns: Columns,
    id_maps: Mapping[str, IdMap],
    new_rows: NewRows = "initial",
    gate_bias: float = CLOSED,
    tables_from: str | None = None,
) -> Carried:
    """Fills a model and its optimizer from a source; returns what became of each part.

    All ranks call it, after sharding and before the first step. The source may have been saved in any layout, by any
    plan and on any number of ranks. A rank reads the saved shards that it needs, one at a time, so none holds a whole
    sharded table.

    - Rows of tables continue old rows as the map of their feature says, to the bit, with their states; of another
      width, their first columns do. States of new rows and columns are 0.
    - A dense part continues that of its name, also if it has more or fewer input columns, dense features or experts.
      New inputs have weights of 0, and new experts are closed in the gates that did not read them, so neither changes
      a prediction of the first step.
    - Other parts, such as those of a new task, start as they are initialized.
    - States are continued if the optimizer is the same. The schedule of learning rates starts anew.
    - Adam corrects its moments by a count of steps, which goes on with them, for new rows and columns as well: torch
      has one for each weight, the dense kernel's tables included, and FBGEMM (CUDA alone fuses Adam) one for all tables
      of a lookup, new ones as well. Their first step is then up to 3.2 times as long as that of a new run, and of equal
      gradients the twelfth 6.6 times.

    Args:
        model: sharded, with its loss.
        optimizer: of the model.
        source: whose files are whole; `dcp.load` compares no checksums.
        config: of this run.
        columns: of its log.
        id_maps: by feature; without one, row i continues row i.
        new_rows: what the rows of new ids start from.
        gate_bias: logit of a new expert in a gate that did not read it; the default closes it.
        tables_from: an old group that the tables of new groups start from, with fresh states.

    Raises UserError, before it changes a weight, for tables that would lose rows by their number
    alone, and a source that lacks a tensor; and DamagedError if the source cannot be read.

    Example::

        carried = carry(model, optimizer, source, config=config, columns=columns, id_maps=maps, new_rows="unseen")
        log_rank0(carried.format())
    """
    plan = plan_carry(
        source, config=config, columns=columns, id_maps=id_maps,
        new_rows=new_rows, gate_bias=gate_bias, tables_from=tables_from,
    )  # fmt: skip
    with without_warnings():
        _make_fresh_states(optimizer)
        weights, states = model.state_dict(), optimizer.state_dict()["state"]
        copies = LocalCopies(plan.matches, plan.saved, source.name)
        copies.add_weights(weights)
        copies.add_states(states, weights)
        for name, match in plan.matches.items():
            if name in weights:
                fill_new(weights[name], match.axes, match.starts)
        load_state({}, source.weights, CarryLoadPlanner(copies.copies))
    for mean in copies.means:
        mean.fill()
    for count in copies.uncounted:
        count.fill_(plan.carried.table_steps)
    if new_rows == "mean":
        start_from_mean(weights, plan.matches)
    for _, collection in sharded_collections(model):
        forget_cached_rows(collection)
    set_steps(model, optimizer, plan.carried.table_steps)
    return plan.carried


def _make_fresh_states(optimizer: CombinedOptimizer) -> None:
    """Creates the states that the first step would create, all 0."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    # A step, which at a rate of 0 moves no weight, whatever the decay.
    optimizer.init_state(set())
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    # Also pushes the rates into the fused tables.
    optimizer.zero_grad()
    clear_states(optimizer)
