"""Three Python packages against a cluster of three: the DB-API driver, the client under it and the codec under that,
which is the strictest reader of the protocol there is. Knows only addresses and process ids; the nodes may be
anybody's. One line per check on standard output, status 1 at the first that fails.

    main.py ADDRESS,ADDRESS,ADDRESS PID,PID,PID

The first address is the node that bootstrapped; the others are added here. The leader is killed at the end.
"""

import asyncio
import datetime
import math
import os
import signal
import socket
import sqlite3
import sys
import tempfile
import time
import traceback

import dqlitedbapi
import dqlitewire
from dqliteclient.protocol import DqliteProtocol
from dqlitewire import messages
from dqlitewire.constants import NodeRole

addresses = sys.argv[1].split(",")
pids = [int(pid) for pid in sys.argv[2].split(",")]
many_rows = 20_000
deadline_s = 20


def check(title, step):
    start = time.monotonic()
    try:
        step()
    except BaseException:
        print(f"not ok {title}", flush=True)
        traceback.print_exc()
        sys.exit(1)
    print(f"ok {title} ({round((time.monotonic() - start) * 1000)} ms)", flush=True)


def equal(got, expected):
    if got != expected:
        raise AssertionError(f"{got!r}, expected {expected!r}")


def fails(kind, code, text, step):
    try:
        step()
    except kind as error:
        if error.code != code or text not in error.raw_message:
            raise AssertionError(f"{error!r}, expected {code} {text!r}") from error
        return
    raise AssertionError(f"no failure, expected {code} {text!r}")


def driver(**options):
    return dqlitedbapi.connect(addresses[0], database="python", timeout=deadline_s, **options)


def column(connection, sql, *parameters):
    return [row[0] for row in connection.execute(sql, parameters).fetchall()]


# ------------------------------------------------------------------------------------------------------ the client


async def ask(address, conversation):
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    protocol = DqliteProtocol(reader, writer, timeout=deadline_s, address=address)
    try:
        await protocol.handshake()
        return await conversation(protocol)
    finally:
        protocol.close()
        await protocol.wait_closed()


def administer(conversation, address=None):
    return asyncio.run(ask(address or addresses[0], conversation))


def leader(among):
    """The address that every one of them names, and that names itself."""
    until = time.monotonic() + deadline_s
    while True:
        named = {administer(lambda p: p.get_leader(), address)[1] for address in among}
        if len(named) == 1 and named <= set(among):
            return named.pop()
        if time.monotonic() > until:
            raise AssertionError(f"the leader is {named}")
        time.sleep(0.02)


def join():
    async def conversation(protocol):
        for i, address in enumerate(addresses[1:], 2):
            await protocol.add(i, address)
            await protocol.assign(i, NodeRole.VOTER)
        return await protocol.cluster()

    members = administer(conversation)
    equal([(m.node_id, m.address, m.role) for m in members], [(i, a, NodeRole.VOTER) for i, a in enumerate(addresses, 1)])


def metadata():
    async def conversation(protocol):
        await protocol.weight(7)
        return await protocol.describe()

    answer = administer(conversation)
    equal((answer.failure_domain, answer.weight), (0, 7))


def dump():
    files = administer(lambda p: p.dump("python"))
    equal(list(files), ["python", "python-wal"])
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            with open(os.path.join(folder, name), "wb") as file:
                file.write(content)
        local = sqlite3.connect(os.path.join(folder, "python"))
        equal(local.execute("SELECT count(*) FROM many").fetchone(), (many_rows,))
        equal(local.execute("PRAGMA integrity_check").fetchone(), ("ok",))
        local.close()


def transfer():
    administer(lambda p: p.transfer(2))
    equal(leader(addresses), addresses[1])
    # Who follows refuses, with the code that makes a client look for another node; the driver finds it.
    with Session() as session:
        refusal = session.ask(messages.OpenRequest("python"))
        equal((type(refusal), refusal.code, refusal.message), (messages.FailureResponse, 10250, "not leader"))
    follower = driver()
    equal(column(follower, "SELECT count(*) FROM many"), [many_rows])
    follower.close()
    addresses.insert(0, addresses.pop(1))
    pids.insert(0, pids.pop(1))


def kill_leader():
    equal(leader(addresses), addresses[0])
    os.kill(pids.pop(0), signal.SIGKILL)
    addresses.pop(0)
    found = leader(addresses)
    addresses.sort(key=lambda address: address != found)
    connection = driver()
    equal(connection.execute("INSERT INTO account VALUES (3, 5)").rowcount, 1)
    equal(column(connection, "SELECT sum(balance) FROM account"), [105])
    connection.close()


# ------------------------------------------------------------------------------------------------------ the driver


def ddl_and_dml():
    connection = driver()
    connection.execute("CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT UNIQUE, age INTEGER)")
    cursor = connection.execute("INSERT INTO person (name, age) VALUES (?, ?), (?, ?)", ("Ada", 36, "Grace", 85))
    equal((cursor.lastrowid, cursor.rowcount), (2, 2))
    equal(connection.execute("UPDATE person SET age = age + 1").rowcount, 2)
    equal(connection.execute("DELETE FROM person WHERE name = ?", ("Grace",)).rowcount, 1)
    cursor = connection.execute("SELECT * FROM person")
    equal([each[0] for each in cursor.description], ["id", "name", "age"])
    equal(cursor.fetchall(), [(1, "Ada", 37)])
    cursor = connection.cursor()
    cursor.executemany("INSERT INTO person (name) VALUES (?)", [(f"p{i}",) for i in range(20)])
    equal(column(connection, "SELECT count(*) FROM person WHERE age IS NULL"), [20])
    equal(connection.execute("INSERT INTO person (name) VALUES ('r') RETURNING id, name").fetchall(), [(22, "r")])
    equal(connection.execute("SELECT id FROM person WHERE 0").fetchall(), [])
    connection.close()


def values():
    connection = driver()
    connection.execute("CREATE TABLE v (i INTEGER, f REAL, t TEXT, b BLOB, flag BOOLEAN, at DATETIME)")
    zone = datetime.timezone(datetime.timedelta(hours=1))
    at = datetime.datetime(2024, 2, 29, 23, 59, 58, 123456, zone)
    rows = [
        (0, 0.0, "", b"", False, datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)),
        (2**63 - 1, 1.7976931348623157e308, "naïve 日本語 🙂", b"\0\xff\0", True, at),
        (-(2**63), 5e-324, "x" * 10_000, bytes([0, 1, 254, 255]) * 25_000, True, at),
        (1, math.inf, "1", b"12345678", False, at),
    ]
    for row in rows:
        connection.execute("INSERT INTO v VALUES (?, ?, ?, ?, ?, ?)", row)
    equal(connection.execute("SELECT * FROM v ORDER BY rowid").fetchall(), rows)
    connection.execute("DELETE FROM v")
    connection.execute("INSERT INTO v (i, f, t, b) VALUES (?, ?, ?, ?)", (None, None, None, None))
    # NULL in a typed column travels with the column's type: false and the empty time, as from C (client-protocol §4.4).
    equal(connection.execute("SELECT * FROM v").fetchall(), [(None, None, None, None, False, None)])
    for count in (1, 7, 8, 255, 256, 1000, 32_766):
        places = ", ".join(["(?)"] * count)
        row = connection.execute(f"SELECT count(*), sum(column1) FROM (VALUES {places})", range(count)).fetchone()
        equal(row, (count, sum(range(count))))
    wide = connection.execute("SELECT " + ", ".join(map(str, range(255)))).fetchone()
    equal(wide, tuple(range(255)))
    connection.close()


def transactions():
    connection = driver()
    connection.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER CHECK (balance >= 0))")
    connection.execute("INSERT INTO account VALUES (1, 100), (2, 0)")

    def move(amount):
        connection.execute("UPDATE account SET balance = balance + ? WHERE id = 2", (amount,))
        connection.execute("UPDATE account SET balance = balance - ? WHERE id = 1", (amount,))

    with connection.transaction():
        move(30)
    connection.execute("BEGIN")
    move(50)
    connection.rollback()
    try:
        with connection.transaction():
            move(500)
    except dqlitedbapi.IntegrityError as error:
        equal(error.code, 275)
    else:
        raise AssertionError("overdrawn")
    equal(column(connection, "SELECT balance FROM account ORDER BY id"), [70, 30])
    connection.execute("BEGIN")
    move(1)
    connection.close()
    # Who leaves in the middle of a transaction has written nothing and holds no lock.
    connection = driver()
    connection.execute("BEGIN IMMEDIATE")
    equal(column(connection, "SELECT balance FROM account ORDER BY id"), [70, 30])
    impatient = driver(busy_timeout=0)
    fails(dqlitedbapi.OperationalError, 5, "database is locked", lambda: impatient.execute("DELETE FROM account"))
    impatient.close()
    connection.commit()
    connection.close()


def errors():
    connection = driver()
    for kind, code, text, sql in (
        (dqlitedbapi.IntegrityError, 2067, "UNIQUE constraint failed: person.name", "INSERT INTO person (name) VALUES ('Ada')"),
        (dqlitedbapi.DatabaseError, 1, "syntax error", "INSRT 1"),
        (dqlitedbapi.DatabaseError, 1, "no such table: nowhere", "INSERT INTO nowhere VALUES (1)"),
        (dqlitedbapi.DatabaseError, 1, "no such table: nowhere", "SELECT * FROM nowhere"),
        (dqlitedbapi.DatabaseError, 1, "integer overflow", "SELECT abs(-9223372036854775807 - 1)"),
        (dqlitedbapi.DatabaseError, 23, "not authorized", "PRAGMA journal_mode = DELETE"),
    ):
        fails(kind, code, text, lambda: connection.execute(sql))
    # The connection has survived all of them.
    equal(column(connection, "SELECT age FROM person WHERE name = 'Ada'"), [37])
    connection.close()


def large_result():
    connection = driver()
    connection.execute("CREATE TABLE many (id INTEGER PRIMARY KEY, name TEXT, data BLOB)")
    connection.execute(
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < ?) "
        "INSERT INTO many SELECT i, printf('name-%d', i), zeroblob(i % 40) FROM c",
        (many_rows,),
    )
    rows = connection.execute("SELECT id, name, data FROM many ORDER BY id").fetchall()
    equal(rows, [(i, f"name-{i}", bytes(i % 40)) for i in range(1, many_rows + 1)])
    # Abandoned after three rows.
    cursor = connection.execute("SELECT id FROM many ORDER BY id")
    equal([cursor.fetchone()[0] for _ in range(3)], [1, 2, 3])
    cursor.close()
    equal(column(connection, "SELECT count(*) FROM many"), [many_rows])
    # A result above the client's own bound costs the connection, and nobody else's.
    bounded = driver(max_total_rows=100)
    try:
        bounded.execute("SELECT id FROM many")
    except dqlitedbapi.Error:
        pass
    else:
        raise AssertionError("the bound did not hold")
    bounded.close()
    equal(column(connection, "SELECT count(*) FROM many"), [many_rows])
    connection.close()


# ------------------------------------------------------------------------------------------------------- the codec


class Session:
    """The codec over a socket: what the driver does not send (statements by id, INTERRUPT, the legacy word)."""

    def __init__(self, version=dqlitewire.PROTOCOL_VERSION):
        host, port = addresses[0].rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=deadline_s)
        self.encoder = dqlitewire.MessageEncoder(version=version)
        self.decoder = dqlitewire.MessageDecoder(version=version)
        self.socket.sendall(self.encoder.encode_handshake())

    def send(self, *requests):
        self.socket.sendall(b"".join(self.encoder.encode(request) for request in requests))

    def receive(self, decode):
        while (message := decode()) is None:
            data = self.socket.recv(65536)
            if not data:
                raise AssertionError("the node closed the connection")
            self.decoder.feed(data)
        return message

    def next(self):
        return self.receive(self.decoder.decode)

    def more(self):
        return self.receive(self.decoder.decode_continuation)

    def ask(self, request):
        self.send(request)
        return self.next()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def statements():
    with Session() as session:
        equal(session.ask(messages.OpenRequest("python")).db_id, 0)
        for schema in (0, 1):
            insert = session.ask(messages.PrepareRequest(0, "INSERT INTO account VALUES (?, ?)", schema=schema))
            equal((insert.num_params, insert.tail_offset), (2, (33 if schema == 1 else None)))
            result = session.ask(messages.ExecRequest(0, insert.stmt_id, [10 + schema, schema]))
            equal((result.last_insert_id, result.rows_affected), (10 + schema, 1))
            select = session.ask(messages.PrepareRequest(0, "SELECT balance FROM account WHERE id = ?", schema=schema))
            for _ in range(2):
                answer = session.ask(messages.QueryRequest(0, select.stmt_id, [10 + schema]))
                equal((answer.column_names, answer.rows, answer.has_more), (["balance"], [[schema]], False))
            for statement in (insert, select):
                equal(type(session.ask(messages.FinalizeRequest(0, statement.stmt_id))), messages.EmptyResponse)
            answer = session.ask(messages.QueryRequest(0, select.stmt_id, [1]))
            equal((type(answer), answer.code), (messages.FailureResponse, 12))
        equal(session.ask(messages.ExecSqlRequest(0, "DELETE FROM account WHERE id >= 10")).rows_affected, 2)
        # Requests in one write are answered in order.
        session.send(*(messages.QuerySqlRequest(0, "SELECT ?", [i]) for i in range(20)))
        equal([session.next().rows for _ in range(20)], [[[i]] for i in range(20)])


def interrupts():
    with Session() as session:
        session.ask(messages.OpenRequest("python"))
        endless = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT i, hex(zeroblob(100)) FROM c"
        for _ in range(5):
            answer = session.ask(messages.QuerySqlRequest(0, endless))
            equal((answer.has_more, answer.rows[0][0]), (True, 1))
            session.send(messages.InterruptRequest(0))
            while isinstance(session.more(), messages.RowsResponse):
                pass
            equal(session.ask(messages.QuerySqlRequest(0, "SELECT 1")).rows, [[1]])
        # With nothing to interrupt it is a request like any other.
        equal(type(session.ask(messages.InterruptRequest(0))), messages.EmptyResponse)


def legacy_word():
    with Session(dqlitewire.PROTOCOL_VERSION_LEGACY) as session:
        equal(session.ask(messages.LeaderRequest()).address, addresses[0])
        equal(session.ask(messages.ClientRequest(5)).heartbeat_timeout, 15_000)
        equal(session.ask(messages.OpenRequest("python")).db_id, 0)
        equal(session.ask(messages.QuerySqlRequest(0, "SELECT ?", ["word"])).rows, [["word"]])


check("two servers are added and become voters", join)
check("metadata is set and described", metadata)
check("tables, inserts, updates, deletes and RETURNING work", ddl_and_dml)
check("values of every type and up to 32,766 parameters come back", values)
check("transactions commit, roll back and end with their connection", transactions)
check("errors carry SQLite's codes and texts", errors)
check(f"a result of {many_rows} rows arrives whole, and may be abandoned", large_result)
check("statements are prepared under both schemas, executed, queried and finalized", statements)
check("an endless result is interrupted, and the connection goes on", interrupts)
check("the legacy word is served", legacy_word)
check("a dump is a SQLite database", dump)
check("leadership moves where it is sent, and who follows says so", transfer)
check("after the leader is killed writing goes on, and nothing is missing", kill_leader)
