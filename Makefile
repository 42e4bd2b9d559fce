# Everything runs in an environment of its own, made on first use. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# On Linux, PyPI's torch brings CUDA along; PyTorch's own CPU index does not: make test TORCH_INDEX='--index-url <that index>'
TORCH ?= torch==2.13.0
TORCH_INDEX ?=

.PHONY: demo test more-ready test-more test-aarch64 check check-native bench clean

# The demo flies and lands without torch.
$(VENV)/demo-ready: pyproject.toml $(wildcard bitstream/csrc/*)
	@echo 'Installing into $(VENV); this takes about a minute.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[onboard,ground,bench]'
	touch $@

$(VENV)/dev-ready: $(VENV)/demo-ready
	@echo 'Installing torch and the development tools into $(VENV); this takes a minute or two.'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_INDEX) '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(VENV)/demo-ready
	$(BIN)/python -m perigee.benchmarks.demo

test: $(VENV)/dev-ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

# What needs more than the ordinary tests: a browser, GDAL's programs, an archive's engine and an S3 server. Debian's packages need root.
more-ready: $(VENV)/dev-ready
	apt-get install -y -q chromium gdal-bin > /dev/null
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[archive]' 'playwright>=1.45' 'pystac>=1.10' jsonschema
	$(PYTHON) -m venv build/moto && build/moto/bin/python -m pip install --quiet --disable-pip-version-check 'moto[server]>=5'
	mkdir -p build/page && cd build/page && npm pack --silent axe-core@4.14.1 && tar xzf axe-core-4.14.1.tgz

test-more:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/page tests/archive tests/ground/test_scenes.py

# The same symbols on an emulated arm64 Debian, in an hour or less; needs root and says what else.
test-aarch64: $(VENV)/demo-ready
	PYTHON=$(abspath $(BIN)/python) tests/aarch64/run.sh

check: $(VENV)/dev-ready check-native
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror bitstream/csrc/*.[ch] tests/native/*.[ch]
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/hadolint deploy/*.Dockerfile
	$(BIN)/python docs/reference.py --check
	$(BIN)/python tests/check_wheel.py

# The compiled coder and prior under sanitisers, in half a minute: every kernel against the plain one, mutated segments, priors
# of odd sizes. A long run: make check-native CHECKASM_CASES=50000 FUZZ_SEGMENTS=10000000
CHECKASM_CASES ?= 2000
FUZZ_SEGMENTS ?= 100000
check-native: build/native/checkasm build/native/fuzz
	build/native/checkasm $(CHECKASM_CASES)
	build/native/fuzz $(FUZZ_SEGMENTS)

build/native/%: tests/native/%.c tests/native/random.h $(wildcard bitstream/csrc/*)
	mkdir -p $(@D)
	$(CC) -g -O1 -Wall -Wextra -fsanitize=address,undefined -fno-sanitize-recover=all -o $@ $< \
	    $(filter-out %/module.c,$(filter bitstream/csrc/%.c,$^)) -lm

bench: $(VENV)/dev-ready
	$(BIN)/python -m perigee.benchmarks.flops
	$(BIN)/python -m perigee.benchmarks.rate_distortion
	$(BIN)/python -m perigee.benchmarks.exactness
	$(BIN)/python -m perigee.benchmarks.latency

clean:
	rm -rf build dist demo-output $(VENV)
