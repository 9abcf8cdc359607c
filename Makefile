# make demo    train, evaluate and look at a DeepLab, from nothing, in some five minutes on two cores
# make test    the test suite, in an environment of its own
# make lint    what the tests do not see
PYTHON ?= python3
DEMO_DIR ?= runs/demo
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: demo test lint clean

demo: .venv/ready
	.venv/bin/python train.py --config=configs/deeplab.py:data=shapes --workdir=$(DEMO_DIR)
	.venv/bin/python -m flaxseg evaluate --model $(DEMO_DIR) --data shapes --split val --out $(DEMO_DIR)/evaluation

test: .venv-test/ready
	.venv-test/bin/python -m pytest -n 2 $(PYTEST_ARGS)

lint: .venv-test/ready
	.venv-test/bin/python -m ruff format --check .
	.venv-test/bin/python -m ruff check .

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet -r requirements.txt
	touch $@

.venv-test/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python -m pip install --quiet --upgrade pip
	.venv-test/bin/python -m pip install --quiet -r requirements.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-test .cache build dist *.egg-info
