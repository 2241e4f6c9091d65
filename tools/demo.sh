#!/usr/bin/env bash
# Trains NeuMF, evaluates it by the protocol of the NCF paper and prints recommendations for one user.
# MovieLens-1M where it is at hand ($DEEPREC_DATA or ../shared/data), synthetic interactions otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${DEMO_DIR:-runs/demo}
epochs=${DEMO_EPOCHS:-8}

if [[ -z ${DEEPREC_DATA:-} && -d ../shared/data ]]; then
  DEEPREC_DATA=$(cd ../shared/data && pwd)
  export DEEPREC_DATA
fi
data=synthetic
if compgen -G "${DEEPREC_DATA:-none}/ml-1m/ratings*.dat*" >/dev/null; then
  data=ml-1m
else
  echo "demo: no MovieLens-1M at hand (DEEPREC_DATA is ${DEEPREC_DATA:-not set}); training on synthetic interactions"
fi

show() { # prints a command, then runs it
  printf '\n$ %s\n' "$*"
  "$@"
}
rm -rf "$out"
show deeprec train neumf --data $data --protocol ncf --seed 1 --out "$out" epochs="$epochs" ${DEMO_ARGS:-}
show deeprec evaluate "$out"
show deeprec recommend "$out" --user 1 -k 10
printf '\nThe model, its result card (card.json) and its training curves (curves.png) are in %s\n' "$out"
