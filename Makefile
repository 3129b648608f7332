# Two commands do all the set-up: `make demo` and `make test`. Both work in .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check bench

.venv/runtime: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/dev: .venv/runtime
	$(PIP) -e .[train,dev]
	touch $@

# install, simulate an R=4 FLAIR scan, reconstruct it, show the result
demo: .venv/runtime
	mkdir -p demo
	$(BIN)/dpmrecon simulate demo/scan.h5 --contrast flair --R 4
	$(BIN)/dpmrecon replay demo/scan.h5 --out demo --truth demo/scan_truth.npy
	@echo "Look at demo/preview.png; the figures are in demo/report.json."

test: .venv/dev
	$(BIN)/python -m pytest -q

# format, lint, types and tests: what CI runs
check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy gadgets/dpmrecon training/dpmtrain
	$(BIN)/python -m pytest -q

# every method on two R=4 scans, on the CPU: the measured ones where they are, else simulated ones. BART and deepinv
# join in where they are installed (`pip install -e .[bench]`); without deepinv about 1300 network evaluations a slice
BENCH_DATA ?= ../shared/data/ismrmrd
BENCH_OPTIONS ?=
bench: .venv/dev
	mkdir -p demo
	if test -f $(BENCH_DATA)/t1_brain_r4.h5; then \
		$(BIN)/dpmtrain bench $(BENCH_DATA)/t1_brain_r4.h5 --truth $(BENCH_DATA)/t1_brain_truth.npy \
			--mask $(BENCH_DATA)/t1_brain_mask.npy --json demo/bench_t1.json $(BENCH_OPTIONS) && \
		$(BIN)/dpmtrain bench $(BENCH_DATA)/flair_3slices_r4.h5 --truth $(BENCH_DATA)/flair_3slices_truth.npy \
			--json demo/bench_flair.json $(BENCH_OPTIONS); \
	else \
		for contrast in t1 flair; do \
			$(BIN)/dpmrecon simulate demo/bench_$$contrast.h5 --contrast $$contrast --R 4 --slices 1 && \
			$(BIN)/dpmtrain bench demo/bench_$$contrast.h5 --truth demo/bench_$${contrast}_truth.npy \
				--json demo/bench_$$contrast.json $(BENCH_OPTIONS) || exit 1; \
		done; \
	fi
