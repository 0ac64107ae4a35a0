"""The folder of a run's log."""

import hashlib
import os

from stem_torchrec.config import DataConfig
from stem_torchrec.data import synthetic
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import PathOption, checked_path


def data_folder(config: DataConfig) -> str:
    """The folder of the log; without a path, that of the synthetic log, which is generated if it does not exist.

    Raises UserError for a recipe whose log only the user has.
    """
    if config.path == "":
        raise UserError("this recipe trains on a log of your own: give --data.path DIR.")
    if config.path is not None:
        path = checked_path(config.path, PathOption("folder"))
        return path if "://" in path else os.path.abspath(path)
    name = hashlib.sha256(repr(config.synthetic).encode()).hexdigest()[:8]
    folder = os.path.abspath(os.path.join("data", f"synthetic-{name}"))
    synthetic.ensure(config.synthetic, folder)
    return folder
