"""A trained model cut down to some of its tasks, to predict them and nothing else."""

from collections.abc import Sequence
from typing import cast

from torch import nn

from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.gated_experts import GatedExperts
from stem_torchrec.models.moe import MEMMoE, MMoE, OMoE
from stem_torchrec.models.ple import PLE
from stem_torchrec.models.sequential import AITM, ESMM
from stem_torchrec.models.shared_bottom import SharedBottom, SingleTask
from stem_torchrec.models.stem import STEM
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables import SHARED


def keep_tasks(model: MultiTaskModel, tasks: Sequence[str]) -> tuple[str, ...]:
    """Drops the towers, gates and experts that no kept task reads; returns the groups whose tables are still read.

    The logits of `model.above_tables` are then those of its towers, in their order. AITM and ESMM also keep the tasks
    before the last kept one, as each is a step after the one before it.

    Raises UserError for a model that cannot be cut down.

    Example::

        keep_tasks(stem, ["like"])         # ("finish", "like", "shared"): all forward, a gate reads every group
        keep_tasks(single_task, ["like"])  # ("like",)
    """
    kept, groups = tuple(task for task in model.tasks if task in tasks), model.sparse_arch.groups
    match model:
        case STEM() | PLE():
            streams: tuple[str, ...] = kept
            for layer in reversed(model.layers):
                streams = cast(GatedExperts, layer).keep_streams(streams)
            groups = streams if len(groups) > 1 else groups
        case MMoE() | OMoE() | MEMMoE():
            groups = model.mixture.keep_streams((*kept, SHARED))
        case SharedBottom():
            pass
        case SingleTask():
            groups = model.tasks = kept
            model.bottoms = _only(model.bottoms, kept)
        case AITM() | ESMM():
            kept = model.tasks = model.tasks[: model.tasks.index(kept[-1]) + 1]
            model.bottoms = _only(model.bottoms, kept)
            if isinstance(model, AITM):
                model.transfers = _only(model.transfers, kept[:-1])
        case _:
            raise UserError(f"{type(model).__name__} cannot be cut down to {', '.join(tasks)}; keep all its tasks.")
    model.towers = _only(model.towers, kept)
    model.dense_arch = _only(model.dense_arch, groups)
    return groups


def _only(modules: nn.ModuleDict, names: Sequence[str]) -> nn.ModuleDict:
    return nn.ModuleDict({name: module for name, module in modules.items() if name in names})
