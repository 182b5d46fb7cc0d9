"""The resident in whole runs: it outlives none of them. test_faults.py kills it."""

from __future__ import annotations

import signal

import psutil
import pytest
from helpers.study import Study, residents, wait_for

pytestmark = pytest.mark.long


@pytest.mark.fault("kill")
@pytest.mark.parametrize("ending", ["error", "SIGINT", "SIGKILL"])
def test_nothing_is_left_behind_after_a_run(study, ending):
    """Nor after the next one, which succeeds."""
    study.environment["TMPDIR"] = str(study.tmp)
    study.pictures(4, strength=1, num_inference_steps=4 if ending == "error" else 999)
    if ending == "error":
        (study.folder / "pictures/p1.png").write_text("no picture")
    run = study.start()
    resident = wait_for(lambda: residents(study.folder), what="the resident")[0]
    if ending.startswith("SIG"):
        wait_for(lambda: resident.cpu_times().user > 3, what="the resident to work")
        run.send_signal(getattr(signal, ending))
    output = run.communicate(timeout=200)[0]
    assert run.returncode != 0, output
    check_nothing_left(study)
    if ending == "SIGKILL":
        study.run("--unlock")
    study.pictures(4, strength=1, num_inference_steps=4)
    study.run()
    assert len(study.digests()) == 4
    check_nothing_left(study)


def check_nothing_left(study: Study) -> None:
    wait_for(lambda: not residents(study.folder), 60, "the resident to end")
    assert not [*study.tmp.rglob("gpi-latents*"), *(study.folder / "results").rglob("*.tmp")]


@pytest.mark.fault("stranger")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("resident", [True, False])
def test_prompts_and_paths_stand_on_no_command_line(study, resident):
    """All users of a machine can read those, by `ps`."""
    study.config(resident=resident)
    secret = {"prompt": "a secret", "negative_prompt": "another secret"}
    study.pictures(2, strength=1, num_inference_steps=200, **secret)
    run = study.start()
    seen: set[str] = set()

    def look() -> bool:
        for process in psutil.process_iter():
            try:
                if process.cwd() == str(study.folder.resolve()):
                    seen.add(" ".join(process.cmdline()))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                pass
        return run.process.exitcode is not None

    wait_for(look, 200, "the run to end")
    assert run.returncode == 0, run.communicate()[0]
    clients = [line for line in seen if ("extract.py" if resident else "resident.py once") in line]
    assert len(clients) >= 4  # of each item, the client and its shell
    assert not [line for line in seen if "secret" in line or "pictures" in line]


def test_items_wait_for_the_resident_whatever_the_cores_and_snakemake_looks_for_jobs_only_when_one_ended(study):
    study.pictures(4)
    output = study.run("--verbose", "--resources", "in_flight=3", "--until", "extract", cores=2).output
    assert "Execute 3 jobs..." in output
    # The model, the first items, and after each end; by Snakemake's rate limit, one more a second for each of these.
    assert output.count("Resources before job selection") <= 1 + 1 + 4
    unlimited = ("--verbose", "--forceall", "--until", "extract", "--resources", "mem_mb=999999")
    for resident, options in ((True, unlimited), (False, unlimited[:-2])):
        study.config(resident=resident)
        output = study.run(*options, cores=2).output
        assert "Execute 2 jobs..." in output
        assert "Execute 4 jobs..." not in output
