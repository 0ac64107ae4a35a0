"""Brings a copy of a run, or a bundle, to the state that the run's training has shipped.

python stem_torchrec/apply_delta.py --delta RUN/deltas --to COPY
"""

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """The command `stem-apply-delta`."""

    def run() -> None:
        # Imported late, as that takes seconds, in which a signal should end the command as well.
        from stem_torchrec.config import parse_arguments
        from stem_torchrec.serving.apply_deltas import ApplyConfig, apply_deltas

        apply_deltas(parse_arguments(ApplyConfig(), description=__doc__ or ""))

    run_main(run)


if __name__ == "__main__":
    main()
