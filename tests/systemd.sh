#!/usr/bin/env bash
# A Debian package under a systemd that runs: `tests/systemd.sh OLD.deb NEW.deb`, as `tests/packages.sh` calls it. systemd is process 1 of
# namespaces of its own, over an overlay of this system and without its network, so that nothing of it is touched. The relay is started,
# reloaded, restarted, killed, upgraded, stopped and purged by systemctl and dpkg; it has no upstream, which needs none of that.
# Exit code 77, and the reason, where systemd cannot run so: it takes root, overlays, a cgroup2 hierarchy and Debian's systemd.
set -euo pipefail

# Within the namespace with what is known there.
fail() {
    [ ! -e /packages ] || { systemctl status --no-pager walrelay; journalctl --no-pager -u walrelay -n 30; } >&2 || :
    echo "systemd: $*" >&2
    exit 1
}
cannot() { echo "$*"; exit 77; }

# Becomes systemd, in the namespaces. All mounts end with them.
boot() {
    local work=$1 root=$1/layer/root device
    mount --make-rprivate /
    mount -t tmpfs tmpfs "$work/layer"
    mkdir "$work/layer/upper" "$work/layer/work" "$root"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$work/layer/upper,workdir=$work/layer/work" "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for device in null zero full random urandom tty; do
        touch "$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mkdir "$root/dev/shm" "$root/dev/pts"
    mount -t tmpfs tmpfs "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    mount -t tmpfs tmpfs "$root/run"
    mount -t tmpfs tmpfs "$root/tmp"
    mkdir "$root/packages"
    cp "$work/old.deb" "$work/new.deb" "$work/systemd.sh" "$root/packages"
    # No service of this system, and none of its names.
    rm -rf "$root"/etc/systemd/system/*.wants
    echo 0123456789abcdef0123456789abcdef > "$root/etc/machine-id"
    ip link set lo up 2>/dev/null || :
    touch "$work/booting"
    exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" /lib/systemd/systemd --unit=multi-user.target --show-status=false
}

# Waits up to 30 s for a command to succeed.
until_so() {
    local tries=0
    until "${@:2}" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 150 ] || fail "$1"
        sleep 0.2
    done
}

# Below it.
inside() {
    cd /packages
    shows() { systemctl show walrelay -p "$1" --value; }
    is() { [ "$(shows "$1")" = "$2" ]; }
    # (A reader that stops early would end the writer, and count as a failure.)
    logged() { [[ $(journalctl --no-pager -o cat -u walrelay) == *"$1"* ]]; }
    dpkg --install old.deb >/dev/null
    ! systemctl is-enabled --quiet walrelay || fail 'the installation enables the service'
    is ActiveState inactive || fail 'the installation starts the service'

    systemctl enable --now walrelay 2>/dev/null || fail 'it does not start'
    is ActiveState active || fail 'it is started, and not active'
    until_so 'what it says is in the journal' logged 'listening on /run/walrelay/.s.PGSQL.5432'
    local line
    line=$(journalctl --no-pager -o json -u walrelay -p info | grep 'listening on' | tail -n 1)
    for field in '"SYSLOG_IDENTIFIER":"walrelay"' '"TARGET":"walrelay::' '"PRIORITY":"6"' '"_SYSTEMD_UNIT":"walrelay.service"' '"_CAP_EFFECTIVE":"0"'; do
        case "$line" in *"$field"*) ;; *) fail "the journal has no $field: $line" ;; esac
    done
    [ "$(stat -c '%U:%G %a' /var/lib/walrelay)" = 'walrelay:walrelay 700' ] || fail 'WAL is open to others'

    systemctl reload walrelay || fail 'it does not reload'
    until_so 'it does not say that it has reloaded' logged 'configuration reloaded'
    echo 'nonsense = 1' >> /etc/walrelay/walrelay.toml
    ! systemctl reload walrelay 2>/dev/null || fail 'a bad configuration is reloaded'
    is ActiveState active || fail 'a bad configuration ends it'
    sed -i '/^nonsense/d' /etc/walrelay/walrelay.toml

    local pid
    pid=$(shows MainPID)
    systemctl restart walrelay || fail 'it does not restart'
    ! is MainPID "$pid" || fail 'a restart leaves the old process'
    [ "$(shows NFileDescriptorStore)" -ge 2 ] || fail 'systemd does not keep its sockets'
    pid=$(shows MainPID)
    kill -9 "$pid"
    until_so 'it is not started again after SIGKILL' is NRestarts 1
    until_so 'it does not come up after SIGKILL' is ActiveState active
    pid=$(shows MainPID)
    dpkg --install new.deb >/dev/null
    until_so 'an upgrade does not restart it' eval '! is MainPID "'"$pid"'" && is ActiveState active'

    systemctl stop walrelay
    is Result success && is ExecMainStatus 0 || fail "a stop ends with $(shows Result) $(shows ExecMainStatus)"
    echo 'nonsense = 1' >> /etc/walrelay/walrelay.toml
    ! systemctl start walrelay 2>/dev/null || fail 'it starts with a bad configuration'
    is ExecMainStatus 2 && is NRestarts 0 && is ActiveState failed || fail 'a bad configuration is tried again'
    sed -i '/^nonsense/d' /etc/walrelay/walrelay.toml
    systemctl reset-failed walrelay

    # systemd listens, and starts it for who connects.
    systemctl start walrelay.socket || fail 'the socket unit does not start'
    is ActiveState inactive || fail 'the socket unit starts it at once'
    bash -c 'exec 3<>/dev/tcp/127.0.0.1/5432' || fail 'systemd does not listen'
    until_so 'it is not started for who connects' is ActiveState active
    systemctl stop walrelay.socket walrelay

    systemctl start walrelay
    dpkg --purge walrelay >/dev/null 2>&1
    ! systemctl is-active --quiet walrelay || fail 'a purge leaves it running'
    [ -d /var/lib/walrelay/pg_wal ] || fail 'a purge takes WAL'
    echo 'under systemd it starts, reloads, restarts, comes back, is upgraded, stops and goes'
}

case "${1:-}" in
    --boot) boot "$2" ;;
    --inside) inside; exit ;;
esac

[ "$(id -u)" = 0 ] || cannot 'it takes root'
[ -x /lib/systemd/systemd ] && command -v systemctl nsenter unshare >/dev/null || cannot 'systemd, nsenter and unshare are not all here'
hierarchy=$(findmnt -n -o TARGET -t cgroup2 | head -1)
[ "$hierarchy" ] || cannot 'there is no cgroup2 hierarchy'
work=$(mktemp -d)
mkdir "$work/layer"
cp "$1" "$work/old.deb"
cp "$2" "$work/new.deb"
cp "$0" "$work/systemd.sh"
group=$hierarchy/walrelay-test-$$
first=
ended() {
    [ -z "$first" ] || kill -9 "$first" 2>/dev/null || :
    { wait; } 2>/dev/null || :
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || :
        [ -d "$group" ] || break
        sleep 0.2
    done
    rm -rf "$work"
}
trap ended EXIT
mkdir "$group" 2>/dev/null || cannot 'no cgroup can be made'

# systemd's cgroups are below one of its own; its end is that of everything in it, and that of this script is its.
bash -c 'echo $$ > "$1/cgroup.procs" && exec setpriv --pdeathsig KILL unshare --mount --pid --ipc --uts --net --cgroup --fork --kill-child "$2/systemd.sh" --boot "$2"' \
    bash "$group" "$work" >"$work/said" 2>&1 </dev/null &
first=$!
for _ in $(seq 150); do
    [ -e "$work/booting" ] || kill -0 "$first" 2>/dev/null || cannot "$(tail -1 "$work/said")"
    # The child of unshare.
    systemd=$(pgrep -P "$first" | head -1) || :
    enter="nsenter --target ${systemd:-0} --mount --pid --ipc --uts --net --cgroup --root --wd env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root"
    if [ -e "$work/booting" ] && [ "$systemd" ] && $enter systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded'; then
        $enter bash /packages/systemd.sh --inside
        exit
    fi
    sleep 0.2
done
cannot "systemd does not come up: $(tail -1 "$work/said")"
