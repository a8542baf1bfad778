"""What the house asks of a model without knowing its source: address, name, fallbacks,
what a step's Job must be passed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from model_delivery.models.sources import ENDPOINTS, SOURCES, Model

MODEL: TypeAdapter[Model] = TypeAdapter(Model)
REPOS = {"huggingface": "org/model", "modelscope": "org/model", "git": "https://host/x.git"}


@pytest.mark.parametrize(
    ("source", "text", "fields"),
    [
        ("huggingface", "org/model", {"repo": "org/model", "revision": "main"}),
        ("huggingface", "org/model@v1", {"repo": "org/model", "revision": "v1"}),
        ("modelscope", "org/model", {"repo": "org/model", "revision": "master"}),
        ("git", "https://host/x.git@v1", {"repo": "https://host/x.git", "revision": "v1"}),
        ("git", "https://user@host/x", {"repo": "https://user@host/x", "revision": "main"}),
        ("git", "git@host:org/x.git", {"repo": "git@host:org/x.git", "revision": "main"}),
        ("git", "git@host:org/x.git@v1", {"repo": "git@host:org/x.git", "revision": "v1"}),
        ("git", "/srv/x@v1", {"repo": "/srv/x", "revision": "v1"}),
        ("git", "https://user@host/org/x@a/b", {"repo": "https://user@host/org/x", "revision": "a/b"}),
        ("local", "weights", {"path": str(Path("weights").absolute())}),
    ],
)
def test_an_address_of_the_command_line_is_read_as_its_source_writes_it(
    source: str, text: str, fields: dict[str, str]
) -> None:
    assert SOURCES[source].from_address(text) == fields


def test_a_steps_job_is_passed_every_hubs_address() -> None:
    assert ENDPOINTS == ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT")


@pytest.mark.parametrize("source", REPOS)
def test_a_fallback_is_a_model_of_its_own_with_the_files_of_the_first(source: str) -> None:
    others = [{"source": other, "repo": repo, "revision": "r"} for other, repo in REPOS.items()]
    given = {"source": source, "repo": REPOS[source], "include": ["*.json"], "token": {"env": "T"}}
    model = MODEL.validate_python(given | {"fallback": others})
    assert [(f.name, f.revision, f.include, f.token) for f in model.fallbacks()] == [
        (f"{other} {repo}", "r", ("*.json",), None) for other, repo in REPOS.items()
    ]


def test_a_folder_is_no_fallback_and_has_none() -> None:
    assert MODEL.validate_python({"source": "local", "path": "/x"}).fallbacks() == ()
    given = {"source": "huggingface", "repo": "a/b", "fallback": [{"source": "local", "repo": "/x", "revision": "r"}]}
    with pytest.raises(ValidationError, match="'huggingface', 'modelscope' or 'git'"):
        MODEL.validate_python(given)


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_stored_of_a_model_has_no_more_fields_than_a_spec(source: str) -> None:
    given = {"source": source} | ({"path": "/x"} if source == "local" else {"repo": REPOS[source]})
    fields = {"source", "include", "exclude", "allow"}
    fields |= {"path", "manifest"} if source == "local" else {"repo", "revision", "token", "fallback", "pins"}
    assert MODEL.validate_python(given).model_dump(mode="json").keys() == fields
