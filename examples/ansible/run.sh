#!/usr/bin/env bash
# The playbook on this machine: Ansible writes the files of all four hosts below a directory, makes roles and a standby, and what it
# has written is run and compared. What it does not do here: packages and services (`manage`).
# shellcheck source=../common.sh
. "$(dirname "$0")/../common.sh"

command -v ansible-playbook >/dev/null || die "ansible-playbook is not found: pip install ansible-core"
export ANSIBLE_CONFIG=$EXAMPLE/ansible.cfg ANSIBLE_HOME=$SCRATCH/ansible ANSIBLE_NOCOWS=1 ANSIBLE_DISPLAY_SKIPPED_HOSTS=false

hosts db1 relay1 db2 backup1
new_server db1 "include_if_exists = 'conf.d/walrelay.conf'"
data=/var/lib/postgresql/data
# What the packages bring.
mkdir -p "$SCRATCH/db1$data/conf.d" "$SCRATCH/db2/var/lib/postgresql"

# The same inventory, with this machine's ports.
{
    for pair in primary/db1 relay/relay1 standby/db2 barman/backup1; do
        host=${pair#*/}
        printf '[%s]\n%s address=127.0.0.1 tcp_port=%s prefix=%s\n' "${pair%/*}" "$host" "${PORT[$host]}" "$SCRATCH/$host"
    done
} >"$SCRATCH/inventory.ini"
cat >"$SCRATCH/vars.yml" <<END
manage: false
ansible_connection: local
postgresql_version: "$("$PG_BIN/postgres" -V | sed -E 's/[^0-9]*([0-9]+).*/\1/')"
postgresql_bin: "$PG_BIN"
postgresql_conf_dir: "$data"
postgresql_data_dir: "$data"
postgresql_listen: 127.0.0.1
postgres_user: "$(id -un)"
relay_user: "$(id -un)"
relay_group: "$(id -gn)"
barman_user: "$(id -un)"
END

play() {
    printf '%s$ ansible-playbook %s\n' "$1" "$2"
    (become "$1" && ansible-playbook -i "$SCRATCH/inventory.ini" -e "@$SCRATCH/vars.yml" "$EXAMPLE/$2" </dev/null)
}

say "The primary"
play db1 primary.yml
on db1 <<'EOF'
pgbench -q -i -s 1 postgres 2>/dev/null
EOF

say "The relay"
play relay1 relay.yml
serve relay1 <<'EOF'
walrelay --config /etc/walrelay/walrelay.toml
EOF
logged relay1 walrelay 'started streaming WAL from'

say "The standby"
play db2 standby.yml
# On Debian these are in /etc/postgresql, here they came with the base backup.
on db2 <<'EOF'
pg_ctl -D /var/lib/postgresql/data -l /var/lib/postgresql/log -w start >/dev/null
EOF

say "Barman"
play backup1 barman.yml
if command -v barman >/dev/null; then
    cat >"$SCRATCH/backup1/etc/barman.conf" <<END
[barman]
barman_user = $(id -un)
barman_home = $SCRATCH/backup1/var/lib/barman
log_file = $SCRATCH/backup1/barman.log
configuration_files_directory = $SCRATCH/backup1/etc/barman.d
END
    on backup1 <<'EOF'
barman -c /etc/barman.conf cron
until barman -c /etc/barman.conf replication-status main | grep -q 'Receive-wal\|barman_receive_wal'; do sleep 0.2; done
barman -c /etc/barman.conf switch-wal --force --archive main
barman -c /etc/barman.conf check main
EOF
fi

say "A second run, of all of it, changes nothing"
play db1 site.yml | tee "$SCRATCH/second"
[ "$(grep -c 'changed=0 .*failed=0' "$SCRATCH/second")" = 4 ] || die "the second run has changed something"

say "Compared"
caught_up db1 db2
same_data db1 db2
