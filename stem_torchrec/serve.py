"""Serves a bundle over HTTP: scores rows that come as JSON, as Arrow or by the Open Inference Protocol.

python stem_torchrec/serve.py --bundle BUNDLE --http 8000
"""

from stem_torchrec.runtime.command import run_main


def main() -> None:
    """The command `stem-serve`."""

    def run() -> None:
        # Imported late, as that takes seconds, in which a signal should end the command as well.
        from stem_torchrec.config import parse_arguments
        from stem_torchrec.server.options import ServeConfig, check_packages

        config = parse_arguments(ServeConfig(), description=__doc__ or "")
        check_packages()
        from stem_torchrec.server.run_server import run_server

        run_server(config)

    run_main(run)


if __name__ == "__main__":
    main()
