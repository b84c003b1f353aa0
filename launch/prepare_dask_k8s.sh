#!/usr/bin/env bash
# Prepare on Kubernetes with the Dask operator: applies launch/prepare_dask_k8s.yaml. DRY_RUN=1 as in gke.sh.
set -euo pipefail

here="$(dirname "${BASH_SOURCE[0]}")"
MANIFEST="${MANIFEST:-$here/prepare_dask_k8s.yaml}" exec bash "$here/gke.sh"
