# make demo [PUBLISHED=DIR]   NADs of LeNet into runs/demo, drawn; with DIR also compared with the published arrays
# make test                   lint and tests; NAD_PUBLISHED=DIR adds the tests that need the published arrays

PYTHON ?= python3

.PHONY: demo test

.venv/installed: setup.py nad_jax/versions.py
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --editable .
	touch $@

.venv/installed-test: .venv/installed
	.venv/bin/pip install --quiet --editable '.[test]'
	touch $@

demo: .venv/installed
	.venv/bin/python -m experiments.main --config=configs/compute_nads.py:lenet --workdir=runs/demo $(if $(PUBLISHED),\
		--config.compare=$(PUBLISHED)/LeNet_NADs.npy --config.compare_singular_values=$(PUBLISHED)/LeNet_eigenvals.npy)

test: .venv/installed-test
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	JAX_PLATFORMS=cpu .venv/bin/python -m pytest -n 3 --dist loadscope
