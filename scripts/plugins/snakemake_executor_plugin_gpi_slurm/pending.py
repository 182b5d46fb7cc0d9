"""Slurm's reasons why a job waits or is refused, in words, and which of them no waiting mends.

They are the codes of https://slurm.schedmd.com/job_reason_codes.html, the sentences that Slurm's controller puts in
their place, and what sbatch says when it refuses a job.
"""

from __future__ import annotations

import re

PARTITION = "--default-resources slurm_partition=..."
ACCOUNT = "--default-resources slurm_account=..."
EXTRA = "--default-resources \"slurm_extra='...'\""
CORES = "--resources in_flight=..."
MEMORY = "--set-resources {rule}:mem_mb=..."
TIME = "--set-resources {rule}:runtime=... or smaller groups (--group-components extract=25)"
GPU = "--set-resources {rule}:gpu_model=... or --config device=cpu"
JOBS = "--jobs 1"

# What is found in the reason, what it means, and what mends it. The first line that fits counts.
NEVER = {
    "PartitionTimeLimit|Requested time limit": (
        "it asks for more time than its partition allows",
        f"{TIME} or {PARTITION}",
    ),
    "PartitionConfig|BadConstraints|MaxMemPerLimit|node config|emory spec|CPU count|processors": (
        "no node of its partition has all that it asks for",
        f"{CORES} or {MEMORY} or {GPU} or {PARTITION}",
    ),
    "policy": ("it is beyond a limit of your account or QOS", f"{JOBS} or {CORES} or {MEMORY} or {TIME} or {ACCOUNT}"),
    "generic resource": ("this cluster has no GPUs of that name", GPU),
    "group not|inactive or drain|artition( name)? spec|default partition": (
        "it cannot go to that partition; sinfo lists all",
        PARTITION,
    ),
    "InvalidAccount|AccountNotAllowed|account (not|or)|bank account": (
        "that account cannot be used there; 'sacctmgr show associations user=$USER' lists yours",
        f"{ACCOUNT} or {PARTITION}",
    ),
    "InvalidQOS|QOSNotAllowed|QOS not|qos spec": (
        "its QOS (quality of service) cannot be used there",
        f"--qos=... in {EXTRA} or {PARTITION}",
    ),
    "DependencyNever|ReservationDeleted|DeadLine|feature|eservation is|requested reservation|license": (
        "what your own flags of sbatch ask for cannot be had",
        EXTRA,
    ),
    "JobHoldMaxRequeue|JobLaunchFailure|held state|requeued held": (
        "Slurm could not start it on its node, and holds it",
        f"run again, or --exclude=NODE in {EXTRA}",
    ),
}
MAY_PASS = {
    "JobHeldUser": ("you hold it, or someone for you", "scontrol release with its number"),
    "JobHeldAdmin": ("the cluster's staff hold it", "ask them"),
    "PartitionDown|PartitionInactive": ("its partition starts no jobs at present", f"wait, or {PARTITION}"),
    "maintenance": ("a maintenance begins before it could end", f"wait, or {TIME}"),
    "ReqNodeNotAvail|DOWN, DRAINED|NodeDown": (
        "the nodes that can hold it are out of service or reserved",
        f"wait, or {PARTITION}",
    ),
    # Also of drained nodes, says Slurm's documentation.
    "PartitionNodeLimit": ("its partition has too few nodes in service for it", f"wait, or {PARTITION}"),
    "BeginTime": (
        "it may not start yet",
        "wait; --begin in slurm_extra sets such a time, and Slurm after a failed start",
    ),
    "Priority": ("other jobs are before it in the queue", ""),
    "Resources": ("the nodes that can hold it are in use", ""),
    "contact|timed out|emporarily": ("Slurm's controller does not answer", "run again later"),
}
SILENT = ("", "None", "Prolog", "Cleaning")  # soon over

# Accounts and QOS have a hundred limits: AssocGrpCpuLimit, QOSMaxMemoryPerJob, MaxGRESPerAccount ...
LIMIT = re.compile(r"(?P<whose>Assoc|QOS|Max|AccountingPolicy)\w*$")
LIMITED = {
    "Minutes|Wall|TimeLimit": ("time", TIME),
    "Cpu|CPU": ("CPU cores", CORES),
    "Mem": ("memory", MEMORY),
    "GRES": ("GPUs", GPU),
    "(?<!Per)Job": ("jobs", JOBS),
    "": ("resources", f"{JOBS} or {CORES} or {MEMORY}"),
}


def explain(reason: str, rule: str = "extract") -> tuple[bool, str]:
    """What a reason means.

    Args:
        reason: why a job waits, as in squeue's %r, or what sbatch printed when it refused the job.
        rule: whose resources the advice names.

    Returns:
        Whether no waiting mends it, and the words with the flag that does: "meaning (reason): flag or flag". No
        words if there is nothing to tell.
    """
    # Without the names of unavailable nodes, which may be thousands and change all the time.
    left_out = "sbatch: (error: )?|Batch job submission failed: |, UnavailableNodes:.*"
    reason = re.sub(left_out, "", reason).strip().replace("\n", "; ")
    for never, table in ((True, NEVER), (False, MAY_PASS)):
        for pattern, (meaning, mend) in table.items():
            if re.search(pattern, reason):
                return never, f"{meaning} ({reason})" + (f": {mend.format(rule=rule)}" if mend else "")
    if match := LIMIT.match(reason):
        never, words = _limit(reason, "your account" if match["whose"] == "Assoc" else "its QOS or account")
        return never, words.format(rule=rule)
    return False, "" if reason in SILENT else f"Slurm's reason: {reason}"


def _limit(reason: str, whose: str) -> tuple[bool, str]:
    what, mend = next(words for pattern, words in LIMITED.items() if re.search(pattern, reason))
    if reason.startswith("QOSMin"):
        return True, f"it asks for less {what} than its QOS demands of a job ({reason}): --qos=... in {EXTRA}"
    if re.search("Max.*Per(Job|Node)", reason):
        return True, f"it asks for more {what} than {whose} may have in a job ({reason}): {mend} or {ACCOUNT}"
    if re.search("Grp.*(?<!Run)Minutes", reason):
        return False, f"{whose} has no budget left for it ({reason}): {mend} or {ACCOUNT}"
    advice = f"wait for other jobs to end; if there are none, {mend} or {ACCOUNT}"
    return False, f"{whose} may have no more {what} at a time ({reason}): {advice}"
