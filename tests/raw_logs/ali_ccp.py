"""Ali-CCP (tianchi.aliyun.com/dataset/408): clicks and purchases in Taobao, for train and for test two files each.

No headers. `sample_skeleton_train.csv` has a row for each exposure, all of one page of one user together::

    sample_id,click,conversion,common_feature_index,number of features,features

`common_features_train.csv` has the features of a user that many exposures share::

    common_feature_index,number of features,features

The features are FIELD 0x02 ID 0x03 VALUE, with 0x01 between them, in any order. A field can occur several times or not
at all. Real rows have 13 features on average and 518 common ones; those here have fewer common ones. The real share of
clicks is 3.9 %, and of conversions among them 0.5 %, here 5 %. A few rows have a conversion without a click.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raw_logs.draws import Array, effect, generator, label, skewed, some
from raw_logs.lines import text, write_lines

PROFILE = {"121": 98, "122": 14, "124": 3, "125": 8, "126": 4, "127": 4, "128": 3, "129": 5}
"""Fields of the user with one value, and the number of values in the real files."""
HISTORIES = ("109_14", "110_14", "127_14", "150_14")
ITEM_SINGLE, COMBINED = ("206", "207", "216"), ("508", "509", "702", "853")
SOMETIMES_MISSING = 0.1


def write_ali_ccp(folder: Path, rows: int, seed: int = 0, leak: str | None = None) -> None:
    """Writes both files of train with `rows` exposures, and those of test with half as many.

    Args:
        folder: receives the four files.
        rows: exposures of train.
        seed: of all draws.
        leak: a field of the exposure whose id tells the click in every row, as wrong preprocessing leaves one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    items = max(rows // 14, 40)
    appeal, kinds = (
        effect(generator(seed, 0), items, np.arange(items)),
        generator(seed, 1).integers(0, 10**6, (items, 3)),
    )
    for i, (part, size) in enumerate((("train", rows), ("test", rows // 2))):
        rng = generator(seed, 2, i)
        groups = max(size // 58, 5)
        user = skewed(rng, groups, max(rows // 100, 10))
        index = _hexadecimal(rng, groups)
        _write_common(folder / f"common_features_{part}.csv", index, user, rng)
        _write_skeleton(folder / f"sample_skeleton_{part}.csv", size, index, user, appeal, kinds, rng, leak)


def _write_common(path: Path, index: pa.Array, user: Array, rng: np.random.Generator) -> None:
    groups = len(user)
    features = [_feature("101", user + 31_319, missing=some(rng, groups, 0.02))]
    for i, (field, values) in enumerate(PROFILE.items()):
        value = (user * 31 + i * 7) % values + 3_438_700 + 100 * i
        features.append(_feature(field, value, missing=some(rng, groups, SOMETIMES_MISSING)))
    for field in HISTORIES:
        length = rng.integers(0, 12, groups)
        for place in range(12):
            often = np.log1p(rng.integers(1, 20, groups)).round(5)
            features.append(_feature(field, skewed(rng, groups, 5000) + 4_000_000, often, missing=length <= place))
    write_lines(path, {"index": index, **_joined(features)}, header=False)


def _write_skeleton(
    path: Path,
    rows: int,
    index: pa.Array,
    user: Array,
    appeal: Array,
    kinds: Array,
    rng: np.random.Generator,
    leak: str | None,
) -> None:
    group = np.sort(rng.integers(0, len(user), rows))
    item = skewed(rng, rows, len(appeal), head=20)
    liking = appeal[item], effect(rng, len(user), group)
    click = label(rng, 0.039, *liking)
    conversion = label(rng, 0.05, *liking, within=click > 0)
    conversion[np.flatnonzero(click == 0)[: 1 + rows // 5000]] = 1
    features = [_feature("205", item + 4_100_000)]
    for i, field in enumerate(ITEM_SINGLE):
        missing = some(rng, rows, SOMETIMES_MISSING) & (field == "216")
        features.append(_feature(field, kinds[item, i] % (50, 400, 900)[i] + 8_300_000 + 10_000 * i, missing=missing))
    for place in range(3):
        missing = rng.integers(0, 4, rows) <= place
        features.append(_feature("210", (kinds[item, 0] + place) % 700 + 9_000_000, missing=missing))
    features.append(_feature("301", group % 3 + 9_351_665))
    for i, field in enumerate(COMBINED):
        often = np.log1p(rng.integers(1, 20, rows)).round(5)
        value = (kinds[item, i % 3] * 7 + user[group]) % 3000 + 9_100_000 + 10_000 * i
        features.append(_feature(field, value, often, missing=some(rng, rows, 0.6)))
    if leak is not None:
        features = [_without(feature, leak) for feature in features] + [_feature(leak, 9_990_000 + click)]
    columns = {
        "sample_id": np.arange(1, rows + 1),
        "click": click,
        "conversion": conversion,
        "index": index.take(pa.array(group)),
    }
    write_lines(path, columns | _joined(features), header=False)


def _feature(field: str, ids: Array, values: Array | None = None, missing: Array | None = None) -> pa.Array:
    """FIELD 0x02 ID 0x03 VALUE in each row, null where missing."""
    value = pa.array(["1.0"] * len(ids)) if values is None else text(values)
    cells = pc.binary_join_element_wise(f"{field}\x02", text(ids), "\x03", value, "")
    return cells if missing is None else pc.if_else(pa.array(missing), pa.scalar(None, pa.string()), cells)


def _without(feature: pa.Array, field: str) -> pa.Array:
    own = pc.starts_with(feature, f"{field}\x02")
    return pc.if_else(pc.fill_null(own, False), pa.scalar(None, pa.string()), feature)


def _joined(features: list[pa.Array]) -> dict[str, pa.Array]:
    """The last two columns of a line."""
    number = sum(feature.is_valid().cast(pa.int64()).to_numpy(zero_copy_only=False) for feature in features)
    return {"number": number, "features": pc.binary_join_element_wise(*features, "\x01", null_handling="skip")}


def _hexadecimal(rng: np.random.Generator, size: int) -> pa.Array:
    return pa.array([f"{number:016x}" for number in rng.integers(0, 2**63, size)])
