"""launch.sh: what reaches torchrun, what comes back, which environment; torchrun is a stand-in.

The stand-in is a `python` that hands everything but torchrun, `venv` and `pip` on to the real one,
and notes what it was asked. The last test uses the real torchrun.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

STAND_IN = r"""#!/usr/bin/env bash
case "$*" in
*ddp.launcher*)
    printf '%s\0' "$@" >"$NOTES/arguments"
    env -0 >"$NOTES/environment"
    printf '%s' "${SAID-}" >"$LOCKSTEP_EXIT"
    stop() {
        echo x >>"$NOTES/signals"
        printf "${AFTER-75\nstopped by SIGTERM}" >"$LOCKSTEP_EXIT"
        sleep 0.5
        exit 1
    }
    [[ ${DEAF-} ]] || trap stop TERM
    [[ ! ${SLOW-} ]] || touch "$NOTES/started"
    for ((i = 0; i < ${SLOW-0}; i++)); do sleep 0.02; done
    exit "${CODE-0}" ;;
*"-m venv"*)
    echo "$*" >>"$NOTES/made"
    mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python" ;;
*"-m pip"*)
    echo "$*" >>"$NOTES/made"
    exit "${PIP_CODE-0}" ;;
"-P - "*requirements*)
    [[ -v LACKS ]] && cat >/dev/null && printf '%s' "$LACKS" || exec "$REAL" "$@" ;;
*) exec "$REAL" "$@" ;;
esac
"""


class Launch:
    """launch.sh of `root`, run where `python` is the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.root = ROOT
        self.folder = folder
        self.stand_in = folder / "env" / "bin" / "python"
        self.stand_in.parent.mkdir(parents=True)
        self.stand_in.write_text(STAND_IN)
        self.stand_in.chmod(0o755)
        (folder / "tmp").mkdir()
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TMPDIR": str(folder / "tmp"),
            "NOTES": str(folder),
            "REAL": sys.executable,
            "VIRTUAL_ENV": str(folder / "env"),
        }

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.root / "launch.sh"), *arguments],
            env={**self.env, **env},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # What nohup ignores, a shell cannot trap: as a terminal starts it.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )

    def __call__(self, *arguments: str, **env: str) -> tuple[int, str]:
        """(exit code, what it said on stderr)"""
        process = self.start(*arguments, **env)
        _, said = process.communicate(timeout=60)
        return process.returncode, said

    def arguments(self) -> list[str]:
        return (self.folder / "arguments").read_text().split("\0")[:-1]

    def environment(self) -> dict[str, str]:
        entries = (self.folder / "environment").read_text().split("\0")[:-1]
        return dict(entry.split("=", 1) for entry in entries)

    def flag(self, name: str) -> str:
        [value] = [a.partition("=")[2] for a in self.arguments() if a.startswith(f"--{name}=")]
        return value

    def without_environment(self) -> None:
        """From here on no environment is active, and python3 is the stand-in."""
        self.root = self.folder / "a root"
        self.root.mkdir()
        for name in ("launch.sh", "requirements.txt", "requirements-dev.txt", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
        for name in ("configs", "ddp", "utils"):
            (self.root / name).symlink_to(ROOT / name)
        del self.env["VIRTUAL_ENV"]
        (self.folder / "bin").mkdir()
        shutil.copy(self.stand_in, self.folder / "bin" / "python3")
        self.env["PATH"] = f"{self.folder}/bin:{self.env['PATH']}"

    def made(self) -> list[str]:
        """The calls of venv and pip so far."""
        notes = self.folder / "made"
        return notes.read_text().splitlines() if notes.exists() else []


@pytest.fixture
def launch(tmp_path):
    return Launch(tmp_path)


def test_every_argument_reaches_train_py_as_it_is(launch):
    hostile = "$(touch marker) `touch marker`; touch marker & \"x\" 'y' *\n\\ $HOME ~ -x --"
    arguments = [f"data.path={hostile}", "--resume", "auto", f"model.weights=a{hostile}"]
    assert launch(*arguments) == (0, "")
    passed = launch.arguments()
    assert passed[passed.index(f"{ROOT}/train.py") + 1 :] == arguments
    assert not list(launch.folder.rglob("marker"))


def test_one_host_meets_on_the_loopback_interface_at_a_free_port(launch):
    assert launch(NPROC="3", MASTER_ADDR="elsewhere", PET_RDZV_ENDPOINT="x:1") == (0, "")
    assert "--standalone" not in launch.arguments()
    assert launch.flag("rdzv-backend") == "static"
    assert (launch.flag("master-addr"), launch.flag("nproc-per-node")) == ("127.0.0.1", "3")
    assert (launch.flag("nnodes"), launch.flag("node-rank")) == ("1", "0")
    assert 20000 <= int(launch.flag("master-port")) < 32768
    assert launch.environment()["GLOO_SOCKET_IFNAME"] == "lo"
    assert not [name for name in launch.environment() if name.startswith("PET_")]


def test_several_hosts_meet_where_they_are_told(launch):
    env = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "host; touch marker", "NPROC": "4"}
    assert launch(MAX_RESTARTS="3", **env) == (0, "")
    assert (launch.flag("master-addr"), launch.flag("master-port")) == (env["MASTER_ADDR"], "29500")
    assert (launch.flag("nnodes"), launch.flag("node-rank")) == ("2", "1")
    assert launch.flag("max-restarts") == "3"
    assert "GLOO_SOCKET_IFNAME" not in launch.environment()


def test_hosts_of_a_range_may_come_and_go(launch):
    env = {"NNODES": "2:4", "NODE_RANK": "3", "MASTER_ADDR": "host; touch marker", "NPROC": "4"}
    assert launch(**env) == (0, "")
    assert launch.flag("nnodes") == "2:4"
    assert launch.flag("rdzv-backend") == "elastic"
    assert launch.flag("rdzv-endpoint") == env["MASTER_ADDR"] + ":29500"
    assert launch.flag("rdzv-conf") == "host=3,processes=4"
    assert int(launch.flag("max-restarts")) > 0  # a host that is lost counts as a failure
    assert launch(MAX_RESTARTS="7", **env) == (0, "")
    assert launch.flag("max-restarts") == "7"


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"NPROC": "two"}, "NPROC='two' is no whole number"),
        ({"NPROC": "0"}, "at least 1"),
        ({"NPROC": "x[$(touch marker)]"}, "is no whole number"),
        ({"MASTER_PORT": "1; touch marker"}, "MASTER_PORT='1; touch marker' is no whole number"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000 is taken or not allowed"),
        ({"NNODES": "2"}, "NNODES needs NODE_RANK and MASTER_ADDR"),
        ({"NNODES": "1:2"}, "NNODES needs NODE_RANK and MASTER_ADDR"),
        ({"NNODES": "0"}, "NNODES='0' is neither a number of hosts, from 1, nor a range"),
        ({"NNODES": "3:2"}, "NNODES='3:2' is neither"),
        ({"NNODES": "1:2:3"}, "NNODES='1:2:3' is neither"),
        ({"NNODES": "1:x[$(touch marker)]"}, "is neither"),
        ({"NNODES": "1:2", "NODE_RANK": "2", "MASTER_ADDR": "x"}, "NODE_RANK=2 is not below"),
        ({"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "x"}, "NODE_RANK=2 is not below NNODES"),
    ],
)
def test_a_launcher_variable_that_makes_no_sense_is_bad_input(launch, env, told):
    code, said = launch(**env)
    assert (code, len(said.splitlines())) == (2, 1)
    assert said.startswith("error: ")
    assert told in said
    assert not (launch.folder / "arguments").exists()
    assert not list(launch.folder.rglob("marker"))


def test_a_given_port_is_used_and_a_taken_one_is_refused(launch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = launch(MASTER_PORT=port)
        assert (code, len(said.splitlines())) == (2, 1)
        assert f"MASTER_PORT={port} is taken" in said
    assert launch(MASTER_PORT=port) == (0, "")
    assert launch.flag("master-port") == port


def test_threads_are_shared_among_the_processes_unless_they_are_set(launch):
    assert launch(NPROC="1")[0] == 0
    cores = len(os.sched_getaffinity(0))
    assert launch.environment()["OMP_NUM_THREADS"] == str(cores)
    assert launch(NPROC="500")[0] == 0
    assert launch.environment()["OMP_NUM_THREADS"] == "1"
    assert launch(NPROC="500", OMP_NUM_THREADS="7")[0] == 0
    assert launch.environment()["OMP_NUM_THREADS"] == "7"


def test_a_bad_argument_ends_with_one_message_before_torchrun(launch):
    code, said = launch("optim.lrr=1")
    assert (code, len(said.splitlines())) == (2, 1)
    assert "did you mean 'lr'?" in said
    assert not (launch.folder / "arguments").exists()


def test_help_is_printed_once_and_starts_nothing(launch):
    process = launch.start("--help")
    printed, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert printed.count("usage: train.py") == 1
    assert not (launch.folder / "arguments").exists()


@pytest.mark.parametrize(
    ("torchrun", "said", "code", "last"),
    [
        ("0", "0\nfinished", 0, ""),
        ("0", "", 0, ""),
        ("1", "75\nstopped by SIGTERM and saved", 75, ""),  # rank 0 has told it
        ("1", "2\nunknown model 'x'", 2, ""),
        ("1", "1\n", 1, ""),
        ("1", "", 1, ""),
        ("1", "0\nfinished", 1, "finished\n"),
        ("3", "x\n$(touch marker)", 3, "$(touch marker)\n"),
    ],
)
def test_the_exit_code_and_reason_are_those_of_rank_0(launch, torchrun, said, code, last):
    assert launch(CODE=torchrun, SAID=said) == (code, last)
    assert not list((launch.folder / "tmp").iterdir())


def test_a_host_without_rank_0_says_itself_why_the_run_was_stopped(launch):
    there = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "x"}
    assert launch(CODE="1", SAID="75\nstopped by SIGINT", **there) == (75, "stopped by SIGINT\n")
    there = {"NNODES": "51", "NODE_RANK": "50", "MASTER_ADDR": "x"}
    assert launch(CODE="1", SAID="7\nwhy", **there) == (7, "why\n")


@pytest.mark.parametrize(
    ("env", "ended"),
    [
        ({"DEAF": "yes"}, (75, "stopped before the first step\n")),
        ({"AFTER": ""}, (1, "")),  # its ranks had begun, and could not say how they ended
    ],
)
def test_only_a_launcher_that_died_of_the_signal_had_not_begun(launch, env, ended):
    process = launch.start(SLOW="500", **env)
    await_file(launch.folder / "started")
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == ended


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_reaches_torchrun_once_and_its_end_is_waited_for(launch, number):
    process = launch.start(SLOW="500")
    deadline = time.monotonic() + 30
    while not (launch.folder / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, number)  # as a terminal does it
    time.sleep(0.3)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (75, "")
    assert (launch.folder / "signals").read_text() == "x\n"


def test_an_active_environment_that_lacks_something_is_an_error_with_the_cure(launch):
    bare = launch.folder / "bare env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    code, said = launch(VIRTUAL_ENV=str(bare))
    assert code == 2
    assert said.startswith("error: the active environment lacks torch>=2.10, torchvision>=")
    command = f"{launch.folder}/bare\\ env/bin/python -m pip install --requirement={ROOT}/"
    assert f"install: {command}requirements.txt \n" in said
    assert "pytest>=" not in said
    assert "pytest>=" in launch("test", VIRTUAL_ENV=str(bare))[1]
    assert launch(VIRTUAL_ENV="", CONDA_PREFIX=str(bare))[0] == 2


def test_too_old_a_version_counts_as_lacking(launch):
    site = launch.folder / "site"
    for name, version in [("torch", "2.9.1"), ("pydantic", "2.10.0a0+local"), ("numpy", "10.0")]:
        folder = site / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    code, said = launch(PYTHONPATH=str(site))
    assert code == 2
    assert said.splitlines()[0] == "error: the active environment lacks torch>=2.10"


def test_an_environment_is_made_once_and_again_when_the_requirements_change(launch):
    launch.without_environment()
    lacks = {"LACKS": "torch>=2.10\ntqdm>=4.66\n"}
    venv = launch.root / ".venv"
    code, said = launch(**lacks)
    assert (code, said) == (0, f"setting up the environment in {venv}, once\n")
    assert launch.made() == [
        f"-m venv -- {venv}",
        f"-m pip install -c {launch.root}/constraints.txt -r {launch.root}/requirements.txt"
        f" -r {launch.root}/requirements-dev.txt",
    ]
    assert launch.environment()["VIRTUAL_ENV"] == str(venv)
    assert launch.environment()["PATH"].startswith(f"{venv}/bin:")
    assert launch(**lacks) == (0, "")
    assert len(launch.made()) == 2
    with (launch.root / "requirements-dev.txt").open("a") as file:
        file.write("x>=1\n")
    assert launch(**lacks)[0] == 0
    assert len(launch.made()) == 4


def test_a_torch_of_the_system_is_kept(launch):
    launch.without_environment()
    venv = launch.folder / "elsewhere" / "my env"
    assert launch(LACKS="tqdm>=4.66\n", LOCKSTEP_VENV=str(venv))[0] == 0
    venv_call, pip_call = launch.made()
    assert venv_call == f"-m venv --system-site-packages -- {venv}"
    assert f"-c {venv}/pins.txt" in pip_call
    [pin] = (venv / "pins.txt").read_text().splitlines()
    assert pin.startswith("torch==2.")


def test_an_environment_whose_installation_failed_is_made_again(launch):
    launch.without_environment()
    assert launch(LACKS="torch>=2.10\n", PIP_CODE="9")[0] == 9
    assert not (launch.folder / "arguments").exists()
    assert launch(LACKS="torch>=2.10\n")[0] == 0
    assert len(launch.made()) == 4


def test_a_folder_that_launch_sh_did_not_make_is_left_alone(launch):
    launch.without_environment()
    mine = launch.folder / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    code, said = launch(LOCKSTEP_VENV=str(mine))
    assert (code, len(said.splitlines())) == (2, 1)
    assert "was not made by launch.sh" in said
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]


def test_the_tests_are_run_from_the_root_with_the_arguments_given(launch):
    launch.without_environment()
    (launch.root / "tests").mkdir()
    (launch.root / "tests" / "test_one.py").write_text(
        "def test_a_b(): pass\ndef test_c(): 1 / 0\n"
    )
    process = launch.start("test", "tests/test_one.py", "-k", "a and b", LACKS="")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert "1 passed" in printed


RANKS = """
import os, sys
from pathlib import Path
rank = os.environ["RANK"]
Path(sys.argv[1] + rank).write_text(os.environ["MASTER_ADDR"] + " " + os.environ["WORLD_SIZE"])
if rank == "0":
    Path(os.environ["LOCKSTEP_EXIT"]).write_text("75\\nstopped by SIGTERM and saved")
    sys.exit(75)
"""


@pytest.mark.parametrize("flag", [["--rehearse", "8"], ["--rehearse=8"]])
def test_a_rehearsal_is_started_as_the_one_process_that_it_is(launch, flag):
    launch.without_environment()
    note = launch.folder / "note"
    (launch.root / "train.py").write_text(
        "import os, sys\n"
        f"open({str(note)!r}, 'w').write(repr((sys.argv[1:], 'RANK' in os.environ)))\n"
        "sys.exit(2)\n"
    )
    assert launch(*flag, "--rank", "3", "seed=1", NPROC="4", VIRTUAL_ENV=sys.prefix) == (2, "")
    assert note.read_text() == repr(([*flag, "--rank", "3", "seed=1"], False))
    assert launch("--rehearse", "0", VIRTUAL_ENV=sys.prefix)[1].startswith("error: --rehearse 0: a")


def test_the_real_torchrun_starts_the_ranks_and_the_code_comes_back(launch):
    launch.without_environment()
    (launch.root / "train.py").write_text(RANKS)
    (launch.root / "configs").unlink()
    (launch.root / "configs").mkdir()
    (launch.root / "configs" / "__main__.py").touch()
    (launch.root / "notes").mkdir()
    argument = f"{launch.root}/notes/ rank "
    code, said = launch(argument, NPROC="2", VIRTUAL_ENV=sys.prefix)
    assert code == 75
    assert "Traceback" not in said
    notes = sorted((launch.root / "notes").iterdir())
    assert [note.name for note in notes] == [" rank 0", " rank 1"]
    assert {note.read_text() for note in notes} == {"127.0.0.1 2"}


HEARS = """
import os, signal, sys, time
from pathlib import Path
def stop(number, frame):
    Path(sys.argv[1] + "stopped").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
Path(sys.argv[1] + "started").touch()
time.sleep(60)
"""


def test_the_ranks_of_a_launch_sh_that_is_killed_are_told_to_stop(launch):
    launch.without_environment()
    (launch.root / "train.py").write_text(HEARS)
    (launch.root / "configs").unlink()
    (launch.root / "configs").mkdir()
    (launch.root / "configs" / "__main__.py").touch()
    process = launch.start(f"{launch.folder}/", NPROC="1", VIRTUAL_ENV=sys.prefix)
    await_file(launch.folder / "started")
    process.kill()
    await_file(launch.folder / "stopped")
    process.communicate(timeout=30)  # until torchrun, which holds the pipes, is gone as well


def await_file(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)
