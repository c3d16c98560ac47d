// Tests of the VFS against plain SQLite: what is captured, applied, published, dropped, moved, imaged and restored.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unistd.h>

#include "test_support.h"

using engine::Outcome;

namespace {

// A plain SQLite database in memory, without our VFS.
class PlainDatabase {
 public:
  PlainDatabase() {
    CHECK(sqlite3_open(":memory:", &db_) == SQLITE_OK);
    sqlite3_extended_result_codes(db_, 1);
  }
  ~PlainDatabase() { sqlite3_close(db_); }

  std::string Exec(const std::string& sql) {
    char* message = nullptr;
    const int rc = sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, &message);
    const std::string text = message == nullptr ? "" : message;
    sqlite3_free(message);
    return rc == SQLITE_OK ? "" : text;
  }

  std::string Query(const std::string& sql) {
    std::string text;
    auto add = [](void* out, int count, char** values, char**) {
      std::string& text = *static_cast<std::string*>(out);
      for (int i = 0; i < count; i++) text += std::string(i > 0 ? "|" : "") + (values[i] == nullptr ? "NULL" : values[i]);
      text += '\n';
      return 0;
    };
    if (sqlite3_exec(db_, sql.c_str(), add, &text, nullptr) != SQLITE_OK) return std::string("error: ") + sqlite3_errmsg(db_);
    return text;
  }

 private:
  sqlite3* db_ = nullptr;
};

// Opens an image with stock SQLite: content and integrity of what would be sent.
void CheckImage(const std::string& image) {
  sqlite3* db = nullptr;
  CHECK(sqlite3_open(":memory:", &db) == SQLITE_OK);
  uint8_t* copy = static_cast<uint8_t*>(sqlite3_malloc64(image.size()));
  std::memcpy(copy, image.data(), image.size());
  copy[18] = copy[19] = 1;  // deserialized databases cannot be in WAL mode
  CHECK(sqlite3_deserialize(db, "main", copy, static_cast<sqlite3_int64>(image.size()),
                            static_cast<sqlite3_int64>(image.size()), SQLITE_DESERIALIZE_FREEONCLOSE) == SQLITE_OK);
  std::string answer;
  auto add = [](void* out, int, char** values, char**) {
    *static_cast<std::string*>(out) += values[0];
    return 0;
  };
  CHECK(sqlite3_exec(db, "PRAGMA integrity_check", add, &answer, nullptr) == SQLITE_OK);
  CHECK(answer == "ok");
  sqlite3_close(db);
}

// Everything captured on the leader goes to the follower and is published.
void Replicate(const TestNode& leader, const TestNode& follower) {
  for (std::string command = leader.Take(); !command.empty(); command = leader.Take()) {
    follower.Apply(command);
    CHECK(leader->Publish());
  }
}

std::string Big(int rows, int from = 0) {
  return "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT " + std::to_string(rows) + ") SELECT i + " +
         std::to_string(from) + " AS i, hex(zeroblob(400)) || i AS s FROM n";
}

}  // namespace

TEST(ANewDatabaseIsWhatSqliteMakes) {
  char path[] = "/tmp/dqlite-native-test-XXXXXX";
  const int fd = mkstemp(path);
  CHECK(fd >= 0);
  sqlite3* db = nullptr;
  CHECK(sqlite3_open(path, &db) == SQLITE_OK);
  CHECK(sqlite3_exec(db, "PRAGMA page_size=4096; PRAGMA journal_mode=WAL", nullptr, nullptr, nullptr) == SQLITE_OK);
  std::string expected(4096, '\0');
  CHECK(pread(fd, expected.data(), 4096, 0) == 4096);
  sqlite3_close(db);
  close(fd);
  unlink(path);
  TestNode node;
  const std::string image = node.Image();
  CHECK(image.size() == 4096);
  for (size_t i = 0; i < 4096; i++) {
    const bool counter = (i >= 24 && i < 28) || (i >= 92 && i < 96);
    if (!counter && image[i] != expected[i]) std::fprintf(stderr, "byte %zu\n", i);
    CHECK(counter || image[i] == expected[i]);
  }
}

TEST(ACapturedCommandHasTheLayoutOfTheLog) {
  TestNode node;
  auto connection = node.Connect();
  CHECK(Exec(*connection, "CREATE TABLE t(a)").empty());
  const std::string command = node.Take();
  CHECK(command.size() == 8248);  // raft-wire §5.1
  const uint8_t head[] = {1, 2, 0, 0, 0, 0, 0, 0, 't', 'e', 's', 't', '.', 'd', 'b', 0, 0, 0, 0, 0, 0, 0, 0, 0,
                          0, 0, 0, 0, 1, 0, 0, 0, 2,   0,   0,   0,   0,   0x10, 0,  0, 1, 0, 0, 0, 0, 0, 0, 0,
                          2, 0, 0, 0, 0, 0, 0, 0, 'S', 'Q', 'L'};
  CHECK(std::memcmp(command.data(), head, sizeof head) == 0);
  CHECK(node.Take().empty());
  // Nothing written, nothing captured.
  CHECK(Exec(*connection, "BEGIN IMMEDIATE; COMMIT; BEGIN; SELECT 1 WHERE 0; COMMIT; UPDATE t SET a = 1").empty());
  CHECK(Exec(*connection, "BEGIN; INSERT INTO t VALUES(1); ROLLBACK").empty());
  CHECK(Exec(*connection, "CREATE TEMP TABLE x(a); INSERT INTO x VALUES(1)").empty());
  CHECK(node.Take().empty() && node->speculative() == 1);
}

TEST(GeneratedStatementsBehaveAsInPlainSqlite) {
  for (uint64_t seed = 1; seed <= 6; seed++) {
    TestRandom random(seed);
    TestNode leader, follower;
    auto connection = leader.Connect();
    auto reader = leader.Connect();
    PlainDatabase plain;
    plain.Exec("PRAGMA foreign_keys=1");
    auto both = [&](const std::string& sql) {
      const std::string ours = Exec(*connection, sql);
      const std::string theirs = plain.Exec(sql);
      if (ours != theirs) std::fprintf(stderr, "seed %d: %s: \"%s\" / \"%s\"\n", static_cast<int>(seed), sql.c_str(), ours.c_str(), theirs.c_str());
      CHECK(ours == theirs);
    };
    both("CREATE TABLE a(id INTEGER PRIMARY KEY, k UNIQUE, v)");
    both("CREATE TABLE b(id INTEGER PRIMARY KEY, a REFERENCES a(id), w)");
    both("CREATE INDEX bw ON b(w)");
    if (seed % 3 == 0) both("PRAGMA cache_size=10");  // spills in nearly every transaction
    if (seed % 3 == 1) both("PRAGMA auto_vacuum=1");  // in force after a VACUUM
    bool open = false;
    for (int step = 0; step < 400; step++) {
      const std::string n = std::to_string(random.Below(200));
      const std::string m = std::to_string(1 + random.Below(400));
      switch (random.Below(open ? 17 : 14)) {
        case 0:
        case 1:
          both("INSERT INTO a(k, v) VALUES(" + n + ", hex(zeroblob(" + m + ")))");
          break;
        case 2:
          both("INSERT OR REPLACE INTO a VALUES(" + n + ", " + m + ", hex(zeroblob(" + m + " * 10)))");
          break;
        case 3:
          both("INSERT INTO b(a, w) SELECT id, v FROM a WHERE id % 7 = " + n + " % 7");
          break;
        case 4:
          both("UPDATE a SET v = hex(zeroblob(" + m + ")) WHERE id % 5 = " + n + " % 5");
          break;
        case 5:
          both("DELETE FROM b WHERE id % 3 = " + n + " % 3");
          break;
        case 6:
          both("DELETE FROM a WHERE id < " + n);
          break;
        case 7:  // fails in the middle, after it has written much
          both("INSERT INTO a(k, v) SELECT CASE WHEN i = 150 THEN 1 ELSE 1000 + i + " + m + " END, s FROM (" + Big(200) +
               ")");
          break;
        case 8:
          both("CREATE TABLE IF NOT EXISTS t" + std::to_string(random.Below(5)) + "(x, y)");
          break;
        case 9:
          both("DROP TABLE IF EXISTS t" + std::to_string(random.Below(5)));
          break;
        case 10:
          if (!open && random.Below(4) == 0) both("VACUUM");
          break;
        case 11:
          both("INSERT OR FAIL INTO a(k, v) VALUES(" + m + " + 10000, 1), (1, 2), (" + m + ", 3)");
          break;
        case 12:
          if (!open) both(random.Below(2) == 0 ? "BEGIN" : "BEGIN IMMEDIATE");
          open = true;
          break;
        case 13:
          both("UPDATE OR IGNORE a SET k = " + n + " WHERE id % 11 = 3");
          break;
        case 14:
          both(random.Below(3) == 0 ? "ROLLBACK" : "COMMIT");
          open = false;
          break;
        case 15:
          both("SAVEPOINT s");
          break;
        case 16:
          // An unknown savepoint is an error in both.
          both(random.Below(2) == 0 ? "ROLLBACK TO s" : "RELEASE s");
          break;
      }
      open = connection->in_transaction();
      if (random.Below(3) == 0) Replicate(leader, follower);
      if (!open && random.Below(20) == 0) {
        Replicate(leader, follower);
        for (const char* sql : {"SELECT id, k, length(v) FROM a ORDER BY id", "SELECT id, a, length(w) FROM b ORDER BY id",
                                "SELECT count(*), sum(length(w)) FROM b INDEXED BY bw WHERE w > 'A'",
                                "SELECT name FROM sqlite_schema ORDER BY name"})
          CHECK(Query(*reader, sql) == plain.Query(sql));
        CHECK(leader.Image() == follower.Image());
        if (random.Below(2) == 0) CHECK(leader->Checkpoint());
        if (random.Below(2) == 0) CHECK(follower->Checkpoint());
        CHECK(leader.Image() == follower.Image());
      }
    }
    if (open) both("COMMIT");
    Replicate(leader, follower);
    CHECK(leader.Image() == follower.Image());
    CheckImage(leader.Image());
    CHECK(Query(*connection, "PRAGMA integrity_check") == "ok\n");
    CHECK(Query(*follower.Connect(), "PRAGMA integrity_check") == "ok\n");
    // The follower becomes leader and goes on.
    auto next = follower.Connect();
    CHECK(Exec(*next, "INSERT INTO a(k, v) VALUES('next', 1)").empty());
    Replicate(follower, leader);
    CHECK(leader.Image() == follower.Image());
    CHECK(Query(*reader, "SELECT count(*) FROM a WHERE k = 'next'") == "1\n");
  }
}

// C dqlite loses this commit: frames of the failed statement stay behind the commit frame.
TEST(ACommitAfterASpillAndAFailedStatementIsWhole) {
  TestNode leader, follower;
  auto connection = leader.Connect();
  CHECK(Exec(*connection, "CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES(5000, 'x')").empty());
  Replicate(leader, follower);
  CHECK(Exec(*connection, "PRAGMA cache_size=20; BEGIN; INSERT INTO t VALUES(9000, 'small')").empty());
  CHECK(Exec(*connection, "INSERT INTO t SELECT * FROM (" + Big(6000) + ")") == "UNIQUE constraint failed: t.id");
  CHECK(Exec(*connection, "INSERT INTO t VALUES(9001, 'small too')").empty());
  CHECK(Exec(*connection, "COMMIT").empty());
  const std::string command = leader.Take();
  CHECK(!command.empty() && command.size() < 40000);
  follower.Apply(command);
  leader->Publish();
  CHECK(leader.Image() == follower.Image());
  CheckImage(leader.Image());
  for (const TestNode* node : {&leader, &follower}) {
    auto fresh = node->Connect();
    CHECK(Query(*fresh, "SELECT id, length(v) FROM t") == "5000|1\n9000|5\n9001|9\n");
    CHECK(Query(*fresh, "PRAGMA integrity_check") == "ok\n");
  }
}

TEST(ASpilledTransactionIsCapturedOnceWithTheLastImages) {
  TestNode leader, follower;
  auto connection = leader.Connect();
  CHECK(Exec(*connection, "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE INDEX i ON t(v); PRAGMA cache_size=10").empty());
  Replicate(leader, follower);
  CHECK(Exec(*connection, "BEGIN; INSERT INTO t SELECT * FROM (" + Big(3000) + ")").empty());
  CHECK(Exec(*connection, "SAVEPOINT s; INSERT INTO t SELECT * FROM (" + Big(2000, 5000) + "); ROLLBACK TO s").empty());
  CHECK(Exec(*connection, "UPDATE t SET v = v || 'y' WHERE id % 10 = 0; DELETE FROM t WHERE id > 2900").empty());
  CHECK(connection->in_transaction() && leader->speculative() == 0);
  CHECK(Exec(*connection, "COMMIT").empty());
  CHECK(leader->speculative() == 1);
  Replicate(leader, follower);
  CHECK(leader.Image() == follower.Image());
  CheckImage(leader.Image());
  CHECK(Query(*follower.Connect(), "SELECT count(*), max(id) FROM t") == "2900|2900\n");
}

TEST(VacuumShrinksLeaderAndFollower) {
  TestNode leader, follower;
  auto connection = leader.Connect();
  CHECK(Exec(*connection, "CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t SELECT * FROM (" + Big(4000) + ")").empty());
  CHECK(Exec(*connection, "DELETE FROM t WHERE id > 100").empty());
  Replicate(leader, follower);
  const uint32_t before = leader->pages();
  CHECK(Exec(*connection, "VACUUM").empty());
  Replicate(leader, follower);
  CHECK(leader->pages() < before / 10 && leader->pages() == follower->pages());
  CHECK(leader.Image() == follower.Image());
  CHECK(leader->Checkpoint() && follower->Checkpoint());
  CHECK(leader.Image() == follower.Image());
  CheckImage(leader.Image());
  CHECK(Exec(*connection, "INSERT INTO t SELECT * FROM (" + Big(3000, 10000) + ")").empty());
  Replicate(leader, follower);
  CHECK(leader.Image() == follower.Image());
  CheckImage(follower.Image());
}

TEST(AutoVacuumTransactionsKeepTheSizesEqual) {
  TestNode leader, follower;
  auto connection = leader.Connect();
  CHECK(Exec(*connection, "CREATE TABLE t(id INTEGER PRIMARY KEY, v); PRAGMA auto_vacuum=2; VACUUM").empty());
  CHECK(Exec(*connection, "INSERT INTO t SELECT * FROM (" + Big(2000) + ")").empty());
  CHECK(Exec(*connection, "DELETE FROM t WHERE id > 10").empty());
  CHECK(Exec(*connection, "PRAGMA incremental_vacuum(50)").empty());
  CHECK(Exec(*connection, "PRAGMA incremental_vacuum").empty());
  Replicate(leader, follower);
  CHECK(leader->pages() < 10 && leader->pages() == follower->pages());
  CHECK(leader.Image() == follower.Image());
  CheckImage(leader.Image());
}

TEST(TheSpeculativeTailIsDropped) {
  TestNode leader, other;
  std::string image;
  {
    auto connection = leader.Connect();
    CHECK(Exec(*connection, "CREATE TABLE t(a, b)").empty());
    Replicate(leader, other);
    for (int i = 0; i < 20; i++)
      CHECK(Exec(*connection, "INSERT INTO t SELECT " + std::to_string(i) + ", s FROM (" + Big(100) + ")").empty());
    for (int i = 0; i < 7; i++) {
      other.Apply(leader.Take());
      CHECK(leader->Publish());
    }
    CHECK(leader->speculative() == 13);
    CHECK(Exec(*connection, "CREATE TABLE u(a); DROP TABLE t").empty());
    CHECK(Exec(*connection, "BEGIN IMMEDIATE").empty());
    CHECK(!leader->DropSpeculative());  // somebody writes
  }
  CHECK(leader->DropSpeculative());
  CHECK(leader->speculative() == 0 && leader.Take().empty());
  CHECK(leader.Image() == other.Image());
  // The other leads now; its entries come here, with a schema that differs from the dropped one.
  auto there = other.Connect();
  for (int i = 0; i < 30; i++) {
    CHECK(Exec(*there, "CREATE TABLE v" + std::to_string(i) + "(a, b); INSERT INTO t VALUES(100, 'new')").empty());
    Replicate(other, leader);
    CHECK(leader.Image() == other.Image());
  }
  auto connection = leader.Connect();
  CHECK(Query(*connection, "SELECT count(*) FROM t") == "730\n");
  CHECK(Query(*connection, "SELECT * FROM u").find("error: ") == 0);
  CHECK(Query(*connection, "PRAGMA integrity_check") == "ok\n");
  CHECK(Exec(*connection, "DELETE FROM t WHERE a < 3").empty());
  Replicate(leader, other);
  CHECK(leader.Image() == other.Image());
  CheckImage(leader.Image());
}

TEST(TheTailIsDroppedAlsoWhenNothingWasPublished) {
  TestNode node, empty;
  {
    auto connection = node.Connect();
    CHECK(Exec(*connection, "CREATE TABLE t(a); INSERT INTO t VALUES(1)").empty());
    CHECK(Query(*connection, "SELECT * FROM t") == "error: no such table: t");
  }
  CHECK(node->DropSpeculative());
  CHECK(node->frames() == 0);
  CHECK(node.Image() == empty.Image());
  auto connection = node.Connect();
  CHECK(Query(*connection, "SELECT * FROM t") == "error: no such table: t");
  CHECK(Exec(*connection, "CREATE TABLE t(b); INSERT INTO t VALUES(2)").empty());
  CHECK(Query(*connection, "SELECT * FROM t") == "error: no such table: t");
  node->Publish();
  node->Publish();
  CHECK(Query(*connection, "SELECT b FROM t") == "2\n");
}

TEST(ManyReadersOfDifferentAges) {
  TestNode node;
  auto writer = node.Connect();
  CHECK(Exec(*writer, "CREATE TABLE t(a, b)").empty());
  node->Publish();
  struct Reader {
    std::shared_ptr<engine::Connection> connection;
    std::unique_ptr<engine::Statement> statement;
    int expected;
    std::string rows;
  };
  std::vector<Reader> readers;
  int inserted = 0;
  TestRandom random(5);
  for (int round = 0; round < 40; round++) {
    CHECK(Exec(*writer, "INSERT INTO t SELECT " + std::to_string(round) + ", s FROM (" + Big(50) + ")").empty());
    inserted++;
    if (round % 2 == 0) node->Publish();
    const int published = inserted - static_cast<int>(node->speculative());
    // A reader that stops after its first batch: its view stays open.
    Reader reader{node.Connect(), nullptr, published, ""};
    reader.statement = Prepare(*reader.connection, "SELECT a, b FROM t");
    const Outcome outcome = reader.statement->Rows(4096);
    CHECK(outcome == (published == 0 ? Outcome::kDone : Outcome::kPart));
    if (outcome != Outcome::kPart) continue;
    FormatRows(reader.connection->rows(), &reader.rows);
    readers.push_back(std::move(reader));
    CHECK(!node->Checkpoint());
    // Now and then one goes on to the end, in any order.
    if (random.Below(3) == 0) {
      const size_t i = random.Below(static_cast<uint32_t>(readers.size()));
      Reader& one = readers[i];
      while (one.statement->Rows(4096) == Outcome::kPart) FormatRows(one.connection->rows(), &one.rows);
      FormatRows(one.connection->rows(), &one.rows);
      CHECK(std::count(one.rows.begin(), one.rows.end(), '\n') == one.expected * 50);
      readers.erase(readers.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  CHECK(readers.size() > 20);
  while (node->Publish()) {
  }
  for (Reader& reader : readers) {
    CHECK(!node->Checkpoint());
    Outcome outcome;
    do {
      outcome = reader.statement->Rows(4096);
      FormatRows(reader.connection->rows(), &reader.rows);
    } while (outcome == Outcome::kPart);
    CHECK(std::count(reader.rows.begin(), reader.rows.end(), '\n') == reader.expected * 50);
  }
  CHECK(node->Checkpoint());
  CHECK(node->frames() == 0);
  CHECK(Query(*writer, "SELECT count(*) FROM t") == "2000\n");
}

TEST(ACheckpointNeedsQuiet) {
  TestNode node;
  auto a = node.Connect();
  auto b = node.Connect();
  CHECK(node->Checkpoint());
  CHECK(Exec(*a, "CREATE TABLE t(a); INSERT INTO t VALUES(1)").empty());
  CHECK(!node->Checkpoint());  // speculative
  node->Publish();
  node->Publish();
  CHECK(Exec(*a, "BEGIN").empty());
  CHECK(Query(*a, "SELECT a FROM t") == "1\n");
  CHECK(!node->Checkpoint());  // a reader
  CHECK(Exec(*a, "COMMIT").empty());
  CHECK(Exec(*a, "BEGIN IMMEDIATE").empty());
  CHECK(!node->Checkpoint());  // a writer
  CHECK(Exec(*a, "ROLLBACK").empty());
  {
    vfs::Image image(node.slot()->database);
    CHECK(!node->Checkpoint());
  }
  CHECK(node->frames() > 0);
  CHECK(node->Checkpoint());
  CHECK(node->frames() == 0);
  CHECK(Query(*b, "SELECT a FROM t") == "1\n");
  for (int round = 0; round < 50; round++) {
    CHECK(Exec(*(round % 2 == 0 ? a : b), "UPDATE t SET a = a + 1").empty());
    node->Publish();
    CHECK(Query(*(round % 3 == 0 ? a : b), "SELECT a FROM t") == std::to_string(round + 2) + "\n");
    if (round % 4 == 0) CHECK(node->Checkpoint());
  }
  CheckImage(node.Image());
}

TEST(ALongLogIsIndexedOverManyRegions) {
  // More frames than two regions hold, in both ways a frame can come.
  TestNode leader, follower;
  auto connection = leader.Connect();
  CHECK(Exec(*connection, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)").empty());
  CHECK(Exec(*connection, "INSERT INTO t SELECT * FROM (" + Big(30000) + ")").empty());
  Replicate(leader, follower);
  TestRandom random(9);
  for (int i = 0; i < 3000; i++) {
    CHECK(Exec(*connection, "UPDATE t SET v = v || 'z' WHERE id = " + std::to_string(1 + random.Below(30000))).empty());
    if (i % 100 == 0) Replicate(leader, follower);
  }
  Replicate(leader, follower);
  CHECK(leader->frames() > 8200 && leader->frames() == follower->frames());
  CHECK(leader.Image() == follower.Image());
  CheckImage(leader.Image());
  CHECK(Query(*follower.Connect(), "SELECT count(*), sum(length(v)) FROM t") ==
        Query(*connection, "SELECT count(*), sum(length(v)) FROM t"));
  CHECK(leader->Checkpoint() && follower->Checkpoint());
  CHECK(leader.Image() == follower.Image());
}

TEST(ATransactionBeyondTheLimitIsRefused) {
  TestNode leader(64 * 1024), follower(64 * 1024);
  auto connection = leader.Connect();
  CHECK(Exec(*connection, "CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES(1, 'x')").empty());
  Replicate(leader, follower);
  const char* refused = "transaction too big: its pages exceed the limit of one log entry, rolled back";
  for (const int cache : {2000, 10}) {  // refused at the commit, refused at a spill
    CHECK(Exec(*connection, "PRAGMA cache_size=" + std::to_string(cache)).empty());
    CHECK(Exec(*connection, "INSERT INTO t SELECT * FROM (" + Big(500, 100) + ")") == refused);
    CHECK(connection->error().code == SQLITE_TOOBIG);
    CHECK(leader.Take().empty() && leader->is_idle() && !connection->in_transaction());
    CHECK(Query(*connection, "SELECT count(*) FROM t") == "1\n");
    CHECK(Exec(*connection, "BEGIN; INSERT INTO t VALUES(2, 'y')").empty());
    std::string error = Exec(*connection, "INSERT INTO t SELECT * FROM (" + Big(500, 100) + ")");
    if (error.empty()) error = Exec(*connection, "COMMIT");
    CHECK(error == refused);
    CHECK(!connection->in_transaction());
    CHECK(leader.Take().empty() && leader->is_idle());
    CHECK(Query(*connection, "SELECT count(*) FROM t") == "1\n");
  }
  CHECK(Exec(*connection, "INSERT INTO t VALUES(1, 'again')") == "UNIQUE constraint failed: t.id");
  CHECK(Exec(*connection, "INSERT INTO t SELECT * FROM (" + Big(30, 100) + ")").empty());
  const std::string command = leader.Take();
  CHECK(command.size() <= 64 * 1024);
  follower.Apply(command);
  leader->Publish();
  CHECK(leader.Image() == follower.Image());
  CheckImage(leader.Image());
}

TEST(TheDeletePragmaLeavesOnePage) {
  TestNode leader, follower;
  auto connection = leader.Connect();
  CHECK(Exec(*connection, "CREATE TABLE t(a); INSERT INTO t SELECT i FROM (" + Big(2000) + "); PRAGMA user_version=3").empty());
  Replicate(leader, follower);
  CHECK(Exec(*connection, "PRAGMA delete_database") ==
        "PRAGMA delete_database must be run in a write transaction. Use BEGIN IMMEDIATE to start one.");
  CHECK(connection->error().code == 1);
  CHECK(Exec(*connection, "BEGIN; PRAGMA delete_database").find("must be run") != std::string::npos);
  CHECK(Exec(*connection, "ROLLBACK").empty());
  CHECK(Exec(*connection, "BEGIN IMMEDIATE; PRAGMA delete_database; ROLLBACK").empty());
  CHECK(leader.Take().empty());
  CHECK(Exec(*connection, "BEGIN IMMEDIATE; COMMIT").empty());
  CHECK(leader.Take().empty());
  // Not together with other changes.
  CHECK(!Exec(*connection, "BEGIN IMMEDIATE; PRAGMA delete_database; INSERT INTO t VALUES(1); COMMIT").empty());
  CHECK(leader.Take().empty() && !connection->in_transaction());
  CHECK(Query(*connection, "SELECT count(*) FROM t") == "2000\n");
  CHECK(Exec(*connection, "BEGIN IMMEDIATE; PRAGMA delete_database; COMMIT").empty());
  const std::string command = leader.Take();
  CHECK(command.size() == 8 + 8 + 24 + 8 + 4096);
  CHECK(!leader->is_deleted());
  CHECK(Query(*connection, "SELECT count(*) FROM t") == "2000\n");
  follower.Apply(command);
  leader->Publish();
  CHECK(leader->is_deleted() && follower->is_deleted());
  CHECK(leader->pages() == 1 && follower->pages() == 1);
  CHECK(leader.Image() == follower.Image());
  CHECK(Query(*connection, "SELECT count(*) FROM t") == "error: no such table: t");
  CHECK(Query(*connection, "PRAGMA user_version") == "0\n");
  CHECK(leader->Checkpoint() && follower->Checkpoint());
  CHECK(leader->is_deleted());
  // It can be used again.
  CHECK(Exec(*connection, "CREATE TABLE u(a); INSERT INTO u VALUES(1)").empty());
  Replicate(leader, follower);
  CHECK(!leader->is_deleted() && leader.Image() == follower.Image());
  CheckImage(leader.Image());
}

TEST(AnImageIsPinnedAndRestoresInAnyChunks) {
  TestNode node;
  auto connection = node.Connect();
  CHECK(Exec(*connection, "CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t SELECT * FROM (" + Big(500) + ")").empty());
  node->Publish();
  node->Publish();
  CHECK(node->Checkpoint());
  CHECK(Exec(*connection, "UPDATE t SET v = 'new' WHERE id < 50").empty());
  node->Publish();
  const std::string expected = node.Image();
  vfs::Image image(node.slot()->database);
  CHECK(Exec(*connection, "DELETE FROM t").empty());
  node->Publish();
  CHECK(Exec(*connection, "INSERT INTO t VALUES(1, 'speculative')").empty());
  std::string content;
  TestRandom random(2);
  for (;;) {
    std::string piece(1 + random.Below(9000), '\0');
    const size_t bytes = image.Read(reinterpret_cast<uint8_t*>(piece.data()), piece.size());
    content.append(piece, 0, bytes);
    if (bytes < piece.size()) break;
  }
  image.Close();
  CHECK(content == expected);
  CheckImage(content);

  TestNode target;
  for (const uint32_t chunk_max : {1u, 5000u, 100000u}) {
    vfs::Restore restore("test.db", content.size(), vfs::Options{});
    for (size_t at = 0; at < content.size();) {
      const size_t bytes = std::min<size_t>(content.size() - at, chunk_max == 1 ? 7 : 1 + random.Below(chunk_max));
      CHECK(restore.Write(reinterpret_cast<const uint8_t*>(content.data()) + at, bytes) == nullptr);
      at += bytes;
    }
    CHECK(restore.Write(reinterpret_cast<const uint8_t*>("x"), 1) != nullptr);
    const char* error = nullptr;
    target.slot()->database = restore.Finish(&error);
    CHECK(error == nullptr);
    CHECK(target.Image() == content);
    auto reader = target.Connect();
    CHECK(Query(*reader, "SELECT count(*), sum(v = 'new') FROM t") == "500|49\n");
    CHECK(Exec(*reader, "DELETE FROM t WHERE id = 1").empty());
    CHECK(target->Publish());
    CHECK(Query(*reader, "PRAGMA integrity_check") == "ok\n");
  }
  for (const size_t bytes : {static_cast<size_t>(0), static_cast<size_t>(100), content.size() - 4096}) {
    vfs::Restore restore("test.db", bytes, vfs::Options{});
    CHECK(restore.Write(reinterpret_cast<const uint8_t*>(content.data()), std::min<size_t>(bytes, 8192)) == nullptr);
    const char* error = nullptr;
    CHECK(restore.Finish(&error) == nullptr && error != nullptr);
  }
  vfs::Restore garbage("test.db", 4096, vfs::Options{});
  CHECK(garbage.Write(reinterpret_cast<const uint8_t*>(content.data()) + 4096, 4096) == nullptr);
  const char* error = nullptr;
  CHECK(garbage.Finish(&error) == nullptr && error != nullptr);
}

TEST(BrokenCommandsAreRefusedAndChangeNothing) {
  TestNode leader, follower;
  auto connection = leader.Connect();
  CHECK(Exec(*connection, "CREATE TABLE t(a); INSERT INTO t VALUES(1)").empty());
  const std::string create = leader.Take();
  const std::string insert = leader.Take();
  follower.Apply(create);
  const std::string before = follower.Image();
  TestRandom random(4);
  int refused = 0;
  for (int round = 0; round < 3000; round++) {
    std::string command = insert;
    const uint32_t mutations = 1 + random.Below(3);
    for (uint32_t i = 0; i < mutations; i++) command[random.Below(64)] = static_cast<char>(random.Next());
    if (random.Below(2) == 0) command.resize(random.Below(static_cast<uint32_t>(command.size())));
    TestNode victim;
    victim.Apply(create);
    // The exact size, so that ASan sees one byte too much.
    std::unique_ptr<uint8_t[]> exact(new uint8_t[command.size()]);
    std::memcpy(exact.get(), command.data(), command.size());
    if (victim->Apply(exact.get(), command.size()) == nullptr) {
      CHECK(victim->Checkpoint());
      continue;
    }
    refused++;
    CHECK(victim.Image() == before);
    victim.Apply(insert);
  }
  CHECK(refused > 500);
  // While SQLite writes here, nothing comes from elsewhere.
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(insert.data());
  CHECK(leader->Apply(bytes, insert.size()) != nullptr);
  auto writer = follower.Connect();
  CHECK(Exec(*writer, "BEGIN IMMEDIATE").empty());
  CHECK(follower->Apply(bytes, insert.size()) != nullptr);
  CHECK(Exec(*writer, "ROLLBACK").empty());
  CHECK(follower->Apply(bytes, insert.size()) == nullptr);
}

TEST(ReadersOnAFollowerSeeWhatIsApplied) {
  TestNode leader, follower;
  auto writer = leader.Connect();
  auto reader = follower.Connect();
  CHECK(Exec(*writer, "CREATE TABLE t(a)").empty());
  Replicate(leader, follower);
  for (int i = 1; i < 100; i++) {
    CHECK(Exec(*writer, "INSERT INTO t VALUES(1)").empty());
    Replicate(leader, follower);
    CHECK(Query(*reader, "SELECT count(*) FROM t") == std::to_string(i) + "\n");
    if (i % 30 == 0) CHECK(follower->Checkpoint());
  }
}

TEST(PagesAreGivenBack) {
  auto store = vfs::MakeMemoryPageStore();
  std::vector<vfs::PageRef> refs;
  std::vector<uint8_t> tags;
  TestRandom random(6);
  uint8_t page[4096] = {};
  for (int round = 0; round < 20000; round++) {
    if (refs.empty() || random.Below(100) < (round < 10000 ? 60u : 40u)) {
      page[0] = page[4095] = static_cast<uint8_t>(random.Next());
      refs.push_back(store->Add(page));
      tags.push_back(page[0]);
    } else {
      const size_t i = random.Below(static_cast<uint32_t>(refs.size()));
      uint8_t ends[2];
      store->Read(refs[i], 0, 1, ends);
      store->Read(refs[i], 4095, 1, ends + 1);
      CHECK(ends[0] == tags[i] && ends[1] == tags[i]);
      store->Free(refs[i]);
      refs[i] = refs.back();
      tags[i] = tags.back();
      refs.pop_back();
      tags.pop_back();
    }
  }
}
