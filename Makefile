# Everything runs in an environment of its own, made on first use. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# On Linux, PyPI's torch brings CUDA along; PyTorch's own CPU index does not: make test TORCH_INDEX='--index-url <that index>'
TORCH ?= torch==2.13.0
TORCH_INDEX ?=

.PHONY: demo test test-aarch64 check check-native bench clean

# The demo flies and lands without torch.
$(VENV)/demo-ready: pyproject.toml $(wildcard bitstream/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[onboard,ground,bench]'
	touch $@

$(VENV)/dev-ready: $(VENV)/demo-ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_INDEX) '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(VENV)/demo-ready
	$(BIN)/python -m perigee.benchmarks.demo

test: $(VENV)/dev-ready
	$(BIN)/python -m pytest

# The same symbols on an emulated arm64 Debian, in an hour or less; needs root and says what else.
test-aarch64: $(VENV)/demo-ready
	PYTHON=$(abspath $(BIN)/python) tests/aarch64/run.sh

check: $(VENV)/dev-ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tests/check_wheel.py

# The compiled coder and prior under sanitisers: mutated segments, priors of odd sizes.
FUZZ_SEGMENTS ?= 1000000
check-native:
	mkdir -p build
	$(CC) -g -O1 -Wall -Wextra -fsanitize=address,undefined -fno-sanitize-recover=all -o build/fuzz tests/native/fuzz.c
	build/fuzz $(FUZZ_SEGMENTS)

bench: $(VENV)/dev-ready
	$(BIN)/python -m perigee.benchmarks.flops
	$(BIN)/python -m perigee.benchmarks.rate_distortion
	$(BIN)/python -m perigee.benchmarks.exactness
	$(BIN)/python -m perigee.benchmarks.latency

clean:
	rm -rf build dist demo-output $(VENV)
