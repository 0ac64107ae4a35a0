"""Id spaces: which features share ids, and which ids have a meaning of their own."""

from dataclasses import dataclass

from stem_torchrec.preparation.specs.spec import Spec, Vocabulary


@dataclass(frozen=True)
class IdSpace:
    """Ids that one or several features share.

    The vocabulary of a feature gives 1, 2, ... by falling count, then by value; 0 is unseen. Where a missing value has
    an id of its own, that is 1, and the others begin at 2.
    """

    name: str
    """The feature that it was made for."""
    vocabulary: Vocabulary
    features: tuple[str, ...]
    missing_id: int | None

    @property
    def first_id(self) -> int:
        """The id of the most frequent value."""
        return 1 if self.missing_id is None else self.missing_id + 1


def id_spaces(spec: Spec) -> dict[str, IdSpace]:
    """The id spaces with a vocabulary, by the feature that they were made for."""
    members: dict[str, list[str]] = {}
    for name, feature in spec.id_features.items():
        if feature.hash is None and feature.identity is None:
            owner = feature.vocabulary.of if feature.vocabulary and feature.vocabulary.of else name
            members.setdefault(owner, []).append(name)
    spaces = {}
    for owner, names in members.items():
        own = any(spec.id_features[name].missing == "own" for name in names)
        vocabulary = spec.id_features[owner].vocabulary or Vocabulary()
        spaces[owner] = IdSpace(owner, vocabulary, tuple(names), 1 if own else None)
    return spaces
