"""stem-prepare: specs with a value, key or line changed, raw files that are damaged, and raw files without a spec."""

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from fuzz.case import Case, Edit
from fuzz.targets import check, target
from fuzz.values import changed, damaged, texts, words

LOG = "user,item,tags,day,price,city,click,buy\n" + "".join(
    f"{user},{item},red|new,2026-11-0{day},{user * item * day}.5,{'ab'[user % 2]},{(user + item + day) % 2},{user % 2}"
    "\n"
    for day in (1, 2, 3)
    for user in (1, 2, 3, 4)
    for item in (1, 2)
)
ITEMS = "item,brand\n1,north\n2,south\n"
LINES = "".join(f'{{"user": {i % 4}, "ids": [{i}, 1], "click": {i % 2}, "price": {i}.5}}\n' for i in range(24))
SPECS: tuple[dict[str, Any], ...] = (
    {
        "format": 1,
        "variables": {"raw": "given"},
        "sources": {
            "log": {"files": "${raw}/log.csv", "columns": {"user": "int", "item": "int", "day": "date"}},
            "items": {"files": "${raw}/items.csv", "columns": {"item": "int"}},
        },
        "joins": [{"source": "items", "on": "item"}],
        "columns": {"tag_list": "split(tags, '|')", "cost": "cast(price as double)"},
        "where": "cost > 0",
        "deduplicate": {"by": ["user", "item", "day"]},
        "split": {"time": {"by": "day", "train_until": "2026-11-02", "valid_until": "2026-11-03", "gap": 0}},
        "order": "day",
        "labels": {"click": "click = '1'", "buy": {"value": "buy = '1'", "where": "click = '1'", "weight": "cost"}},
        "group": "user",
        "features": {
            "user": {"missing": "own"},
            "brand": {"vocabulary": {"min_count": 1, "most_frequent": 5}},
            "tags": {"value": "tag_list", "pooling": "mean"},
            "bucket": {"value": "cost", "buckets": {"quantiles": 4}},
            "hashed": {"value": "item", "hash": {"buckets": 100, "salt": "x"}},
        },
        "dense": {"cost": {"log": True, "clip": [0.1, 0.9], "standardize": True, "missing": {"flag": True}}},
    },
    {
        "sources": {
            "log": {
                "files": "given/log.jsonl",
                "type": "json",
                "columns": {"user": "int", "ids": "list<int>", "click": "int", "price": "float"},
            }
        },
        "split": {"random": {"by": ["user"], "seed": 1, "valid": 0.3, "test": 0.1}},
        "row_key": ["user"],
        "labels": {"click": "click"},
        "features": {"user": {"identity": 4}, "ids": {"vocabulary": {"min_count": 1}, "weights": "ids"}},
        "dense": {"price": {"quantiles": 3}},
        "weight": "price",
    },
)
FILES = {"given/log.csv": LOG, "given/items.csv": ITEMS, "given/log.jsonl": LINES}
ARGS = ("spec.yaml", "--out", "out", "--threads", "1", "--memory", "0.25")
OPTIONS = ("--set", "--out", "--memory", "--threads", "--overwrite", "--engine")
SETTINGS = (
    "raw=given",
    "raw=",
    "split.time.gap=1",
    "split.random.seed=x",
    "order=source",
    "labels.click=1",
    "order=user",
)
EXPRESSIONS = (
    "user",
    "item + 1",
    "price",
    "ids",
    "null",
    "'a'",
    "day",
    "-user",
    "length(tags)",
    "user = 1",
    "1 / 0",
    "x",
)
FIELDS = {
    "delimiter": (";", "\t", "||", "\x01", "", "\n", '"'),
    "quote": ("", "'", "''", "\x00"),
    "encoding": ("latin-1", "utf-16", "gb18030", "rot13", "no", ""),
    "nulls": ([], ["1"], ["", "a"]),
    "trim": (True,),
    "header": (False,),
    "type": ("csv", "json", "parquet", "delta"),
    "partitions": ({"day": "date"}, {"part": "int"}),
    "files": ("given", "given/*", "given/{part}.csv", "nowhere", "given/log.csv/", "s3://", "foo://x", "", []),
}
"""Fields of a source, with values of their kind."""


GUESSED = (
    "given/log.csv",
    "given/log.jsonl",
    "given/items.csv",
    "given",
    "given/*",
    "given/*.csv",
    "log",
    "nowhere.csv",
)
LABELS = ("click", "late=price > 5", "new=user = 1", "buy", "clik", "a=b=c", "x=", "=1", "", "day", "one=1", "ids")
GUESSES = {
    "--drop": ("item", "price buy", "itm", "", "user user"),
    "--columns": ("a,b,c,d,e,f,g,h", "a,b", ",,,,,,,", "a,a,c,d,e,f,g,h"),
    "--header-from": ("given/items.csv", "given/log.csv", "nowhere"),
    "--guess-only": ("",),
    "--set": ("raw=given", "order=source"),
}
"""Options of raw files."""


@st.composite
def guesses(draw: st.DrawFn) -> Case:
    """The command with raw files, of which one may be damaged, and options for them."""
    args = draw(st.lists(st.sampled_from(GUESSED), min_size=1, max_size=2))
    for label in draw(st.lists(st.sampled_from(LABELS), max_size=2)):
        args += ["--label", label]
    for name in draw(st.lists(st.sampled_from(sorted(GUESSES)), max_size=2)):
        args += [name, *draw(st.sampled_from(GUESSES[name])).split(" ")]
    files = dict(FILES)
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(files)))
        files[name] = draw(damaged(files[name]))
    edits: list[Edit] = [{"do": "write", "path": path, "text": content} for path, content in files.items()]
    return Case("prepare", [*args, *ARGS[1:]], edits)


@st.composite
def preparations(draw: st.DrawFn) -> Case:
    """The command with a spec, a file or an option that is changed."""
    spec: Any = draw(st.sampled_from(SPECS))
    files, args = dict(FILES), list(ARGS)
    match draw(st.sampled_from(["spec", "spec", "source", "source", "expression", "file", "file", "text", "option"])):
        case "spec":
            spec = draw(changed(spec))
        case "source":
            name = draw(st.sampled_from(sorted(FIELDS)))
            fields = spec["sources"]["log"] | {name: draw(st.sampled_from(FIELDS[name]))}
            spec = {**spec, "sources": {**spec["sources"], "log": fields}}
        case "expression":
            place = draw(
                st.sampled_from(["where", "group", "weight", "order", "labels", "features", "dense", "columns"])
            )
            text = draw(st.sampled_from(EXPRESSIONS))
            new = {"labels": {"click": text}, "features": {"new": {"value": text}}, "dense": {"new": {"value": text}}}
            new["columns"] = {"user": text}
            spec = {**spec, place: spec.get(place, {}) | new[place] if place in new else text}
        case "file":
            name = draw(st.sampled_from(sorted(files)))
            files[name] = draw(damaged(files[name]))
        case "option":
            args.append(draw(st.sampled_from(OPTIONS)))
            args += draw(st.lists(words | texts | st.sampled_from(SETTINGS), max_size=2))
    text = yaml.safe_dump(spec, allow_unicode=True, sort_keys=False)
    text = draw(damaged(text)) if draw(st.integers(0, 9)) == 0 else text
    edits: list[Edit] = [{"do": "write", "path": path, "text": content} for path, content in files.items()]
    return Case("prepare", args, [*edits, {"do": "write", "path": "spec.yaml", "text": text}])


@target("guesses")
@given(guesses())
def test_raw_files_become_a_log_or_are_refused(case: Case) -> None:
    check("guesses", case)


@target("preparations")
@given(preparations())
def test_every_spec_makes_a_log_or_is_refused(case: Case) -> None:
    check("preparations", case)
