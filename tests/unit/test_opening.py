"""Where a delivery lives, as a flow's parameter says it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from model_delivery.places.opening import Location


@pytest.mark.parametrize("typo", [{"namespce": "prod"}, {"context": "prod"}, {"foo": 1}])
def test_a_place_that_is_misspelt_is_not_taken_for_this_host(typo: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Location.model_validate(typo)


def test_an_older_runs_parameter_is_read() -> None:
    assert Location.model_validate({"kind": "deployment", "namespace": "m"}) == Location(namespace="m")
