"""The command line of benchmarks/pays.py."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stem_torchrec.config import parse_known_arguments
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.path_options import LocalFile, LocalOutput

from common.output import check_out
from gains.sources import Source, read_sources


@dataclass(frozen=True)
class PaysOptions:
    """What to compare; options of compare.py and train.py are taken as well, and count for all sources."""

    sources: tuple[str, ...] = ()
    """NAME=LOG or NAME=LOG1,LOG2 for each source, or one YAML file that names them. Several logs are one source split
    by other seeds or days, whose test rows are pooled."""
    out: LocalOutput = ""
    """Folder with a comparison for each source, pays.md, pays.parquet and runs.parquet. The same command resumes, and
    sources, models and seeds may be added."""
    models: str = "stem"
    """Models, separated by commas, as for compare.py."""
    base: str = "single_task"
    """The model that the others are compared with."""
    variants: LocalFile | None = None
    """YAML file of further models, as for compare.py."""
    seeds: str = "0,1"
    """Seeds of each model, separated by commas."""
    split: Literal["test", "valid"] = "test"
    """The split to report on; valid is for screening, as the weights of each run are chosen by it. Each split needs an
    --out of its own."""
    only: tuple[str, ...] = ()
    """Trains these sources alone; the report is on what is done of all. So several processes share an --out."""
    rival_of_two: bool = False
    """Two runs of the base averaged, by their logits, stand beside the other models as BASE_of_two, and each other
    model is compared with them as well as with the base. It takes two seeds or more."""
    report_only: bool = False
    """Trains nothing, and reports on what is done."""


def read_command_line(
    args: Sequence[str] | None = None, *, description: str | None = None
) -> tuple[PaysOptions, dict[str, Source], list[str]]:
    """What to compare, on which sources, and options of compare.py and train.py.

    Args:
        args: the command line, that of this process if None.
        description: what `--help` shows above the options.

    Raises UserError for values that make no sense.
    """
    options, rest = parse_known_arguments(PaysOptions(), args, description=description or "")
    check_out(options.out)
    sources = read_sources(options.sources)
    for name in options.only:
        if name not in sources:
            raise UserError(
                f"--only names {name!r}, but the sources are {', '.join(sources)}{nearest(name, [*sources]) or '.'}"
            )
    for option in ("--data.path", "--logs", "--recommend"):
        if any(argument.partition("=")[0] == option for argument in rest):
            raise UserError(f"{option} does not apply to several sources; leave it out.")
    if options.rival_of_two and "," not in options.seeds.strip(", "):
        raise UserError(f"--rival-of-two averages two runs, but --seeds is {options.seeds!r}; give two seeds or more.")
    # The base is trained first, as nothing is reported without it.
    named = [name.strip() for name in options.models.split(",")]
    models = ",".join(dict.fromkeys([options.base, *named]))
    return replace(options, models=models), sources, rest
