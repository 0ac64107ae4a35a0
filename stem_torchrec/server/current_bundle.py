"""The bundle that answers, and how another takes its place without a request that fails."""

import asyncio
import gc
from pathlib import Path

from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.server.metrics import Metrics
from stem_torchrec.server.refusals import RefusedError
from stem_torchrec.server.served_bundle import ServedBundle, breaking_changes, open_bundle


class CurrentBundle:
    """The bundle that new requests are scored by; those under way keep the one that they began with.

    Args:
        served: the first bundle.
        path: where it was loaded from, perhaps by a link.
        folder: the folder that other bundles may be taken from.
        metrics: which count the swaps.
    """

    def __init__(self, served: ServedBundle, path: Path, folder: Path, metrics: Metrics) -> None:
        self.served = served
        self._path = path
        self._folder = folder.resolve()
        self._metrics = metrics
        self._lock = asyncio.Lock()
        metrics.show_bundle(served)

    async def swap(self, bundle: str | None = None, *, allow_changes: bool = False) -> ServedBundle:
        """Loads a bundle and warms it up beside the one that answers, and then lets it answer.

        Args:
            bundle: its path, which a relative one has in the folder of bundles; by default the one of the last swap, or
                else of `--bundle`.
            allow_changes: lets in a bundle that lacks a task, or reads a column that the present one does not.

        Raises RefusedError while another is loaded, and for a bundle that is elsewhere, cannot be loaded, does not
        score or changes what requests need; the present bundle then goes on.
        """
        if self._lock.locked():
            raise RefusedError(409, "another bundle is being loaded; ask again when it answers.")
        async with self._lock:
            try:
                path = self._path if bundle is None else self._checked(bundle)
                served = await asyncio.to_thread(open_bundle, path)
                changes = breaking_changes(self.served, served)
                if changes and not allow_changes:
                    raise UserError(
                        f"{path} changes what requests need: {'; '.join(changes)}. allow_changes lets it in."
                    )
            # OSError: a file that may not be read; RuntimeError: links that lead in a circle.
            except (UserError, OSError, RuntimeError) as error:
                self._metrics.swaps.labels("refused").inc()
                log_rank0(f"refused a bundle: {error}")
                raise RefusedError(422, f"the bundle is refused: {error}") from error
            self.served, self._path = served, path
            self._metrics.swaps.labels("taken").inc()
            self._metrics.show_bundle(served)
            log_rank0(f"{served.bundle.folder} answers now, version {served.version}")
        # The bundle before is in circles of objects; without this its memory stays until Python happens to look.
        asyncio.get_running_loop().call_later(1, gc.collect)
        return served

    def _checked(self, bundle: str) -> Path:
        path = self._folder / bundle
        # A link in the folder may lead elsewhere: whoever made it may write there.
        if "\0" in bundle or path.parent.resolve() != self._folder or path.name in ("", ".."):
            raise RefusedError(422, f"{bundle!r} is not in {self._folder}; --bundles names another folder.")
        return path
