"""Which dense parts of a model continue those of the model that it starts from: by name, and by the names of axes."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stem_torchrec.starting.axis_labels import Axis
from stem_torchrec.starting.carried import Line, States, Status
from stem_torchrec.starting.model_weights import Match, Matches, ModelWeights

_CLOSED = -100.0
"""A gate's bias at which the softmax is 0 in fp32, and with it the gradient."""


def match_modules(old: ModelWeights, new: ModelWeights, *, states: States) -> tuple[Matches, list[Line]]:
    """The dense weights that continue others, and what becomes of every part of the model that is not a table.

    A part, as a tower, is continued as a whole. It is fresh if an axis without names has another size.

    Args:
        old: of the source.
        new: of the run.
        states: of a part that continues one.

    Example::

        matches, lines = match_modules(yesterday, today, states="carried")
        lines[0]  # Line("layers.0.experts", ("finish",), "grown", "carried", details="16 new input columns")
    """
    matches: Matches = {}
    lines: list[Line] = []
    parts, old_parts = new.modules, old.modules
    for part, names in parts.items():
        line = replace(_line(part, "fresh"), states="fresh" if states else "")
        why = "new" if part not in old_parts else _why_fresh(names, old_parts[part], old, new)
        if why is not None:
            lines.append(replace(line, details=why))
            continue
        for name in names:
            pairs = list(zip(new.axes[name], old.axes[name], strict=True))
            axes = tuple(_positions(axis, old_axis) for axis, old_axis in pairs)
            starts = tuple(None if axis is None else axis.start for axis, _ in pairs)
            matches[name] = Match(name, old.sizes[name], axes, axes, states == "carried", starts)
        grown, changes = _changes(_named_axes(names, old, new))
        status: Status = "grown" if grown else "carried"
        lines.append(replace(line, status=status, states=states, details=", ".join(changes)))
    return matches, lines + [_line(part, "dropped") for part in old_parts if part not in parts]


def closed_experts(old: ModelWeights, new: ModelWeights) -> list[str]:
    """A sentence where new experts of an old group stand behind gates that are closed to them, which no step opens."""
    groups: set[str] = set()
    old_parts = old.modules
    for part, names in new.modules.items():
        if set(names) != set(old_parts.get(part, ())):
            continue
        for axis, old_axis in _named_axes(names, old, new):
            if axis.what == "expert" and axis.start is not None and axis.start <= _CLOSED:
                added = set(axis.names) - set(old_axis.names)
                groups |= _groups_of(added) & _groups_of(set(old_axis.names))
    if not groups:
        return []
    return [
        f"no gate will read the new experts of {', '.join(sorted(groups))}, as all are closed to them for good; give "
        "--start.gate-bias -5, which opens the gates a little"
    ]


def _groups_of(experts: set[Hashable]) -> set[str]:
    return {name[0] for name in experts if isinstance(name, tuple)}


def _line(part: str, status: Status) -> Line:
    item, _, of = part.rpartition(".")
    return Line(item, (of,), status) if item else Line(part, (), status)


def _why_fresh(names: Sequence[str], old_names: Sequence[str], old: ModelWeights, new: ModelWeights) -> str | None:
    """Why a part cannot continue the old part of its name; None if it can."""
    if set(names) != set(old_names):
        return "another number of layers"
    for name in names:
        axes = zip(new.axes[name], old.axes[name], new.sizes[name], old.sizes[name], strict=True)
        if any((axis is None or old_axis is None) and size != old_size for axis, old_axis, size, old_size in axes):
            return f"{name.removeprefix('model.')} was {old.sizes[name]} and is {new.sizes[name]}"
    for axis, old_axis in _named_axes(names, old, new):
        if not set(axis.names) & set(old_axis.names):
            return f"no {axis.what} is the same"
    return None


def _named_axes(names: Sequence[str], old: ModelWeights, new: ModelWeights) -> Iterator[tuple[Axis, Axis]]:
    """The axes of some weights that have names, each with the old one."""
    for name in names:
        for axis, old_axis in zip(new.axes[name], old.axes[name], strict=True):
            if axis is not None and old_axis is not None:
                yield axis, old_axis


def _positions(axis: Axis | None, old_axis: Axis | None) -> Tensor | None:
    """See Match."""
    if axis is None or old_axis is None or axis.names == old_axis.names:
        return None
    places = {name: i for i, name in enumerate(old_axis.names)}
    return torch.tensor([places.get(name, -1) for name in axis.names])


def _changes(pairs: Iterator[tuple[Axis, Axis]]) -> tuple[bool, list[str]]:
    """Whether positions are new, and which are new or gone, in words."""
    counts = {}
    for axis, old_axis in pairs:
        names, old_names = set(axis.names), set(old_axis.names)
        counts[axis.what] = len(names - old_names), len(old_names - names)
    words = [f"{new} new {what}{'s' * (new > 1)}" for what, (new, _) in counts.items() if new]
    words += [f"{gone} {what}{'s' * (gone > 1)} dropped" for what, (_, gone) in counts.items() if gone]
    return any(new for new, _ in counts.values()), words
