"""From a served model to the files of its program."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from stem_torchrec.deltas.row_files import quantized
from stem_torchrec.runtime.internals.export import any_sizes, compile_for_this_machine
from stem_torchrec.serving.served_model import ServedModel, ServedTogether

Inputs = tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


def export_program(model: ServedModel | ServedTogether, dense_in_features: int) -> ExportedProgram:
    """The program of a model, for any number of rows and ids, none included, and tables of any number of rows."""
    inputs = example_inputs(model, dense_in_features)
    with torch.no_grad(), any_sizes():
        return torch.export.export(
            model, inputs, dynamic_shapes=tuple(_dynamic(value) for value in inputs), strict=False
        )


def compile_program(program: ExportedProgram, file: Path) -> None:
    """Writes the program as machine code; takes a C++ compiler one to two minutes."""
    with torch.no_grad(), any_sizes():
        compile_for_this_machine(program, str(file))


def save_program(program: ExportedProgram, file: Path) -> None:
    """Writes the program; its example inputs are dropped, as they would be saved with it."""
    program.example_inputs = None
    torch.export.save(program, file)


def example_inputs(model: ServedModel | ServedTogether, dense_in_features: int) -> Inputs:
    """Three rows of ids, no two features with the same number of them, on tables of few rows."""
    rows, features = 3, list(model.features)
    counts = [rows + 2 + i for i in range(len(features))]
    values = [torch.zeros(count, dtype=torch.int64) for count in counts]
    offsets = [torch.tensor([0, 1, 2, count]) for count in counts]
    weights = [torch.ones(counts[features.index(name)]) for name in model.weighted]
    tables = [quantized(torch.zeros(50 + i, table.columns), model.precision) for i, table in enumerate(model.tables)]
    return torch.zeros(rows, dense_in_features), values, offsets, weights, tables


def _dynamic(value: Tensor | Sequence[Tensor]) -> object:
    return {0: Dim.AUTO} if isinstance(value, Tensor) else [{0: Dim.AUTO} for _ in value]
