#!/usr/bin/env bash
# Synchronous relay: each commit is on a second machine before it is acknowledged. The primary dies while the standby is away; the
# standby is promoted, and no acknowledged commit is missing.
# shellcheck source=../common.sh
. "$(dirname "$0")/../common.sh"

hosts primary relay standby
new_server primary

say "Roles"
on primary <<'EOF'
psql -q -c "CREATE ROLE walrelay LOGIN REPLICATION PASSWORD 'secret of the relay'"
psql -q -c "CREATE ROLE standby LOGIN REPLICATION PASSWORD 'secret of the standbys'"
psql -q -c "CREATE TABLE orders (number int PRIMARY KEY)"
EOF

say "Commits wait for the relay from now on, and for nobody else"
on primary <<'EOF'
psql -q -c "ALTER SYSTEM SET synchronous_standby_names = 'walrelay'" -c "SELECT pg_reload_conf()" >/dev/null
EOF

say "The relay"
put relay/walrelay.toml relay:/etc/walrelay/walrelay.toml
put relay/hba.conf relay:/etc/walrelay/hba.conf
put relay/userlist.txt relay:/etc/walrelay/userlist.txt
put relay/pgpass relay:/etc/walrelay/pgpass
put standby/pgpass relay:~/.pgpass
serve relay <<'EOF'
walrelay --config /etc/walrelay/walrelay.toml
EOF
logged relay walrelay 'started streaming WAL from'

is_synchronous() {
    [ "$(query primary "select sync_state from pg_stat_replication where application_name = 'walrelay'")" = sync ]
}
wait_until "the relay is a synchronous standby" is_synchronous
on primary <<'EOF'
psql -c "SELECT application_name, state, sync_state FROM pg_stat_replication"
EOF

say "A standby below it, which asks the relay before it is promoted"
put standby/pgpass standby:~/.pgpass
put standby/drain.conf standby:/srv/drain.conf
on standby <<'EOF'
pg_basebackup -d 'host=relay user=standby application_name=standby' -c fast -R -X stream -C -S standby -D /var/lib/postgresql/data
cat /srv/drain.conf >> /var/lib/postgresql/data/postgresql.conf
pg_ctl -D /var/lib/postgresql/data -l /var/lib/postgresql/log -w start >/dev/null
EOF

say "The standby is away; orders are taken and acknowledged until the primary is killed in the middle"
on standby <<'EOF'
pg_ctl -D /var/lib/postgresql/data -w stop >/dev/null
EOF
acknowledged=$SCRATCH/acknowledged
: >"$acknowledged"
# Each number is written down when its commit has returned.
take_orders() {
    become primary
    seq 1 100000 | sed 's/.*/insert into orders values (&) returning number;/' | psql -XAtq postgres >"$acknowledged" 2>/dev/null
}
take_orders &
orders=$!
enough() {
    [ "$(wc -l <"$acknowledged")" -ge 300 ]
}
wait_until "300 orders" enough
pid=$(head -n 1 "$SCRATCH/primary/var/lib/postgresql/data/postmaster.pid")
printf 'primary$ kill -9 %s\n' "$pid"
kill -9 "$pid"
wait "$orders" || true
printf '%s orders were acknowledged\n' "$(wc -l <"$acknowledged")"

say "Failover: fence, see who may be promoted, promote"
on relay <<'EOF'
walrelay fence --relay 'host=relay user=standby' --sync-names walrelay --reason 'the primary is gone'
EOF
on standby <<'EOF'
pg_ctl -D /var/lib/postgresql/data -l /var/lib/postgresql/log -w start >/dev/null
EOF
on relay <<'EOF'
until walrelay promotable --relay 'host=relay user=standby' --candidate 'host=standby user=standby'; do sleep 0.2; done
EOF
on standby <<'EOF'
pg_ctl -D /var/lib/postgresql/data -w promote >/dev/null
EOF
logged relay walrelay 'kept everything acknowledged'
on relay <<'EOF'
walrelay failovers -D /var/lib/walrelay
EOF

say "Compared: each order that was acknowledged is there"
query standby 'select number from orders order by number' >"$SCRATCH/found"
missing=$(sort "$acknowledged" | comm -23 - <(sort "$SCRATCH/found") | wc -l)
printf '%s acknowledged, %s on the new primary, %s missing\n' "$(wc -l <"$acknowledged")" "$(wc -l <"$SCRATCH/found")" "$missing"
[ "$missing" = 0 ] || die "acknowledged orders are missing"
