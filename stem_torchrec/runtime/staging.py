"""Files that grow or that a library writes by itself, for a run folder in a store: written locally, then copied."""

import shutil
from pathlib import Path
from tempfile import mkdtemp

from stem_torchrec.runtime.store_path import AnyPath, StorePath


class Staging:
    """A local folder to write to: the folder itself, or one in place of a folder in a store.

    Example::

        staging = Staging(StorePath("s3://bucket/runs/a"))
        (staging.local / "metrics.jsonl").write_text("...")
        staging.copy()   # s3://bucket/runs/a/metrics.jsonl
        staging.close()
    """

    def __init__(self, folder: AnyPath) -> None:
        self.local = folder if isinstance(folder, Path) else Path(mkdtemp(prefix="run-"))
        self._store = folder if isinstance(folder, StorePath) else None
        self._sizes: dict[str, int] = {}
        """Bytes of each file that was copied, by its path in the folder."""

    def copy(self) -> None:
        """Copies the files that have grown since the last copy; raises OSError."""
        if self._store is None:
            return
        for file in sorted(path for path in self.local.rglob("*") if path.is_file()):
            name, content = str(file.relative_to(self.local)), file.read_bytes()
            if self._sizes.get(name) != len(content):
                with (self._store / name).open("wb") as target:
                    target.write(content)
                self._sizes[name] = len(content)

    def close(self, *, copy: bool = True) -> None:
        """Copies what is left unless `copy` is false, and removes the local folder of a store's; raises OSError."""
        try:
            if copy:
                self.copy()
        finally:
            if self._store is not None:
                shutil.rmtree(self.local, ignore_errors=True)
