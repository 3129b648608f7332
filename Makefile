# Two commands do all the set-up: `make demo` and `make test`. Both work in .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# two processes, a file of tests in one: its fixtures are made once
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile

.PHONY: demo test check docs bench bench-gpu image image-gadgetron image-openrecon image-test

.venv/runtime: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/dev: .venv/runtime
	$(PIP) -e .[train,study,bulk,docs,dev]
	touch $@

# install, simulate an R=4 FLAIR scan, reconstruct it, show the result
demo: .venv/runtime
	mkdir -p demo
	$(BIN)/dpmrecon simulate demo/scan.h5 --contrast flair --R 4
	$(BIN)/dpmrecon replay demo/scan.h5 --out demo --truth demo/scan_truth.npy
	@echo "Look at demo/preview.png; the figures are in demo/report.json."

test: .venv/dev
	$(PYTEST)

# format, lint, arrows between modules, types and tests: what CI runs
check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy gadgets/dpmrecon training/dpmtrain
	$(PYTEST)

# the documentation, build/docs/index.html; a warning is an error
docs: .venv/dev
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . build/docs
	@echo "Open build/docs/index.html in a browser."

# every method on the same scans, side by side, on the CPU: R = 4 in minutes; FULL=1 R = 3..8 in hours, the results to
# be committed. A run that was stopped goes on. The measured scans are taken where they are, else phantoms; BART and
# deepinv (`pip install -e .[bench]`) join in where they are installed.
BENCH_DATA ?= ../shared/data
BENCH_OPTIONS ?=
ifdef FULL
BENCH_SIZE := --R 3,4,5,6,7,8 --out training/reports/bench
else
BENCH_SIZE := --contrasts flair,t1 --slices 1 --patient-slices 0 --out demo/bench
endif
bench: .venv/dev
	$(BIN)/dpmtrain bench $(if $(wildcard $(BENCH_DATA)/ismrmrd),--data $(BENCH_DATA)) $(BENCH_SIZE) $(BENCH_OPTIONS)

# seconds a 320x320 slice of 16 coils, the default network and one of the paper's size, with the roofline: for a GPU.
# On a CPU, small: make bench-gpu BENCH_OPTIONS="--matrix 64 --coils 4 --slices 2 --steps 4 --dps-steps 4"
bench-gpu: .venv/dev
	$(BIN)/dpmtrain bench-gpu --recipe training/recipes/paper.toml --out demo/bench_gpu $(BENCH_OPTIONS)

# images to deploy (docs/deploy.md): the service, and Gadgetron with dpmrecon inside. TORCH=cu130 for NVIDIA GPUs
TORCH ?= cpu
LABELS = $(shell $(PYTHON) docker/labels.py)
image:
	docker build --file docker/Dockerfile --build-arg TORCH=$(TORCH) $(LABELS) --tag dpmrecon:$(TORCH) .

image-gadgetron:
	docker build --file docker/Dockerfile.gadgetron --build-arg TORCH=$(TORCH) $(LABELS) --tag dpmrecon-gadgetron:$(TORCH) .

# the service as a scanner's OpenRecon takes it: build/OpenRecon_*.zip, an image and its manual (docs/openrecon.md)
OPENRECON = $(BIN)/python docker/openrecon/label.py $(if $(filter cpu,$(TORCH)),,--gpu)
image-openrecon: .venv/runtime image
	docker build --file docker/openrecon/Dockerfile --build-arg BASE=dpmrecon:$(TORCH) \
		--build-arg OPENRECON="$$($(OPENRECON) --base64)" --tag "$$($(OPENRECON) --tag)" docker/openrecon
	mkdir -p build
	docker save --output build/openrecon.tar "$$($(OPENRECON) --tag)"
	$(BIN)/python docker/openrecon/package.py build/openrecon.tar --out build
	rm build/openrecon.tar

# both images built for real, run and treated badly: by Docker, else as root by buildah and podman, else skipped
image-test: .venv/dev
	$(BIN)/python -m pytest -q -s -rs tests/commands/check_image.py
