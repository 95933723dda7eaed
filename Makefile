# The README's commands. A fresh machine needs Linux, Python 3.11 and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: help install demo test test-slow bench fuzz lint clean

help:
	@echo 'make install           .venv with everything the tools need (source .venv/bin/activate)'
	@echo 'make demo              the whole pipeline on ORL faces, about 13 minutes on two cores'
	@echo 'make demo DATA=FOLDER  the same on a folder of identity folders of aligned faces'
	@echo 'make test              the tests'
	@echo 'make test-slow         the tests that take longer'
	@echo 'make bench             timings against peers, 35 minutes; MXNET=PYTHON names one with MXNet 1.9.1'
	@echo 'make fuzz              1,200,000 damaged files for everything that reads files'
	@echo 'make lint              style'

$(STAMP): setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade 'pip>=23' 'setuptools>=64,<81' wheel
	$(BIN)/python -m pip install torch torchvision
	$(BIN)/python -m pip install -e '.[cpu,demo,test]'
	touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/python tools/demo.py $(if $(DATA),--data '$(DATA)')

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

bench: $(STAMP)
	$(BIN)/python benchmarks/records.py $(if $(MXNET),--mxnet-python '$(MXNET)')
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/head.py
	$(BIN)/python benchmarks/export.py
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python benchmarks/audit.py

fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[fuzz]'
	$(BIN)/python tests/fuzz/fuzz_parsers.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf build dist *.egg-info
