"""Searches for the setting of a model that validates best; each rank runs trials of its own.

python stem_torchrec/tune.py --data.path DIR --trials 50 --out DIR
torchrun --nproc-per-node 2 stem_torchrec/tune.py --data.path DIR --trials 50 --out DIR
python stem_torchrec/tune.py --what tables --data.path DIR --budget-gb 2 --out DIR   # which tables tasks deserve
"""

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """The command `stem-tune`."""

    def run() -> None:
        # Imported late, as that takes seconds, in which a signal should end the command as well.
        from stem_torchrec.config.command_line import parse_known_arguments
        from stem_torchrec.runtime.process import join_process_group
        from stem_torchrec.table_search import options
        from stem_torchrec.table_search.search_tables import search_tables
        from stem_torchrec.tuning.options import What, read_command_line
        from stem_torchrec.tuning.study import tune

        chosen, rest = parse_known_arguments(What())
        args = ["--what", chosen.what, *rest]
        if chosen.what == "options":
            return tune(*read_command_line(args))
        search, base = options.read_command_line(args)
        with join_process_group() as process:
            search_tables(search, base, process)

    run_main(run, every_rank_speaks=True)


if __name__ == "__main__":
    main()
