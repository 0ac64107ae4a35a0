"""Warnings of fbgemm and torchrec that no user can act on: those of torch 2.11 and its stack; 2.13 has none of them."""

import logging
import warnings


def silence_needless_warnings() -> None:
    """Silences them in this process; the package calls it before it imports any library, as fbgemm warns meanwhile.

    Who imports fbgemm or torchrec before stem_torchrec still sees what fbgemm says.
    """
    logging.getLogger().addFilter(_is_needed)
    # torchrec 1.6 asks torch for the device of a process group by a function that is to be deprecated, and that is in
    # doubt about gloo, which a CUDA build of torch offers for both devices; its answer, the CPU, is right.
    for message in ("`_get_pg_default_device` will be deprecated", "Multiple backends are registered"):
        warnings.filterwarnings("ignore", message, UserWarning, r"torchrec\.distributed\.types")


def _is_needed(record: logging.LogRecord) -> bool:
    # fbgemm 1.6.0 came out without its own line in its table of versions of torch, and warns of that for each of its
    # 14 libraries. `runtime.versions` has compared the versions.
    return "_fbgemm_torch_compat_table has no entry for" not in str(record.msg)
