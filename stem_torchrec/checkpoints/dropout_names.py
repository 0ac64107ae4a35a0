"""Names of layers in weights that were saved when dropout was a layer of its own.

A layer's name is its position among those of its module. Before files carried a format version, dropout was a layer
behind each ReLU, so that with it the second linear layer was the fourth of its module and not the third:

    saved   towers.like.0.weight, towers.like.3.weight, towers.like.6.weight
    model   towers.like.0.weight, towers.like.2.weight, towers.like.4.weight
"""

import re
from collections import defaultdict
from collections.abc import Iterable

_LAYER = re.compile(r"(?P<module>.*\.)(?P<position>\d+)(?P<rest>\.(?:weight|bias)(?:\..+)?)")


def names_with_dropout(saved: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """The saved names of tensors whose module had dropout, by the names that the model has for them.

    Args:
        saved: names of the saved tensors, weights or optimizer states.
        wanted: names of the model's.

    Example::

        names_with_dropout(["like.0.weight", "like.3.weight"], ["like.0.weight", "like.2.weight"])
        # {"like.0.weight": "like.0.weight", "like.2.weight": "like.3.weight"}
    """
    saved_positions, positions = _positions(saved), _positions(wanted)
    renamed = {}
    for name in wanted:
        layer = _LAYER.fullmatch(name)
        if layer is not None:
            module, count = layer["module"], len(positions[layer["module"]])
            every_second, every_third = ({step * i for i in range(count)} for step in (2, 3))
            if count > 1 and positions[module] == every_second and saved_positions[module] == every_third:
                renamed[name] = f"{module}{int(layer['position']) // 2 * 3}{layer['rest']}"
    return renamed


def _positions(names: Iterable[str]) -> dict[str, set[int]]:
    """The positions of the layers with weights, by module."""
    positions = defaultdict(set)
    for name in names:
        layer = _LAYER.fullmatch(name)
        if layer is not None:
            positions[layer["module"]].add(int(layer["position"]))
    return positions
