"""benchmarks/large_tables.py: a bundle of 20 GB starts without reading it, and processes share what they read."""

from pathlib import Path

import pytest

from stem_torchrec.runtime.errors import UserError
from stem_torchrec.serving.export_run import ExportConfig, export_run

from studies.table_sharing import TablesConfig, measure

DATA = Path(__file__).parent / "data"


@pytest.mark.long
def test_processes_that_score_from_20_gb_share_the_pages_that_they_read(tmp_path: Path) -> None:
    bundle = str(tmp_path / "bundle")
    export_run(ExportConfig(run=str(DATA / "run_format_1"), log=str(DATA / "log"), out=bundle))
    one, two = measure(TablesConfig(bundle=bundle, out=str(tmp_path / "out"), processes=2, rows=5000))
    assert one["sum"] == two["sum"]
    # A page of 4 KiB for each of 15,000 ids is 61 MB; the system itself would read 16 pages for each.
    assert 50 < one["rss_mb"] < 150
    assert one["pss_mb"] == pytest.approx(one["rss_mb"], rel=0.05)
    assert two["pss_mb"] == pytest.approx(two["rss_mb"] / 2, rel=0.1)
    assert two["private_mb"] < 0.1 * two["rss_mb"]
    # To load it and score a row; to read 20 GB would take longer.
    assert two["load_s"] < 10
    assert "- tables: 20.0 GB\n" in (tmp_path / "out/large_tables.md").read_text()
    assert [path.name for path in (tmp_path / "out").glob("bundle-*")] == []


def test_a_bundle_of_raw_rows_is_refused(stem_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has transforms or no fp32 tables; give one of ids in fp32\.$"):
        measure(TablesConfig(bundle=str(stem_bundle / "bundle-stem"), out=str(tmp_path / "out")))
