# make demo    train, evaluate and look at a DeepLab, from nothing, in some five minutes on two cores
# make test    the quick test suite, in an environment of its own; says what it left out
# make test-all  everything, with every peer that the tests compare with
# make lint    format, lint, and the order of imports
PYTHON ?= python3
DEMO_DIR ?= runs/demo
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

# Test processes. Each holds up to 4 GB of compiled programs.
WORKERS ?= 2
# Worksteal gives each process a contiguous part, so that the tests of a file share what they compile.
PYTEST = .venv-test/bin/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: demo test test-all test-rest lint clean

demo: .venv/ready
	.venv/bin/python train.py --config=configs/deeplab.py:data=shapes --workdir=$(DEMO_DIR)
	.venv/bin/python -m flaxseg evaluate $(DEMO_DIR) --data shapes --split val --out $(DEMO_DIR)/evaluation

test: .venv-test/ready
	$(PYTEST) -m "not slow and not peer" $(PYTEST_ARGS)

test-all: .venv-test/peers
	FLAXSEG_REQUIRE_PEERS=1 $(PYTEST) $(PYTEST_ARGS)

# What `make test` leaves out.
test-rest: .venv-test/peers
	FLAXSEG_REQUIRE_PEERS=1 $(PYTEST) -m "slow or peer" $(PYTEST_ARGS)

lint: .venv-test/ready
	.venv-test/bin/python -m ruff format --check .
	.venv-test/bin/python -m ruff check .
	.venv-test/bin/lint-imports

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

# The CPU build of torch first, so that nothing asks for another one. Three come without what they
# depend on: torchvision would bring its own torch; the scores of cityscapesscripts need little of what
# it asks for; jax2onnx pins an orbax-checkpoint that is too old here and is not used in what is tested.
.venv-test/peers: .venv-test/ready
	.venv-test/bin/python -m pip install --quiet "torch==2.13.0"
	.venv-test/bin/python -m pip install --quiet --no-deps "torchvision==0.28.0" "cityscapesscripts>=2.2" "pyquaternion>=0.9"
	.venv-test/bin/python -m pip install --quiet -e ".[peers,onnx]"
	.venv-test/bin/python -m pip install --quiet --no-deps "jax2onnx==0.17.1"
	touch $@

clean:
	rm -rf .venv .venv-test .cache .mypy_cache .import_linter_cache build dist *.egg-info
