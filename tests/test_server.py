"""A server answers what its bundle scores, refuses what is wrong in a sentence, and ends without a lost request."""

import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from stem_torchrec.calibration.curves import calibrate
from stem_torchrec.serving.bundle import Bundle, load_bundle

from bundles import TASKS, raw_of_valid
from distributed import run_ranks
from served import ARROW, DRAIN, JSON, OPTIONS, TOKEN, Server, running_server, stream_of, write_bundles
from soak import ROUNDING, Size, Soak, draw, soak
from under_load.clients import missing_clients
from under_load.run import ServingLoadConfig, measure

RIGHT = {"user": 7, "city": "rome", "tags": "1|2", "time": 3, "price": 2.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the bundles a, b, one_task, not_finite, ids, lists, damaged, and the link current."""
    folder = tmp_path_factory.mktemp("served")
    run_ranks(1, write_bundles, folder, timeout=200)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """One for all tests of this file."""
    with running_server(folder / "bundles/current", *OPTIONS) as server:
        yield server


HEAD = f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: {JSON}\r\n".encode()


@pytest.fixture(scope="module", autouse=True)
def slow_clients(server: Server) -> Iterator[list[socket.socket]]:
    """Clients from the beginning of the tests on: they stop in the head, in the body, and before a long answer."""
    wrong = json.dumps({"rows": [RIGHT, *[{"user": "\u20ac" * 60}] * 2999]}, ensure_ascii=False).encode()
    asked = HEAD + f"Connection: close\r\nContent-Length: {len(wrong)}\r\n\r\n".encode() + wrong
    with ExitStack() as clients:
        sockets = []
        for part in (b"POST /sc", HEAD + b"Content-Length: 100\r\n\r\n{", asked):
            sockets.append(clients.enter_context(socket.socket()))
            # With small segments and buffers the system keeps little of an answer.
            sockets[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sockets[-1].connect((server.host, server.port))
            sockets[-1].sendall(part)
        yield sockets


@cache
def loaded(folder: Path, name: str) -> Bundle:
    """A bundle in this process."""
    return load_bundle(folder / "bundles" / name)


def scores_of(folder: Path, rows: pa.Table, bundle: str = "a") -> np.ndarray:
    """What the bundle itself scores: (B, T)."""
    table = loaded(folder, bundle).score(rows)
    return np.stack([table[task].to_numpy() for task in TASKS], axis=1)


def matrix(predictions: list[dict[str, float]]) -> np.ndarray:
    return np.array([[row[task] for task in TASKS] for row in predictions])


LISTENS = "0A"
"""The state of such a socket in the system's list."""


def test_without_a_host_the_server_listens_at_this_machine_alone(server: Server) -> None:
    listening = [
        fields[1] for fields in connections() if fields[1].endswith(f":{server.port:04X}") and fields[3] == "0A"
    ]
    assert listening == [f"0100007F:{server.port:04X}"]


def test_json_and_arrow_get_the_scores_of_the_bundle(server: Server, folder: Path) -> None:
    rows = raw_of_valid()
    expected = scores_of(folder, rows)
    answer = server.ask("/score", {"rows": rows.to_pylist()})
    assert (answer.status, answer.json["errors"]) == (200, [])
    np.testing.assert_allclose(matrix(answer.json["predictions"]), expected, rtol=0, atol=ROUNDING)
    answer = server.ask("/score", stream_of(rows), ARROW)
    assert (answer.status, answer.headers["Content-Type"]) == (200, ARROW)
    assert answer.arrow.schema == pa.schema([*((task, pa.float32()) for task in TASKS), ("error", pa.string())])
    assert answer.arrow["error"].null_count == len(rows)
    columns = [answer.arrow[task].to_numpy() for task in TASKS]
    np.testing.assert_allclose(np.stack(columns, axis=1), expected, rtol=0, atol=ROUNDING)


def test_probabilities_are_those_of_the_calibration(server: Server, folder: Path) -> None:
    rows, bundle = raw_of_valid(), loaded(folder, "a")
    before = bundle.score(rows, calibrated=False)
    predictions = server.ask("/score", {"rows": rows.to_pylist()}).json["predictions"]
    for task in TASKS:
        answered, predicted = np.array([row[task] for row in predictions]), before[task].to_numpy()
        # A curve of slope 1.5 makes a difference of rounding larger.
        expected = calibrate(predicted, bundle.curves[task])
        np.testing.assert_allclose(answered, expected, rtol=0, atol=1.5 * ROUNDING)
        assert np.abs(answered - predicted).min() > 1e-3


def test_one_row_many_rows_and_none_are_scored(server: Server) -> None:
    one = server.ask("/score", RIGHT).json["predictions"]
    assert [row.keys() for row in one] == [set(TASKS)]
    many = server.ask("/score", {"rows": [RIGHT] * 2500}).json["predictions"]
    np.testing.assert_allclose(matrix(many), matrix(one * 2500), rtol=0, atol=ROUNDING)
    assert server.ask("/score", {"rows": []}).json["predictions"] == []
    nothing = server.ask("/score", stream_of(raw_of_valid().slice(0, 0)), ARROW)
    assert (nothing.status, len(nothing.arrow)) == (200, 0)


WRONG: list[tuple[Any, str | None, str]] = [
    (RIGHT | {"user": "anna"}, "user", "user is 'anna', but must be a whole number of 64 bits."),
    (RIGHT | {"user": 7.5}, "user", "user is 7.5, but must be a whole number of 64 bits."),
    (RIGHT | {"user": 2**63}, "user", "user is 9223372036854775808, but must be a whole number of 64 bits."),
    (RIGHT | {"price": "cheap"}, "price", "price is 'cheap', but must be a finite number."),
    (RIGHT | {"price": True}, "price", "price is True, but must be a finite number."),
    (RIGHT | {"city": ["rome"]}, "city", "city is ['rome'], but must be text."),
    ({name: RIGHT[name] for name in RIGHT if name != "city"} | {"citi": "rome"}, "city", "the row has no 'city'; did"),
    (7, None, "the row is 7, but must be an object."),
    (None, None, "the row is None, but must be an object."),
]


def test_a_wrong_row_is_named_and_the_others_are_scored(server: Server) -> None:
    rows = [RIGHT] + [part for row, _, _ in WRONG for part in (row, RIGHT)]
    answer = server.ask("/score", {"rows": rows})
    assert answer.status == 200
    errors = {error["row"]: error for error in answer.json["errors"]}
    assert list(errors) == list(range(1, len(rows), 2))
    for i, (_, column, reason) in zip(errors, WRONG, strict=True):
        assert errors[i]["column"] == column
        assert errors[i]["reason"].startswith(reason)
    right = [row for row in answer.json["predictions"] if row is not None]
    assert len(right) == len(WRONG) + 1
    np.testing.assert_allclose(matrix(right), matrix(right[:1] * len(right)), rtol=0, atol=ROUNDING)


def test_a_request_of_wrong_rows_only_is_refused(server: Server) -> None:
    answer = server.ask("/score", {"rows": [WRONG[0][0], WRONG[3][0]]})
    assert (answer.status, answer.json["kind"]) == (422, "STEM-ROW")
    assert answer.json["error"].startswith("row 0: user is 'anna', but must be a whole number of 64 bits (and 1 more")
    assert [error["value"] for error in answer.json["errors"]] == ["'anna'", "'cheap'"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "sentence"),
    [
        (b'{"user": NaN}', JSON, 400, "the body is not JSON in UTF-8"),
        (b'{"rows": [', JSON, 400, "the body is not JSON in UTF-8"),
        (b'{"city": "\xff"}', JSON, 400, "the body is not JSON in UTF-8"),
        (b"", JSON, 400, "the body is not JSON in UTF-8"),
        (b"[" * 5000, JSON, 400, "the body is not JSON in UTF-8"),
        (b"[]", JSON, 400, "the body is [], but must be an object of JSON."),
        (b'{"rows": 3}', JSON, 400, "rows is 3, but must be a list of rows."),
        (b"{}", "text/plain", 415, "Content-Type is text/plain, but must be application/json or"),
        (b"{}", None, 415, "Content-Type is missing"),
        (b"x" * (2**20 + 1), JSON, 413, "the body is larger than --limits.body-mib allows, 1 MiB."),
        (json.dumps({"rows": [{}] * 3001}).encode(), JSON, 413, "the request has 3001 rows, but --limits.rows allows"),
        (b"no arrow", ARROW, 400, "the body is no stream of Arrow"),
    ],
    ids=str,
)
def test_a_body_that_cannot_be_read_is_refused(
    server: Server, body: bytes, kind: str | None, status: int, sentence: str
) -> None:
    answer = server.ask("/score", body, kind)
    assert (answer.status, answer.json["kind"]) == (status, "STEM-SERVER")
    assert answer.json["error"].startswith(sentence)


def test_odd_streams_of_arrow_are_refused(server: Server) -> None:
    rows = raw_of_valid()
    place = rows.column_names.index("city")
    long = pa.array(["x" * 100_000]).dictionary_encode()
    indices = pa.DictionaryArray.from_arrays(pa.array([0] * len(rows), pa.int32()), long.dictionary)
    cases = {
        400: [stream_of(rows)[:-200], stream_of(rows)[:300]],
        413: [stream_of(pa.concat_tables([rows] * 31)), stream_of(rows.set_column(place, "city", indices))],
        415: [stream_of(rows, compression="zstd")],
        422: [
            stream_of(rows.drop_columns(["city"])),
            stream_of(rows.set_column(place, "city", pa.array(range(len(rows))))),
            stream_of(rows.set_column(place, "city", rows["city"].cast(pa.string_view()))),
        ],
    }
    for status, bodies in cases.items():
        for body in bodies:
            answer = server.ask("/score", body, ARROW)
            assert (answer.status, list(answer.json)) == (status, ["error", "kind"]), answer.body
    dictionary = rows.set_column(place, "city", rows["city"].combine_chunks().dictionary_encode())
    assert server.ask("/score", stream_of(dictionary), ARROW).status == 200


def test_a_row_without_a_finite_probability_is_named(server: Server) -> None:
    assert server.ask("/admin/swap", {"bundle": "not_finite"}).status == 200
    answer = server.ask("/score", {"rows": raw_of_valid().to_pylist()})
    assert server.ask("/admin/swap", {"bundle": "a"}).status == 200
    assert answer.status == 200
    predictions, errors = answer.json["predictions"], answer.json["errors"]
    assert 0 < len(errors) < len(predictions)
    assert [error["row"] for error in errors] == [i for i, row in enumerate(predictions) if row is None]
    assert {error["reason"].partition(";")[0] for error in errors} == {"the model gives no finite prediction"}
    assert np.isfinite(matrix([row for row in predictions if row is not None])).all()


def test_unknown_paths_and_methods_are_answered_in_json(server: Server) -> None:
    for path, method, status in (("/nothing", "GET", 404), ("/score", "GET", 405), ("/score/", "POST", 404)):
        answer = server.ask(path, method=method)
        assert (answer.status, list(answer.json), answer.json["kind"]) == (status, ["error", "kind"], "STEM-SERVER")


def test_only_probes_need_no_token(server: Server) -> None:
    for path in ("/health", "/ready", "/v2/health/live", "/v2/health/ready"):
        assert server.ask(path, token=None).status == 200
    for path in ("/metrics", "/openapi.json", "/v2", "/v2/models/stem", "/nothing"):
        for token in (None, "wrong", "0123456789abcdef-tokem"):
            answer = server.ask(path, token=token)
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert server.ask("/score", RIGHT, token=None).status == 401
    assert server.ask("/admin/swap", {}, token="wrong").status == 401


def test_metrics_count_requests_rows_and_batches(server: Server) -> None:
    def numbers() -> list[float]:
        counted = ('stem_requests_total{endpoint="/score",status="200"}', 'stem_rows_total{outcome="scored"}')
        return [server.metric(name) for name in (*counted, 'stem_rows_total{outcome="wrong"}', "stem_batch_rows_sum")]

    before = numbers()
    server.ask("/score", {"rows": [RIGHT, WRONG[0][0], RIGHT]})
    assert [after - number for after, number in zip(numbers(), before, strict=True)] == [1, 2, 1, 2]
    text = server.ask("/metrics").body.decode()
    assert f'version="{server.ask("/ready").json["version"]}"' in text
    assert "stem_queue_rows 0.0" in text
    assert 'stem_request_seconds_bucket{endpoint="/score",le="0.1"}' in text


def test_the_openapi_has_the_features_of_the_bundle(server: Server) -> None:
    document = server.ask("/openapi.json").json
    row = document["components"]["schemas"]["Row"]
    assert set(row["properties"]) == set(row["required"]) == set(RIGHT)
    assert row["properties"]["city"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    example = document["components"]["schemas"]["ScoreRequest"]["example"]
    assert example["rows"][0]["city"] in ("rome", "oslo", "bonn")
    assert server.ask("/score", example).json["errors"] == []


def test_clients_that_leave_in_a_request_harm_nobody(server: Server) -> None:
    body = json.dumps({"rows": [RIGHT] * 1000}).encode()
    for part in (b"", body[:100], body):
        for _ in range(5):
            client = socket.create_connection((server.host, server.port))
            client.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + part)
            client.close()
    assert server.ask("/score", RIGHT).status == 200


def test_more_connections_than_allowed_are_refused_and_then_served(server: Server) -> None:
    idle = [socket.create_connection((server.host, server.port)) for _ in range(45)]
    assert server.ask("/health").status == 503
    for client in idle:
        client.close()
    wait_until(lambda: server.ask("/health").status == 200)


def test_beyond_twice_the_allowed_connections_a_silent_one_is_closed_at_once(server: Server) -> None:
    with ExitStack() as clients:
        silent = [clients.enter_context(socket.create_connection((server.host, server.port))) for _ in range(100)]
        silent[-1].settimeout(20)
        assert is_closed(silent[-1])
        # It came first, and would be closed first if silence were the reason.
        silent[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            silent[0].recv(1)
    wait_until(lambda: server.ask("/health").status == 200)


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns when something holds; fails if it does not within 20 seconds."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_closed(client: socket.socket) -> bool:
    """Whether the server closes the connection before it sends anything."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_bodies_beyond_what_memory_may_hold_are_refused(server: Server) -> None:
    # Clients of other tests have gone.
    wait_until(lambda: server.metric("stem_body_bytes") == 0)
    with ExitStack() as clients:
        for _ in range(2):
            client = clients.enter_context(socket.create_connection((server.host, server.port)))
            client.sendall(HEAD + b"Content-Length: 1048576\r\n\r\n" + b" " * 1048570)
        wait_until(lambda: server.metric("stem_body_bytes") == 2 * 1048570)
        answer = server.ask("/score", RIGHT)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert answer.json["error"].endswith("2 times --limits.body-mib (--limits.bodies).")
    wait_until(lambda: server.metric("stem_body_bytes") == 0)
    assert server.ask("/score", RIGHT).status == 200


def test_a_version_that_goes_while_its_request_comes_does_not_answer(server: Server) -> None:
    version = server.ask("/admin/swap", {"bundle": "a"}).json["version"]
    head = HEAD.replace(b"/score", f"/v2/models/stem/versions/{version}/infer".encode())
    with ExitStack() as clients, ThreadPoolExecutor(1) as swapping:
        swap, sockets = swapping.submit(server.ask, "/admin/swap", {"bundle": "b"}), list[socket.socket]()
        while not swap.done():
            sockets.append(clients.enter_context(socket.create_connection((server.host, server.port), timeout=20)))
            sockets[-1].sendall(head + b"Content-Length: 3\r\n\r\n{")
            time.sleep(0.5)
        assert swap.result().status == 200
        for client in sockets:
            client.sendall(b" }")
        # The first ones may have waited for longer than --limits.seconds.
        statuses = {client.recv(1000).split()[1] for client in sockets}
    assert {b"404"} <= statuses <= {b"404", b"408"}
    assert server.ask("/admin/swap", {"bundle": "a"}).status == 200


def test_a_bad_bundle_is_refused_and_the_present_one_goes_on(server: Server, folder: Path) -> None:
    version = server.ask("/ready").json["version"]
    (folder / "bundles/circle").symlink_to("circle")
    refused_before = server.metric('stem_swaps_total{outcome="refused"}')
    refused = {
        "damaged": ("the bundle is refused", "STEM-DAMAGED"),
        "one_task": ("the bundle is refused", "STEM-SERVER"),
        "nothing": ("the bundle is refused", "STEM-SERVING"),
        "circle": ("the bundle is refused", "STEM-SERVER"),
        "../log": ("'../log' is not in", "STEM-SERVER"),
        "/etc": ("'/etc' is not in", "STEM-SERVER"),
        "a\0": ("'a\\x00' is not in", "STEM-SERVER"),
    }
    for name, (sentence, kind) in refused.items():
        answer = server.ask("/admin/swap", {"bundle": name})
        assert (answer.status, answer.json["error"].startswith(sentence)) == (422, True), answer.body
        assert answer.json["kind"] == kind
    assert server.ask("/admin/swap", {"bundel": "a"}).status == 422
    page = server.ask("/admin/swap", {}, headers={"Origin": "http://example.com"})
    assert page.status == 403
    assert server.ask("/ready").json["version"] == version
    assert server.metric('stem_swaps_total{outcome="refused"}') == refused_before + 4
    assert server.ask("/score", RIGHT).status == 200


@pytest.fixture
def triton(server: Server) -> Iterator[InferenceServerClient]:
    """The client that Triton and KServe have, with the token."""
    client = InferenceServerClient(f"{server.host}:{server.port}")
    client._client_stub.default_headers["Authorization"] = f"Bearer {TOKEN}"
    yield client
    client.close()


def tensors_of(columns: dict[str, np.ndarray], *, binary: bool) -> list[InferInput]:
    """Texts become BYTES, whole numbers INT64, truths BOOL, and others FP32."""
    tensors = []
    for name, values in columns.items():
        datatype = {"i": "INT64", "O": "BYTES", "b": "BOOL"}.get(values.dtype.kind, "FP32")
        tensors.append(InferInput(name, list(values.shape), datatype))
        tensors[-1].set_data_from_numpy(values.astype("f4") if datatype == "FP32" else values, binary_data=binary)
    return tensors


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_gets_the_scores_of_raw_rows(
    server: Server, triton: InferenceServerClient, folder: Path, binary: bool
) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("stem")
    metadata = triton.get_model_metadata("stem")
    inputs = {entry["name"]: entry["datatype"] for entry in metadata["inputs"]}
    assert inputs == {"user": "INT64", "city": "BYTES", "tags": "BYTES", "time": "INT64", "price": "FP64"}
    rows = raw_of_valid().slice(0, 20)
    missing = {"BYTES": "", "INT64": 0, "FP64": 0.0}
    rows = pa.table({name: rows[name].combine_chunks().fill_null(missing[inputs[name]]) for name in inputs})
    columns = {name: rows[name].to_numpy() for name in inputs}
    outputs = [InferRequestedOutput(task, binary_data=binary) for task in TASKS]
    result = triton.infer("stem", tensors_of(columns, binary=binary), outputs=outputs, request_id="7")
    assert result.get_response()["id"] == "7"
    scores = np.stack([result.as_numpy(task) for task in TASKS], axis=1)
    np.testing.assert_allclose(scores, scores_of(folder, rows), rtol=0, atol=ROUNDING)


def take(server: Server, bundle: str) -> None:
    """Lets a bundle answer that reads other columns; loads none where it answers already, as that takes a second."""
    if Path(server.ask("/ready").json["bundle"]).name != bundle:
        assert server.ask("/admin/swap", {"bundle": bundle, "allow_changes": True}).status == 200


def rows_of_ids() -> dict[str, Any]:
    """Ten rows of the columns of `ids`: a list of ids in each, and its ends."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 4, 10))])
    columns = {name: rng.integers(0, 5, 10) for name in ("user", "city", "hour")}
    columns |= {"hour_weights": rng.random(10).astype("f4"), "price": rng.random(10).astype("f4")}
    return columns | {"tags.values": rng.integers(0, 9, offsets[-1]), "tags.offsets": offsets}


def table_of_ids(sent: dict[str, Any]) -> pa.Table:
    """The same rows as a table."""
    plain = {name: values for name, values in sent.items() if not name.startswith("tags.")}
    return pa.table(plain | {"tags": pa.ListArray.from_arrays(sent["tags.offsets"], sent["tags.values"])})


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_sends_lists_as_values_and_offsets(
    server: Server, triton: InferenceServerClient, folder: Path, binary: bool
) -> None:
    take(server, "ids")
    sent = rows_of_ids()
    result = triton.infer("stem", tensors_of(sent, binary=binary))
    scores = np.stack([result.as_numpy(task) for task in TASKS], axis=1)
    np.testing.assert_allclose(scores, scores_of(folder, table_of_ids(sent), "ids"), rtol=0, atol=ROUNDING)
    with pytest.raises(InferenceServerException, match=r"row 0: .* is not an id in"):
        triton.infer("stem", tensors_of(sent | {"user": sent["user"] + 10**6}, binary=binary))


def test_a_wrong_row_of_arrow_is_named_and_the_others_are_scored(server: Server, folder: Path) -> None:
    take(server, "ids")
    rows = rows_of_ids()
    expected = scores_of(folder, table_of_ids(rows), "ids")
    rows["user"][[3, 7]] = 10**6
    answer = server.ask("/score", stream_of(table_of_ids(rows)), ARROW)
    assert answer.status == 200
    right = np.array([0, 1, 2, 4, 5, 6, 8, 9])
    for i, task in enumerate(TASKS):
        assert [answer.arrow[task][row].as_py() for row in (3, 7)] == [None, None]
        np.testing.assert_allclose(answer.arrow[task].take(right), expected[right, i], rtol=0, atol=ROUNDING)
    errors = answer.arrow["error"].to_pylist()
    assert [row for row, error in enumerate(errors) if error is not None] == [3, 7]
    assert errors[3].startswith("1000000 is not an id in [0, 21)")
    rows["user"][:] = 10**6
    answer = server.ask("/score", stream_of(table_of_ids(rows)), ARROW)
    assert (answer.status, answer.json["kind"], len(answer.json["errors"])) == (422, "STEM-ROW", 10)


LISTS: list[list[str] | None] = [["1", "2"], [], None, ["9", "\u00f6", "2"]]


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_sends_lists_of_texts_and_tells_what_is_missing(
    server: Server, triton: InferenceServerClient, folder: Path, binary: bool
) -> None:
    take(server, "lists")
    columns = {
        "user": np.array([7, 7, 3, 4]),
        "user.missing": np.array([False, True, False, False]),
        "city": np.array(["rome", "oslo", "", "bonn"], dtype=object),
        "city.missing": np.array([False, False, True, False]),
        "time": np.array([3, 4, 5, 6]),
        "price": np.array([2.5, 0.5, 7.0, 1.0]),
        "tags.values": np.array([tag for tags in LISTS for tag in tags or ()], dtype=object),
        "tags.offsets": np.array([0, 2, 2, 2, 5]),
        "tags.missing": np.array([False, False, True, False]),
    }
    result = triton.infer("stem", tensors_of(columns, binary=binary))
    rows = {"user": [7, None, 3, 4], "city": ["rome", "oslo", None, "bonn"], "tags": LISTS, "time": [3, 4, 5, 6]}
    expected = scores_of(folder, pa.table(rows | {"price": columns["price"]}), "lists")
    scores = np.stack([result.as_numpy(task) for task in TASKS], axis=1)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=ROUNDING)
    # So the missing values do make a difference.
    told = {name: values for name, values in columns.items() if not name.endswith(".missing")}
    result = triton.infer("stem", tensors_of(told, binary=binary))
    assert (np.abs(result.as_numpy("buy") - expected[:, 0]) > ROUNDING).tolist()[1:3] == [True, True]


def test_a_row_with_a_longer_list_than_allowed_is_wrong_and_the_others_are_scored(
    server: Server, triton: InferenceServerClient
) -> None:
    take(server, "lists")
    rows = [RIGHT | {"tags": ["1"] * count} for count in (50, 51, 0)]
    sentence = "tags has 51 values, but --limits.list-items allows 50."
    answer = server.ask("/score", {"rows": rows})
    assert [(error["row"], error["reason"]) for error in answer.json["errors"]] == [(1, sentence)]
    assert [row is None for row in answer.json["predictions"]] == [False, True, False]
    answer = server.ask("/score", stream_of(pa.Table.from_pylist(rows)), ARROW)
    assert answer.arrow["error"].to_pylist() == [None, sentence, None]
    columns = {name: np.array([value]) for name, value in RIGHT.items() if name not in ("city", "tags")}
    columns |= {"city": np.array(["rome"], dtype=object), "tags.offsets": np.array([0, 51])}
    with pytest.raises(InferenceServerException, match=f"row 0: {sentence}"):
        triton.infer("stem", tensors_of(columns | {"tags.values": np.array(["1"] * 51, dtype=object)}, binary=True))


def test_a_link_is_followed_again_when_the_model_is_loaded(
    server: Server, triton: InferenceServerClient, folder: Path
) -> None:
    link = folder / "bundles/current"
    answers = [server.ask("/admin/swap", {"bundle": "current", "allow_changes": True})]
    link.unlink()
    link.symlink_to("b")
    triton.load_model("stem")
    answers.append(server.ask("/ready"))
    link.unlink()
    link.symlink_to("a")
    assert [Path(answer.json["bundle"]).name for answer in answers] == ["a", "b"]
    assert answers[0].json["version"] != answers[1].json["version"]


def test_the_protocol_refuses_in_its_own_words(server: Server, triton: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="there is no model 'other', only 'stem'"):
        triton.get_model_metadata("other")
    with pytest.raises(InferenceServerException, match="stem has no version '1'"):
        triton.infer("stem", [], model_version="1")
    with pytest.raises(InferenceServerException, match="the input 'city' is missing"):
        triton.infer("stem", [])
    assert triton.get_model_repository_index()[0]["state"] == "READY"
    with pytest.raises(InferenceServerException, match=r"parameters is .*, but a bundle takes none"):
        triton.load_model("stem", config="{}")
    with pytest.raises(InferenceServerException, match="stem cannot be unloaded"):
        triton.unload_model("stem")
    assert server.ask("/v2/repository/index", {"ready": 1}).status == 400
    answer = server.ask("/v2/models/stem/infer", b"{}", headers={"Inference-Header-Content-Length": "9"})
    assert (answer.status, answer.json["error"]) == (
        400,
        "Inference-Header-Content-Length is 9, and the body has 2 bytes.",
    )


@pytest.mark.long
@pytest.mark.filterwarnings("default")
def test_answers_are_as_the_openapi_tells(server: Server) -> None:
    asked = Counter[str]()
    draw(server, 0, 300, loading=True, asked=asked)
    assert {"/score", "/health", "/admin/swap", "/v2/models/{name}/infer"} <= asked.keys()


WARM_UP = (4, 0.5)
"""Seconds of a soak after which memory, files and threads are as they stay, and between its swaps."""


@pytest.mark.parametrize(
    ("seconds", "swap_every", "mib"), [(*WARM_UP, 4), pytest.param(600, 30, 20, marks=pytest.mark.long)]
)
@pytest.mark.filterwarnings("default")
def test_a_soak_loses_nothing_and_grows_in_nothing(
    server: Server, folder: Path, seconds: float, swap_every: float, mib: float
) -> None:
    rows, expected = raw_of_valid(), {}
    for name in ("b", "a"):
        version = server.ask("/admin/swap", {"bundle": name, "allow_changes": True}).json["version"]
        expected[version] = scores_of(folder, rows, name)
    sizes, seen = [], Soak()
    for options in (WARM_UP, (seconds, swap_every)):
        seen = soak(server, *options, rows=rows, expected=expected)
        assert seen.wrong[:3] == []
        assert min(seen.answers[status] for status in (200, 400, 413, 415, 422)) > 3
        assert {"/score", "/ready", "/metrics", "/v2/models/{name}/infer"} <= seen.drawn.keys()
        sizes.append(Size.of(server))
    before, after = sizes
    print(f"soak of {seconds:g} s: {seen}\nbefore {before}\nafter  {after}")
    assert (after.bundles, after.queued) == (1, 0)
    # Connections of clients that are about to close, and threads that load bundles and stay for the next.
    assert after.files <= before.files + 4
    assert after.threads <= before.threads + 4
    # A bundle of 2 MiB that stayed after each swap, or the bodies that were refused, would be more.
    assert after.mib < before.mib + mib


def test_slow_clients_were_closed_while_the_others_were_served(
    slow_clients: list[socket.socket], server: Server
) -> None:
    in_head, in_body, before_answer = slow_clients
    in_head.settimeout(20)
    assert is_closed(in_head)
    in_body.settimeout(20)
    assert in_body.recv(1000).startswith(b"HTTP/1.1 408 Request Timeout")
    end = time.monotonic() + 20
    while is_open_in(server, before_answer) and time.monotonic() < end:
        time.sleep(0.1)
    assert not is_open_in(server, before_answer)


def connections() -> list[list[str]]:
    """The fields of each connection of this machine: address and port of both ends in hexadecimals, the state, ..."""
    return [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]


def is_open_in(server: Server, client: socket.socket) -> bool:
    """Whether the server's process has the connection of a client open, by the system's list of them."""
    ports = [f":{port:04X}" for port in (server.port, client.getsockname()[1])]
    for fields in connections():
        if [fields[1][-5:], fields[2][-5:]] == ports:
            return fields[9] != "0"
    return False


@pytest.mark.long
def test_the_benchmark_reports_each_case_and_loses_no_request(folder: Path, tmp_path: Path) -> None:
    if missing := missing_clients():
        pytest.skip(missing[0])
    bundle = str(folder / "bundles/a")
    measure(ServingLoadConfig(bundle=bundle, out=str(tmp_path), rows=(1, 8), connections=(2,), seconds=1))
    rows = [line.split("|") for line in (tmp_path / "serving_load.md").read_text().splitlines() if "JSON" in line]
    assert [(row[1].strip(), row[3].strip(), float(row[9])) for row in rows] == [
        (name, count, 0) for count in ("1", "8") for name in ("wrk", "hey")
    ]
    assert all(float(row[5].replace(",", "")) > 1 and float(row[7].replace(",", "")) > 0 for row in rows)


def test_a_server_that_ends_says_so_while_it_answers_and_a_second_signal_ends_it_at_once(folder: Path) -> None:
    with running_server(folder / "bundles/a", "--host", "0.0.0.0", "--drain-seconds", "600", token=None) as server:
        server.send(signal.SIGTERM)
        wait_until(lambda: server.ask("/ready").status == 503)
        answers = [server.ask(path, token=None) for path in ("/ready", "/v2/health/ready", "/v2/models/stem/ready")]
        assert [(each.status, each.headers["Retry-After"]) for each in answers] == [(503, "1")] * 3
        assert answers[0].json["error"] == "the server is about to end."
        assert server.ask("/v2/repository/index", {}).json[0]["state"] == "UNAVAILABLE"
        assert server.ask("/health", token=None).status == 200
        assert server.ask("/score", RIGHT, token=None).status == 200
        server.send(signal.SIGINT)
        assert server.process.wait(20) == 128 + signal.SIGINT
        # A whole network may ask it, without a token.
        assert "warning: whoever reaches 0.0.0.0 may ask and swap bundles; set a token" in server.process.read()


def test_sigterm_answers_what_is_under_way_and_ends_with_its_status(server: Server) -> None:
    body = json.dumps({"rows": [RIGHT] * 3000}).encode()
    with socket.create_connection((server.host, server.port), timeout=20) as client:
        client.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body[:100])
        wait_until(lambda: server.metric("stem_body_bytes") > 0)
        begin = time.monotonic()
        server.send(signal.SIGTERM)
        wait_until(lambda: not takes_connections(server))
        assert time.monotonic() - begin >= DRAIN
        client.sendall(body[100:])
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["predictions"]) == 3000
    assert server.process.wait(20) == 128 + signal.SIGTERM
    printed = server.process.read()
    assert printed.endswith("\nSIGTERM: all requests are answered\n")
    assert "warning:" not in printed


def takes_connections(server: Server) -> bool:
    """Whether the port is open."""
    try:
        socket.create_connection((server.host, server.port)).close()
    except ConnectionRefusedError:
        return False
    return True
