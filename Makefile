# Each goal makes .venv if it is missing and installs what it needs, pinned by constraints.txt.
.PHONY: demo demo-train test test-slow bench lint size docs clean
.DEFAULT_GOAL := demo

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt
INPUTS := pyproject.toml constraints.txt setup.py $(wildcard keifu/nn/kernels/*.[ch])
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

demo: .venv/.serve ## talk to the default model
	$(BIN)/keifu chat "Tell me in two sentences what a family tree is."
	@echo; echo "More: $(BIN)/keifu chat (a conversation), serve, tree, doctor, --help"

# Seven minutes on two cores: a tokenizer, shards, a small Llama, its curves and an n-gram beside it.
demo-train: .venv/.plot ## train a model on the standard library's sources
	$(BIN)/python recipes/demo_train.py runs/demo train.precision=bf16

test: .venv/.test
	$(BIN)/keifu models pull default --quiet
	$(BIN)/keifu models pull minilm-l6-v2 --quiet
	$(PYTEST) -n 2

# 42 minutes beside other work on two cores; one after another, since some of them measure time.
test-slow: .venv/.test
	$(BIN)/keifu models pull default --quiet
	$(BIN)/keifu models pull minilm-l6-v2 --quiet
	$(PYTEST) -m slow

bench: .venv/.bench
	$(BIN)/keifu models pull default --quiet
	$(BIN)/keifu models pull minilm-l6-v2 --quiet
	$(BIN)/python -m benchmarks

lint: .venv/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/size.py --quiet
	$(BIN)/python tools/docs.py --check

# make size REV=main~5 also prints what was added since.
size: .venv/.test
	$(BIN)/python tools/size.py $(if $(REV),--against $(REV))

docs: .venv/.test
	$(BIN)/python tools/docs.py

clean:
	rm -rf .venv build *.egg-info keifu/nn/kernels/*.so

# A stamp a set of extras. Built with the pinned setuptools, but for bench, where llama-cpp-python
# brings its own build tools. Again when the requirements change or a kernel has to be built anew.
.venv/.%: $(INPUTS) | .venv/.made
	@echo "installing keifu[$*] into .venv (the first time takes a few minutes)"
	$(PIP) $(if $(filter bench,$*),,--no-build-isolation) -e '.[$*]'
	@touch $@

.venv/.made: constraints.txt
	python3 -m venv .venv
	$(PIP) setuptools
	@touch $@
