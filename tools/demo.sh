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
history=1,2,3
if compgen -G "${DEEPREC_DATA:-none}/ml-1m/ratings*.dat*" >/dev/null; then
  data=ml-1m
  history=260,1196,1210 # a new user who liked the three Star Wars films
else
  echo "demo: no MovieLens-1M at hand (DEEPREC_DATA is ${DEEPREC_DATA:-not set}); training on synthetic interactions"
fi

show() { # prints a command, then runs it
  printf '\n$ %s\n' "$*"
  "$@"
}
rm -rf "$out"
show deeprec train neumf --data $data --protocol ncf --seed 1 --out "$out" epochs="$epochs" batch_size=1024 ${DEMO_ARGS:-}
show deeprec evaluate "$out"
show deeprec recommend "$out" --user 1 -k 10
show deeprec recommend "$out" --history "$history" -k 5
printf '\nThe model, its result card (card.json) and its training curves (curves.png) are in %s\n' "$out"
