"""What a user of the command sees: one clear message, the exit code, nothing touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from model_delivery.cli.printing import show, table
from tests.parts.ports import free_port
from tests.parts.timing_engine import engine_folder

DELIVER = Path(sys.executable).with_name("deliver")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def environment(home: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return clean | {"MODEL_DELIVERY_HOME": str(home), "PREFECT_HOME": str(home.parent / "prefect"), "DO_NOT_TRACK": "1"}


def deliver(home: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(DELIVER), *args],
        env=environment(home) | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def spec(folder: Path, model: Path, port: int, more: str = "") -> Path:
    engine = engine_folder(folder / "engine")
    file = folder / "spec.yaml"
    file.write_text(
        f"apiVersion: model-delivery/v1\nname: small\nmodel: {{source: local, path: {model}}}\n"
        f"target: {{kind: process, engine: {engine}, port: {port}}}\n"
        "gates: {throughput: {profile: smoke, users: 2, warmup: 0s, duration: 500ms}}\nrollout: {watch: 0s, standby: 0s}\n"
        + more
    )
    return file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("apiVersion: model-delivery/v1\nnam: x\n", "nam: unknown field; did you mean name?"),
        ("gates: {throughput: {duration: 5 sec}}\n", "is not a duration"),
        ("gates: {throughput: {duration: 5}}\n", "5 is not a duration: write 500ms, 30s"),
        ("[" * 5000, "more than 40 levels"),
        ("a: [\n", "not valid YAML"),
        ("a: &a [*a]\n", "alias that contains itself"),
        ("a: !!python/name:os.system x\n", "the tag"),
        ("\x00\x01", "is not text"),
        ("", "is empty"),
        (f"apiVersion: model-delivery/v1\nname: {'x' * 41}\n", "at most 40 characters"),
        (None, "does not exist"),
    ],
)
def test_a_bad_spec_ends_with_2_and_touches_nothing(home: Path, content: str | None, message: str) -> None:
    file = home.parent / "spec.yaml"
    if content is not None:
        file.write_text(content)
    done = deliver(home, "up", str(file))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not home.exists()


NEVER_ENDING = (
    (("up", "/dev/zero"), "/dev/zero cannot be read: it is no regular file"),
    (("plan", "{fifo}"), "{fifo} cannot be read: it is no regular file"),
    (("status", "{fifo}"), "{fifo} cannot be read: it is no regular file"),
    (("up", "{link}"), "{link} cannot be read: it is no regular file"),
    (("loadtest", "http://127.0.0.1:9", "--profile", "{fifo}"), "{fifo} cannot be read: it is no regular file"),
    (("loadtest", "http://127.0.0.1:9", "--profile", "{pipe}"), "there is no load profile"),
    (("loadtest", "http://127.0.0.1:9", "--model", "m", "--baseline", "{folder}"), "holds no load report"),
)


@pytest.mark.parametrize(("args", "message"), NEVER_ENDING)
def test_a_file_that_never_ends_is_refused_and_not_waited_for(
    home: Path, tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    names = {"fifo": tmp_path / "f.yaml", "pipe": tmp_path / "f", "folder": tmp_path, "link": tmp_path / "link"}
    os.mkfifo(names["fifo"])
    os.mkfifo(tmp_path / "report.json")
    names["link"].symlink_to(names["fifo"])
    done = deliver(home, *(arg.format(**names) for arg in args))
    assert done.returncode == 2, done.stderr
    assert message.format(**names) in done.stderr


@pytest.mark.parametrize("name", ["engine.toml", "uv.lock", "pyproject.toml"])
def test_an_engines_file_that_never_ends_is_named(home: Path, model: Path, tmp_path: Path, name: str) -> None:
    file = spec(tmp_path, model, free_port())
    with (tmp_path / "engine" / "engine.toml").open("a") as toml:
        toml.write('[environment]\npython = "3.11"\n')
    for other in ("uv.lock", "pyproject.toml"):
        (tmp_path / "engine" / other).touch()
    (tmp_path / "engine" / name).unlink()
    os.mkfifo(tmp_path / "engine" / name)
    done = deliver(home, "plan", str(file))
    assert done.returncode == 2, done.stderr
    assert str(tmp_path / "engine" / name) in done.stderr


def test_a_table_shows_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [
        "[/INST]",
        "[image=4]",
        "[bold]x[/bold]",
        "\\[a]",
        ":smile:",
        "(core) INFO [rank 0]",
        "[link=http://x]y[/link]",
    ]
    show([table(("args",), [(cell,) for cell in cells])])
    assert [line.strip() for line in capsys.readouterr().out.splitlines()[1:]] == cells


def test_a_path_that_no_file_system_holds_is_told(home: Path) -> None:
    done = deliver(home, "verify", str(home.parent / ("a" * 300)))
    assert "a path is too long" in done.stderr
    assert "fault of ours" not in done.stderr


def test_without_arguments_the_help_is_shown(home: Path) -> None:
    done = deliver(home)
    assert done.returncode == 2
    assert "Usage: deliver" in done.stderr
    assert "loadtest" in done.stderr


@pytest.mark.parametrize("verb", ["up", "plan"])
def test_a_state_folder_that_is_none_is_named_without_a_traceback(home: Path, model: Path, verb: str) -> None:
    file = spec(home.parent, model, free_port())
    done = deliver(file, verb, str(file))
    assert done.returncode == 3
    assert f"the state folder {file} cannot be used: Not a directory" in done.stderr
    assert "MODEL_DELIVERY_HOME" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no config", "the model has no config.json"),
        ("truncated", "model.safetensors is cut short"),
        ("pointer", "model.safetensors is a git-LFS pointer"),
        ("no folder", "is no folder"),
        ("auto_map", "wants to run code of its own"),
    ],
)
def test_a_broken_model_folder_ends_with_3_and_starts_nothing(
    home: Path, model: Path, fault: str, message: str
) -> None:
    broken = home.parent / "broken"
    broken.mkdir()
    for file in model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    match fault:
        case "no config":
            (broken / "config.json").unlink()
        case "truncated":
            (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-5])
        case "pointer":
            (broken / "model.safetensors").write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
            )
        case "no folder":
            broken = home.parent / "nowhere"
        case "auto_map":
            (broken / "config.json").write_text('{"auto_map": {"AutoModel": "model.Mine"}}')
    done = deliver(home, "up", str(spec(home.parent, broken, free_port())))
    assert done.returncode == 3, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(home.glob("deliveries/*/processes/*"))


def test_what_this_target_cannot_do_is_refused_by_name(home: Path, model: Path) -> None:
    file = spec(
        home.parent,
        model,
        free_port(),
        "serving: {replicas: {min: 1, max: 2}, api_key: {env: NOT_SET_HERE}}\n",
    )
    done = deliver(home, "up", str(file))
    assert done.returncode == 3
    for part in (
        "serving.replicas above 1 is not there yet",
        "the environment variable NOT_SET_HERE holds no secret",
    ):
        assert part in done.stderr


def test_an_engine_or_a_name_that_does_not_exist_is_told_with_the_nearest(home: Path, model: Path) -> None:
    file = spec(home.parent, model, free_port())
    file.write_text(file.read_text().replace(str(home.parent / "engine"), "vllm-cpus"))
    done = deliver(home, "up", str(file))
    assert done.returncode == 2
    assert "did you mean vllm-cpu?" in done.stderr
    missing = deliver(home, "status", "smal")
    assert missing.returncode == 2
    assert "no delivery is called smal" in missing.stderr


@pytest.mark.parametrize("verb", ["up", "plan"])
def test_a_load_profile_that_is_not_there_is_told_before_anything_is_touched(
    home: Path, model: Path, verb: str
) -> None:
    file = spec(home.parent, model, free_port())
    file.write_text(file.read_text().replace("profile: smoke,", "profile: smokee,"))
    done = deliver(home, verb, str(file))
    assert done.returncode == 2, done.stderr
    assert "there is no load profile smokee" in done.stderr
    assert not list(home.glob("deliveries/*/objects/Release/*"))


def test_a_resource_that_a_host_does_not_know_is_refused_by_name(home: Path, model: Path) -> None:
    file = spec(home.parent, model, free_port(), "serving: {resources: {limits: {nvidia.com/gpus: 1}}}\n")
    done = deliver(home, "plan", str(file))
    assert done.returncode == 3
    assert "nvidia.com/gpus is not there yet" in done.stderr


def test_a_whole_life_without_a_prefect_server(home: Path, model: Path) -> None:
    file = spec(home.parent, model, free_port())
    planned = json.loads(deliver(home, "plan", str(file), "--json").stdout)
    assert planned["result"] == "new release"
    assert not home.exists()
    up = deliver(home, "up", str(file), "--json")
    assert up.returncode == 0, up.stderr
    said = json.loads(up.stdout)
    assert said["result"] == "promoted"
    assert Path(said["report"]).exists()
    assert json.loads(deliver(home, "status", "small", "--json").stdout)["state"] == "up"
    assert deliver(home, "plan", str(file)).stdout.startswith("small: unchanged")
    again = deliver(home, "up", str(file))
    assert "small: unchanged" in again.stdout
    assert deliver(home, "down", "../deliveries/small").returncode == 2, "a path is no name"
    engine = json.loads(deliver(home, "status", "small", "--json").stdout)["running"][0]
    os.kill(engine["pid"], signal.SIGKILL)
    assert "(it ended)" in deliver(home, "status", "small").stdout
    assert deliver(home, "plan", str(file)).stdout.startswith("small: healed"), "the same word as up's"
    assert "small: healed" in deliver(home, "up", str(file)).stdout
    no_release_before(deliver(home, "rollback", "small"))
    assert json.loads(deliver(home, "history", "small", "--json").stdout)[0]["outcome"] == "promoted"
    assert "timing server" in deliver(home, "logs", "small").stdout
    assert "openai" in deliver(home, "connect", "small").stdout
    assert deliver(home, "down", "small").returncode == 0
    assert json.loads(deliver(home, "list", "--json").stdout)[0]["state"] == "down"
    assert "small: promoted" in deliver(home, "up", str(file)).stdout
    no_release_before(deliver(home, "rollback", "small"))
    assert deliver(home, "down", "small").returncode == 0


def no_release_before(refused: subprocess.CompletedProcess[str]) -> None:
    assert refused.returncode == 3
    assert "there is no release before" in refused.stderr


def test_an_engine_that_fails_is_named_and_ends_with_1(home: Path, model: Path) -> None:
    done = deliver(home, "up", str(spec(home.parent, model, free_port(), "serving: {args: [--no-such-flag]}\n")))
    assert done.returncode == 1
    assert "--no-such-flag" in done.stderr
    assert "log: " in done.stderr
    assert "Traceback" not in done.stderr
    assert deliver(home, "down", "small").returncode == 0


def test_a_prefect_server_that_is_down_is_named_with_what_to_start(home: Path, model: Path) -> None:
    file = spec(home.parent, model, free_port())
    url = f"http://127.0.0.1:{free_port()}/api"
    for verb in ("register", "up"):
        done = deliver(home, verb, str(file), PREFECT_API_URL=url)
        assert done.returncode == 3, done.stderr
        assert f"no Prefect server answers at {url}" in done.stderr
        assert "prefect server start" in done.stderr
        assert "Traceback" not in done.stderr
    assert not home.exists()


def test_a_run_that_is_stopped_ends_with_5_and_goes_on_when_run_again(home: Path, model: Path) -> None:
    file = spec(home.parent, model, free_port())
    file.write_text(file.read_text().replace("duration: 500ms", "duration: 20s"))
    command = [str(DELIVER), "up", str(file)]
    run = subprocess.Popen(
        command,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(home.glob("deliveries/small/objects/Step/load-*.json")):
        assert run.poll() is None
    run.terminate()
    _, told = run.communicate()
    assert run.returncode == 5, told
    assert "run it again" in told
    assert "Traceback" not in told
    assert "small: promoted" in deliver(home, "up", str(file)).stdout
    assert len(list(home.glob("deliveries/small/logs/*-[0-9].log"))) == 1
    assert deliver(home, "down", "small").returncode == 0


def test_two_at_once_the_second_waits_or_is_refused(home: Path, model: Path) -> None:
    file = spec(home.parent, model, free_port())
    file.write_text(file.read_text().replace("duration: 500ms", "duration: 6s"))
    refusing = home.parent / "refusing.yaml"
    refusing.write_text(file.read_text() + "concurrency: refuse\n")

    def begin(path: Path) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [DELIVER, "up", path], env=environment(home), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
        )

    first = begin(file)
    while not list(home.glob("deliveries/small/objects/Lease/lease.json")):
        assert first.poll() is None
    waiting, refused = begin(file), begin(refusing)
    assert f"another run is delivering small: process {first.pid}" in refused.communicate()[1]
    assert refused.returncode == 3
    assert "small: promoted" in first.communicate()[0]
    said, told = waiting.communicate()
    assert waiting.returncode == 0
    assert f"waiting for process {first.pid}" in told
    assert "small: unchanged" in said
    assert len(list(home.glob("deliveries/small/logs/*-[0-9].log"))) == 1
    assert deliver(home, "down", "small").returncode == 0
