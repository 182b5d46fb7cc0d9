"""What Slurm's reasons mean to a user."""

from __future__ import annotations

import pytest
from snakemake_executor_plugin_gpi_slurm.pending import explain

# Reasons as squeue 22.05 and sbatch gave them on a test cluster, or as Slurm's source has them, by the flag that mends.
NEVER = {
    "extract:runtime=": [
        "PartitionTimeLimit",
        "QOSMaxWallDurationPerJobLimit",
        "AssocMaxCpuMinutesPerJobLimit",
        "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
    ],
    "in_flight=": [
        "PartitionConfig",
        "BadConstraints",
        "QOSMaxCpuPerJobLimit",
        "AssocMaxCpuPerNode",
        "sbatch: error: CPU count per node can not be satisfied\n"
        "sbatch: error: Batch job submission failed: Requested node configuration is not available",
    ],
    "extract:mem_mb=": [
        "MaxMemPerLimit",
        "QOSMaxMemoryPerJob",
        "AssocMaxMemPerNode",
        "sbatch: error: Memory specification can not be satisfied",
    ],
    "device=cpu": [
        "QOSMaxGRESPerJob",
        "AssocMaxGRESPerNode",
        "sbatch: error: Invalid generic resource (gres) specification",
    ],
    "slurm_partition=": [
        "sbatch: error: invalid partition specified: nowhere\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified",
        "sbatch: error: Batch job submission failed: Required partition not available (inactive or drain)",
        "sbatch: error: Batch job submission failed: No partition specified or system default partition",
        "sbatch: error: Batch job submission failed: User's group not permitted to use this partition",
    ],
    "slurm_account=": [
        "InvalidAccount",
        "AccountNotAllowed",
        "Job's account not known, so it can't use this partition (acct allows lab)",
        "Job's account not permitted to use this partition (a100 allows research not lab)",
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
        "AssocMaxNodePerJobLimit",
    ],
    "--qos=": [
        "InvalidQOS",
        "QOSNotAllowed",
        "QOSMinGRES",
        "QOSMinCpuNotSatisfied",
        "Job's QOS not permitted to use this partition (h200 allows long not normal)",
        "sbatch: error: Batch job submission failed: Invalid qos specification",
    ],
    "slurm_extra=": [
        "DependencyNeverSatisfied",
        "ReservationDeleted",
        "sbatch: error: Batch job submission failed: Invalid feature specification",
        "sbatch: error: Batch job submission failed: Invalid license specification",
        "sbatch: error: Batch job submission failed: Requested reservation is invalid",
        "launch failed requeued held",
        "JobHoldMaxRequeue",
    ],
    "--jobs 1": [
        "sbatch: error: AssocMaxSubmitJobLimit\n"
        "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size "
        "and/or time limits)",
    ],
}
MAY_PASS = {
    "scontrol release": ["JobHeldUser"],
    "ask them": ["JobHeldAdmin"],
    "slurm_partition=": [
        "PartitionDown",
        "PartitionInactive",
        "PartitionNodeLimit",
        "ReqNodeNotAvail",
        "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
        "NodeDown",
    ],
    "extract:runtime=": [
        "ReqNodeNotAvail, Reserved for maintenance",
        "QOSGrpWallLimit",
    ],
    "no budget left": ["AssocGrpCPUMinutesLimit", "QOSGrpBillingMinutes"],
    "no more time at a time": ["AssocGrpCPURunMinutesLimit", "QOSGrpBillingRunMinutes"],
    "wait": ["BeginTime"],
    "before it in the queue (Priority)": ["Priority"],
    "in use (Resources)": ["Resources"],
    "--jobs": ["QOSMaxJobsPerUserLimit", "AssocMaxJobsLimit", "MaxJobsPerAccount", "QOSMaxSubmitJobPerUserLimit"],
    "in_flight=": ["QOSMaxCpuPerUserLimit", "AssocGrpCpuLimit", "MaxCpuPerAccount", "QOSMaxNodePerUserLimit"],
    "extract:mem_mb=": ["QOSGrpMemLimit", "MaxMemoryPerAccount"],
    "device=cpu": ["QOSMaxGRESPerUser", "AssocGrpGRES"],
    "slurm_account=": ["AssocGrpSubmitJobsLimit", "AccountingPolicy", "QOSUsageThreshold"],
    "Slurm's reason": ["Licenses", "Reservation", "Dependency", "SomethingOfSlurm29"],
    "controller does not answer": ["sbatch: error: Unable to contact slurm controller (connect failure)"],
}


@pytest.mark.parametrize(
    ("never", "reason", "flag"),
    [
        (never, reason, flag)
        for never in (True, False)
        for flag, reasons in (MAY_PASS, NEVER)[never].items()
        for reason in reasons
    ],
)
def test_a_reason_is_told_in_words_with_what_mends_it_and_whether_waiting_does(never, reason, flag):
    will_never_pass, words = explain(reason)
    assert will_never_pass == never
    assert flag in words
    assert reason.removeprefix("sbatch: error: ").removeprefix("Batch job submission failed: ").splitlines()[0] in words
    assert "sbatch: error" not in words
    assert "{" not in words


def test_the_advice_names_the_rule_of_the_job():
    assert "stack:runtime=" in explain("PartitionTimeLimit", "stack")[1]


def test_nodes_that_are_unavailable_are_not_listed():
    assert explain("ReqNodeNotAvail, UnavailableNodes:n[1-2,5]") == explain("ReqNodeNotAvail")


@pytest.mark.parametrize("reason", ["None", "", "Prolog"])
def test_of_what_is_soon_over_nothing_is_told(reason):
    assert explain(reason) == (False, "")
