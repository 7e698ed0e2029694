"""What psycopg 3 does with a connection, and psycopg2 in other ways, done through the relay: argument 1 says how to connect."""

import sys
import threading

import psycopg
import psycopg2
import psycopg2.extras

CONNINFO = sys.argv[1]
ROWS = 20_000


def statements(conn):
    assert conn.execute("select 1").fetchone() == (1,)
    several = conn.execute("select 1; select 2")
    assert several.nextset() and several.fetchone() == (2,)
    for number in range(3):
        row = conn.execute("select %s::int + 1, %s::text", (number, "ä"), prepare=True).fetchone()
        assert row == (number + 1, "ä"), row
    with conn.cursor(binary=True) as cursor:
        assert cursor.execute("select %b::bytea", (b"\0\xff",)).fetchone() == (b"\0\xff",)
    with psycopg.ClientCursor(conn) as cursor:
        assert cursor.execute("select %s", ("it's",)).fetchone() == ("it's",)
    slot = "select slot_name, active from pg_replication_slots where slot_name = %s"
    assert conn.execute(slot, ("seen",), prepare=True).fetchall() == [("seen", False)]


def transactions(conn):
    with conn.transaction():
        conn.execute("create table py (i int primary key, t text)")
        try:
            with conn.transaction():
                conn.execute("insert into py values (0, 'gone')")
                conn.execute("select 1/0")
        except psycopg.errors.DivisionByZero:
            pass
        else:
            raise AssertionError("no error")
    assert conn.execute("select count(*) from py").fetchone() == (0,)


def copies(conn):
    with conn.cursor() as cursor:
        with cursor.copy("copy py from stdin") as copy:
            for number in range(ROWS):
                copy.write_row((number, "x" * 100))
        with cursor.copy("copy (select * from py order by i) to stdout") as copy:
            copy.set_types(["int4", "text"])
            assert [row[0] for row in copy.rows()] == list(range(ROWS))
        try:
            with cursor.copy("copy py from stdin") as copy:
                copy.write_row((0, "again"))
        except psycopg.errors.UniqueViolation:
            pass
        else:
            raise AssertionError("no error")
    assert conn.execute("select count(*) from py").fetchone() == (ROWS,)


def cursors(conn):
    with conn.transaction(), conn.cursor(name="on server") as cursor:
        cursor.itersize = 1000
        cursor.execute("select i from py order by i")
        assert [row[0] for row in cursor] == list(range(ROWS))


def pipelines(conn):
    with conn.pipeline():
        answers = [conn.execute("select %s::int", (number,)) for number in range(500)]
    assert [answer.fetchone()[0] for answer in answers] == list(range(500))


def messages(conn):
    notices = []
    conn.add_notice_handler(lambda notice: notices.append((notice.severity, notice.message_primary)))
    conn.execute("do $$ begin raise notice 'from %', 'afar'; end $$")
    assert notices == [("NOTICE", "from afar")], notices
    conn.execute("listen py")
    with psycopg.connect(CONNINFO, autocommit=True) as other:
        other.execute("notify py, 'hello'")
    received = next(conn.notifies(timeout=60))
    assert (received.channel, received.payload) == ("py", "hello"), received


def cancellation(conn):
    with psycopg.connect(CONNINFO, autocommit=True) as other:
        def cancel():
            asleep = "select count(*) from pg_stat_activity where pid = %s and wait_event = 'PgSleep'"
            while other.execute(asleep, (conn.info.backend_pid,)).fetchone() != (1,):
                pass
            conn.cancel_safe(timeout=60)

        canceller = threading.Thread(target=cancel)
        canceller.start()
        try:
            conn.execute("select pg_sleep(600)")
        except psycopg.errors.QueryCanceled:
            pass
        else:
            raise AssertionError("not cancelled")
        canceller.join()
    assert conn.execute("select 2").fetchone() == (2,)


def older_driver():
    conn = psycopg2.connect(CONNINFO)
    cursor = conn.cursor()
    cursor.execute("select slot_name, active from pg_replication_slots where slot_name = %s", ("seen",))
    assert cursor.fetchall() == [("seen", False)]
    psycopg2.extras.execute_values(cursor, "insert into py values %s", [(-1, "a"), (-2, "b")])
    conn.rollback()
    named = conn.cursor("on server")
    named.execute("select slot_name from pg_catalog.pg_replication_slots order by 1")
    assert ("seen",) in named.fetchall()
    conn.rollback()
    conn.set_session(readonly=True, isolation_level="SERIALIZABLE", deferrable=False)
    cursor.execute("select count(*) from py")
    assert cursor.fetchone() == (ROWS,)
    conn.reset()
    conn.close()


with psycopg.connect(CONNINFO, autocommit=True) as connection:
    for part in (statements, transactions, copies, cursors, pipelines, messages, cancellation):
        part(connection)
        print(part.__name__, "done", flush=True)
older_driver()
print("older driver done", flush=True)
