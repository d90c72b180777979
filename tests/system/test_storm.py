"""Many forged records, true errors between them: all of these are counted, none of those."""

from __future__ import annotations

from bench import storm


def test_true_errors_are_counted_in_a_storm_of_forged_ones() -> None:
    result, _ = storm.run(forged=20_000, true=200, seconds=2.0)
    assert result["counted"] == 200
    assert result["rss_growth_mb"] <= 30
    assert result["api_ms"]["n"] == 20
