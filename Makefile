# Everything for a fresh machine with Python 3.11 or newer, pip and make.
PYTHON ?= python3
CORES ?= all
BIN := .venv/bin

RULES := Snakefile scripts/rules/*.smk
PYTEST := $(BIN)/pytest tests -n 2 --dist loadgroup --durations=20

.PHONY: install run gpi test test-all benchmark benchmark-slurm fuzz validation lint format reference lock demo demo-model

install: .venv/run

# What `gpi_latents.estimate` needs beside.
gpi: .venv/gpi

# The last line of a run repeats the command.
run: export GPI_COMMAND = make run
run: .venv/run
	$(BIN)/snakemake --cores $(CORES)

# The quick tests; test-all adds the long ones.
test: .venv/dev
	$(PYTEST) -m "not long"

test-all: .venv/dev
	$(PYTEST)

# What one job per item costs, side by side with other ways.
benchmark: .venv/dev
	$(BIN)/python tests/benchmarks/resident.py

# The same on a test cluster; needs Debian's slurmctld, slurmd, slurm-client and munge.
benchmark-slurm: .venv/dev
	$(BIN)/python tests/benchmarks/slurm.py

# Disturb runs at random for an hour; the results must be those of undisturbed ones.
fuzz: .venv/dev
	$(BIN)/python tests/fuzz.py --minutes 60

# Compare estimates from the latents with the effect that was put in; writes docs/validation*.csv and .png. For its part on
# photographs, see docs/validation.md.
validation: .venv/dev
	$(BIN)/python tests/validation/study.py

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check $(RULES)
	$(BIN)/snakemake --lint

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt $(RULES)

# Write config/schema.json and the tables of config/README.md again, from the settings.
reference: .venv/run
	$(BIN)/python scripts/reference.py

# Draw the demo's pictures and write its sheet again.
demo: .venv/run
	$(BIN)/python scripts/demo/make_sheet.py

# Train the demo's model again (about 50 minutes on 2 cores), and measure how good it is (10 more).
demo-model: .venv/run
	$(BIN)/python scripts/demo/train.py
	$(BIN)/python scripts/demo/train.py --measure

# Resolve the pins again, for pip and for conda.
lock: .venv/dev
	cd envs && ../$(BIN)/pip-compile -q --strip-extras --no-header --no-emit-find-links --no-emit-index-url \
	    --no-annotate $(LOCKFLAGS) requirements.in
	cd envs && ../$(BIN)/pip-compile -q --strip-extras --no-header --no-emit-find-links --no-emit-index-url \
	    --no-annotate $(LOCKFLAGS) requirements-dev.in
	sed -i 's/+cpu//' envs/requirements.txt
	{ printf '# Made by `make lock` from requirements.txt, which pins the same for pip.\n'; \
	  printf 'channels:\n  - conda-forge\n  - nodefaults\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n'; \
	  sed -n 's/^\([a-z0-9].*==.*\)$$/      - \1/p' envs/requirements.txt; } > envs/environment.yaml

# The package itself comes without its dependencies, so that the pins are those of the requirements.
.venv/run: envs/requirements.txt pyproject.toml scripts/plugins/pyproject.toml
	@echo 'Installing about 100 packages into .venv: 6 GB on Linux, where torch of PyPI brings CUDA, else 2 GB.'
	@echo 'It takes some minutes, the second time seconds.'
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement envs/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable . --editable scripts/plugins
	touch .venv/run

.venv/gpi: .venv/run envs/requirements-gpi.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement envs/requirements-gpi.txt
	touch .venv/gpi

.venv/dev: .venv/gpi envs/requirements-dev.txt
	$(BIN)/python -m pip install --quiet --requirement envs/requirements-dev.txt
	touch .venv/dev
