"""Runs the script that is the first argument, with the rest as its arguments.

TorchX's dist.ddp takes the script from its configuration (.torchxconfig) and hands on what follows as arguments; this
turns the first of them into the script, so that `torchx run dist.ddp -j 2x8 stem_torchrec/train.py ...` works.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    if len(sys.argv) < 2 or not os.path.isfile(sys.argv[1]):
        found = repr(sys.argv[1]) if len(sys.argv) > 1 else "nothing"
        print(f"error: the first argument must be a script of this repository, not {found}.", file=sys.stderr)
        sys.exit(2)
    del sys.argv[0]
    # The repository's root, so that the scripts find the package where it is not installed.
    sys.path[0] = os.getcwd()
    runpy.run_path(sys.argv[0], run_name="__main__")
