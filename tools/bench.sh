#!/usr/bin/env bash
# Runs the benches named, or all of bench/.
set -euo pipefail
cd "$(dirname "$0")/.."
for file in "${@:-bench/*.py}"; do
  for bench in $file; do
    printf '\n== %s\n' "$bench"
    python "$bench"
  done
done
