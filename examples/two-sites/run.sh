#!/usr/bin/env bash
# Two sites: a relay at each, one below the other, so that WAL crosses the line between them once. The other site's relay is away
# for a while.
# shellcheck source=../common.sh
. "$(dirname "$0")/../common.sh"

hosts primary relay-a standby-a relay-b standby-b1 standby-b2
new_server primary

say "Roles"
on primary <<'EOF'
psql -q -c "CREATE ROLE walrelay LOGIN REPLICATION PASSWORD 'secret of the relay'"
psql -q -c "CREATE ROLE standby LOGIN REPLICATION PASSWORD 'secret of the standbys'"
psql -q -c "CREATE ROLE site_b LOGIN REPLICATION PASSWORD 'secret of site b'"
pgbench -q -i -s 1 postgres 2>/dev/null
EOF

say "The relay of the primary's site"
put relay-a/walrelay.toml relay-a:/etc/walrelay/walrelay.toml
put relay-a/hba.conf relay-a:/etc/walrelay/hba.conf
put relay-a/userlist.txt relay-a:/etc/walrelay/userlist.txt
put relay-a/pgpass relay-a:/etc/walrelay/pgpass
serve relay-a <<'EOF'
walrelay --config /etc/walrelay/walrelay.toml
EOF
logged relay-a walrelay 'started streaming WAL from'

say "The relay of the other site, below it"
put relay-b/walrelay.toml relay-b:/etc/walrelay/walrelay.toml
put relay-b/hba.conf relay-b:/etc/walrelay/hba.conf
put relay-b/userlist.txt relay-b:/etc/walrelay/userlist.txt
put relay-b/pgpass relay-b:/etc/walrelay/pgpass
serve relay-b <<'EOF'
walrelay --config /etc/walrelay/walrelay.toml
EOF
logged relay-b walrelay 'started streaming WAL from'

say "A standby at the primary's site, two at the other one"
put standby/pgpass standby-a:~/.pgpass
on standby-a <<'EOF'
pg_basebackup -d 'host=relay-a user=standby application_name=standby-a' -c fast -R -X stream -C -S standby_a -D /var/lib/postgresql/data
pg_ctl -D /var/lib/postgresql/data -l /var/lib/postgresql/log -w start >/dev/null
EOF
put standby/pgpass standby-b1:~/.pgpass
on standby-b1 <<'EOF'
pg_basebackup -d 'host=relay-b user=standby application_name=standby-b1' -c fast -R -X stream -C -S standby_b1 -D /var/lib/postgresql/data
pg_ctl -D /var/lib/postgresql/data -l /var/lib/postgresql/log -w start >/dev/null
EOF
put standby/pgpass standby-b2:~/.pgpass
on standby-b2 <<'EOF'
pg_basebackup -d 'host=relay-b user=standby application_name=standby-b2' -c fast -R -X stream -C -S standby_b2 -D /var/lib/postgresql/data
pg_ctl -D /var/lib/postgresql/data -l /var/lib/postgresql/log -w start >/dev/null
EOF

say "The other site's relay is away while the primary works"
end relay-b walrelay
on primary <<'EOF'
pgbench -n -c 4 -t 500 postgres 2>/dev/null | grep 'actually processed'
psql -q -c "SELECT pg_switch_wal()" >/dev/null
EOF
caught_up primary standby-a

say "It is back, and its standbys with it"
serve relay-b <<'EOF'
walrelay --config /etc/walrelay/walrelay.toml
EOF
on primary <<'EOF'
pgbench -n -c 4 -t 100 postgres 2>/dev/null | grep 'actually processed'
psql -c "SELECT application_name, state FROM pg_stat_replication"
EOF

say "Compared"
caught_up primary standby-a standby-b1 standby-b2
same_data primary standby-a standby-b1 standby-b2
same_wal primary "$SCRATCH/relay-a/var/lib/walrelay/pg_wal"
same_wal primary "$SCRATCH/relay-b/var/lib/walrelay/pg_wal"
[ "$(query primary 'select count(*) from pg_stat_replication')" = 1 ] || die "the primary serves more than one"
