#!/usr/bin/env bash
# Barman behind the relay: WAL, backups and checks go through it. What Barman has is restored, and compared with the primary.
# shellcheck source=../common.sh
. "$(dirname "$0")/../common.sh"

command -v barman >/dev/null || die "barman is not found: install it (Debian: barman), or add it to PATH"

hosts primary relay barman
new_server primary

say "Roles, with no more rights than they need"
put primary/roles.sql primary:/srv/roles.sql
on primary <<'EOF'
psql -q -f /srv/roles.sql
pgbench -q -i -s 1 postgres 2>/dev/null
EOF

say "The relay"
put relay/walrelay.toml relay:/etc/walrelay/walrelay.toml
put relay/hba.conf relay:/etc/walrelay/hba.conf
put relay/pgpass relay:/etc/walrelay/pgpass
serve relay <<'EOF'
walrelay --config /etc/walrelay/walrelay.toml
EOF
logged relay walrelay 'started streaming WAL from'

say "Barman, which knows the relay only"
put barman/barman.conf barman:/etc/barman.conf
# Whoever runs the example is Barman's user.
sed -i "/^barman_home/i barman_user = $(id -un)" "$SCRATCH/barman/etc/barman.conf"
mkdir -p "$SCRATCH"/barman/{var/lib/barman,etc/barman.d}
put barman/pgpass barman:~/.pgpass
# A segment is archived when the next one has begun, so something has to happen all the while: this changes no data.
put primary/other-work.sql primary:/srv/other-work.sql
serve primary <<'EOF'
pgbench -n -R 5 -T 3600 -f /srv/other-work.sql postgres
EOF
on barman <<'EOF'
barman -c /etc/barman.conf cron
EOF
logged relay walrelay 'application_name="barman_receive_wal"'
on primary <<'EOF'
pgbench -n -c 2 -t 200 postgres 2>/dev/null | grep 'actually processed'
EOF
on barman <<'EOF'
barman -c /etc/barman.conf switch-wal --force --archive main
barman -c /etc/barman.conf check main
barman -c /etc/barman.conf backup --wait main
EOF

say "The primary works on; then Barman has all of it"
on primary <<'EOF'
pgbench -n -c 2 -t 200 postgres 2>/dev/null | grep 'actually processed'
EOF
on barman <<'EOF'
barman -c /etc/barman.conf switch-wal --force --archive main
barman -c /etc/barman.conf list-backups main
barman -c /etc/barman.conf recover main latest /srv/restored
EOF

say "What was restored is started, and replays all WAL that Barman has"
on barman <<'EOF'
pg_ctl -D /srv/restored -l /srv/restored.log -w start >/dev/null
EOF
promoted barman

say "Compared"
same_data primary barman
same_wal primary "$SCRATCH/barman/var/lib/barman/main/wals/0000000100000000"
