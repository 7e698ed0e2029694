# shellcheck shell=bash
# For the scripts beside it: one machine plays several hosts.
#
# The scripts contain commands and files as they are on real hosts: each has PostgreSQL or walrelay on port 5432, and its files in
# /etc and /var/lib. `here` says what becomes of host names, ports, addresses and paths on this machine: it is the only difference.
#
#   PG_BIN     directory of PostgreSQL's programs, unless pg_config, PATH or /usr/lib/postgresql/*/bin lead to it
#   WALRELAY   the program, unless it is in target/release, target/debug or PATH
#   KEEP=1     everything runs on in the end, until Enter is pressed

set -euo pipefail

EXAMPLES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
EXAMPLE=$(cd "$(dirname "$0")" && pwd)
# How long anything is waited for, in seconds.
PATIENCE=${PATIENCE:-30}

die() {
    printf '%s: %s\n' "$(basename "$EXAMPLE")" "$*" >&2
    exit 1
}

# ---- programs and account -------------------------------------------------------------------------------------------------

find_postgres() {
    local dir
    for dir in "${PG_BIN:-}" "$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)" \
        "$(pg_config --bindir 2>/dev/null)" "$(dirname "$(command -v postgres 2>/dev/null)" 2>/dev/null)"; do
        if [ -n "$dir" ] && [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ]; then
            printf '%s\n' "$dir"
            return
        fi
    done
    die "PostgreSQL's programs are not found: set PG_BIN to their directory"
}

find_walrelay() {
    local target=${CARGO_TARGET_DIR:-$EXAMPLES/../target} program
    for program in "${WALRELAY:-}" "$target/release/walrelay" "$target/debug/walrelay" "$(command -v walrelay)"; do
        if [ -n "$program" ] && [ -x "$program" ]; then
            realpath "$program"
            return
        fi
    done
    die 'walrelay is not found: run "cargo build --release", or set WALRELAY to the program'
}

# PostgreSQL refuses to run as root: there, all of the example runs as "postgres" or "nobody".
give_up_root() {
    local account ids
    account=$(id -un postgres 2>/dev/null || echo nobody)
    ids=(--reuid "$(id -u "$account")" --regid "$(id -g "$account")" --clear-groups --pdeathsig keep)
    cp -R "$EXAMPLES" "$SCRATCH/examples"
    # The program may lie where that account cannot go.
    if ! setpriv "${ids[@]}" test -x "$WALRELAY"; then
        cp "$WALRELAY" "$SCRATCH/bin/walrelay"
        WALRELAY=$SCRATCH/bin/walrelay
    fi
    chown -R "$account:" "$SCRATCH"
    cd /
    export SCRATCH PG_BIN WALRELAY HOME=$SCRATCH
    exec setpriv "${ids[@]}" -- bash "$SCRATCH/examples/${EXAMPLE#"$EXAMPLES/"}/$(basename "$0")" "$@"
}

begin() {
    PG_BIN=$(find_postgres)
    if [ -z "${SCRATCH:-}" ]; then
        WALRELAY=$(find_walrelay)
        SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/walrelay-example.XXXXXX")
        chmod 755 "$SCRATCH"
        mkdir "$SCRATCH/bin"
        if [ "$(id -u)" = 0 ]; then
            give_up_root "$@"
        fi
    fi
    # What is set for other servers must not steer these.
    local name
    for name in $(compgen -e | grep '^PG' | grep -vx PG_BIN || true); do
        unset "$name"
    done
    [ -x "$SCRATCH/bin/walrelay" ] || ln -s "$WALRELAY" "$SCRATCH/bin/walrelay"
    mkdir "$SCRATCH/run" "$SCRATCH/mnt"
    PATH=$SCRATCH/bin:$PG_BIN:$PATH
    export PATH LC_ALL=C.UTF-8
    declare -gA PORT=()
    PIDS=()
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# ---- hosts ----------------------------------------------------------------------------------------------------------------

# hosts NAME...: each gets a port and a directory.
hosts() {
    local host
    for host in "$@"; do
        take_port
        PORT[$host]=$TAKEN
        mkdir -p "$SCRATCH/$host"/{etc,var/lib,srv}
    done
    write_rules
    printf 'On this machine:'
    for host in "$@"; do
        printf ' %s is port %s;' "$host" "${PORT[$host]}"
    done
    printf ' files of each are below %s/HOST.\n\n' "$SCRATCH"
}

# Whoever runs at the same time takes another one (the tests' own are above 12000): the lock lasts as long as what has inherited it.
take_port() {
    local port locks
    locks=${TMPDIR:-/tmp}/walrelay-example-ports-$(id -u)
    mkdir -p "$locks"
    for port in $(shuf -i 10000-11999); do
        exec {TAKEN}>"$locks/$port"
        if flock -n "$TAKEN" && ! (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            TAKEN=$port
            return
        fi
        exec {TAKEN}>&-
    done
    die "no free port between 10000 and 11999"
}

# What becomes of names, ports and addresses. All that is not here is as on real hosts.
write_rules() {
    local a b begin='(^|[^[:alnum:]_./-])' end='($|[^[:alnum:]_-])'
    {
        for a in "${!PORT[@]}"; do
            for b in "${!PORT[@]}"; do
                rule "host=$a,$b$end" "host=127.0.0.1,127.0.0.1 port=${PORT[$a]},${PORT[$b]}\\1"
            done
            rule "host=$a$end" "host=127.0.0.1 port=${PORT[$a]}\\1"
            rule "-h $a$end" "-h 127.0.0.1 -p ${PORT[$a]}\\1"
            rule "$begin$a:5432$end" "\\1127.0.0.1:${PORT[$a]}\\2"
        done
        rule '192\.0\.2\.[0-9]+/[0-9]+' '127.0.0.1/32'
        # A file system that all hosts have mounted.
        rule '(^|[^[:alnum:]_.-])/mnt/' "\\1$SCRATCH/mnt/"
    } >"$SCRATCH/rules"
}

rule() {
    printf 's#%s#%s#g\n' "$1" "$2"
}

# here HOST: a text of a host, as it has to be on this machine.
here() {
    sed -E -f "$SCRATCH/rules" \
        -e "s#0\\.0\\.0\\.0:5432#127.0.0.1:${PORT[$1]}#g" \
        -e "s#(^|[^[:alnum:]_.-])/(etc|var/lib|srv)/#\\1$SCRATCH/$1/\\2/#g" \
        -e "s#~/#$SCRATCH/$1/#g"
}

# put FILE HOST:PATH: a file of the example's onto a host.
put() {
    local host=${2%%:*} path=${2#*:}
    path=$SCRATCH/$host/${path#\~}
    printf '%s: %s is %s\n' "$host" "${2#*:}" "$1"
    mkdir -p "$(dirname "$path")"
    here "$host" <"$EXAMPLE/$1" >"$path"
    # There are passwords in some of them.
    chmod 600 "$path"
}

# on HOST <<'EOF' ... EOF: commands of a host, shown and run.
on() {
    local host=$1
    cat >"$SCRATCH/$host/commands"
    show "$host"
    here "$host" <"$SCRATCH/$host/commands" >"$SCRATCH/$host/commands.sh"
    (become "$host" && exec bash -euo pipefail "$SCRATCH/$host/commands.sh" </dev/null)
}

# serve HOST <<'EOF' ... EOF: one command that runs on; its log is HOST/NAME.log, with the program's name.
serve() {
    local host=$1 name command
    cat >"$SCRATCH/$host/commands"
    show "$host"
    command=$(here "$host" <"$SCRATCH/$host/commands")
    name=${command%% *}
    (become "$host" && exec bash -c "exec $command" </dev/null >>"$SCRATCH/$host/$name.log" 2>&1) &
    PIDS+=("$!")
    printf '%s\n' "$!" >"$SCRATCH/$host/$name.pid"
}

become() {
    cd "$SCRATCH/$1"
    export HOME=$SCRATCH/$1 PGHOST=$SCRATCH/run PGPORT=${PORT[$1]} PGUSER=postgres PGPASSFILE=$SCRATCH/$1/.pgpass
}

show() {
    sed -E "1s/^/$1\$ /; 2,\$s/^([^[:space:]])/$1\$ \\1/" "$SCRATCH/$1/commands"
}

say() {
    printf '\n== %s\n' "$*"
}

# new_server HOST [LINE]...: a server as somebody has it already, with the lines in its postgresql.conf, and those of the
# example's HOST/pg_hba.conf.
new_server() {
    local host=$1 data=$SCRATCH/$1/var/lib/postgresql/data
    shift
    printf '%s: a new server of PostgreSQL %s in /var/lib/postgresql/data\n' "$host" "$("$PG_BIN/postgres" -V | cut -d' ' -f3)"
    mkdir -p "$(dirname "$data")"
    "$PG_BIN/initdb" -D "$data" -U postgres -A trust -N -E UTF8 --locale=C >"$SCRATCH/$host/initdb.log"
    {
        echo "listen_addresses = '127.0.0.1'"
        echo "unix_socket_directories = '$SCRATCH/run'"
        # What is made here is thrown away.
        echo "fsync = off"
        echo "shared_buffers = 32MB"
        printf '%s\n' "$@" | here "$host"
    } >>"$data/postgresql.conf"
    {
        echo 'local all all trust'
        if [ -e "$EXAMPLE/$host/pg_hba.conf" ]; then
            here "$host" <"$EXAMPLE/$host/pg_hba.conf"
        fi
    } >"$data/pg_hba.conf"
    # In its own words: listen_addresses and port are those of this machine.
    (become "$host" && "$PG_BIN/pg_ctl" -D "$data" -l "$SCRATCH/$host/server.log" -w start >/dev/null)
}

# ---- waiting and comparing ------------------------------------------------------------------------------------------------

# wait_until WHAT COMMAND...: until the command succeeds.
wait_until() {
    local what=$1 end=$((SECONDS + PATIENCE))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || die "waited for $PATIENCE s: $what"
        sleep 0.1
    done
}

# logged HOST PROGRAM TEXT: until its log says so.
logged() {
    wait_until "\"$3\" in the log of $2 on $1" grep -qF -- "$3" "$SCRATCH/$1/$2.log"
}

# query HOST SQL: the answer of a host's server, as it is.
query() {
    (become "$1" && psql -XAtqc "$2" postgres)
}

# end HOST PROGRAM: what `serve` has started is stopped in order.
end() {
    local pid
    pid=$(cat "$SCRATCH/$1/$2.pid")
    printf '%s$ kill %s\n' "$1" "$pid"
    kill "$pid"
    wait "$pid"
    forget "$pid"
}

forget() {
    local pid left=()
    for pid in "${PIDS[@]}"; do
        [ "$pid" = "$1" ] || left+=("$pid")
    done
    PIDS=(${left[@]+"${left[@]}"})
}

# promoted HOST: until its server is no standby, and has ended its recovery.
promoted() {
    wait_until "the end of the recovery on $1" is_primary "$1"
}

is_primary() {
    [ "$(query "$1" 'select pg_is_in_recovery()')" = f ]
}

has_replayed() {
    [ "$(query "$1" "select pg_last_wal_replay_lsn() >= '$2'")" = t ]
}

# caught_up PRIMARY STANDBY...: until they have replayed all that the primary has.
caught_up() {
    local lsn standby
    lsn=$(query "$1" 'select pg_current_wal_flush_lsn()')
    for standby in "${@:2}"; do
        wait_until "$standby replays up to $lsn" has_replayed "$standby" "$lsn"
    done
}

# fingerprint HOST: of all that its databases contain. (The lines that are left out are different in each dump.)
fingerprint() {
    (become "$1" && pg_dump postgres | grep -vE '^\\(un)?restrict ' | sha256sum | cut -c1-16)
}

# same_data HOST HOST...: what they contain is the same, or the example has failed.
same_data() {
    local host wanted found
    wanted=$(fingerprint "$1")
    printf '%-20s %s rows in pgbench_history, contents %s\n' "$1" "$(query "$1" 'select count(*) from pgbench_history')" "$wanted"
    for host in "${@:2}"; do
        found=$(fingerprint "$host")
        printf '%-20s %s rows in pgbench_history, contents %s\n' "$host" "$(query "$host" 'select count(*) from pgbench_history')" "$found"
        [ "$found" = "$wanted" ] || die "$host does not have what $1 has"
    done
}

# same_wal SERVER DIRECTORY: each finished segment there is byte for byte that of the server.
same_wal() {
    local file count=0
    for file in "$2"/*; do
        if [[ $(basename "$file") =~ ^[0-9A-F]{24}$ ]] && [ -e "$SCRATCH/$1/var/lib/postgresql/data/pg_wal/$(basename "$file")" ]; then
            cmp "$file" "$SCRATCH/$1/var/lib/postgresql/data/pg_wal/$(basename "$file")" || die "$file differs from that of $1"
            count=$((count + 1))
        fi
    done
    [ "$count" -gt 0 ] || die "there is no segment to compare in $2"
    printf '%s segments of %s, compared byte for byte: the same\n' "$count" "${2#"$SCRATCH/"}"
}

# ---- the end --------------------------------------------------------------------------------------------------------------

# Processes of this example: those that were started here, servers, and what these and others have left running.
ours() {
    local file
    printf '%s\n' ${PIDS[@]+"${PIDS[@]}"}
    find "$SCRATCH" -name postmaster.pid -exec head -qn 1 {} + 2>/dev/null
    # The patterns come on standard input, so that grep does not find itself.
    # shellcheck disable=SC2062
    grep -laFs --file=- /proc/[0-9]*/cmdline <<<"$SCRATCH/" | while read -r file; do
        # This script itself lies there, too, when root has started it.
        grep -qaFs --file=- "$file" <<<"$SCRATCH/examples/" || basename "${file%/cmdline}"
    done
}

finish() {
    local status=$? signal pid left
    trap - EXIT
    set +eo pipefail
    if [ "$status" = 0 ] && [ -n "${KEEP:-}" ]; then
        read -rp "All of it runs until you press Enter. "
    fi
    if [ "$status" != 0 ]; then
        printf '\n%s has failed. Its files are kept: %s\n' "$(basename "$EXAMPLE")" "$SCRATCH" >&2
        tail -n 8 "$SCRATCH"/*/*.log >&2 2>/dev/null
    fi
    for signal in TERM QUIT KILL; do
        for pid in $(ours | sort -u); do
            kill -s "$signal" "$pid" 2>/dev/null
        done
        for _ in {1..40}; do
            left=$(for pid in $(ours | sort -u); do kill -0 "$pid" 2>/dev/null && echo "$pid"; done)
            [ -n "$left" ] || break 2
            sleep 0.1
        done
    done
    wait
    [ "$status" != 0 ] || rm -rf "$SCRATCH"
    exit "$status"
}

begin "$@"
