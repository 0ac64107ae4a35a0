"""The variants of a YAML file, which `--variants` names."""

import re

from stem_torchrec.comparison.built_in import built_in
from stem_torchrec.comparison.variants import Variant, variant
from stem_torchrec.config import TrainConfig
from stem_torchrec.config.yaml_text import read_yaml
from stem_torchrec.runtime.errors import UserError


def read_variants(path: str, config: TrainConfig) -> dict[str, Variant]:
    """Reads the models of a YAML file, by name.

    Args:
        path: of a mapping of names to mappings of options.
        config: what the command line has for all models.

    Raises UserError with the file, the model, the option and the fix.

    Example::

        # stem_wide: {model.arch: stem, model.embedding_dim: 32}
        read_variants("variants.yaml", tiny())  # {"stem_wide": Variant("stem_wide", {"model.arch": "stem", ...})}
    """
    content = read_yaml("--variants", path)
    example = "write lines like `stem_wide: {model.arch: stem, model.embedding_dim: 32}`"
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} is not a mapping of models to their options; {example}.")
    variants = {}
    for name, values in content.items():
        _check_name(name, path)
        if not isinstance(values, dict):
            raise UserError(f"{path}: {name} is {values!r}, but must be a mapping of options; {example}.")
        variants[name] = variant(name, values, path, arch=config.model.arch)
        variants[name].configure(config)
    return variants


def _check_name(name: str, path: str) -> None:
    """Raises UserError for a name that a command line or a folder cannot have, or that is built in."""
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise UserError(
            f"{path}: the model {name!r} must have a name of letters, digits and _.- only; give it another."
        )
    if name in built_in() or name == "all":
        raise UserError(f"{path}: {name} is the name of a model that is built in; give yours another.")
