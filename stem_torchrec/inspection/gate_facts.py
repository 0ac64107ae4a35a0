"""How much each stream reads from each group: means, and the spread over the rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stem_torchrec.inspection.predicted_rows import PredictedRows
from stem_torchrec.training.gate_weights import BINS, RowHistogram


@dataclass(frozen=True)
class GateFacts:
    """How much a stream of a layer reads from a group: its gate's weights, summed over the experts of the group."""

    layer: str
    stream: str
    group: str
    mean: float
    """Over the rows."""
    even: float
    """What it would be if the gate weighed all experts alike."""
    rows: RowHistogram | None
    """None for a stream without a gate, which reads one expert."""

    @property
    def deviation(self) -> float:
        """The standard deviation over the rows."""
        if self.rows is None:
            return 0.0
        count = sum(self.rows.counts)
        return math.sqrt(max(self.rows.squares / count - (self.rows.total / count) ** 2, 0.0))

    def quantile(self, share: float) -> float:
        """A quantile over the rows, as exact as a bin of the histogram is wide."""
        if self.rows is None:
            return 1.0
        cumulated = np.concatenate([[0], np.cumsum(self.rows.counts)])
        return float(np.interp(share * cumulated[-1], cumulated, np.arange(BINS + 1) / BINS))


def gate_facts(predicted: PredictedRows, groups: Sequence[str]) -> list[GateFacts]:
    """The facts of each gate of the streams in `groups`; [] for a model without gates."""
    return [
        GateFacts(
            layer=layer,
            stream=stream,
            group=group,
            mean=mean,
            even=predicted.even_gates[layer][stream][group],
            rows=predicted.gate_rows.get(f"gate_rows/{layer}/{stream}/{group}"),
        )
        for layer, streams in predicted.gates.items()
        for stream, means in streams.items()
        if stream in groups
        for group, mean in means.items()
    ]
