"""Fills in what the configuration of a run leaves open: from the run that resumes, or by the rows of its log."""

from dataclasses import dataclass, replace

from stem_torchrec.checkpoints.resume import candidates, own_checkpoints, progress_of
from stem_torchrec.config import BalanceConfig, TrainConfig
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


@dataclass(frozen=True)
class OpenFields:
    """What a configuration may leave open, with 0, until the rows of the log are known."""

    batch_size: int
    eval_every: int | None
    eps: float
    period: int
    """Of the weights of tasks that learn, in steps."""


def open_fields_of(config: TrainConfig) -> OpenFields:
    """The fields of a configuration that leaves none open, as that of a run."""
    return OpenFields(config.data.batch_size, config.train.eval_every, config.sparse.eps, config.balance.period)


def with_open_fields(config: TrainConfig, path: str, process: Process) -> TrainConfig:
    """The configuration with its open fields, and a line in the log that tells them; all ranks call it.

    A run that resumes keeps what it had; on another number of ranks, as many rows in a step of all of them.

    Args:
        config: of a run.
        path: folder of its log.
        process: this rank.

    Raises UserError where the log does not fit the configuration, or `--resume` names no checkpoint.
    """
    fields = open_fields_of(config)
    if fields.batch_size and fields.eval_every != 0 and fields.eps and fields.period:
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
    return filled_in(config, before)


def filled_in(config: TrainConfig, fields: OpenFields) -> TrainConfig:
    """The configuration with these values of the fields that it leaves open."""
    data, train, sparse, balance = config.data, config.train, config.sparse, config.balance
    return replace(
        config,
        data=data if data.batch_size else replace(data, batch_size=fields.batch_size),
        train=train if train.eval_every != 0 else replace(train, eval_every=fields.eval_every),
        sparse=sparse if sparse.eps else replace(sparse, eps=fields.eps),
        balance=balance if balance.period else replace(balance, period=fields.period),
    )


def _before(config: TrainConfig, ranks: int) -> OpenFields | None:
    """The fields of the run that resumes; None for a new run."""
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
            # Earlier versions had no balance.
            period = before.get("balance", {}).get("period", BalanceConfig.period)
            return OpenFields(max(rows // ranks, 1), before["train"]["eval_every"], before["sparse"]["eps"], period)
    if config.output_dir and saved.exists():
        return open_fields_of(load_config(str(saved)))
    return None
