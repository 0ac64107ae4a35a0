"""From a served model to the files of its program."""

from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as shape_config

from stem_torchrec.serving.served_model import ServedModel
from stem_torchrec.serving.table_file import quantized

Inputs = tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


def export_program(model: ServedModel, dense_in_features: int) -> ExportedProgram:
    """The program of a model, for any number of rows and ids, none included, and tables of any number of rows."""
    inputs = example_inputs(model, dense_in_features)
    shapes = tuple(_dynamic(value) for value in inputs)
    # Without it, sizes of 0 and 1 would become special cases, and a program for several rows would refuse one.
    with torch.no_grad(), shape_config.patch(backed_size_oblivious=True):
        program = torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)
    # They would be saved with the program.
    program.example_inputs = None
    return program


def compile_program(model: ServedModel, dense_in_features: int, file: Path) -> None:
    """Writes the program compiled for this machine, which takes a C++ compiler one to two minutes."""
    inputs = example_inputs(model, dense_in_features)
    with torch.no_grad(), shape_config.patch(backed_size_oblivious=True):
        program = torch.export.export(
            model, inputs, dynamic_shapes=tuple(_dynamic(value) for value in inputs), strict=False
        )
        torch._inductor.aoti_compile_and_package(program, package_path=str(file))


def example_inputs(model: ServedModel, dense_in_features: int) -> Inputs:
    """Three rows of ids, no two features with the same number of them, on tables of few rows."""
    rows, features = 3, list(model.features)
    counts = [rows + 2 + i for i in range(len(features))]
    values = [torch.zeros(count, dtype=torch.int64) for count in counts]
    offsets = [torch.tensor([0, 1, 2, count]) for count in counts]
    weights = [torch.ones(counts[features.index(name)]) for name in model.weighted]
    tables = [quantized(torch.zeros(50 + i, table.columns), model.precision) for i, table in enumerate(model.tables)]
    return torch.zeros(rows, dense_in_features), values, offsets, weights, tables


def _dynamic(value: Tensor | list[Tensor]) -> object:
    return [{0: Dim.AUTO} for _ in value] if isinstance(value, list) else {0: Dim.AUTO}
