# Everything a fresh machine needs: Python 3.10 to 3.12, a C++17 compiler, make, and a package index (pip's own configuration).

PYTHON ?= python3
MASPO_CUDA ?= auto
RATIO_MODE ?= maspo
ARGS ?=
PYTEST_ARGS ?=
TORCH_INDEX ?=
export MASPO_CUDA

VENV := .venv
WHEEL_VENV := .venv-wheel
LOCKS := requirements
BUILD_FILES := setup.py pyproject.toml $(wildcard build_tools/*.py) $(shell find csrc -type d -o -type f)
CONSTRAINT := --build-constraint $(LOCKS)/build.txt
PIP := -m pip --disable-pip-version-check

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "Variables:"
	@echo "  RATIO_MODE=MODE        the loss that make train uses: ppo (verl's own), maspo, grpo, clip_higher, dac, bapo, sapo,"
	@echo "                         entropy_adv (with ARGS=actor_rollout_ref.actor.calculate_entropy=True) (now: $(RATIO_MODE))"
	@echo "  ARGS='key=value ...'   further verl overrides for make train"
	@echo "  OUT=FOLDER             where make train puts everything, in place of what is there (default: outputs/train)"
	@echo "  SEED=N                 seed of make train's warm start and training (default: 0)"
	@echo "  WARM_START_STEPS=N     supervised steps before make train's training (default: 600)"
	@echo "  PYTEST_ARGS='...'      make test runs pytest once, with these arguments"
	@echo "  MASPO_CUDA=auto|0|1    the CUDA code; 0: never; 1: always, with an nvcc that is fetched where there is none; auto: with the"
	@echo "                         nvcc of the machine, or without one as torch is: for CUDA 13 nvcc is fetched, for CUDA 12 the"
	@echo "                         build stops and says what to do, for the CPU there is no CUDA code (now: $(MASPO_CUDA))"
	@echo "  PYTHON=python3.11      the Python that .venv is made with (now: $(PYTHON))"
	@echo "  TORCH_INDEX=URL        a further package index for torch. On Linux, plain PyPI serves CUDA builds of gigabytes; the CPU"
	@echo "                         index, whose URL the install page of pytorch.org gives, serves small ones"
	@echo "  MAX_JOBS=N             compilers at once (default: up to 4)"

.PHONY: train
train: $(VENV)/built ## train a tiny model with stock verl and MASPO, on the CPU, from set-up to plot (5 to 7 minutes on 2 cores)
	RATIO_MODE=$(RATIO_MODE) PYTHON=$(VENV)/bin/python bash examples/maspo_trainer/run_tiny_cpu.sh $(ARGS)

.PHONY: test
test: $(VENV)/built ## run all tests, the slow ones last (40 minutes on 2 cores)
ifeq ($(PYTEST_ARGS),)
	$(VENV)/bin/pytest -m "not slow"
	$(VENV)/bin/pytest -m slow
else
	$(VENV)/bin/pytest $(PYTEST_ARGS)
endif

.PHONY: wheel
wheel: $(VENV)/installed ## build dist/maspo_ext-*.whl: one wheel for Python 3.10+ and torch 2.11+
	rm -f dist/maspo_ext-*.whl
	$(VENV)/bin/python $(PIP) wheel . --no-deps --wheel-dir dist $(CONSTRAINT)

.PHONY: test-wheel
test-wheel: wheel $(WHEEL_VENV)/installed ## install that wheel beside another torch (gigabytes where the index serves CUDA builds) and run the ops' tests
	$(WHEEL_VENV)/bin/python $(PIP) install --quiet --no-deps --force-reinstall dist/maspo_ext-*.whl
	$(WHEEL_VENV)/bin/pytest tests/wheel/check_installed.py tests/op tests/logits

.PHONY: extras
extras: $(VENV)/installed ## install what some tests skip without, into build/: TRL, Liger, older verl, emulators of other processors (550 MB)
	$(VENV)/bin/python benchmarks/extras.py

.PHONY: bench
bench: $(VENV)/built ## time of the loss beside its peers on this CPU, into benchmarks/results
	$(VENV)/bin/python benchmarks/loss.py

.PHONY: bench-linear
bench-linear: $(VENV)/built ## time and memory from hidden states to the loss beside its peers on this CPU (10 minutes, 5 GB)
	$(VENV)/bin/python benchmarks/linear.py

.PHONY: gpu
gpu: ## on a machine with a GPU, offline: tests, sanitizers and benchmarks on it, into benchmarks/results
	$(PYTHON) benchmarks/gpu.py

.PHONY: clean
clean: ## remove what builds made; the environments stay (distclean removes them too)
	rm -rf build dist *.egg-info .pytest_cache maspo_ext/_C.abi3.so maspo_ext/_build_info.py

.PHONY: distclean
distclean: clean
	rm -rf $(VENV) $(WHEEL_VENV)

# Stamps: each is touched only after all its commands succeeded.
$(VENV)/installed: $(LOCKS)/cpu.txt $(LOCKS)/build.txt $(LOCKS)/install.py
	$(PYTHON) $(LOCKS)/install.py $(VENV) $< $(TORCH_INDEX)
	@touch $@

$(WHEEL_VENV)/installed: $(LOCKS)/wheel-test.txt $(LOCKS)/build.txt $(LOCKS)/install.py
	$(PYTHON) $(LOCKS)/install.py $(WHEEL_VENV) $< $(TORCH_INDEX)
	@touch $@

# The stamp gets the time before the build, so that a source edited during the build is seen by the next one.
$(VENV)/built: $(VENV)/installed $(VENV)/options $(BUILD_FILES) $(if $(wildcard maspo_ext/_C.abi3.so),,FORCE)
	@touch $@.next
	@echo "maspo_ext: building the extension (about a minute; with CUDA code a minute or more)"
	PYTHONWARNINGS=ignore $(VENV)/bin/python $(PIP) install --quiet --no-deps $(CONSTRAINT) -e .
	@$(VENV)/bin/python -c 'import runpy; print(runpy.run_path("maspo_ext/_build_info.py")["BUILD"]["summary"])'
	@mv $@.next $@

# Rewritten only when an option differs from the last time.
$(VENV)/options: FORCE | $(VENV)/installed
	@echo 'MASPO_CUDA=$(MASPO_CUDA) CXX=$(CXX) CXXFLAGS=$(CXXFLAGS) LDFLAGS=$(LDFLAGS)' > $@.next
	@cmp -s $@.next $@ || cp $@.next $@

.PHONY: FORCE
FORCE:
