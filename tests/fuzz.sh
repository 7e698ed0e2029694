#!/usr/bin/env bash
# Fuzzes with coverage as a guide (libFuzzer, which needs a C++ compiler): `tests/fuzz.sh MINUTES [TARGET...]`, all targets by
# default, one after the other. New inputs come to lie in target/fuzz/found/TARGET, those that fail in target/fuzz/failed/TARGET;
# each target begins with what is committed for it. Exit status 0 if all held.
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=${1:?how many minutes for each target?}
shift
# Where a target lies: the package, what cargo calls the binary, and the folder of its __fuzz__.
where() {
    local file
    file=$(grep -rlE "fn $1\(" proto/src proto/tests tests/fuzz src) || return 0
    case $file in
        proto/src/*) echo "walrelay-proto --lib $(dirname "$file")" ;;
        proto/tests/*) echo "walrelay-proto --test=$(basename "$file" .rs) proto/tests" ;;
        tests/fuzz/*) echo "walrelay --test=fuzz tests/fuzz" ;;
        *) echo "walrelay --lib $(dirname "$file")" ;;
    esac
}
mapfile -t all < <(grep -rhoE 'fn fuzz_[a-z_]+' proto/src proto/tests tests/fuzz src | cut -c 4- | sort -u)
[ $# -gt 0 ] || set -- "${all[@]}"

host=$(rustc -vV | sed -n 's/^host: //p')
flags=(--cfg fuzzing --cfg fuzzing_libfuzzer -Cpasses=sancov-module)
for switch in level=4 inline-8bit-counters pc-table trace-compares stack-depth; do
    flags+=("-Cllvm-args=-sanitizer-coverage-$switch")
done
build() {
    RUSTFLAGS="${flags[*]}" cargo test --quiet --profile fuzz --target "$host" --target-dir target/fuzz/build -p "$1" "$2" --no-run \
        --message-format json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}

status=0
TIMEFORMAT='%U s of a processor'
for target in "$@"; do
    read -r package binary folder <<<"$(where "$target")"
    program=$(build "$package" "$binary")
    # bolero is called by the name of the whole test.
    test=$(cd "$folder" && "$program" --list | sed -n "s/^\(.*\b$target\): test$/\1/p")
    [ -n "$test" ] || { echo "$target is no fuzz target, or tests/fuzz.sh does not know where it is" >&2; exit 2; }
    found=$PWD/target/fuzz/found/$target failed=$PWD/target/fuzz/failed/$target corpus=$PWD/$folder/__fuzz__/${target#fuzz_}/corpus
    mkdir -p "$found" "$failed"
    dirs=("$found")
    [ ! -d "$corpus" ] || dirs+=("$corpus")
    log=target/fuzz/$target.log
    echo "== $target for $minutes min, log in $log"
    time BOLERO_LIBTEST_HARNESS=1 BOLERO_TEST_NAME=$test BOLERO_FUZZER=libfuzzer \
        BOLERO_LIBFUZZER_ARGS="${dirs[*]} -artifact_prefix=$failed/ -timeout=60 -rss_limit_mb=4096 -print_final_stats=1 -max_total_time=$((minutes * 60))" \
        "$program" "$test" --exact --nocapture --test-threads 1 >"$log" 2>&1 || { status=1; echo "$target FAILED: $failed"; tail -n 20 "$log"; }
    grep -E 'stat::number_of_executed_units|stat::new_units_added' "$log" || true
done
exit $status
