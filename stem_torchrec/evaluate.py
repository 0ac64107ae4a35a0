"""Evaluates a run: the metrics of a split with the run's best weights, on any number of ranks.

python stem_torchrec/evaluate.py --run RUN --data.path DIR --split test --json FILE
"""

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """The command `stem-evaluate`."""

    def run() -> None:
        # Imported late, as that takes seconds, in which a signal should end the command as well.
        from stem_torchrec.config import parse_arguments
        from stem_torchrec.runtime.process import join_process_group
        from stem_torchrec.training.run_evaluation import EvaluateConfig, evaluate_run

        config = parse_arguments(EvaluateConfig(), description=__doc__ or "")
        with join_process_group() as process:
            evaluate_run(config, process)

    run_main(run)


if __name__ == "__main__":
    main()
