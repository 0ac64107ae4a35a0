"""Fills in what the configuration of a run leaves open: from the run that resumes, or by the rows of its log."""

from dataclasses import replace

from stem_torchrec.checkpoints.resume import candidates, own_checkpoints, progress_of
from stem_torchrec.config import TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.schema import load_schema
from stem_torchrec.models.table import all_options
from stem_torchrec.runtime.errors import DamagedError
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.run_folder import CONFIG_FILE, has_ended
from stem_torchrec.training.steps_by_rows import choose_steps, describe_steps


def with_open_fields(config: TrainConfig, path: str, process: Process) -> TrainConfig:
    """The configuration with batch size, evaluations and eps, and a line in the log that tells them; all ranks call it.

    A run that resumes keeps what it had; on another number of ranks, as many rows in a step of all of them.

    Args:
        config: of a run.
        path: folder of its log.
        process: this rank.

    Raises UserError where the log does not fit the configuration, or `--resume` names no checkpoint.
    """
    if config.data.batch_size and config.train.eval_every != 0 and config.sparse.eps:
        return config

    def fill_in() -> tuple[TrainConfig, str]:
        rows, ranks = _training_rows(config, path), process.world_size
        resumed = _as_before(config, ranks)
        chosen = choose_steps(resumed, rows, ranks)
        return chosen, describe_steps(chosen, rows, ranks, resumed=resumed != config)

    chosen, line = from_first_rank(fill_in)
    log_rank0(line)
    return chosen


def _training_rows(config: TrainConfig, path: str) -> int:
    schema = load_schema(path)
    columns = Columns.select(schema, features=config.data.features, labels=config.data.labels)
    if "train" in schema.splits:
        return schema.splits["train"].rows
    return sum(each.rows for each in find_row_groups(path, "train", schema, columns))


def _as_before(config: TrainConfig, ranks: int) -> TrainConfig:
    """The configuration with what the run that resumes had in the fields that are open; as it is for a new run."""
    before = _before(config, ranks)
    if before is None:
        return config
    return filled_in(config, *before)


def filled_in(config: TrainConfig, batch_size: int, eval_every: int | None, eps: float) -> TrainConfig:
    """The configuration with these values of the fields that it leaves open."""
    data, train, sparse = config.data, config.train, config.sparse
    return replace(
        config,
        data=data if data.batch_size else replace(data, batch_size=batch_size),
        train=train if train.eval_every != 0 else replace(train, eval_every=eval_every),
        sparse=sparse if sparse.eps else replace(sparse, eps=eps),
    )


def _before(config: TrainConfig, ranks: int) -> tuple[int, int | None, float] | None:
    """Batch size, steps between evaluations and eps of the run that resumes; None for a new run."""
    if config.resume == "never":
        return None
    folder = path_of(config.output_dir or "")
    saved = folder / CONFIG_FILE
    if not (config.output_dir and has_ended(folder)):
        for checkpoint in candidates(config.resume, own_checkpoints(config)):
            try:
                progress = progress_of(checkpoint, all_options())
            except DamagedError:
                continue
            rows = progress.config["data"]["batch_size"] * progress.world_size
            before = progress.config
            return max(rows // ranks, 1), before["train"]["eval_every"], before["sparse"]["eps"]
    if config.output_dir and saved.exists():
        run = load_config(str(saved))
        return run.data.batch_size, run.train.eval_every, run.sparse.eps
    return None
