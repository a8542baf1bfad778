"""The wheel as a user installs it: one name of its own beside whatever others call
theirs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from uv import find_uv_bin

from model_delivery.flows.deliver import deliver
from model_delivery.flows.rollback import rollback
from tests.flows.test_registration import register, spec
from tests.parts import prefect_server as parts

ROOT = Path(__file__).parents[2]
WHEEL_POOL = "wheel"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and what it needs, and knows
    nothing of this folder.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    site = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
    (wheel,) = folder.glob("*.whl")
    install = [find_uv_bin(), "pip", "install", "--offline", "--no-deps", "--python", str(folder / "venv"), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "venv" / "bin" / "python"


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's own project, with names as general as can be."""
    folder = tmp_path_factory.mktemp("others")
    for package in ("flows", "cli", "loadtests", "delivery", "steps"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text("raise RuntimeError('this is somebody else')")
    (folder / "tasks.py").write_text("raise RuntimeError('this is somebody else')")
    return folder


@pytest.fixture(scope="module")
def client(
    server: parts.Server, python: Path, others: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SyncPrefectClient]:
    """A worker runs the wheel from within somebody's project."""
    prefect = ["env", "-C", str(others), str(python), "-m", "prefect"]
    home = {"MODEL_DELIVERY_HOME": str(tmp_path_factory.mktemp("home"))}
    with parts.running_worker(server, home, pool=WHEEL_POOL, prefect=prefect), parts.client_of(server) as client:
        parts.wait_for_pool(client, name=WHEEL_POOL)
        yield client


def message(client: SyncPrefectClient, deployment: object, **parameters: object) -> str:
    run = client.create_flow_run_from_deployment(deployment, parameters=parameters)  # type: ignore[arg-type]
    state = parts.wait_for(client, run).state
    assert state is not None
    return f"{state.name}: {state.message}"


def said(*argv: str | Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(argv, cwd="/", env=clean, check=True, capture_output=True, text=True).stdout


def test_it_brings_one_name_and_all_its_data(python: Path) -> None:
    site = next((python.parents[1] / "lib").glob("python*")) / "site-packages"
    assert [p.name for p in site.iterdir() if p.is_dir() and p.suffix != ".dist-info"] == ["model_delivery"]
    look = "from model_delivery.base.home import packaged; from model_delivery.steps.load import profile; "
    look += (
        "print(*(packaged('engines').glob('*/engine.toml')), *packaged('manifests').glob('*.yaml'), profile('chat'))"
    )
    for part in (str(site), "vllm-cpu/engine.toml", "manifests/t9k.yaml", "prompt_tokens=256"):
        assert part in said(python, "-c", look)


def test_the_command_and_a_step_run(python: Path, tmp_path: Path) -> None:
    assert "deliver [OPTIONS] COMMAND" in said(python.with_name("deliver"), "--help")
    given = tmp_path / "input.json"
    given.write_text(
        '{"url": "http://127.0.0.1:9", "model_names": ["m"], "prompt": "p", "expect": "e", "max_tokens": 1}'
    )
    assert '"result":' in said(python, "-m", "model_delivery.steps.run", "smoke", str(given), "-")


def test_our_deployments_run_where_somebody_has_flows_tasks_and_cli_of_his_own(
    client: SyncPrefectClient, others: Path
) -> None:
    entrypoint = "model_delivery.flows.rollback.rollback"
    where = {"working_dir": str(others), "env": {"PYTHONPATH": str(others)}}
    deployment = parts.deploy(client, rollback, "beside", entrypoint, WHEEL_POOL, **where)
    assert "no delivery is called nobody" in message(client, deployment, name="nobody")


def test_a_deployment_of_an_older_version_is_told_what_to_do(client: SyncPrefectClient, tmp_path: Path) -> None:
    old = spec(tmp_path).model_dump(mode="json")
    deployment = parts.deploy(
        client, deliver, "of-then", "flows.deliver.deliver", WHEEL_POOL, working_dir=str(tmp_path)
    )
    seen = message(client, deployment, spec=old, request="r")
    assert "Failed" in seen
    assert "made by an older version of Model Delivery" in seen
    assert "run `deliver register FILE` (or `prefect deploy --all`) again" in seen
    back = parts.deploy(
        client, rollback, "any_service", "flows.rollback.rollback", WHEEL_POOL, working_dir=str(tmp_path)
    )
    assert "its entrypoint is flows.rollback.rollback" in message(client, back, name="nobody", to="1")
    assert register(spec(tmp_path), WHEEL_POOL).older == ("deliver/of-then", "rollback/any_service")
