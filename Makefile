# Every chore has a verb here; `make` alone lists them.
PYTHON_BIN := $(shell for p in python3.11 python3.12 python3.13 python3; do \
  command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null \
  && { echo $$p; break; }; done)
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
PREFIX ?= /opt/postsale
WORKERS ?= 2

.PHONY: help demo test faults-long systemd-live lint types contracts check-example servers format model install clean

help:  ## list the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON_BIN)" || { echo "Python 3.11 or newer with its venv module is needed (Debian: apt-get install python3-venv)."; exit 1; }
	@test -x $(PY) || $(PYTHON_BIN) -m venv $(VENV)
	@echo "Installing Postsale and what it needs into $(VENV) (a minute or two, once) ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## show Postsale at work on a small shop's morning mail
	@$(VENV)/bin/postsale demo $(ARGS)

test: $(INSTALLED) servers lint types contracts  ## run everything that has to hold: lint, types, import rules, all tests
	$(PY) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

faults-long: $(INSTALLED) servers  ## kill, cut and lie for an hour or so, and write the figures into docs/reliability.md
	$(PY) -m tests.faults.run --long --write docs/reliability.md

systemd-live:  ## boot a Debian host with systemd, as root, and follow docs/operating.md on it (minutes, downloads once)
	@tests/systemd/live.sh

servers:  ## install the mail and database servers that tests talk to, where this machine allows
	@tests/install-servers.sh

lint: $(INSTALLED)  ## style and common mistakes
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(INSTALLED)  ## mypy, strict
	$(VENV)/bin/mypy

contracts: $(INSTALLED)  ## which room may import which
	PYTHONPATH=. $(VENV)/bin/lint-imports

format: $(INSTALLED)  ## format the code and mend what ruff can mend
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

config.example.toml: daemon/config.py daemon/config_example.py $(INSTALLED)  ## write the example configuration anew from the models
	$(PY) -m daemon.config_example > $@.new && mv $@.new $@

model: $(INSTALLED)  ## train the shipped model anew from the starter corpus
	$(PY) -m classifiers.shipped

install:  ## install the service on this host, as root (systemd)
	@systemd/install.sh "$(PREFIX)"

clean:  ## remove what the other verbs made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
