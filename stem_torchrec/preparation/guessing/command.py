"""`stem-prepare FILES`: guesses a spec, and writes it or hands it on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stem_torchrec.preparation.guessing.guess_spec import Guess, Wishes, guess_spec
from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.specs.spec_file import SPEC_FILE
from stem_torchrec.runtime.errors import UnwritableError, UserError
from stem_torchrec.runtime.whole_file import naming_file, whole_file

_OF_RAW_FILES = ("label", "drop", "columns", "header_from", "guess_only")


def raw_inputs(options: PrepareOptions) -> list[str]:
    """All that the command is called with, in order."""
    return [each for each in (options.spec, *options.files) if each]


def check_no_guess(options: PrepareOptions) -> None:
    """Raises UserError for options that only raw files take, as a spec says this itself."""
    for name in _OF_RAW_FILES:
        if getattr(options, name):
            raise UserError(
                f"--{name.replace('_', '-')} is for raw files, but {options.spec or 'nothing'} is given; leave the "
                "option out and edit the spec, or give raw files."
            )


def write_guess(options: PrepareOptions) -> str:
    """Writes the spec of raw files, and returns what to do next.

    Raises UserError where the folder has more than a spec, or a spec and no `--overwrite`.
    """
    out = Path(options.out)
    file = out / SPEC_FILE
    if out.is_file() or (out.is_dir() and set(out.iterdir()) - {file}):
        raise UserError(f"--out {out} has other files already; --guess-only writes to an empty or new folder.")
    if file.exists() and not options.overwrite:
        raise UserError(f"{file} exists already and may have been edited; --overwrite replaces it.")
    guess = _guess(options)
    with naming_file(file):
        out.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as new:
            new.write_text(guess.text)
    lines = [f"wrote {file}; edit it, then run:", f"  stem-prepare {file} --out {out}"]
    if not options.label:
        lines.insert(1, f"note: it has no label yet. {_asked_for_label(guess)}")
    return "\n".join([*lines, *guess.notes])


def guess_with_labels(options: PrepareOptions) -> Guess:
    """The spec of raw files; raises UserError with the candidates where `--label` is missing."""
    guess = _guess(options)
    if not options.label:
        raise UserError(f"--label is missing, and a label is never guessed. {_asked_for_label(guess)}")
    return guess


@contextmanager
def naming_guess_only() -> Iterator[None]:
    """Ends the sentence of a UserError with how the guessed spec can be edited."""
    try:
        yield
    except UnwritableError:
        raise
    except UserError as error:
        raise UserError(f"{error} The spec was guessed; --guess-only writes it, to be edited.") from error


def _guess(options: PrepareOptions) -> Guess:
    columns = tuple(name.strip() for name in options.columns.split(",")) if options.columns else ()
    if columns and options.header_from:
        raise UserError("--columns and --header-from both name the columns; give one of them.")
    wishes = Wishes(options.label, options.drop, columns, options.header_from)
    try:
        return guess_spec(raw_inputs(options), wishes, memory=f"{options.memory}GiB", threads=options.threads)
    except UserError as error:
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise
        fix = "A guess reads UTF-8: convert the file, or write a spec with its encoding, such as latin-1."
        raise UserError(f"{error} {fix}") from error


def _asked_for_label(guess: Guess) -> str:
    if not guess.candidates:
        return 'No column looks like one; write --label NAME="EXPRESSION", as in --label income="income = \'>50K\'".'
    return f"These columns could be one: {' '.join(guess.candidates)}"
