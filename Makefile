# Two commands do all the set-up: `make demo` shows the main job, `make test` runs the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INTEROP ?= .venv-interop
CHECKPOINTS := checkpoints
DOCS ?= .venv-docs

.PHONY: setup demo test docs interop browser benchmarks checkpoints clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/dictlab stitch $(CHECKPOINTS)/local-topk16-256-s0.safetensors $(CHECKPOINTS)/local-topk16-512-s0.safetensors \
	    --tokens 32768 --contexts 24 --out out/stitch --force
	$(BIN)/dictlab report geometry $(CHECKPOINTS)/local-topk16-512-s0.safetensors $(CHECKPOINTS)/local-topk16-512-s1.safetensors \
	    $(CHECKPOINTS)/local-relu5-1024-s0.safetensors $(CHECKPOINTS)/local-relu5-1024-s1.safetensors \
	    $(CHECKPOINTS)/e2e-relu0.2-1024-s0.safetensors $(CHECKPOINTS)/e2e+ds-relu2-1024-s0.safetensors --out out/geometry --force
	$(BIN)/dictlab explore $(CHECKPOINTS)/local-topk16-256-s0.safetensors $(CHECKPOINTS)/local-topk16-512-s0.safetensors \
	    $(CHECKPOINTS)/local-topk16-1024-s0.safetensors --tokens 65536 --no-umap --out out/explore --force

# A process a core, and whole files to each: tests use one thread, and what a file sets up is made once.
test: setup
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

# The documents as a site in site/. The API reference is read from the sources: nothing of dictlab is installed.
$(DOCS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')" > $(DOCS)/requirements.txt
	$(DOCS)/bin/python -m pip install --quiet --constraint constraints.txt --requirement $(DOCS)/requirements.txt
	touch $@

docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet

# The formats of other libraries against these libraries themselves, in an environment of their own. Two of them bring
# nothing that their dictionaries need, and one of these two would replace torch by another build: no dependencies.
$(INTEROP)/.installed: pyproject.toml constraints-interop.txt
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --quiet --constraint constraints-interop.txt torch
	$(INTEROP)/bin/python -m pip install --quiet --constraint constraints-interop.txt --editable ".[interop]"
	$(INTEROP)/bin/python -m pip install --quiet --constraint constraints-interop.txt --no-deps dictionary-learning e2e_sae
	touch $@

interop: $(INTEROP)/.installed
	$(INTEROP)/bin/python -m pytest tests/interop

# The explorer's page in a real browser: Debian's chromium, driven by playwright.
browser: setup
	command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium) \
	    || echo "chromium cannot be installed here: the tests in a browser are skipped"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt playwright
	$(BIN)/python -m pytest -n 0 -rs tests/analyses/explorer/test_in_a_browser.py

benchmarks: setup
	$(BIN)/python -m benchmarks.results.family
	$(BIN)/python -m benchmarks.speed.novelty
	$(BIN)/python -m benchmarks.results.novelty_family --figure docs/images/novelty.png
	$(BIN)/python -m benchmarks.results.frankenstein
	$(BIN)/python -m benchmarks.speed.main_job
	$(BIN)/python -m benchmarks.results.path
	$(BIN)/python -m benchmarks.results.stitching_study
	$(BIN)/python -m benchmarks.speed.matching
	$(BIN)/python -m benchmarks.speed.pathology --growth
	$(BIN)/python -m benchmarks.results.pathology_family
	$(BIN)/python -m benchmarks.results.pathology_sites
	$(BIN)/python -m benchmarks.reliability.fuzz_formats --files 10000
	$(BIN)/python -m benchmarks.results.training.length
	$(BIN)/python -m benchmarks.results.training.quality
	$(BIN)/python -m benchmarks.results.training.relu_rates
	$(BIN)/python -m benchmarks.results.training.relu_finetune
	$(BIN)/python -m benchmarks.results.training.relu_finetune --tokens 225000 --rates 2e-3 --out runs/relu-finetune-225000
	$(BIN)/python -m benchmarks.results.training.precision
	$(BIN)/python -m benchmarks.speed.topk_step
	$(BIN)/python -m benchmarks.speed.e2e_overhead
	$(BIN)/python -m benchmarks.speed.family_cost
	$(BIN)/python -m benchmarks.speed.density
	$(BIN)/python -m benchmarks.speed.growth
	$(BIN)/python -m benchmarks.results.explanations_family

checkpoints: setup
	$(BIN)/python checkpoints/build.py

clean:
	rm -rf out site $(VENV) $(INTEROP) $(DOCS)
