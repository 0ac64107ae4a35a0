"""Files in the folders of torch and fbgemm that tell for what they were built; checked with both stacks."""

import json
import re
from pathlib import Path


def torch_has_gpu(folder: Path) -> bool:
    """Whether the torch in `folder` was built for CUDA or ROCm; importing it to ask costs seconds.

    Example::

        # torch/version.py
        # cuda: Optional[str] = '12.9'      or None
    """
    return bool(re.search(r"^(cuda|hip)\b.*= '", (folder / "version.py").read_text(), re.MULTILINE))


def fbgemm_has_gpu(folder: Path) -> bool:
    """Whether the fbgemm in `folder` was built for GPUs; importing one that does not fit fails.

    Example::

        # fbgemm_gpu/docs/target.default.json.py
        # {"version": "1.8.0", "target": "default", "variant": "cpu"}
    """
    targets = [json.loads(file.read_text()) for file in folder.glob("docs/target.*.json.py")]
    return any(target["variant"] != "cpu" for target in targets)
