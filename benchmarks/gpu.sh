#!/usr/bin/env bash
# Tests and measures on one GPU what a machine without one cannot, in less than 300 s on an H100:
#
#   benchmarks/gpu.sh OUT                   all sections: tests, contest, peak, sweep, planner
#   benchmarks/gpu.sh OUT contest peak      only these
#   DEVICE=cpu benchmarks/gpu.sh OUT        a dry run on CPU, which tests the script
#
# OUT gets report.md, which is written anew before and after each section, sections.json, log.txt, and a Parquet file for
# each section that measures, with a plot of the contest: 8 files in all. PYTHON is the interpreter (python3), and
# LIMITS=2 doubles the time limits.
# Exit status: 0 if all sections passed, 1 if one failed or was cut off, 2 without a GPU or for a wrong argument.
set -euo pipefail
sections=(tests contest peak sweep planner)  # In the order of their value.

refuse() { echo "error: $1 [STEM-INPUT]" >&2; exit 2; }
[ $# -gt 0 ] || refuse "say where the results go: benchmarks/gpu.sh OUT [SECTION...]."
out=$(realpath -m -- "$1")
shift
if [ $# -gt 0 ]; then wanted=("$@"); else wanted=("${sections[@]}"); fi
for name in "${wanted[@]}"; do
    [[ " ${sections[*]} " == *" $name "* ]] || refuse "there is no section '$name'; there are ${sections[*]}."
done
# The planner is calibrated by the sweep.
[[ " ${wanted[*]} " != *" planner "* || " ${wanted[*]} " == *" sweep "* ]] || wanted+=(sweep)

python=$(command -v "${PYTHON:-python3}") || refuse "there is no ${PYTHON:-python3}; PYTHON names the interpreter."
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")  # Not realpath, which leads out of a virtual environment.
root=$(dirname "$(dirname "$(realpath "$0")")")
# What a run, the tests and the benchmarks import beside torch, fbgemm and torchrec.
needed=(numpy pyarrow pydantic annotated_types tyro ruamel.yaml fsspec filelock iopath tensordict torchmetrics pyre_extensions)
needed+=(tqdm tabulate hostlist tensorboard matplotlib pytest xdist)
missing=$("$python" - "${needed[@]}" <<'END'
import sys
from importlib.util import find_spec
print(*(name for name in sys.argv[1:] if not all(map(find_spec, (name.partition(".")[0], name)))))
END
)
[ -z "$missing" ] || refuse "this python has no ${missing// /, }; docs/gpu.md lists what the machine needs."
export PYTHONPATH="$root/benchmarks:$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
DEVICE=${DEVICE:-cuda}

# Sizes, and limits in seconds. On an H100 the limits sum up to 288 s, which leaves 12 for this script and its report. A
# process takes about 10 s to start, which a contest pays once for all its contestants, and a case of the sweep by itself.
case $DEVICE in
cuda)
    # About 150 tests of one second each by 8 processes, with those that start readers taking 15.
    tests=(-n 8 --dist worksteal)
    # Four contests start in 15 s each, one of them compiles for 30 s. A contestant makes 18 steps; with batches of 65,536
    # the slowest, in fp32, take 80 ms each.
    contest=(--cases others compiled --rows 1000 1000000 10000000 --batch-size 4096 65536)
    contest+=(--rounds 3 --steps 4 --warmup 2)
    # Two contests, in which 12 steps of the slowest take a second.
    peak=(--rows 1000 10000000 --batch-size 4096 65536 --rounds 3 --steps 3 --warmup 2)
    # Five cases of 10 to 11 s, in which 40 steps take less than a second.
    tables=one_gpu.yaml
    sweep=(--kernels fused fused_uvm_caching --caches 0.1 0.5 --data.batch-size 16384)
    sweep+=(--steps 20 --warmup 5 --timeout 30)
    sweep+=(--cases table_wise/split/stock 'table_wise/split/once/*/*/fused' 'table_wise/packed/stock/*/*/fused')
    # Three plans of 2 s.
    planner=(--batch-size 16384)
    declare -A limit=([tests]=75 [contest]=110 [peak]=32 [sweep]=55 [planner]=16)
    ;;
cpu)
    export CUDA_VISIBLE_DEVICES="" STEM_GPU_TESTS_ON_CPU=1
    tests=(-n auto --dist worksteal)
    peak=(--rows 100 --batch-size 32 --rounds 1 --steps 1 --warmup 1)
    contest=(--cases others "${peak[@]}")
    tables=small.yaml
    sweep=(--types table_wise --data.batch-size 256 --steps 2 --warmup 1)
    planner=(--batch-size 256)
    declare -A limit=([tests]=1200 [contest]=1200 [peak]=1200 [sweep]=1200 [planner]=600)
    ;;
*) refuse "DEVICE is '$DEVICE', but must be cuda or cpu." ;;
esac

report() { "$python" -P -m studies.gpu_report "$@"; }
report start "$out" "$DEVICE"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# Runs the command of a section within its limit, with its output in the log.
run() {
    local name=$1 status=0 seconds=$((limit[$1] * ${LIMITS:-1}))
    [[ " ${wanted[*]} " == *" $name "* ]] || return 0
    report begin "$out" "$name" "$seconds"
    timeout --kill-after=5 "$seconds" "$python" "${@:2}" >>"$out/log.txt" 2>&1 || status=$?
    report end "$out" "$name" "$status" "$work/$name" || failed=1
}

cd "$root"
run tests -m pytest -m gpu -v -rfE -p no:cacheprovider "${tests[@]}" tests
# From here on no path of this machine stands in a result.
cp "benchmarks/tables/$tables" "$work"
cd "$work"
run contest "$root/benchmarks/throughput.py" --out contest "${contest[@]}"
run peak "$root/benchmarks/throughput.py" --out peak --cases peak roofline "${peak[@]}"
run sweep "$root/benchmarks/sharding.py" --out sweep --tables "$tables" --tasks 2 --optimizers adagrad "${sweep[@]}"
run planner "$root/benchmarks/plan.py" --out planner --calibrate sweep --tables "$tables" --tasks 2 \
    --device "$DEVICE" --ranks-per-node 1 --optimizers adagrad --types auto --layouts split --grow-tasks 2 \
    --grow-rows 1 --seconds 2 "${planner[@]}"
echo "report: $out/report.md"
exit $failed
