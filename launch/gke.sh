#!/usr/bin/env bash
# Apply launch/gke_jobset.yaml. DRY_RUN=1 prints what would be applied, and has it checked by
# `kubectl apply --dry-run=client` where a cluster answers (the check needs its JobSet definition).
set -euo pipefail

MANIFEST="${MANIFEST:-$(dirname "${BASH_SOURCE[0]}")/gke_jobset.yaml}"
NAMESPACE="${NAMESPACE:-default}"
DRY_RUN="${DRY_RUN:-0}"

command=(kubectl apply --namespace="$NAMESPACE" --filename="$MANIFEST")
if [[ "$DRY_RUN" == "1" ]]; then
    command+=(--dry-run=client)
    printf '%q ' "${command[@]}"
    echo
    cat "$MANIFEST"
    if ! command -v kubectl >/dev/null || ! kubectl version --request-timeout=5s >/dev/null 2>&1; then
        echo "# not checked: no cluster answers"
        exit 0
    fi
fi
"${command[@]}"
