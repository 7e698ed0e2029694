#!/usr/bin/env bash
# Hot standby: a primary, the relay, and two standbys with slots on the relay. One of them is away for a while, and nothing of
# that is seen on the primary.
# shellcheck source=../common.sh
. "$(dirname "$0")/../common.sh"

hosts primary relay standby1 standby2
new_server primary 'max_wal_size = 1GB'

say "Roles for the relay and for the standbys"
on primary <<'EOF'
psql -q -c "CREATE ROLE walrelay LOGIN REPLICATION PASSWORD 'secret of the relay'"
psql -q -c "CREATE ROLE standby LOGIN REPLICATION PASSWORD 'secret of the standbys'"
pgbench -q -i -s 1 postgres 2>/dev/null
EOF

say "The relay"
put relay/walrelay.toml relay:/etc/walrelay/walrelay.toml
put relay/hba.conf relay:/etc/walrelay/hba.conf
put relay/userlist.txt relay:/etc/walrelay/userlist.txt
put relay/pgpass relay:/etc/walrelay/pgpass
on relay <<'EOF'
walrelay check-config --config /etc/walrelay/walrelay.toml
EOF
serve relay <<'EOF'
walrelay --config /etc/walrelay/walrelay.toml
EOF
logged relay walrelay 'started streaming WAL from'

say "Two standbys, made through the relay; their slots are on it"
put standby/pgpass standby1:~/.pgpass
on standby1 <<'EOF'
pg_basebackup -d 'host=relay user=standby application_name=standby1' -c fast -R -X stream -C -S standby1 -D /var/lib/postgresql/data
pg_ctl -D /var/lib/postgresql/data -l /var/lib/postgresql/log -w start >/dev/null
EOF
put standby/pgpass standby2:~/.pgpass
on standby2 <<'EOF'
pg_basebackup -d 'host=relay user=standby application_name=standby2' -c fast -R -X stream -C -S standby2 -D /var/lib/postgresql/data
pg_ctl -D /var/lib/postgresql/data -l /var/lib/postgresql/log -w start >/dev/null
EOF

say "standby2 is away while the primary works"
on standby2 <<'EOF'
pg_ctl -D /var/lib/postgresql/data -w stop >/dev/null
EOF
on primary <<'EOF'
pgbench -n -c 4 -t 500 postgres 2>/dev/null | grep 'actually processed'
psql -q -c "SELECT pg_switch_wal()" >/dev/null
psql -c "SELECT slot_name, active FROM pg_replication_slots"
psql -c "SELECT application_name, state FROM pg_stat_replication"
EOF

say "It comes back, and gets what it has missed from the relay"
on standby2 <<'EOF'
pg_ctl -D /var/lib/postgresql/data -l /var/lib/postgresql/log -w start >/dev/null
EOF
on primary <<'EOF'
pgbench -n -c 4 -t 100 postgres 2>/dev/null | grep 'actually processed'
EOF

say "Compared"
caught_up primary standby1 standby2
same_data primary standby1 standby2
same_wal primary "$SCRATCH/relay/var/lib/walrelay/pg_wal"
[ "$(query primary 'select count(*) from pg_replication_slots')" = 1 ] || die "the primary has more than the relay's slot"
