# Tessera: everything a developer or CI runs. `make help` lists it.
PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
BUF     := node_modules/.bin/buf
PROTOS  := $(wildcard protos/tessera/v1/*.proto)
STUBS   := $(PROTOS:.proto=_pb2.py)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help install protos kernels emulator lint format test unit parity e2e bench demo serve up train eval clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

install: $(VENV)/.installed protos kernels ## virtual environment, stubs and native libraries

$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	@# torch by its exact version first: a range would pull gigabytes of CUDA packages
	$(BIN)/pip install -q $$(grep '^torch==' requirements.lock)
	$(BIN)/pip install -q -c requirements.lock -e '.[client,gateway,worker,dev]'
	@touch $@

protos: $(STUBS) ## Python stubs beside the protos

protos/tessera/v1/%_pb2.py: protos/tessera/v1/%.proto | $(VENV)/.installed
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=protos --pyi_out=protos --grpc_python_out=protos $<

kernels: $(VENV)/.installed ## native libraries: CPU ops, resize, and CUDA ops where nvcc is
	$(BIN)/python kernels/build.py

emulator: $(VENV)/.installed ## the CUDA ops compiled for the CPU, for tests without a GPU
	$(BIN)/python kernels/build.py --emulator-only

$(BUF):
	npm install --no-save --no-package-lock --silent @bufbuild/buf@1.75.0

lint: install $(BUF) ## ruff, mypy, import rules, buf lint and breaking
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy gateway worker client kernels/tessera_kernels protos/tessera
	$(BIN)/lint-imports
	$(BUF) lint protos
	$(BUF) format --diff --exit-code protos
	$(BUF) breaking protos --against protos/tessera.v1.binpb

format: install $(BUF) ## put code and protos in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BUF) format -w protos

test: install emulator ## all tests: those without servers on all cores, then the others, which want them for themselves
	$(BIN)/pytest -n auto tests --ignore tests/e2e --ignore-glob '*/parity/test_grpc_*'
	$(BIN)/pytest tests/parity/test_grpc_*.py tests/e2e

unit: install emulator ## tests without servers
	$(BIN)/pytest -n auto tests/unit tests/rules

parity: install emulator ## comparisons with transformers
	$(BIN)/pytest tests/parity

e2e: install ## tests of the real pair
	$(BIN)/pytest tests/e2e

bench: install ## one table of ratios; rows in benchmarks/results/latest.json
	$(BIN)/python -m benchmarks

demo: install ## the pair on the embedded model: a picture, a clip, both at once
	$(BIN)/python examples/demo.py

serve: install ## the pair on the embedded model, until Ctrl-C
	$(BIN)/tessera serve

up: ## the pair in containers
	docker compose up --build --wait

train: install ## train the embedded model again (hours on a CPU)
	$(BIN)/python models/shapes/train.py

eval: install ## the embedded model's table
	$(BIN)/python models/shapes/eval.py

clean: ## remove what was built
	rm -rf $(VENV) node_modules build kernels/build kernels/tessera_kernels/lib *.egg-info
	rm -f protos/tessera/v1/*_pb2*.py protos/tessera/v1/*_pb2.pyi
