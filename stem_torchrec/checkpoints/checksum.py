"""The checksum of weights on disk, by which a file that belongs to them knows them."""

import hashlib

from stem_torchrec.runtime.file_systems import g_pathmgr
from stem_torchrec.runtime.store_path import AnyPath

_CHUNK = 2**24


def weights_checksum(folder: AnyPath) -> str:
    """SHA-256 of the files in a folder of weights: names and bytes, in the order of the names.

    Weights that another number of ranks wrote, or `stem-convert`, have another checksum, also if they predict the same.

    Args:
        folder: as `checkpoints.weights.find_weights` returns it.

    Example::

        weights_checksum(Path("runs/a/best"))  # "sha256:2c26b46b68ffc68ff99b453c1d304134..."
    """
    digest = hashlib.sha256()
    paths: list[AnyPath] = [*folder.iterdir()]
    for path in sorted(paths, key=lambda path: path.name):
        digest.update(f"{path.name}\0".encode())
        with g_pathmgr.open(str(path), "rb") as file:
            size = 0
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
        # A length after each file, so that no bytes can move from one file to the next.
        digest.update(size.to_bytes(8, "little"))
    return f"sha256:{digest.hexdigest()}"
