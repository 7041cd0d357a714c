# `make demo` and `make test` set up everything they need; a second run reuses it.
# A Python of 3.11 or newer with its venv module is all that has to be there.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test test-arm64 lint figures figures-check curves evidence evidence-quick profiles clean

demo: $(READY)
	$(BIN)/mvp-edge demo
	@echo "open demo/run/report.html in a browser"

test: lint
	@PATH="$$PATH:/usr/sbin" command -v sshd >/dev/null && test -d /usr/share/wordnet || \
	  $(MAKE) --no-print-directory test-packages
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=10

# The light half on emulated arm64 boards, with the demo's bundle and images: as root, with
# apt-get install qemu-user-static binfmt-support mmdebstrap. Not a part of `test`.
test-arm64: demo
	$(BIN)/python -m tests.arm64.check demo/run/bundle demo/seven-eight-nine

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# docs/evidence/ and benchmarks/summary.json from the committed rows; `-check` fails if they differ. `curves`: the plots.
figures: $(READY)
	$(BIN)/python -m benchmarks.report

figures-check: $(READY)
	$(BIN)/python -m benchmarks.report --check

curves: $(READY)
	$(BIN)/python -m benchmarks.report.curves

# The studies of docs/evidence/, resumable; -quick: a part of them in minutes. Both need
# MVP_EDGE_DATA, the folder with the research data.
evidence-quick: $(READY)
	$(QUICK) & other=$$!; $(QUICK) && wait $$other
	$(BIN)/python -m benchmarks.report.tables quick ifp@1000

QUICK   := OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study benchmarks/plans/quick.yaml
STUDIES := resnet18-cifar100 resnet18-keep0.32 deit-tiny-imagenet deit-trunk deit-unseen zoo-size zoo-distill classes \
           unseen few-10 few-30 few-100 ratios seeds peers
POOLED  := resnet18-cifar100 ratios deit-trunk peers
PLAN    := benchmarks/plans/resnet18-cifar100.yaml

evidence: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study $(PLAN) --only zoo
	for plan in $(POOLED); do \
	  OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study.pooled benchmarks/plans/$$plan.yaml || exit; \
	done
	for study in $(STUDIES); do \
	  OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study benchmarks/plans/$$study.yaml || exit; \
	done
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study.trials benchmarks/plans/trials.yaml --steps 20,100
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study.similarity overlap $(PLAN)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study.similarity choice benchmarks/plans/zoo-size.yaml
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.report.curves

profiles: $(READY)
	$(BIN)/mvp-edge device schema > profiles/schema.json

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(MAKE) --no-print-directory venv-package
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

.PHONY: venv-package
venv-package:
	@test "$$(id -u)" = 0 && command -v apt-get >/dev/null || \
	  { echo "Python's venv module is missing: sudo apt install python3-venv"; exit 2; }
	apt-get update -qq && apt-get install -y -qq python3-venv

# The tests of `bench --on` talk to a real sshd, those of `--similarity wordnet` read a real WordNet. Where
# installing sshd would start a server (an init is running), that is left to you; what is missing is skipped.
.PHONY: test-packages
test-packages:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  packages=wordnet-base; \
	  [ -d /run/systemd/system ] || packages="$$packages openssh-server"; \
	  apt-get update -qq && apt-get install -y -qq $$packages; \
	else \
	  echo "tests that need sshd or WordNet are skipped: sudo apt install openssh-server wordnet-base"; \
	fi

clean:
	rm -rf $(VENV) demo runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
