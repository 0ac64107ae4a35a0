"""Features of KuaiRand-Pure: the values that describe an exposure, and their ids."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.data.column_types import items

DURATION_BUCKETS = 20
AGE_EDGES = np.array([0, 1, 2, 3, 5, 7, 10, 14, 21, 30, 60, 90, 180, 365])  # days
DAY_MS = 24 * 3_600_000
BEIJING_MS = 8 * 3_600_000


def exposure_values(log: pa.Table, upload_dt: pa.ChunkedArray, train_rows: int) -> dict[str, pa.ChunkedArray]:
    """Returns the features of the exposure itself, all of them known when it begins.

    The value of a bucket is its lower edge, so the vocabulary of a bucket feature lists its edges.
    """
    beijing = pc.add(log["time_ms"], BEIJING_MS)
    # A picture has length 0, which does not mean a short video.
    length = pc.if_else(pc.greater(log["duration_ms"], 0), log["duration_ms"], None)
    shares = [i / DURATION_BUCKETS for i in range(1, DURATION_BUCKETS)]
    edges = pc.quantile(length[:train_rows], q=shares, interpolation="lower").drop_null().to_numpy()
    age = pc.subtract(pc.divide(beijing, DAY_MS), upload_dt.cast(pa.int32()))
    return {
        **{name: log[name] for name in ("user_id", "video_id", "tab")},
        "hour": pc.hour(beijing.cast(pa.timestamp("ms"))),
        "duration_bucket": bucket(length, np.unique([0, *edges])),
        "video_age_bucket": bucket(age, AGE_EDGES),
    }


def bucket(values: pa.ChunkedArray, edges: np.ndarray) -> pa.ChunkedArray:
    """Replaces a value by the largest edge that does not exceed it, or by the first edge; null stays null."""
    index = np.searchsorted(edges, pc.fill_null(values, 0).to_numpy(), side="right") - 1
    return pa.chunked_array([pa.array(edges[np.maximum(index, 0)], mask=values.is_null().to_numpy())])


def build_vocabulary(train: pa.ChunkedArray, min_count: int) -> pa.Table:
    """Numbers the values of the training part from 1, the most frequent first.

    Example::

        build_vocabulary(pa.chunked_array([[7, 9, 9, 5, 5, 3]]), 2)  # value [5, 9], id [1, 2], count [2, 2]
    """
    counts = pc.value_counts(items(train).drop_null())
    table = pa.table({"value": counts.field("values"), "count": counts.field("counts")})
    table = table.filter(pc.field("count") >= min_count)
    table = table.sort_by([("count", "descending"), ("value", "ascending")])
    return table.add_column(1, "id", pa.array(np.arange(1, table.num_rows + 1, dtype=np.int32)))


def encode(values: pa.ChunkedArray, vocabulary: pa.Table) -> pa.ChunkedArray:
    """Maps values, or lists of values, to int32 ids: 0 where null, unseen or rare; a null list is empty."""
    known = vocabulary["value"].combine_chunks()
    ids = pc.fill_null(pc.add(pc.index_in(items(values), known), 1), 0).cast(pa.int32())
    if not pa.types.is_list(values.type):
        return ids
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.chunked_array([pa.ListArray.from_arrays(offsets, ids.combine_chunks())])
