#!/usr/bin/env bash
# Builds csrc with the address and undefined-behaviour sanitizers and runs the tests of kernels and parsers on that build.
# It lies in a package tree of its own below build/sanitize, so the normal build stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/sanitize
tree=$PWD/$build/tree
log=$build/build.log

mkdir -p $build && rm -rf "$tree" && mkdir -p "$tree"
tar -ch --exclude=__pycache__ --exclude=deeprec/lib --exclude='_host*.so' deeprec | tar -x -C "$tree"
# The editable install looks first, whatever PYTHONPATH says; this file, read at start-up, takes its finder out again.
echo 'import sys; sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildInplaceFinder"]' \
  >"$tree/sitecustomize.py"
cmake -S . -B $build -G Ninja -DDEEPREC_SANITIZE=ON -DDEEPREC_CUDA=OFF -DDEEPREC_INSTALL_DIR=deeprec \
  -DCMAKE_INSTALL_PREFIX="$tree" -DPython_EXECUTABLE="$(command -v python)" --log-level=WARNING >$log
cmake --build $build --target install --parallel >>$log || { cat $log; exit 1; }

compiler=$(sed -n 's/^CMAKE_CXX_COMPILER:[A-Z]*=//p' $build/CMakeCache.txt)
asan=$("${compiler:-false}" -print-file-name=libasan.so 2>/dev/null || true)
if [[ $asan != /* ]]; then
  echo "sanitize: skipped, needs g++ with libasan, got CXX='${compiler:-none}'"
  exit 0
fi

# Python is not instrumented, so the sanitizers must be loaded before it, and the C++ library with them (without it the
# interceptor of exceptions finds nothing to call). Leaks are not looked for: Python and torch leave many at exit.
preload="$asan $("$compiler" -print-file-name=libubsan.so) $("$compiler" -print-file-name=libstdc++.so)"
# Sizes that no memory has are an error of ours to raise, not the sanitizer's.
export PYTHONPATH=$tree ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1
# Fewer examples, and tests that reach C++ by new ways alone (tests/kernels/conftest.py): the others ran before.
export HYPOTHESIS_PROFILE=sanitize DEEPREC_TESTS=sanitize
pytest=$(command -v pytest)
cd $build
LD_PRELOAD=$preload python -c '
import sys, deeprec.kernels._library as library
assert library.__file__.startswith(sys.argv[1]) and not library.load_error(), (library.__file__, library.load_error())
' "$tree"
cd ../..
LD_PRELOAD=$preload "$(command -v python)" "$pytest" tests/kernels \
  tests/data/reading/test_separated.py tests/data/reading/test_hashing.py -q -m "not slow" -p no:cacheprovider "$@"
