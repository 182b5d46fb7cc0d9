"""A Slurm cluster for the tests of the workflow, and studies whose runs go to it."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers import slurm_cluster
from helpers.study import Study, wait_for


@pytest.fixture(scope="session")
def cluster():
    if lacking := slurm_cluster.missing():
        reason = f"Slurm is not installed ({', '.join(lacking)}): apt-get install slurmctld slurmd slurm-client munge"
        if os.environ.get("REQUIRE_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm", ignore_cleanup_errors=True) as folder:
        running = slurm_cluster.Cluster(Path(folder))
        running.start()
        yield running
        running.stop()


class SlurmStudy(Study):
    """A study whose runs go to the cluster."""

    def __init__(self, folder: Path, cluster: slurm_cluster.Cluster):
        super().__init__(folder)
        self.cluster = cluster
        self.environment |= {name: cluster.environment[name] for name in ("SLURM_CONF", "PATH")}
        self.config(output_image_dir=None)
        self.before = set(self.records())

    def arguments(self, *arguments: str, cores: int = 2) -> list[str]:
        profile = [] if "--workflow-profile" in arguments else ["--workflow-profile", "slurm"]
        location = ["--snakefile", str(self.workflow / "Snakefile"), "--directory", str(self.folder)]
        patience = ["--seconds-between-status-checks", "1", "--latency-wait", "5"]
        return [*location, *profile, *patience, *arguments]

    def records(self) -> dict[str, dict[str, str]]:
        lines = self.cluster.client("scontrol", "--oneliner", "show", "job").splitlines()
        records = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line.startswith("JobId=")]
        return {record["JobId"]: record for record in records}

    def slurm_jobs(self) -> dict[str, list[dict[str, str]]]:
        """What Slurm says of the jobs since the last call, by their names."""
        new = {number: record for number, record in self.records().items() if number not in self.before}
        self.before |= set(new)
        jobs: dict[str, list[dict[str, str]]] = {}
        for record in new.values():
            jobs.setdefault(record["JobName"], []).append(record)
        return jobs

    def written(self) -> dict[str, int]:
        """When each item's latent was written."""
        files = (self.folder / "results/hidden").glob("hidden_*.pt")
        return {path.stem.removeprefix("hidden_"): path.stat().st_mtime_ns for path in files}

    def waiting_job(self, name: str) -> str:
        """The number of a job that waits."""
        query = ("squeue", "--noheader", "--states=PENDING", f"--name={name}", "--format=%A")
        return wait_for(lambda: self.cluster.client(*query).split(), 90, f"the waiting job {name}")[0]

    def running_job(self) -> str:
        """The number of the one running job, once its model is loaded."""
        query = ("squeue", "--noheader", "--states=RUNNING", "--name=extract", "--format=%A")
        (number,) = wait_for(lambda: self.cluster.client(*query).split(), 60, "the job")
        logs = self.folder / "logs"
        loaded = "loaded the model"
        wait_for(lambda: any(loaded in log.read_text() for log in logs.glob(f"resident-*-{number}.log")), 60, loaded)
        return number


@pytest.fixture
def clustered(tmp_path, cluster) -> Iterator[SlurmStudy]:
    made = SlurmStudy(tmp_path / "a study – ü", cluster)
    yield made
    # This cluster does not track processes by cgroups, so that of a cancelled job some can remain.
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(made.folder.resolve()):
                process.kill()
