"""Jobs on a real Slurm that do not start: told why, or ended if waiting cannot help, with the flag that mends it."""

from __future__ import annotations

import pytest
from helpers.study import wait_for


@pytest.mark.long
def test_what_no_node_has_is_refused_with_the_numbers_before_anything_is_submitted(clustered):
    clustered.pictures(1)
    run = clustered.run("--set-resources", "extract:mem_mb=99000", fails=True)
    assert (
        "asks for 99000 MB of memory; the largest node of this cluster has 64000: --set-resources extract:mem_mb=64000"
    ) in run.text
    run = clustered.run("--default-resources", "slurm_partition=small", fails=True)
    assert "asks for 60 minutes; partition small allows 30: --set-resources stack:runtime=30" in run.text
    assert not clustered.slurm_jobs()


@pytest.mark.long
def test_jobs_that_can_never_start_end_with_the_reason_and_the_flag_and_cost_no_other_item(clustered):
    client = clustered.cluster.client
    clustered.pictures(6)
    failed = client("sbatch", "--parsable", "--output=/dev/null", "--wrap=false").strip()
    extra = {
        "p0": f"--dependency=afterok:{failed}",
        "p1": "--partition=lab",
        "p2": "--partition=small --time=60",
        "p3": "--partition=small --cpus-per-task=8",
        "p4": "--constraint=none",
    }
    expected = [
        "cannot be had (DependencyNeverSatisfied): --default-resources \"slurm_extra='...'\"",
        "that account cannot be used there; 'sacctmgr show associations user=$USER' lists yours (Job's account not",
        "it asks for more time than its partition allows (PartitionTimeLimit): --set-resources extract:runtime=",
        "no node of its partition has all that it asks for (PartitionConfig): --resources in_flight=",
        "cannot be had (Invalid feature specification): --default-resources \"slurm_extra='...'\"",
    ]
    resources = ("--set-resources", f"extract:slurm_extra={extra}.get(wildcards.id, '')")
    # Without accounting, Slurm takes any account where the partition names none.
    account = ("--default-resources", "slurm_account=anyone")
    run = clustered.run("--group-components", "extract=1", *resources, *account, fails=True)
    for words in expected:
        assert run.text.count(words) == 1, words
    assert run.text.count("would wait for ever, and was cancelled") == 4
    assert run.text.count("Slurm did not accept the job") == 1
    assert set(clustered.digests()) == {"p5"}
    assert not client("squeue", "--noheader").strip()


@pytest.mark.long
def test_what_may_pass_is_told_once_for_all_jobs_which_then_run_on_a_node_of_two_cores(clustered):
    def told(words: str) -> None:
        wait_for(lambda: words in run.text(), 60, words)

    def control(*command: str) -> None:
        clustered.cluster.client("scontrol", *command)

    clustered.pictures(20)
    control("update", "partitionname=small", "state=DOWN")
    control("update", "nodename=small", "state=DRAIN", "reason=test")
    try:
        small = ("--default-resources", "slurm_partition=small", "--set-resources", "stack:runtime=20")
        run = clustered.start("--group-components", "extract=10", *small)
        clustered.waiting_job("extract")
        told("its partition starts no jobs at present (PartitionDown)")
        control("hold", "jobname=extract")
        told("hold it (JobHeld")
        control("release", "jobname=extract")
        control("update", "partitionname=small", "state=UP")
        told("the nodes that can hold it are out of service or reserved (")
    finally:
        control("update", "partitionname=small", "state=UP")
        control("update", "nodename=small", "state=RESUME")
    output = run.communicate(timeout=240)[0]
    assert run.returncode == 0, output
    for words in ("starts no jobs at present", "hold it (JobHeld", "are out of service or reserved"):
        assert output.count(words) == 1
    assert [record["CPUs/Task"] for record in clustered.slurm_jobs()["extract"]] == ["2", "2"]
    assert len(clustered.index()) == 20


@pytest.mark.long
def test_a_job_for_several_partitions_goes_on_waiting_if_one_of_them_cannot_take_it(clustered):
    """Slurm's reason is then that of this one, while the job waits for its turn in the other."""
    client = clustered.cluster.client
    clustered.pictures(4)
    client("sbatch", "--job-name=other", "--partition=main", "--cpus-per-task=32", "-o/dev/null", "--wrap=sleep 100")
    run = clustered.start("--default-resources", "slurm_partition=main,small", "--resources", "in_flight=4")
    clustered.waiting_job("extract")
    words = "one of its partitions main,small cannot take it: no node of its partition has all"
    wait_for(lambda: words in run.text(), 60, words)
    client("scancel", "--name=other")
    output = run.communicate(timeout=120)[0]
    assert run.returncode == 0, output
    assert len(clustered.index()) == 4
