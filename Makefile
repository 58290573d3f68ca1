# Two commands do everything on a fresh Debian 12, set-up included:
#   make demo   installs what is missing, builds, classifies real sentences, on a GPU where there is one
#   make test   installs what is missing, builds, runs every test
# Where the CUDA toolkit puts nvcc.
export PATH := $(PATH):/usr/local/cuda/bin

.PHONY: demo build test gpu-test wheel deb bench peers format figures clean help

help:
	@sed -n 's/^#   //p' Makefile

demo: build
	@scripts/demo.sh build/$$(scripts/demo_preset.sh 2>/dev/null)

build:
	@scripts/install.sh demo
	@preset=$$(scripts/demo_preset.sh) && cmake --preset $$preset --log-level=WARNING && cmake --build --preset $$preset

test:
	@scripts/install.sh test
	@python3 scripts/run_tests.py

#   make gpu-test   builds the kernels, runs every GPU test and the sanitizers, writes tests/gpu/RECORD.json; the suite
#                   multi_gpu runs where there are two GPUs or more
gpu-test:
	@cmake --preset cuda --log-level=WARNING
	@cmake --build --preset cuda
	@python3 tests/gpu/record.py closure build/cuda
	@tests/gpu/run.sh build/cuda core moe classifier python $$([ $$(nvidia-smi -L | wc -l) -ge 2 ] && echo multi_gpu)

#   make wheel   builds the Python wheel of the CPU back end into build/wheels; make wheel KIND=cuda with the kernels
KIND ?= cpu
wheel:
	@scripts/install.sh demo
	@scripts/wheel.sh $(KIND)

#   make deb     builds the Debian package of command, library and headers into build/deb
deb:
	@scripts/install.sh demo
	@cmake --preset cpu -B build/package --log-level=WARNING -DCMAKE_INSTALL_PREFIX=/usr -DTESSERA_BUILD_EXAMPLES=OFF
	@cmake --build build/package
	@cpack --config build/package/CPackConfig.cmake -G DEB -B build/deb

#   make bench   measures the CPU back end and writes bench/results/
bench:
	@scripts/install.sh test
	@python3 scripts/run_bench.py

#   make peers   measures whole layers beside other libraries' on one Hopper GPU, makes tables and pictures
peers:
	@bench/peers/measure.sh

#   make format   formats every C++ file
format:
	@scripts/install.sh test
	@git ls-files '*.h' '*.cc' '*.cuh' '*.cu' | xargs clang-format -i

#   make figures   rewrites the generated figures of README, docs and model card
figures:
	@python3 scripts/figures.py

clean:
	@rm -rf build
