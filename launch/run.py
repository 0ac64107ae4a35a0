"""Runs the script that is the first argument, with the other arguments.

TorchX's dist.ddp reads the name of its script, which is this file, from .torchxconfig, and passes everything else as
arguments. This file runs the first of them, so that `torchx run dist.ddp -j 2x8 stem_torchrec/train.py ...` works.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    if len(sys.argv) < 2 or not os.path.isfile(sys.argv[1]):
        first = repr(sys.argv[1]) if len(sys.argv) > 1 else "nothing"
        sentence = f"the first argument must be a script of this repository, not {first}."
        print(f"error: {sentence} [STEM-LAUNCH]", file=sys.stderr)
        sys.exit(2)
    del sys.argv[0]
    # The root of the repository, so that scripts find the package if it is not installed.
    sys.path[0] = os.getcwd()
    runpy.run_path(sys.argv[0], run_name="__main__")
