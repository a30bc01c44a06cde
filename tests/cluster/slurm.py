"""A Slurm of one node on loopback, as long as it is needed: munge, slurmctld and slurmd with folders,
keys and ports of their own, as whoever runs them. All of it, jobs included, shares one core, so that
what a job takes depends less on the machine.

Jobs of the partition `work` are preempted by those of `urgent`. A job that is put into the queue
again begins when its credentials have expired: here after 5 s, by default after 120.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PATH = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
# Starts a program on the first core ("min") or the last ("max") of those that this process has.
ON_CORE = (
    sys.executable,
    "-c",
    "import os, sys; which = {'min': min, 'max': max}[sys.argv[1]];"
    "os.sched_setaffinity(0, [which(os.sched_getaffinity(0))]); os.execvp(sys.argv[2], sys.argv[2:])",
)

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 Gres=gpu:1 State=UNKNOWN
PartitionName=work Nodes={host} Default=YES PriorityTier=1
PartitionName=urgent Nodes={host} PriorityTier=2
"""


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in PROGRAMS if not shutil.which(name, path=PATH)]


class Slurm:
    """A context: the engine runs in it, and nothing of it, jobs included, afterwards."""

    def __enter__(self) -> "Slurm":
        self.folder = Path(tempfile.mkdtemp(prefix="nad_slurm_"))
        self._daemons: list[subprocess.Popen] = []
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for number, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
            deadline = time.monotonic() + seconds
            while (running := self._processes()) and time.monotonic() < deadline:
                for process in running:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, number)
                time.sleep(0.2)
                for daemon in self._daemons:
                    daemon.poll()  # one that has ended is there until then
        if error and error[0]:
            for log in sorted(self.folder.glob("*.log")):
                sys.stderr.write(f"{log.name}:\n{log.read_text()[-3000:]}\n")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.folder.chmod(0o755)
        with socket.socket() as first, socket.socket() as second:
            for free in (first, second):
                free.bind(("127.0.0.1", 0))
            ports = [free.getsockname()[1] for free in (first, second)]
        host = socket.gethostname().partition(".")[0]
        values = {
            "host": host,
            "ports": ports,
            "folder": self.folder,
            "user": pwd.getpwuid(os.getuid()).pw_name,
        }
        (self.folder / "slurm.conf").write_text(CONFIG.format(**values))
        (self.folder / "gres.conf").write_text("Name=gpu Count=1 File=/dev/null\n")
        kept = {name: text for name, text in os.environ.items() if not name.startswith("SLURM_")}
        self.environment = {**kept, "PATH": PATH, "SLURM_CONF": f"{self.folder}/slurm.conf"}
        files = ("key-file=munge.key", "socket=munge.socket", "pid-file=munged.pid")
        files += ("log-file=munge.txt", "seed-file=munge.seed")
        self._daemon("munged", "--foreground", "--force", *_inside(self.folder, files))
        self.wait(lambda: (self.folder / "munge.socket").exists(), 30, "munged")
        self._daemon("slurmctld", "-D")
        self._daemon("slurmd", "-D")
        self.wait(lambda: "State=IDLE" in self._node(host), 60, "an idle node")

    def _daemon(self, *command: str) -> None:
        command_line = [*ON_CORE, "min", *command]
        with open(self.folder / f"{command[0]}.log", "w") as log:
            daemon = subprocess.Popen(command_line, env=self.environment, stdout=log, stderr=log)
        self._daemons.append(daemon)

    def _node(self, host: str) -> str:
        return self.run("scontrol", "show", "node", host, check=False)

    def _processes(self) -> list[int]:
        """Whatever runs with this configuration: also jobs, and what has left its parents."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        return [int(path.parent.name) for path in _environments() if mark in _read(path)]

    def run(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        """The output of one of Slurm's commands."""
        done = subprocess.run(
            command, env=self.environment, cwd=cwd, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def submit(self, *arguments: str, cwd: Path | None = None) -> str:
        """The number of a new job."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd).strip()

    def state(self, job: str) -> dict[str, str]:
        """What Slurm says of a job, or of a task of an array."""
        said = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in said.split() if "=" in word)

    def wait(self, done: Callable[[], object], seconds: float, what: str) -> None:
        """Waits until something is done, or raises `TimeoutError`."""
        deadline = time.monotonic() + seconds
        while not done():
            for daemon in self._daemons:
                if daemon.poll() is not None:
                    raise RuntimeError(f"{daemon.args[4]} has ended with {daemon.returncode}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds} s for {what}")
            time.sleep(0.5)


def _inside(folder: Path, options: tuple[str, ...]) -> list[str]:
    return [f"--{option.replace('=', f'={folder}/')}" for option in options]


def _environments() -> list[Path]:
    return [*Path("/proc").glob("[0-9]*/environ")]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it is gone, or another user's
        return b""
