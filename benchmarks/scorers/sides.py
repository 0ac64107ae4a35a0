"""The sides: ways to score the same rows with the same weights, each a function of prepared inputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor
from torchrec.inference.modules import quantize_embeddings
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.checkpoints.weights import load_weights
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import load_schema
from stem_torchrec.models.build import build_model
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.serving.bundle import Bundle, load_bundle
from stem_torchrec.serving.inputs import to_inputs
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.run_folder import BEST_WEIGHTS, CONFIG_FILE

from scorers.rows import jagged_parts, raw_rows

Score = Callable[[], Tensor]
"""Returns probabilities (B, T) of rows that are ready."""
BUNDLES = {
    "bundle": ("fp32", False),
    "bundle, compiled": ("fp32", True),
    "bundle, fp16": ("fp16", False),
    "bundle, int8": ("int8", False),
    "bundle, int8, compiled": ("int8", True),
}
"""By side: the tables of its bundle, and whether its program is compiled."""
TORCHREC = ("TorchRec", "TorchRec, int8")
"""Sides of TorchRec's modules: EmbeddingBagCollection, and what quantize_embeddings makes of it."""
SIDES: Sequence[str] = (*TORCHREC, *BUNDLES)


@dataclass(frozen=True)
class Side:
    """A side that is open."""

    columns: Columns
    score: Callable[[pa.RecordBatch], Score]
    """Takes rows of the log, and prepares their inputs."""
    score_raw: Callable[[int], Callable[[], pa.Table]] | None = None
    """Takes a number of raw rows, and prepares nothing but them."""


def open_side(name: str, *, run: str, bundles: Path) -> Side:
    """Opens a side.

    Args:
        name: of SIDES.
        run: folder of the run.
        bundles: has the bundles of the run by the precision of their tables.
    """
    if name in TORCHREC:
        return _open_modules(run, quantized=name != TORCHREC[0])
    precision, compiled = BUNDLES[name]
    return _of_bundle(load_bundle(bundles / precision, compiled=compiled))


def _of_bundle(bundle: Bundle) -> Side:
    def score(rows: pa.RecordBatch) -> Score:
        inputs = to_inputs(rows, bundle.columns)
        return lambda: bundle.program(inputs.dense, inputs.values, inputs.offsets, inputs.weights, bundle.tables)

    def score_raw(rows: int) -> Callable[[], pa.Table]:
        assert bundle.transforms is not None
        table = raw_rows(bundle.transforms, bundle.raw_types, rows)
        return lambda: bundle.score(table)

    return Side(bundle.columns, score, score_raw if bundle.transforms is not None else None)


def _open_modules(run: str, *, quantized: bool) -> Side:
    folder = path_of(run)
    trained = load_config(str(folder / CONFIG_FILE))
    labeled = Columns.select(load_schema(run), features=trained.data.features, labels=trained.data.labels)
    columns = replace(labeled, labeled=False)
    train = build_model(trained.model, labeled, table_device="cpu")
    load_weights(train, folder / BEST_WEIGHTS)
    model = train.model.eval()
    if quantized:
        model = quantize_embeddings(model, dtype=torch.qint8, inplace=True)

    def score(rows: pa.RecordBatch) -> Score:
        inputs = to_inputs(rows, columns)
        parts = jagged_parts(inputs, columns)
        # A new tensor for each call: it keeps what has been computed from it, which a request does not have.
        return lambda: model(inputs.dense, KeyedJaggedTensor(**parts)).sigmoid()

    return Side(columns, score)
