"""What a user should look at before training, as sentences with numbers."""

import re
from collections.abc import Iterator

from stem_torchrec.data.schema import Schema
from stem_torchrec.expressions.expression import columns_of
from stem_torchrec.preparation.fitting.fit import Fitted
from stem_torchrec.preparation.report.facts import Collisions, FeatureFacts, GroupFacts, LogFacts, NumberFacts
from stem_torchrec.preparation.report.leak_check import leak_warnings
from stem_torchrec.preparation.specs.spec_expressions import SpecExpressions

RARE_LABEL = 0.001
"""Share of positives in train below which a label is named."""
FEW_POSITIVES = 50
"""Positives in valid below which metrics say little."""
MOSTLY = 0.5
"""Share of unseen ids in valid, or of groups with one row, above which it is named."""
DRIFT = 0.2
"""Divergence of valid from train, in bits, above which a feature is named."""
MANY_COLLISIONS = 0.05
"""Share of values of train that share an id above which it is named."""

_LATER = """
    click clicked clicks clk like liked dislike disliked conversion converted purchase purchased bought paid finish
    finished completed skipped dwell stay stayed
"""
"""Words of what an exposure leads to; `follow` and `view` are not, as they also name counts that are known before."""
_SPENT, _LENGTHS = {"play", "watch", "watching", "view", "reading", "listen"}, {"time", "ms", "seconds", "ratio"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def warnings_of(facts: LogFacts, schema: Schema, expressions: SpecExpressions, known: Fitted) -> list[str]:
    """The sentences, leaks first.

    A feature that an earlier log has, `known`, may have the same value in all rows of a day and still serve.
    """
    of_all: dict[str, FeatureFacts | NumberFacts] = {**facts.features, **facts.numbers}
    aucs = {
        label: {name: each.aucs[label] for name, each in of_all.items() if label in each.aucs}
        for label in schema.label_names
    }
    group = expressions.group
    same = [name for name, value in expressions.features.items() if group is not None and value.tree == group.tree]
    sentences = [*leak_warnings(aucs, same), *_later_columns(expressions)]
    for name, feature in facts.features.items():
        sentences += _of_feature(name, feature, is_known=name in known.features)
    for name, number in facts.numbers.items():
        if len(set(number.quantiles["train"])) == 1 and not number.missing["train"] and name not in known.dense:
            value = number.quantiles["train"][0]
            sentences.append(f"dense feature {name!r} is {value:.3g} in all rows of train; leave it out.")
    return [*sentences, *_of_labels(schema), *([] if facts.group is None else _of_group(facts.group))]


def _of_feature(name: str, feature: FeatureFacts, *, is_known: bool) -> Iterator[str]:
    if feature.ids_of_train <= 1 and feature.coverage["train"] in (0, 1):
        value = "one id in all rows" if feature.coverage["train"] else "no value"
        if not is_known:
            yield f"feature {name!r} has {value} of train, so nothing can be learned from it; leave it out."
    elif feature.unseen.get("valid", 0.0) > MOSTLY:
        yield (
            f"{feature.unseen['valid']:.1%} of the ids of feature {name!r} in valid do not occur often enough in "
            "train, so the model knows nothing of them; a coarser feature, a smaller min_count or another split may "
            "serve better."
        )
    elif feature.drift.get("valid", 0.0) > DRIFT:
        yield (
            f"the ids of feature {name!r} in valid differ from those of train (divergence {feature.drift['valid']:.3f} "
            "of at most 1), so what the model learns of it may not hold; look at what its values mean over time."
        )
    collisions = feature.collisions
    if collisions is not None and collisions.shared_values > MANY_COLLISIONS * collisions.values:
        yield f"feature {name!r}: {collision_text(collisions)}"


def collision_text(collisions: Collisions) -> str:
    """What hashing costs a feature, in numbers."""
    each, rows, ids = collisions.values, collisions.rows, collisions.ids
    if not each:
        return "train has no value."
    shared, lesser = collisions.shared_rows / rows, collisions.lesser_rows / rows
    return (
        f"{each:,} values of train have the {ids:,} ids of the hash. {collisions.shared_values / each:.2%} of the "
        f"values, with {shared:.2%} of their occurrences, share an id with another value, and the model cannot tell "
        f"them apart; {lesser:.2%} of the occurrences have an embedding that a more frequent value trains. With "
        f"{2 * ids:,} ids about {_expected(each, 2 * ids):.2%} of the values would share one; a vocabulary of all has "
        f"{each + 1:,} ids and no collision."
    )


def _expected(values: int, ids: int) -> float:
    """The share of values that share their id with another one when each gets one of the ids at random."""
    return 1 - (1 - 1 / ids) ** (values - 1)


def _later_columns(expressions: SpecExpressions) -> Iterator[str]:
    """Features from columns that exist only after the exposure, by their names or because labels are made of them."""
    values = {**expressions.features, **expressions.dense}
    labels = {label: set(columns_of(value.tree)) for label, value in expressions.labels.items()}
    for name, value in values.items():
        columns = columns_of(value.tree)
        label = next((label for label, parts in labels.items() if parts and parts <= set(columns)), None)
        if label is not None:
            yield (
                f"feature {name!r} reads {_listed(columns)}, of which the label {label!r} is made; leave it out unless "
                "the label is of another exposure."
            )
            continue
        for each in dict.fromkeys((name, *columns)):
            word = _later_word(each)
            if word is not None:
                reads = "" if each == name else f" reads {each!r}, which"
                yield (
                    f"feature {name!r}{reads} has {word!r} in its name: if it is known only after the exposure, leave "
                    "it out."
                )
                break


def _later_word(name: str) -> str | None:
    words = [piece.lower() for piece in _WORD.findall(name)]
    for word in words:
        if word in _LATER.split():
            return word
    spent = next((word for word in words if word in _SPENT), None)
    length = next((word for word in words if word in _LENGTHS), None)
    return f"{spent}_{length}" if spent and length else None


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))


def _of_labels(schema: Schema) -> Iterator[str]:
    train, valid = schema.splits["train"], schema.splits["valid"]
    for name in schema.label_names:
        counts = train.labels[name]
        known = train.rows - counts.missing
        if counts.positives < RARE_LABEL * known:
            yield (
                f"label {name!r} is positive in {counts.positives:,} of {known:,} rows of train "
                f"({counts.positives / known:.3%}); with so few, its task learns slowly and its metrics are noisy."
            )
        elif valid.labels[name].positives < FEW_POSITIVES:
            yield (
                f"label {name!r} is positive in {valid.labels[name].positives} of the {valid.rows:,} rows of valid; "
                "with so few, its metrics are noisy."
            )


def _of_group(group: GroupFacts) -> Iterator[str]:
    if group.single > MOSTLY * group.groups:
        yield (
            f"{group.single / group.groups:.1%} of the {group.groups:,} groups of {group.column!r} in valid have a "
            f"single row ({group.single / group.rows:.1%} of the rows), which gAUC leaves out; it tells of the others "
            "only."
        )
