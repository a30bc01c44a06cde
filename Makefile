# make accelerator-report     measures a GPU or TPU, in parts of nine minutes that go on where they were left:
#   [PART=1…4] [PUBLISHED=DIR] [CIFAR=DIR] [TORCH=PYTHON] [SIZE=smoke] [PYTHON_RUN=python3], see docs/accelerators.md
# make demo [PUBLISHED=DIR]   NADs of LeNet into runs/demo, drawn; with DIR also compared with the published arrays
# make docs                   the pages of docs/ and of the docstrings as a site, build/docs/index.html; warnings are errors
# make test                   lint and quick tests; NAD_PUBLISHED=DIR adds the tests that need the published arrays
# make test-thorough          lint and all tests, also those of two seconds and more (tests/thorough.txt)
# make test-cluster           the array for Slurm in a real one, of one node; needs Debian's slurm-wlm and munge

PYTHON ?= python3

.PHONY: accelerator-report demo docs lint test test-cluster test-thorough

.venv/installed: setup.py nad_jax/versions.py
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --editable .
	touch $@

.venv/installed-test: .venv/installed
	.venv/bin/pip install --quiet --editable '.[test]'
	touch $@

.venv/installed-docs: .venv/installed
	.venv/bin/pip install --quiet --editable '.[docs]'
	touch $@

# PYTHON_RUN is an interpreter that has what is needed: no .venv is made.
accelerator-report: $(if $(PYTHON_RUN),,.venv/installed-test)
	$(or $(PYTHON_RUN),.venv/bin/python) -m experiments.report $(and $(PART),--part=$(PART)) $(and $(SIZE),--size=$(SIZE)) \
		--published='$(PUBLISHED)' --cifar='$(CIFAR)' --torch='$(TORCH)' $(and $(MINUTES),--minutes=$(MINUTES)) $(OPTIONS)

demo: .venv/installed
	.venv/bin/python -m experiments.main --config=configs/compute_nads.py:lenet --workdir=runs/demo $(if $(PUBLISHED),\
		--config.compare=$(PUBLISHED)/LeNet_NADs.npy --config.compare_singular_values=$(PUBLISHED)/LeNet_eigenvals.npy)

docs: .venv/installed-docs
	JAX_PLATFORMS=cpu .venv/bin/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet docs build/docs

lint: .venv/installed-test
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .

test: lint
	JAX_PLATFORMS=cpu .venv/bin/python -m pytest -n 3 --dist loadscope -m 'not thorough'

test-thorough: lint
	JAX_PLATFORMS=cpu .venv/bin/python -m pytest -n 3 --dist loadscope

test-cluster: .venv/installed-test
	JAX_PLATFORMS=cpu .venv/bin/python -m pytest -rs tests/cluster/slurm_array.py || [ $$? -eq 5 ] # skipped
