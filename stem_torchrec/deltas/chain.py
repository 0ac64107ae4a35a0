"""Which deltas a copy or a bundle lacks, and whether they follow each other."""

from dataclasses import dataclass

from stem_torchrec.deltas.manifest import MANIFEST_FILE, Delta, complete_numbers, delta_path, read_delta
from stem_torchrec.runtime.errors import DamagedError, UserError
from stem_torchrec.runtime.store_path import AnyPath


@dataclass(frozen=True)
class Applied:
    """The delta that a copy or a bundle is at."""

    chain: str
    number: int
    sha256: str
    """Of the manifest of the delta."""
    run: str
    """The run folder."""
    step: int
    """Steps that the run had made."""

    @classmethod
    def of(cls, delta: Delta) -> "Applied":
        """That a delta has been applied."""
        manifest = delta.manifest
        return cls(manifest.chain, manifest.number, delta.sha256, manifest.run, manifest.step)


def missing_deltas(path: AnyPath, applied: Applied | None, *, until: int | None, target: str) -> list[Delta]:
    """The deltas to apply, in their order; none if the target has the last one. They begin with one that has all rows
    if there is such a one behind what the target has.

    Args:
        path: a folder of deltas, or one delta.
        applied: what the target has; None for one that begins anew.
        until: the last number to apply; by default the largest.
        target: the copy or bundle, for errors.

    Raises UserError for a folder without deltas, for deltas of another run, and, by its number, for one that is
    missing or that the target has already; DamagedError for one that does not follow the one before it.
    """
    if (path / MANIFEST_FILE).is_file():
        delta = read_delta(path)
        number = delta.manifest.number
        if applied is not None and applied.chain == delta.manifest.chain and number <= applied.number:
            raise UserError(f"{target} has delta {number} already: it is at delta {applied.number}; give a later one.")
        deltas = [delta]
    else:
        deltas = _deltas_of(path, applied, until=until, target=target)
    if deltas and applied is not None and applied.chain != deltas[-1].manifest.chain:
        run = deltas[-1].manifest.run
        before = "an earlier run in the same folder" if run == applied.run else applied.run
        raise UserError(
            f"the deltas in {path} are of the run {run} and {target} has those of {before}; give their folder, or "
            "another --to."
        )
    _check_order(deltas, applied, path, target)
    return deltas


def _deltas_of(folder: AnyPath, applied: Applied | None, *, until: int | None, target: str) -> list[Delta]:
    numbers = complete_numbers(folder)
    if not numbers:
        raise UserError(f"{folder} holds no delta; a run writes deltas with --delta.steps or --delta.minutes.")
    last = numbers[-1] if until is None else until
    if last not in numbers:
        raise UserError(f"delta {last} is missing in {folder}, which has {numbers[0]} to {numbers[-1]}; copy it there.")
    at = -1 if applied is None else applied.number
    if last < at:
        raise UserError(
            f"{target} is at delta {at}, and none leads back to {last}; give a later --until or deltas up to "
            f"{at}, or another --to, which begins anew."
        )
    deltas: list[Delta] = []
    # The newest alone tells that they are of another run.
    for number in range(last, min(at, last - 1), -1):
        if number not in numbers:
            raise _missing(number, applied, target)
        deltas.insert(0, read_delta(delta_path(folder, number)))
        if deltas[0].manifest.full or (applied is not None and applied.chain != deltas[0].manifest.chain):
            break
    if at == last and applied is not None and deltas[-1].sha256 == applied.sha256:
        return []
    return deltas


def _check_order(deltas: list[Delta], applied: Applied | None, path: AnyPath, target: str) -> None:
    """Raises an error unless the first delta has all rows or follows what the target has, and the others follow it."""
    if not deltas:
        return
    first, before = deltas[0].manifest, applied
    if first.full:
        before = None
    elif applied is None or first.number != applied.number + 1:
        raise _missing(first.number - 1, applied, target)
    for delta in deltas:
        if before is not None and delta.manifest.base != before.sha256:
            raise DamagedError(
                f"delta {delta.manifest.number} in {path} does not follow the delta {before.number} that came before "
                "it (its base is another); give the folder that both were written to."
            )
        before = Applied.of(delta)


def _missing(number: int, applied: Applied | None, target: str) -> UserError:
    if applied is None:
        return UserError(
            f"delta {number} is missing: {target} is at none, and begins with a delta that has all rows, as delta 0; "
            "give a folder that has it and all after it."
        )
    return UserError(f"delta {number} is missing: {target} is at delta {applied.number}; apply those between first.")
