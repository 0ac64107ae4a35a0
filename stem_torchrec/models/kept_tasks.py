"""A trained model cut down to some of its tasks, to predict them and nothing else."""

from collections.abc import Iterable, Sequence
from typing import cast

from torch import nn

from stem_torchrec.models.duet import Duet
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.gated_experts import GatedExperts
from stem_torchrec.models.home import HoME
from stem_torchrec.models.moe import MEMMoE, MMoE, OMoE
from stem_torchrec.models.pepnet import PEPNet
from stem_torchrec.models.ple import PLE
from stem_torchrec.models.sequential import AITM, ESMM
from stem_torchrec.models.shared_bottom import SharedBottom, SingleTask
from stem_torchrec.models.stem import STEM
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables import SHARED


def keep_tasks(model: MultiTaskModel, tasks: Sequence[str]) -> tuple[str, ...]:
    """Drops the towers, gates and experts that no kept task reads; returns the groups of tables that are still read.

    The logits of `model.above_tables` are then those of its towers, in their order. AITM and ESMM also keep the bottoms
    of the tasks before the last kept one, as each is a step after the one before it, and ESMM their towers.

    Raises UserError for a model that cannot be cut down.

    Example::

        keep_tasks(stem, ["like"])         # ("finish", "like", "shared"): all forward, a gate reads every group
        keep_tasks(single_task, ["like"])  # ("like",)
    """
    kept, groups = tuple(task for task in model.tasks if task in tasks), model.groups
    match model:
        case STEM() | PLE():
            streams: tuple[str, ...] = kept
            for layer in reversed(model.layers):
                streams = cast(GatedExperts, layer).keep_streams(streams)
            groups = streams if len(groups) > 1 else groups
            if isinstance(model, Duet):
                model.bottoms = _only(model.bottoms, kept)
        case MMoE() | OMoE() | MEMMoE():
            groups = model.mixture.keep_streams((*kept, SHARED))
        case SharedBottom():
            pass
        case SingleTask() | PEPNet():
            model.tasks = kept
            model.bottoms = _only(model.bottoms, kept)
            groups = groups if isinstance(model, PEPNet) else kept
        case HoME():
            model.tasks = kept
            model.meta.keep_streams(model.local.keep_streams(kept))
        case AITM() | ESMM():
            steps = model.tasks = model.tasks[: model.tasks.index(kept[-1]) + 1]
            model.bottoms = _only(model.bottoms, steps)
            if isinstance(model, AITM):
                model.transfers = _only(model.transfers, steps[:-1])
                # The first step takes nothing from another.
                model.attention = _only(model.attention, model.attention if len(steps) > 1 else ())
            else:
                # The probability of a step is the product of its tower's and those before it.
                kept = steps
        case _:
            raise UserError(f"{type(model).__name__} cannot be cut down to {', '.join(tasks)}; keep all its tasks.")
    model.towers = _only(model.towers, kept)
    model.further_towers = nn.ModuleDict()
    model.links = _only(model.links, kept)
    model.dense_arch = _only(model.dense_arch, groups)
    return model.inputs.keep(groups)


def _only(modules: nn.ModuleDict, names: Iterable[str]) -> nn.ModuleDict:
    return nn.ModuleDict({name: module for name, module in modules.items() if name in names})
