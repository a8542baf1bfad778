"""The docs say what the code says."""

from __future__ import annotations

from pathlib import Path

from model_delivery.measure.profile import Profile
from scripts.metrics_table import FILE, table, written


def test_the_table_of_metrics_is_the_codes() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert table() in text
    assert written(text) == text


def test_every_profile_and_every_field_of_one_is_told() -> None:
    text = FILE.read_text(encoding="utf-8")
    profiles = Path(__file__).parents[2] / "loadtests" / "profiles"
    for name in [*(path.stem for path in profiles.glob("*.yaml")), *(set(Profile.model_fields) - {"temperature"})]:
        assert f"`{name}`" in text, name
