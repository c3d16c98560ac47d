// Tests of connections, statements, tuples and workers: client-protocol §4, §7.4–7.6, §9.8, §10, §17.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>

#include "connection.h"
#include "test_support.h"
#include "tuple.h"
#include "worker_pool.h"

using engine::Outcome;
using engine::Use;

void FormatRows(const tuple::Buffer& message, std::string* out) {
  const uint8_t* p = message.data() + 8;
  const uint8_t* end = message.data() + message.size();
  auto word = [&p, end] {
    CHECK(end - p >= 8);
    uint64_t value;
    std::memcpy(&value, p, 8);
    p += 8;
    return value;
  };
  auto text = [&p] {
    const std::string value(reinterpret_cast<const char*>(p));
    p += (value.size() + 8) / 8 * 8;
    return value;
  };
  const uint64_t columns = word();
  for (uint64_t i = 0; i < columns; i++) text();
  for (;;) {
    uint64_t marker;
    std::memcpy(&marker, p, 8);
    if (marker == tuple::kDoneMarker || marker == tuple::kPartMarker) break;
    const uint8_t* codes = p;
    p += ((columns + 1) / 2 + 7) / 8 * 8;
    for (uint64_t i = 0; i < columns; i++) {
      const int code = i % 2 == 0 ? codes[i / 2] & 15 : codes[i / 2] >> 4;
      if (i > 0) *out += '|';
      if (code == 3 || code == 10) {
        *out += text();
      } else if (code == 4) {
        const uint64_t bytes = word();
        *out += "blob" + std::to_string(bytes);
        p += (bytes + 7) / 8 * 8;
      } else if (code == 5) {
        word();
        *out += "NULL";
      } else {
        *out += std::to_string(static_cast<int64_t>(word()));
      }
    }
    *out += '\n';
  }
  CHECK(p + 8 == end);
}

std::string Query(engine::Connection& connection, const std::string& sql) {
  auto statement = Prepare(connection, sql);
  if (statement == nullptr) return "error: " + connection.error().message;
  std::string rows;
  for (;;) {
    switch (statement->Rows(65536)) {
      case Outcome::kPart:
        FormatRows(connection.rows(), &rows);
        break;
      case Outcome::kDone:
        FormatRows(connection.rows(), &rows);
        return rows;
      default:
        return "error: " + connection.error().message;
    }
  }
}

namespace {

std::string Hex(const tuple::Buffer& buffer) {
  static const char digits[] = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < buffer.size(); i++) {
    if (i > 0 && i % 8 == 0) text += ' ';
    text += digits[buffer.data()[i] >> 4];
    text += digits[buffer.data()[i] & 15];
  }
  return text;
}

std::vector<uint8_t> FromHex(const std::string& hex) {
  std::vector<uint8_t> bytes;
  std::string digits;
  for (const char c : hex) {
    if (c != ' ' && c != '\n') digits += c;
  }
  for (size_t i = 0; i < digits.size(); i += 2) bytes.push_back(static_cast<uint8_t>(std::stoi(digits.substr(i, 2), nullptr, 16)));
  return bytes;
}

std::string RowsHex(engine::Connection& connection, const std::string& sql) {
  auto statement = Prepare(connection, sql);
  CHECK(statement != nullptr);
  std::string hex;
  for (;;) {
    const Outcome outcome = statement->Rows(4096);
    CHECK(outcome == Outcome::kDone || outcome == Outcome::kPart);
    if (!hex.empty()) hex += '\n';
    hex += Hex(connection.rows());
    if (outcome == Outcome::kDone) return hex;
  }
}

int BindHex(engine::Statement& statement, const std::string& hex, int schema, uint32_t skip, uint32_t* values) {
  const std::vector<uint8_t> bytes = FromHex(hex);
  return statement.Bind(bytes.data(), bytes.size(), 0, schema, skip, values);
}

// As executeOnWorker of the binding: Run on another thread.
Outcome OnThread(engine::Statement& statement, Use use, size_t batch_bytes = 65536) {
  if (!statement.Begin(use, true)) return Outcome::kError;
  statement.connection()->set_busy(true);
  Outcome outcome = Outcome::kError;
  std::thread worker([&] { outcome = statement.Run(true, batch_bytes); });
  worker.join();
  statement.connection()->set_busy(false);
  return statement.Finish(outcome);
}

std::string ExecOnThread(engine::Connection& connection, const std::string& sql) {
  auto statement = Prepare(connection, sql);
  if (statement == nullptr) return connection.error().message;
  switch (OnThread(*statement, Use::kExecute)) {
    case Outcome::kDone:
      return "";
    case Outcome::kRow:
      return "row";
    default:
      return connection.error().message;
  }
}

std::string QueryOnThread(engine::Connection& connection, const std::string& sql) {
  auto statement = Prepare(connection, sql);
  if (statement == nullptr) return "error: " + connection.error().message;
  std::string rows;
  for (;;) {
    const Outcome outcome = OnThread(*statement, Use::kRows);
    if (outcome != Outcome::kPart && outcome != Outcome::kDone) return "error: " + connection.error().message;
    FormatRows(connection.rows(), &rows);
    if (outcome == Outcome::kDone) return rows;
  }
}

const char kCount[] = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

}  // namespace

// ------------------------------------------------------------------------------------------------- tuples, rows

TEST(ParametersAndRowsAreByteExact) {
  TestNode node;
  auto connection = node.Connect();
  CHECK(Exec(*connection, "CREATE TABLE t(i INTEGER, r REAL, s TEXT, b BLOB, d DATETIME, o BOOLEAN, x)").empty());
  auto insert = Prepare(*connection, "INSERT INTO t VALUES(?,?,?,?,?,?,?)");
  uint32_t values = 0;
  // client-protocol E6, E8
  CHECK(BindHex(*insert,
                "07010203040a0b05 feffffffffffffff 000000000000f83f 68c3a96c6c6f0000 0300000000000000 0102030000000000"
                "323032342d30312d 30322030333a3034 3a30352b30303a30 3000000000000000 0100000000000000 0000000000000000",
                0, 0, &values) == SQLITE_OK);
  CHECK(values == 7);
  CHECK(insert->Execute() == Outcome::kDone);
  node->Publish();
  node->Publish();
  CHECK(RowsHex(*connection, "SELECT * FROM t WHERE i = -2") ==
        "1500000007000000 0700000000000000 6900000000000000 7200000000000000 7300000000000000 6200000000000000 "
        "6400000000000000 6f00000000000000 7800000000000000 2143ba0500000000 feffffffffffffff 000000000000f83f "
        "68c3a96c6c6f0000 0300000000000000 0102030000000000 323032342d30312d 30322030333a3034 3a30352b30303a30 "
        "3000000000000000 0100000000000000 0000000000000000 ffffffffffffffff");
  // E7, E9: schema 1
  CHECK(BindHex(*insert,
                "0700000001050304 010b020000000000 0700000000000000 0000000000000000 3132333435363738 0000000000000000"
                "0800000000000000 3132333435363738 00f1536500000000 0500000000000000 0000000000000440",
                1, 0, &values) == SQLITE_OK);
  CHECK(insert->Execute() == Outcome::kDone);
  node->Publish();
  CHECK(RowsHex(*connection, "SELECT * FROM t WHERE i = 7").find("5143b90200000000 0700000000000000") != std::string::npos);
  // E10: NULL in typed columns
  CHECK(Exec(*connection, "INSERT INTO t(i) VALUES(9)").empty());
  node->Publish();
  CHECK(RowsHex(*connection, "SELECT d FROM t WHERE i = 9") ==
        "0500000007000000 0100000000000000 6400000000000000 0a00000000000000 0000000000000000 ffffffffffffffff");
  CHECK(RowsHex(*connection, "SELECT o FROM t WHERE i = 9") ==
        "0500000007000000 0100000000000000 6f00000000000000 0b00000000000000 0000000000000000 ffffffffffffffff");
  // E12
  CHECK(RowsHex(*connection, "SELECT i FROM t WHERE 0") ==
        "0300000007000000 0100000000000000 6900000000000000 ffffffffffffffff");
  CHECK(RowsHex(*connection, "DELETE FROM t WHERE i = 9") == "0200000007000000 0000000000000000 ffffffffffffffff");
  // What C dqlite aborts on: values that do not fit the declared type go with their plain code.
  CHECK(Exec(*connection, "INSERT INTO t(i, d, o) VALUES(20, 1.5, 'abc'), (21, x'00', 2.5)").empty());
  while (node->Publish()) {
  }
  CHECK(RowsHex(*connection, "SELECT d, o FROM t WHERE i = 20").find(" 3200000000000000 ") != std::string::npos);
  CHECK(RowsHex(*connection, "SELECT d, o FROM t WHERE i = 21").find(" 2400000000000000 ") != std::string::npos);
  // A text is cut at a NUL.
  CHECK(Query(*connection, "SELECT 'ab'||char(0)||'cd'") == "ab\n");
}

TEST(SeventeenColumnsTakeTwoHeaderWords) {
  TestNode node;
  auto connection = node.Connect();
  const std::string hex = RowsHex(*connection, "SELECT 1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1");
  CHECK(hex.find(" 1111111111111111 0100000000000000 0100000000000000 ") != std::string::npos);
}

TEST(BatchesEndAtAPageAndHaveARow) {
  TestNode node;
  auto connection = node.Connect();
  const std::string numbers = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 255) SELECT n FROM c";
  auto statement = Prepare(*connection, numbers);
  CHECK(statement->Rows(65536) == Outcome::kPart);  // E13
  CHECK(connection->rows().size() == 8 + 513 * 8);
  CHECK(Hex(connection->rows()).substr(0, 16) == "0102000007000000");
  CHECK(statement->Rows(65536) == Outcome::kDone);
  CHECK(Hex(connection->rows()) == "0300000007000000 0100000000000000 6e00000000000000 ffffffffffffffff");
  // Names alone fill the page.
  std::string wide = "SELECT 1";
  for (int i = 2; i <= 600; i++) wide += "," + std::to_string(i);
  wide += " UNION ALL SELECT 1";
  for (int i = 2; i <= 600; i++) wide += "," + std::to_string(i);
  auto two = Prepare(*connection, wide);
  std::string rows;
  CHECK(two->Rows(65536) == Outcome::kPart);
  FormatRows(connection->rows(), &rows);
  CHECK(std::count(rows.begin(), rows.end(), '\n') == 1);
  CHECK(two->Rows(65536) == Outcome::kDone);
  // One huge row.
  auto blob = Prepare(*connection, "SELECT zeroblob(10000) AS b");
  CHECK(blob->Rows(65536) == Outcome::kPart);
  CHECK(connection->rows().size() == 10048);
}

TEST(AFailureLeavesNoPartialRows) {
  TestNode node;
  auto connection = node.Connect();
  auto statement = Prepare(*connection, "SELECT 1,2,3,4,abs(-9223372036854775807-1)");  // E16
  CHECK(statement->Rows(65536) == Outcome::kError);
  CHECK(connection->rows().size() == 0);
  CHECK(connection->error().code == 1);
  CHECK(connection->error().message == "integer overflow");
}

TEST(ParametersFollowTheRules) {
  TestNode node;
  auto connection = node.Connect();
  auto statement = Prepare(*connection, "SELECT ?, ?");
  uint32_t values = 0;
  std::string rows;
  auto row = [&] {
    rows.clear();
    CHECK(statement->Rows(65536) == Outcome::kDone);
    FormatRows(connection->rows(), &rows);
    return rows;
  };
  CHECK(BindHex(*statement, "0201010000000000 0100000000000000 0200000000000000", 0, 0, &values) == SQLITE_OK);
  CHECK(row() == "1|2\n");
  CHECK(BindHex(*statement, "", 0, 0, &values) == SQLITE_OK && values == 0);
  CHECK(row() == "NULL|NULL\n");  // bindings do not stay
  CHECK(BindHex(*statement, "0101000000000000 0100000000000000", 0, 0, &values) == SQLITE_OK && values == 1);
  CHECK(row() == "1|NULL\n");
  CHECK(BindHex(*statement, "0301010100000000 0100000000000000 0200000000000000 0300000000000000", 0, 0, &values) ==
        SQLITE_OK);
  CHECK(values == 3);
  CHECK(row() == "1|2\n");
  CHECK(BindHex(*statement, "0301010100000000 0100000000000000 0200000000000000 0300000000000000", 0, 2, &values) ==
        SQLITE_OK);
  CHECK(row() == "3|NULL\n");
  CHECK(BindHex(*statement, "0000000000000000", 0, 0, &values) == SQLITE_OK && values == 0);
  CHECK(BindHex(*statement, "0109000000000000 0100000000000000", 0, 0, &values) == tuple::kMalformed);  // UNIXTIME
  CHECK(BindHex(*statement, "0107000000000000 0100000000000000", 0, 0, &values) == tuple::kMalformed);
  CHECK(BindHex(*statement, "0101000000000000", 0, 0, &values) == tuple::kMalformed);
  CHECK(BindHex(*statement, "0103000000000000 6161616161616161", 0, 0, &values) == tuple::kMalformed);
  CHECK(BindHex(*statement, "0104000000000000 0900000000000000 6161616161616161", 0, 0, &values) == tuple::kMalformed);
  CHECK(BindHex(*statement, "0104000000000000 ffffffffffffffff 6161616161616161", 0, 0, &values) == tuple::kMalformed);
  CHECK(BindHex(*statement, "ffffffff00000000 0100000000000000", 1, 0, &values) == tuple::kMalformed);
  CHECK(BindHex(*statement, "0b0b", 0, 0, &values) == tuple::kMalformed);
  CHECK(BindHex(*statement, "020b0b0000000000 0000000000000000 0500000000000000", 0, 0, &values) == SQLITE_OK);
  CHECK(row() == "0|1\n");
  CHECK(BindHex(*statement, "0104000000000000 0000000000000000", 0, 0, &values) == SQLITE_OK);
  CHECK(row() == "blob0|NULL\n");
}

TEST(RandomTuplesAreNeverReadBeyond) {
  TestNode node;
  auto connection = node.Connect();
  auto statement = Prepare(*connection, "SELECT ?, ?, ?, ?, ?, ?");
  TestRandom random(7);
  const uint8_t codes[] = {1, 2, 3, 4, 5, 9, 10, 11};
  int good = 0;
  for (int round = 0; round < 200000; round++) {
    // The exact size, so that ASan sees one byte too much.
    const size_t bytes = random.Below(96);
    std::unique_ptr<uint8_t[]> body(new uint8_t[bytes]);
    for (size_t i = 0; i < bytes; i++) body[i] = random.Below(3) == 0 ? static_cast<uint8_t>(random.Next()) : 0;
    const int schema = static_cast<int>(random.Below(2));
    if (bytes > 12 && random.Below(4) != 0) {
      const uint32_t count = random.Below(7);
      body[0] = static_cast<uint8_t>(count);
      if (schema == 1) body[1] = body[2] = body[3] = 0;
      for (uint32_t i = 0; i < count; i++) body[(schema == 1 ? 4 : 1) + i] = codes[random.Below(sizeof codes)];
    }
    uint32_t values = 0;
    const size_t offset = random.Below(8) == 0 ? random.Below(static_cast<uint32_t>(bytes) + 1) : 0;
    if (statement->Bind(body.get(), bytes, offset, schema, random.Below(4), &values) == SQLITE_OK) {
      good++;
      if (random.Below(50) == 0) CHECK(statement->Rows(65536) == Outcome::kDone);
    }
  }
  CHECK(good > 1000);
}

// ------------------------------------------------------------------------------------------------- what is refused

TEST(StatementsOfSection10AreRefused) {
  TestNode node;
  auto connection = node.Connect();
  for (const char* sql :
       {"PRAGMA journal_mode=DELETE", "PRAGMA journal_mode=WAL", "PRAGMA page_size=4096", "PRAGMA synchronous=2",
        "PRAGMA wal_autocheckpoint=5", "PRAGMA wal_checkpoint", "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA busy_timeout",
        "PRAGMA busy_timeout=5", "PRAGMA read_uncommitted", "PRAGMA locking_mode", "PRAGMA main.locking_mode=EXCLUSIVE",
        "ATTACH 'x.db' AS x", "ATTACH ':memory:' AS x", "ATTACH ? AS x", "ATTACH ''||'x' AS x"}) {
    CHECK(Prepare(*connection, sql) == nullptr);
    CHECK(connection->error().code == 23);
    CHECK(connection->error().message == "not authorized");
  }
  CHECK(Exec(*connection, "VACUUM INTO 'x.db'").find("auth") != std::string::npos);
  CHECK((connection->error().code & 255) == 23);
  CHECK(Query(*connection, "PRAGMA journal_mode") == "wal\n");
  CHECK(Query(*connection, "PRAGMA page_size") == "4096\n");
  CHECK(Query(*connection, "PRAGMA synchronous") == "0\n");
  CHECK(Query(*connection, "PRAGMA foreign_keys") == "1\n");
  CHECK(Query(*connection, "PRAGMA cache_size") == "-2000\n");
  CHECK(Exec(*connection, "ATTACH '' AS x; CREATE TABLE x.t(a); INSERT INTO x.t VALUES(1)").empty());
  CHECK(Query(*connection, "SELECT * FROM x.t") == "1\n");
  CHECK(Exec(*connection, "DETACH x").empty());
  CHECK(Query(*connection, "SELECT load_extension('x')").find("error: ") == 0);
  CHECK(Exec(*connection, "PRAGMA foreign_keys=0").empty());
  CHECK(Query(*connection, "PRAGMA foreign_keys") == "0\n");
}

TEST(NamesThatSqliteReadsOtherwiseAreNoDatabases) {
  for (const char* name : {"", ":memory:", "file:x", "file:x?mode=memory", "a-wal", "a-journal"}) CHECK(!vfs::Vfs::IsName(name));
  CHECK(!vfs::Vfs::IsName(std::string(512, 'a')));
  for (const char* name : {"a", "a/b/c", "../x", "TEST", "\xc3\xa9", "a-walx", "file"}) {
    CHECK(vfs::Vfs::IsName(name));
    TestNode node;
    auto slot = node.vfs()->Open(name);
    engine::Error error;
    auto connection = engine::Connection::Open(node.vfs(), slot, 100, &error);
    CHECK(connection != nullptr);
    CHECK(Exec(*connection, "CREATE TABLE t(a); INSERT INTO t VALUES(1)").empty());
    CHECK(slot->database->speculative() == 2);
    CHECK(node->speculative() == 0);
  }
  CHECK(vfs::Vfs::IsName(std::string(511, 'a')));
}

// ------------------------------------------------------------------------------------------------- EXEC, transactions

TEST(ExecOfAStatementThatYieldsARowLeavesNothing) {
  TestNode node;
  auto connection = node.Connect();
  auto other = node.Connect();
  CHECK(Exec(*connection, "CREATE TABLE t(a)").empty());
  for (const bool on_worker : {false, true}) {
    const char* insert = "INSERT INTO t VALUES(1) RETURNING a";
    CHECK((on_worker ? ExecOnThread(*connection, insert) : Exec(*connection, insert)) == "row");
    CHECK(!connection->in_transaction());
    CHECK(!connection->is_writing());
    CHECK(node->speculative() == 1);
    CHECK(Exec(*other, "BEGIN IMMEDIATE; ROLLBACK").empty());
    // Inside a transaction only the statement is undone.
    CHECK(Exec(*connection, "BEGIN; INSERT INTO t VALUES(2)").empty());
    CHECK((on_worker ? ExecOnThread(*connection, insert) : Exec(*connection, insert)) == "row");
    CHECK(connection->in_transaction());
    CHECK(Query(*connection, "SELECT count(*) FROM t") == "1\n");
    CHECK(Exec(*connection, "ROLLBACK").empty());
    CHECK(Exec(*connection, "SELECT 1") == "row");
    CHECK(node->is_idle());
  }
  CHECK(Exec(*connection, "SELECT 1 WHERE 0").empty());
  CHECK(Exec(*connection, "INSERT INTO t VALUES(5)").empty());
  CHECK(node->speculative() == 2);
}

TEST(ReturningThroughQueryCommitsAfterTheLastRow) {
  TestNode node;
  auto connection = node.Connect();
  CHECK(Exec(*connection, "CREATE TABLE t(a, b)").empty());
  node->Publish();
  const std::string insert =
      "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 1000) "
      "INSERT INTO t SELECT n, n FROM c RETURNING a";
  for (const bool on_worker : {false, true}) {
    auto statement = Prepare(*connection, insert);
    CHECK((on_worker ? OnThread(*statement, Use::kRows, 4096) : statement->Rows(4096)) == Outcome::kPart);
    CHECK(node->speculative() == 0);
    CHECK(connection->is_writing());
    int parts = 1;
    Outcome outcome;
    do {
      outcome = on_worker ? OnThread(*statement, Use::kRows, 4096) : statement->Rows(4096);
      parts++;
    } while (outcome == Outcome::kPart);
    CHECK(outcome == Outcome::kDone && parts == 4);
    CHECK(node->speculative() == 1);
    node->Publish();
    CHECK(Query(*connection, "SELECT count(*) FROM t") == "1000\n");
    // Ended early: all changes were made, they stay.
    CHECK(statement->Rows(4096) == Outcome::kPart);
    CHECK(statement->Reset() == Outcome::kDone);
    CHECK(node->speculative() == 1);
    node->Publish();
    CHECK(Query(*connection, "SELECT count(*) FROM t") == "2000\n");
    // The connection is closed: rolled back.
    auto doomed = node.Connect();
    auto half = Prepare(*doomed, insert);
    CHECK(half->Rows(4096) == Outcome::kPart);
    doomed->Close();
    CHECK(node->speculative() == 0 && node->is_idle());
    CHECK(Exec(*connection, "DELETE FROM t").empty());
    node->Publish();
  }
}

TEST(WorkerAndInlineDoTheSame) {
  // Each script on two nodes: every statement inline, every statement on a worker.
  TestNode inline_node, worker_node;
  auto a = inline_node.Connect();
  auto b = worker_node.Connect();
  const char* script[] = {
      "CREATE TABLE p(id INTEGER PRIMARY KEY, v UNIQUE)",
      "CREATE TABLE c(id INTEGER PRIMARY KEY, p REFERENCES p(id) DEFERRABLE INITIALLY DEFERRED)",
      "CREATE TABLE q(id INTEGER PRIMARY KEY, p REFERENCES p(id))",
      "INSERT INTO p VALUES(1, 'a'), (2, 'b')",
      "INSERT INTO p VALUES(3, 'c'), (4, 'a'), (5, 'd')",          // fails as a whole
      "INSERT OR FAIL INTO p VALUES(3, 'c'), (4, 'a'), (5, 'd')",  // keeps 3
      "INSERT OR IGNORE INTO p VALUES(6, 'e'), (7, 'a'), (8, 'f')",
      "INSERT OR ROLLBACK INTO p VALUES(9, 'g'), (10, 'a')",
      "INSERT OR REPLACE INTO p VALUES(9, 'g'), (10, 'a')",
      "INSERT INTO c VALUES(1, 99)",  // deferred: fails at the commit
      "INSERT INTO q VALUES(1, 99)",
      "INSERT INTO c VALUES(1, 2)",
      "UPDATE p SET v = v || 'x' WHERE id > 2",
      "DELETE FROM p WHERE id = 2",  // referenced
      "BEGIN",
      "INSERT INTO c VALUES(2, 99)",
      "COMMIT",  // fails, stays open
      "DELETE FROM c WHERE id = 2",
      "COMMIT",
      "SAVEPOINT s",
      "INSERT INTO p VALUES(20, 'z')",
      "INSERT OR ROLLBACK INTO p VALUES(20, 'z')",
      "RELEASE s",
      "BEGIN IMMEDIATE",
      "INSERT OR FAIL INTO p VALUES(30, 'y'), (30, 'yy')",
      "INSERT INTO p VALUES(31, 'w'), (30, 'ww')",
      "COMMIT",
      "ALTER TABLE p ADD COLUMN w DEFAULT 5",
      "CREATE INDEX i ON p(w)",
      "ANALYZE",
      "CREATE TEMP TABLE tt(a)",
      "INSERT INTO tt SELECT id FROM p",
      "VACUUM",
      "PRAGMA user_version=7",
      "REINDEX",
      "DROP INDEX i",
  };
  for (const char* sql : script) {
    const std::string first = Exec(*a, sql);
    const std::string second = ExecOnThread(*b, sql);
    if (first != second) std::fprintf(stderr, "%s: inline \"%s\", worker \"%s\"\n", sql, first.c_str(), second.c_str());
    CHECK(first == second);
    CHECK(a->in_transaction() == b->in_transaction());
    CHECK(a->is_writing() == b->is_writing());
    uint8_t x[16], y[16];
    a->WriteResult(x);
    b->WriteResult(y);
    // After a deferred constraint has failed, a worker's connection still counts the rows until its next change.
    const bool counts = first.empty() && (sql[0] == 'I' || sql[0] == 'U' || sql[0] == 'D');
    CHECK(!counts || std::memcmp(x, y, 16) == 0);
    while (inline_node->Publish()) {
    }
    while (worker_node->Publish()) {
    }
    for (const char* select : {"SELECT * FROM p", "SELECT * FROM c", "SELECT * FROM q", "PRAGMA integrity_check",
                               "PRAGMA user_version", "SELECT name FROM sqlite_schema"})
      CHECK(Query(*a, select) == QueryOnThread(*b, select));
  }
  CHECK(Query(*a, "PRAGMA integrity_check") == "ok\n");
}

// ------------------------------------------------------------------------------------------------- views

TEST(ReadsSeeWhatIsPublishedWritesSeeAll) {
  TestNode node;
  auto writer = node.Connect();
  auto reader = node.Connect();
  CHECK(Exec(*writer, "CREATE TABLE t(a)").empty());
  CHECK(Query(*reader, "SELECT count(*) FROM t").find("no such table") != std::string::npos);
  node->Publish();
  CHECK(Query(*reader, "SELECT count(*) FROM t") == "0\n");
  for (int i = 1; i <= 5; i++) CHECK(Exec(*writer, "INSERT INTO t SELECT count(*) + 1 FROM t").empty());
  CHECK(node->speculative() == 5);
  for (int published = 0; published <= 5; published++) {
    const std::string expected = std::to_string(published) + "\n";
    CHECK(Query(*reader, "SELECT count(*) FROM t") == expected);
    CHECK(QueryOnThread(*reader, "SELECT count(*) FROM t") == expected);
    CHECK(Query(*writer, "SELECT count(*) FROM t") == expected);
    CHECK(Query(*writer, "SELECT count(*) FROM pragma_table_info('t')") == "1\n");
    CHECK(!reader->in_transaction() && !writer->in_transaction());
    // An explicit transaction is on the speculative view.
    CHECK(Exec(*reader, "BEGIN").empty());
    CHECK(Query(*reader, "SELECT count(*) FROM t") == "5\n");
    CHECK(QueryOnThread(*reader, "SELECT count(*) FROM t") == "5\n");
    CHECK(Exec(*reader, "COMMIT").empty());
    if (published < 5) node->Publish();
  }
  CHECK(!node->Publish());
  CHECK(Query(*writer, "SELECT max(a) FROM t") == "5\n");
}

TEST(ReadPragmasSeeWhatIsPublished) {
  TestNode node;
  auto writer = node.Connect();
  CHECK(Exec(*writer, "PRAGMA user_version=5").empty());
  CHECK(Query(*writer, "PRAGMA user_version") == "0\n");
  node->Publish();
  CHECK(Query(*writer, "PRAGMA user_version") == "5\n");
}

TEST(AStatementPreparedOnOneViewRunsOnTheOther) {
  TestNode node;
  auto writer = node.Connect();
  auto reader = node.Connect();
  CHECK(Exec(*writer, "CREATE TABLE t(a); INSERT INTO t VALUES(1)").empty());
  node->Publish();
  node->Publish();
  auto select = Prepare(*reader, "SELECT * FROM t");
  auto rows = [&] {
    std::string text;
    CHECK(select->Rows(65536) == Outcome::kDone);
    FormatRows(reader->rows(), &text);
    return text;
  };
  CHECK(rows() == "1\n");
  CHECK(Exec(*writer, "ALTER TABLE t ADD COLUMN b DEFAULT 2").empty());
  CHECK(rows() == "1\n");
  CHECK(Exec(*reader, "BEGIN").empty());
  CHECK(rows() == "1|2\n");
  CHECK(Exec(*reader, "COMMIT").empty());
  CHECK(rows() == "1\n");
  node->Publish();
  CHECK(rows() == "1|2\n");
}

TEST(AWriterAfterAReadOfAnOlderStateIsBusy) {
  TestNode node;
  auto a = node.Connect();
  auto b = node.Connect();
  CHECK(Exec(*a, "CREATE TABLE t(a)").empty());
  CHECK(Exec(*a, "BEGIN").empty());
  CHECK(Query(*a, "SELECT count(*) FROM t") == "0\n");
  CHECK(Exec(*b, "INSERT INTO t VALUES(1)").empty());
  CHECK(Exec(*a, "INSERT INTO t VALUES(2)") == "database is locked");
  CHECK(a->error().code == 517);
  CHECK(Exec(*a, "ROLLBACK; INSERT INTO t VALUES(2)").empty());
  CHECK(Exec(*a, "BEGIN IMMEDIATE").empty());
  CHECK(a->is_writing() && !b->is_writing());
  CHECK(Exec(*b, "INSERT INTO t VALUES(3)") == "database is locked");
  CHECK(b->error().code == 5);
  CHECK(ExecOnThread(*b, "INSERT INTO t VALUES(3)") == "database is locked");
  CHECK(Exec(*a, "COMMIT").empty());
  CHECK(Exec(*b, "INSERT INTO t VALUES(3)").empty());
}

// ------------------------------------------------------------------------------------------------- budget, interrupt

TEST(AHeavyStatementIsUndoneAndMayMove) {
  TestNode node(256u << 20, 5);
  auto connection = node.Connect();
  CHECK(Exec(*connection, "CREATE TABLE t(a)").empty());
  const std::string insert =
      "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300000) INSERT INTO t SELECT i FROM n";
  CHECK(Exec(*connection, insert) == "over budget");
  CHECK(!connection->is_writing() && !connection->in_transaction() && node->speculative() == 1);
  CHECK(ExecOnThread(*connection, insert).empty());
  CHECK(node->speculative() == 2);
  while (node->Publish()) {
  }
  auto sum = Prepare(*connection, "SELECT sum(a % 7) FROM t, (SELECT 1 UNION SELECT 2 UNION SELECT 3)");
  CHECK(sum->Rows(4096) == Outcome::kOverBudget);
  CHECK(node->is_idle());
  CHECK(OnThread(*sum, Use::kRows) == Outcome::kDone);
  // A read inside a transaction may be undone too, a write may not.
  CHECK(Exec(*connection, "BEGIN; INSERT INTO t VALUES(1)").empty());
  CHECK(sum->Rows(4096) == Outcome::kOverBudget);
  CHECK(connection->in_transaction() && connection->is_writing());
  CHECK(Exec(*connection, insert).empty());
  CHECK(Exec(*connection, "COMMIT").empty());
  CHECK(node->speculative() == 1);
  node->Publish();
  CHECK(QueryOnThread(*connection, "SELECT count(*) FROM t") == "600001\n");
}

TEST(WritesThatScanPreferAWorker) {
  TestNode node;
  auto connection = node.Connect();
  CHECK(Exec(*connection, "CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE TABLE u(a INTEGER PRIMARY KEY, b UNIQUE)").empty());
  for (const char* sql : {"INSERT INTO t VALUES(1, 2)", "INSERT INTO t VALUES(1, 2), (3, 4)", "UPDATE t SET b = 1 WHERE a = 5",
                          "DELETE FROM t WHERE a = ?", "INSERT INTO t SELECT a, b FROM u WHERE a = 5", "COMMIT",
                          "CREATE TABLE x(a)", "SELECT * FROM t"})
    CHECK(!Prepare(*connection, sql)->PrefersWorker());
  for (const char* sql : {"UPDATE t SET b = 1", "DELETE FROM t WHERE b = 2", "INSERT INTO t SELECT * FROM u",
                          "CREATE INDEX i ON t(b)", "REINDEX", "ANALYZE", "VACUUM", "-- x\n vacuum;"})
    if (!Prepare(*connection, sql)->PrefersWorker()) FailCheck(__FILE__, __LINE__, sql);
  CHECK(Prepare(*connection, "/* x */ VACUUM")->is_vacuum());
  CHECK(!Prepare(*connection, "SELECT 1 AS vacuum")->is_vacuum());
}

TEST(InterruptEndsAWorker) {
  TestNode node;
  auto connection = node.Connect();
  for (const bool early : {true, false}) {
    auto statement = Prepare(*connection, kCount);
    CHECK(statement->Begin(Use::kRows, true));
    connection->set_busy(true);
    if (early) connection->Interrupt();  // before the worker has begun
    std::atomic<int> outcome{-1};
    std::thread worker([&] { outcome = static_cast<int>(statement->Run(true, 4096)); });
    if (!early) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      connection->Interrupt();
    }
    worker.join();
    connection->set_busy(false);
    CHECK(statement->Finish(static_cast<Outcome>(outcome.load())) == Outcome::kError);
    CHECK(connection->error().code == SQLITE_INTERRUPT && connection->error().message == "interrupted");
    CHECK(Query(*connection, "SELECT 1") == "1\n");
  }
  CHECK(node->is_idle());
}

TEST(WorkersRunBesideTheLoop) {
  // Readers and a heavy writer on threads, commits, publications and checkpoints on this one.
  TestNode node;
  auto writer = node.Connect();
  CHECK(Exec(*writer, "CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE TABLE big(a)").empty());
  node->Publish();
  node->Publish();
  WorkerPool pool(4);
  struct Running {
    std::shared_ptr<engine::Connection> connection;
    std::unique_ptr<engine::Statement> statement;
    Use use;
    std::atomic<int> outcome{-1};
    std::string expected;
  };
  std::vector<std::unique_ptr<Running>> running;
  auto start = [&](const std::string& sql, Use use, std::string expected) {
    auto job = std::make_unique<Running>();
    job->connection = node.Connect();
    job->statement = Prepare(*job->connection, sql);
    job->use = use;
    job->expected = std::move(expected);
    CHECK(job->statement->Begin(use, true));
    job->connection->set_busy(true);
    Running* raw = job.get();
    CHECK(pool.Submit([raw] { raw->outcome = static_cast<int>(raw->statement->Run(true, 4096)); }));
    running.push_back(std::move(job));
  };
  int inserted = 0, published = 0, finished = 0, checkpoints = 0;
  auto collect = [&](bool wait) {
    for (size_t i = 0; i < running.size();) {
      Running& job = *running[i];
      while (wait && job.outcome < 0) std::this_thread::yield();
      if (job.outcome < 0) {
        i++;
        continue;
      }
      job.connection->set_busy(false);
      CHECK(job.statement->Finish(static_cast<Outcome>(job.outcome.load())) == Outcome::kDone);
      if (job.use == Use::kRows) {
        std::string rows;
        FormatRows(job.connection->rows(), &rows);
        CHECK(rows == job.expected);
      }
      finished++;
      running.erase(running.begin() + static_cast<std::ptrdiff_t>(i));
    }
  };
  TestRandom random(3);
  for (int round = 0; round < 1500; round++) {
    CHECK(Exec(*writer, "INSERT INTO t(b) VALUES(hex(randomblob(100)))").empty());
    inserted++;
    if (random.Below(3) == 0) {
      const int count = 1 + static_cast<int>(random.Below(4));
      for (int i = 0; i < count && node->Publish(); i++) published++;
    }
    if (running.size() < 4)
      start("SELECT count(*), max(a) FROM t, (SELECT 1 UNION ALL SELECT 2) WHERE length(b) = 200", Use::kRows,
            std::to_string(2 * published) + "|" + (published == 0 ? "NULL" : std::to_string(published)) + "\n");
    collect(false);
    if (round % 100 == 99) {
      collect(true);
      while (node->Publish()) published++;
      if (node->Checkpoint()) checkpoints++;
    }
  }
  collect(true);
  while (node->Publish()) published++;
  CHECK(published == inserted && finished > 50 && checkpoints == 15);
  // A heavy write on a thread while readers come and go here.
  start("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 200000) INSERT INTO big SELECT i FROM n",
        Use::kExecute, "");
  auto reader = node.Connect();
  while (!running.empty()) {
    CHECK(Query(*reader, "SELECT count(*) FROM big") == "0\n");
    CHECK(!node->Checkpoint());
    collect(false);
  }
  CHECK(node->speculative() == 1);
  node->Publish();
  CHECK(Query(*reader, "SELECT count(*) FROM big") == "200000\n");
  // VACUUM commits on its thread: readers here never see it before it is published.
  CHECK(Exec(*writer, "DELETE FROM big WHERE a % 2").empty());
  node->Publish();
  start("VACUUM", Use::kExecute, "");
  while (!running.empty()) {
    CHECK(Query(*reader, "SELECT count(*) FROM big") == "100000\n");
    collect(false);
  }
  CHECK(node->speculative() == 1);
  const uint32_t before = node->pages();
  node->Publish();
  CHECK(node->pages() < before);
  CHECK(Query(*reader, "PRAGMA integrity_check") == "ok\n");
}

TEST(AStatementIsPreparedFromPartOfAText) {
  TestNode node;
  auto connection = node.Connect();
  const std::string sql = "SELECT * FROM sqlite_schema WHERE type=?; SELECT 2";
  for (const bool terminated : {true, false}) {
    std::unique_ptr<char[]> exact(new char[sql.size() + (terminated ? 1 : 0)]);
    std::memcpy(exact.get(), sql.data(), sql.size() + (terminated ? 1 : 0));
    size_t tail = 0;
    auto statement = connection->Prepare(exact.get(), sql.size(), terminated, &tail);
    CHECK(statement != nullptr && tail == 41 && statement->parameter_count() == 1);
  }
  size_t tail = 0;
  for (const char* empty : {"", "  ", "-- x", " ; /* y */ ;"}) {
    CHECK(connection->Prepare(empty, std::strlen(empty), true, &tail) == nullptr);
    CHECK(connection->error().code == 0 && tail == std::strlen(empty));
  }
  CHECK(Prepare(*connection, "SELEC") == nullptr);
  CHECK(connection->error().message == "near \"SELEC\": syntax error");
}
