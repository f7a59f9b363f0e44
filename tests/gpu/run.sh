#!/bin/sh
# Tries Coati on a machine with an NVIDIA GPU: a small model behind a streaming server, agent and backend beside it, and what
# the spans say against nvidia-smi and the server's own clock. Needs root, PyTorch with CUDA, and built binaries in
# COATI_BIN_DIR (default target/debug). Takes about two minutes; downloads nothing.
set -eu
cd "$(dirname "$0")/../.."
bin=${COATI_BIN_DIR:-target/debug}
python=${PYTHON:-python3}
work=$(mktemp -d)
pids=
cleanup() { for pid in $pids; do kill "$pid" 2>/dev/null || true; done; wait; rm -rf "$work"; }
trap cleanup EXIT INT TERM

command -v nvidia-smi >/dev/null || { echo "nvidia-smi is not here: this needs a GPU" >&2; exit 2; }
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || { echo "PyTorch with CUDA is not here" >&2; exit 2; }
date -u; nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

"$bin/coati-backend" --data-dir "$work/data" --api-listen 127.0.0.1:13200 --otlp-grpc-listen 127.0.0.1:14317 \
    --otlp-http-listen 127.0.0.1:14318 >"$work/backend.log" 2>&1 & pids="$pids $!"
"$bin/coati-agent" --otlp-endpoint http://127.0.0.1:14317 --listen 127.0.0.1:19400 >"$work/agent.log" 2>&1 & agent=$!; pids="$pids $agent"
"$python" tests/gpu/server.py 18080 >"$work/server.log" 2>&1 & pids="$pids $!"
for url in http://127.0.0.1:13200/ready http://127.0.0.1:19400/readyz; do
    tries=0
    until "$python" -c "import urllib.request as u; u.urlopen('$url')" 2>/dev/null; do
        tries=$((tries + 1)); [ $tries -lt 60 ] || { echo "$url is not ready" >&2; cat "$work"/*.log >&2; exit 1; }
        sleep 1
    done
done
tries=0
until "$python" -c "import socket; socket.create_connection(('127.0.0.1', 18080))" 2>/dev/null; do
    tries=$((tries + 1)); [ $tries -lt 60 ] || { cat "$work/server.log" >&2; exit 1; }
    sleep 1
done
status=0
"$python" tests/gpu/check.py http://127.0.0.1:18080 http://127.0.0.1:13200 || status=$?
"$python" -c "import urllib.request as u; print('\n'.join(l for l in u.urlopen('http://127.0.0.1:19400/metrics').read().decode().splitlines() if l.startswith(('hw_', 'process_cpu'))))"
[ $status -eq 0 ] || tail -n 20 "$work/agent.log"
exit $status
