#!/bin/sh
# Verifies the repository at /models, then becomes tritonserver. Further arguments are passed on to it.
set -eu

repository="${PREFERENCE_MODELS:-/models}"
python3 -m preference_core.artefacts.manifest "$repository" repository

exec tritonserver \
    --model-repository="$repository" \
    --model-control-mode=none \
    --disable-auto-complete-config \
    --exit-on-error=true \
    --strict-readiness=true \
    --exit-timeout-secs=30 \
    --allow-metrics=true \
    --metrics-config=summary_latencies=true \
    --log-format=ISO8601 \
    "$@"
