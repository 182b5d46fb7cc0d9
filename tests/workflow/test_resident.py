"""The resident in whole runs: it outlives none of them, and they survive its death."""

from __future__ import annotations

import signal

import pytest
from helpers.study import Study, residents, wait_for

pytestmark = [pytest.mark.fault("kill"), pytest.mark.long]


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


def test_a_run_survives_the_death_of_its_resident(study):
    study.pictures(20, strength=1, num_inference_steps=30)
    run = study.start()
    wait_for(lambda: len(list((study.folder / "results/hidden").glob("*.pt"))) >= 5, 120, "five items")
    residents(study.folder)[0].kill()
    output = run.communicate(timeout=300)[0]
    assert run.returncode == 0, output
    digests = study.digests()
    assert len(digests) == 20
    logs = "".join(path.read_text() for path in (study.folder / "logs").glob("resident*.log"))
    assert logs.count("loaded the model") == 2
    other = Study(study.folder.parent / "undisturbed")
    other.pictures(20, strength=1, num_inference_steps=30)
    other.run()
    assert other.digests() == digests
