// See connection.h.
#include "connection.h"

#include <cassert>
#include <cctype>
#include <cstring>
#include <string_view>

namespace engine {

namespace {

// What the authorizer saw while a statement was prepared, and what its text says.
enum Kind : uint32_t {
  kTransaction = 1,    // BEGIN, COMMIT, ROLLBACK, SAVEPOINT, RELEASE
  kAttach = 2,         // ATTACH, DETACH
  kPragma = 4,
  kPragmaSets = 8,     // … that is not known to read only
  kRebuilds = 16,      // CREATE INDEX, REINDEX, ANALYZE, ALTER TABLE
  kVacuum = 32,
};

// client-protocol §8.1, §9.8, §10
constexpr size_t kFirstBatchBytes = 4096;
constexpr int kProgressOps = 1000;
constexpr const char* kFailedTooBig = "transaction too big: its pages exceed the limit of one log entry, rolled back";

bool OneOf(const char* name, std::initializer_list<const char*> names) {
  for (const char* one : names) {
    if (sqlite3_stricmp(name, one) == 0) return true;
  }
  return false;
}

bool IsVacuum(const char* sql) {
  if (sql == nullptr) return false;
  for (;;) {
    while (std::isspace(static_cast<unsigned char>(*sql)) || *sql == ';') sql++;
    if (sql[0] == '-' && sql[1] == '-') {
      while (*sql != 0 && *sql != '\n') sql++;
    } else if (sql[0] == '/' && sql[1] == '*') {
      const char* end = std::strstr(sql + 2, "*/");
      if (end == nullptr) return false;
      sql = end + 2;
    } else {
      if (sqlite3_strnicmp(sql, "VACUUM", 6) != 0) return false;
      return !std::isalnum(static_cast<unsigned char>(sql[6])) && sql[6] != '_';
    }
  }
}

}  // namespace

// ------------------------------------------------------------------------------------------------- connection

std::shared_ptr<Connection> Connection::Open(std::shared_ptr<vfs::Vfs> vfs, std::shared_ptr<vfs::Slot> slot,
                                             int budget_ms, Error* error) {
  std::shared_ptr<Connection> connection(new Connection);
  connection->vfs_ = std::move(vfs);
  connection->slot_ = std::move(slot);
  connection->slot_->connections++;
  connection->budget_ = std::chrono::milliseconds(budget_ms);
  int rc = connection->vfs_->Connect(*connection->slot_, &connection->db_);
  sqlite3* db = connection->db_;
  if (rc == SQLITE_OK) {
    sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, nullptr);
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_FKEY, 1, nullptr);
    sqlite3_wal_autocheckpoint(db, 0);
    rc = sqlite3_exec(db, "PRAGMA synchronous=OFF; SELECT 1 FROM sqlite_schema LIMIT 1", nullptr, nullptr, nullptr);
  }
  if (rc != SQLITE_OK) {
    *error = {rc, db == nullptr ? sqlite3_errstr(rc) : sqlite3_errmsg(db)};
    return nullptr;
  }
  sqlite3_set_authorizer(db, Authorize, connection.get());
  sqlite3_progress_handler(db, kProgressOps, OnProgress, connection.get());
  return connection;
}

Connection::~Connection() {
  assert(!busy_);
  Close();
}

void Connection::Close() {
  if (db_ == nullptr) return;
  assert(!busy_);
  // A statement that is finalized half-way commits what it has done. Nobody waits for that any more: undo it.
  if (around_ || !sqlite3_get_autocommit(db_)) Control(&rollback_, "ROLLBACK");
  if (active_ != nullptr && active_->around_ == Statement::Around::kWorkerCommits) database()->EndWorkerCommits();
  for (Statement* statement : statements_) {
    sqlite3_finalize(statement->handle_);
    statement->handle_ = nullptr;
    statement->active_ = false;
  }
  statements_.clear();
  active_ = nullptr;
  for (sqlite3_stmt* handle : to_finalize_) sqlite3_finalize(handle);
  for (sqlite3_stmt* handle : {begin_, begin_write_, commit_, rollback_, touch_, savepoint_, release_, rollback_to_})
    sqlite3_finalize(handle);
  const int rc = sqlite3_close(db_);
  assert(rc == SQLITE_OK);
  (void)rc;
  db_ = nullptr;
  slot_->connections--;
}

// client-protocol §10: what a replicated database refuses (23 "not authorized").
int Connection::Authorize(void* self, int action, const char* a, const char* b, const char*, const char*) {
  uint32_t& kind = static_cast<Connection*>(self)->prepared_kind_;
  switch (action) {
    case SQLITE_PRAGMA:
      kind |= kPragma;
      if (OneOf(a, {"wal_checkpoint", "busy_timeout", "read_uncommitted", "locking_mode"})) return SQLITE_DENY;
      if (b == nullptr) break;
      if (OneOf(a, {"journal_mode", "page_size", "wal_autocheckpoint", "synchronous"})) return SQLITE_DENY;
      if (!OneOf(a, {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo",
                     "foreign_key_list", "foreign_key_check", "integrity_check", "quick_check"}))
        kind |= kPragmaSets;
      break;
    case SQLITE_ATTACH:
      kind |= kAttach;
      // A name that is not a literal comes as null. '' is a temporary database, which VACUUM needs.
      if (a == nullptr || a[0] != '\0') return SQLITE_DENY;
      break;
    case SQLITE_DETACH:
      kind |= kAttach;
      break;
    case SQLITE_TRANSACTION:
    case SQLITE_SAVEPOINT:
      kind |= kTransaction;
      break;
    case SQLITE_CREATE_INDEX:
    case SQLITE_REINDEX:
    case SQLITE_ANALYZE:
    case SQLITE_ALTER_TABLE:
      kind |= kRebuilds;
      break;
    default:
      break;
  }
  return SQLITE_OK;
}

// Not 0: the statement ends with SQLITE_INTERRUPT. Comes every kProgressOps steps, so short statements never see it.
int Connection::OnProgress(void* self) {
  Connection* connection = static_cast<Connection*>(self);
  if (connection->cancelled_.load(std::memory_order_relaxed)) return 1;
  if (!connection->budget_armed_) return 0;
  const auto now = std::chrono::steady_clock::now();
  if (!connection->budget_started_) {
    connection->budget_started_ = true;
    connection->deadline_ = now + connection->budget_;
    return 0;
  }
  if (now < connection->deadline_) return 0;
  connection->over_budget_ = true;
  return 1;
}

void Connection::SetError(int code) {
  if (vfs::Vfs::TakeTooBig(db_)) {
    SetError(SQLITE_TOOBIG, kFailedTooBig);
  } else {
    SetError(code, sqlite3_errmsg(db_));
  }
}

int Connection::Step(sqlite3_stmt* handle) {
  int rc = sqlite3_step(handle);
  if (rc == SQLITE_ROW) rc = SQLITE_DONE;
  if (rc != SQLITE_DONE) SetError(rc);
  sqlite3_reset(handle);
  return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

// The statements that this file runs itself, prepared once.
int Connection::Control(sqlite3_stmt** cached, const char* sql) {
  if (*cached == nullptr) {
    const int rc = sqlite3_prepare_v3(db_, sql, -1, SQLITE_PREPARE_PERSISTENT, cached, nullptr);
    if (rc != SQLITE_OK) {
      SetError(rc);
      return rc;
    }
  }
  return Step(*cached);
}

std::unique_ptr<Statement> Connection::Prepare(const char* sql, size_t bytes, bool terminated, size_t* tail) {
  assert(!busy_ && db_ != nullptr);
  error_ = {};
  *tail = bytes;
  if (bytes > INT32_MAX - 1) {
    SetError(SQLITE_TOOBIG, "the SQL text is too long");
    return nullptr;
  }
  if (bytes == 0) return nullptr;
  prepared_kind_ = 0;
  sqlite3_stmt* handle = nullptr;
  const char* rest = sql + bytes;
  const int rc = sqlite3_prepare_v3(db_, sql, terminated ? -1 : static_cast<int>(bytes), 0, &handle, &rest);
  if (rc != SQLITE_OK) {
    SetError(rc);
    return nullptr;
  }
  *tail = static_cast<size_t>(rest - sql);
  if (handle == nullptr) {
    *tail = bytes;
    return nullptr;
  }
  uint32_t kind = prepared_kind_;
  if (IsVacuum(sqlite3_sql(handle))) kind |= kVacuum;
  auto statement = std::make_unique<Statement>(shared_from_this(), handle, kind);
  statements_.insert(statement.get());
  return statement;
}

bool Connection::in_transaction() const { return db_ != nullptr && !around_ && !sqlite3_get_autocommit(db_); }

bool Connection::is_writing() const { return db_ != nullptr && vfs::Vfs::HoldsWriteLock(db_); }

void Connection::WriteResult(uint8_t* out) const {
  const int64_t rowid = sqlite3_last_insert_rowid(db_);
  const uint64_t changes = static_cast<uint32_t>(sqlite3_changes(db_));
  std::memcpy(out, &rowid, 8);
  std::memcpy(out + 8, &changes, 8);
}

void Connection::Interrupt() {
  if (db_ == nullptr) return;
  // SQLite forgets an interrupt that comes before the worker's first step.
  if (busy_) cancelled_.store(true, std::memory_order_relaxed);
  sqlite3_interrupt(db_);
}

void Connection::set_busy(bool busy) {
  assert(busy_ != busy);
  busy_ = busy;
  if (busy) return;
  cancelled_.store(false, std::memory_order_relaxed);
  for (sqlite3_stmt* handle : to_finalize_) sqlite3_finalize(handle);
  to_finalize_.clear();
}

// ------------------------------------------------------------------------------------------------- statement

Statement::Statement(std::shared_ptr<Connection> connection, sqlite3_stmt* handle, uint32_t kind)
    : connection_(std::move(connection)), handle_(handle), kind_(kind) {
  read_only_ = sqlite3_stmt_readonly(handle) != 0;
  parameter_count_ = sqlite3_bind_parameter_count(handle);
}

Statement::~Statement() { Finalize(); }

void Statement::Finalize() {
  if (handle_ == nullptr) return;
  if (connection_->busy_) {
    // A worker runs another statement of this connection; SQLite wants one thread at a time.
    assert(!active_);
    connection_->to_finalize_.push_back(handle_);
  } else {
    Reset();
    sqlite3_finalize(handle_);
  }
  handle_ = nullptr;
  connection_->statements_.erase(this);
}

bool Statement::is_vacuum() const { return (kind_ & kVacuum) != 0; }
bool Statement::is_cacheable() const { return (kind_ & (kPragma | kAttach | kVacuum)) == 0; }
bool Statement::RunsInline() const { return (kind_ & (kTransaction | kAttach)) != 0; }

bool Statement::ReadsCommitted() const { return read_only_ && (kind_ & (kTransaction | kAttach | kPragmaSets)) == 0; }

bool Statement::PrefersWorker() {
  if (prefers_worker_ >= 0) return prefers_worker_ != 0;
  prefers_worker_ = (kind_ & (kRebuilds | kVacuum)) != 0;
  const bool is_light = read_only_ || (kind_ & (kTransaction | kAttach | kPragma)) != 0;
  if (prefers_worker_ != 0 || is_light) return prefers_worker_ != 0;
  // Does any line that EXPLAIN answers, in this column, begin so?
  const auto explains = [this](const char* explain, int column, std::initializer_list<const char*> beginnings) {
    const std::string sql = std::string(explain) + sqlite3_sql(handle_);
    sqlite3_stmt* plan = nullptr;
    bool found = false;
    if (sqlite3_prepare_v2(connection_->db_, sql.c_str(), -1, &plan, nullptr) == SQLITE_OK) {
      while (!found && sqlite3_step(plan) == SQLITE_ROW) {
        const char* text = reinterpret_cast<const char*>(sqlite3_column_text(plan, column));
        // The rows of a VALUES list are called scans too.
        if (text == nullptr || std::strstr(text, "CONSTANT ROW") != nullptr) continue;
        if (std::strstr(text, "VALUES CLAUSE") != nullptr) continue;
        for (const char* beginning : beginnings) {
          if (std::strncmp(text, beginning, std::strlen(beginning)) == 0) found = true;
        }
      }
    }
    sqlite3_finalize(plan);
    return found;
  };
  // INSERT … SELECT between tables of one shape copies cells, or records where hooks may look, and has no plan.
  prefers_worker_ =
      explains("EXPLAIN QUERY PLAN ", 3, {"SCAN", "USE TEMP B-TREE"}) || explains("EXPLAIN ", 1, {"RowCell", "RowData"});
  return prefers_worker_ != 0;
}

int Statement::Bind(const uint8_t* body, size_t bytes, size_t offset, int schema, uint32_t skip, uint32_t* values) {
  if (active_) Reset();
  const int rc = tuple::Bind(handle_, body, bytes, offset, schema, skip, values);
  if (rc != SQLITE_OK && rc != tuple::kMalformed) connection_->SetError(rc);
  return rc;
}

Outcome Statement::Execute() {
  if (!Begin(Use::kExecute, false)) return Outcome::kError;
  return Finish(Run(false, 0));
}

Outcome Statement::Rows(size_t batch_bytes) {
  if (!Begin(Use::kRows, false)) return Outcome::kError;
  return Finish(Run(false, batch_bytes));
}

bool Statement::Begin(Use use, bool on_worker) {
  Connection* connection = connection_.get();
  assert(!connection->busy_ && handle_ != nullptr);
  if (active_) {
    if (use == Use::kRows && use_ == Use::kRows) return true;  // the next batch
    Reset();
  }
  if (connection->active_ != nullptr) connection->active_->Reset();
  use_ = use;
  rows_left_ = false;
  around_ = Around::kNothing;
  const bool writes_with_rows =
      !read_only_ && (kind_ & (kPragma | kVacuum)) == 0 && sqlite3_column_count(handle_) > 0;
  int rc = SQLITE_OK;
  if (sqlite3_get_autocommit(connection->db_)) {
    if (ReadsCommitted()) {
      if (on_worker || connection->database()->NeedsSnapshot()) {
        around_ = Around::kSnapshot;
        connection->around_ = true;
        rc = connection->Control(&connection->begin_, "BEGIN");
        if (rc == SQLITE_OK) {
          wal::IndexHeader published = connection->database()->Published();
          rc = sqlite3_snapshot_open(connection->db_, "main", reinterpret_cast<sqlite3_snapshot*>(&published));
          if (rc != SQLITE_OK)
            connection->SetError(rc, std::string("cannot open the committed view: ") + sqlite3_errstr(rc));
        }
      }
    } else if (!read_only_ && (kind_ & (kVacuum | kPragma | kTransaction | kAttach)) == 0) {
      if (on_worker || writes_with_rows) {
        around_ = Around::kWrite;
        connection->around_ = true;
        rc = connection->Control(&connection->begin_write_, "BEGIN IMMEDIATE");
      }
    } else if (on_worker) {
      around_ = Around::kWorkerCommits;
      connection->database()->BeginWorkerCommits();
    }
  } else {
    if (writes_with_rows && use == Use::kExecute) {
      around_ = Around::kSavepoint;
      rc = connection->Control(&connection->savepoint_, "SAVEPOINT dqlite_statement");
    }
    // The view of a deferred transaction is that of its first read, which has to be here.
    if (rc == SQLITE_OK && on_worker && sqlite3_txn_state(connection->db_, "main") == SQLITE_TXN_NONE)
      rc = connection->Control(&connection->touch_, "SELECT 1 FROM sqlite_schema LIMIT 1");
  }
  if (rc != SQLITE_OK) {
    if (connection->around_ && !sqlite3_get_autocommit(connection->db_)) {
      const Error error = connection->error_;
      connection->Control(&connection->rollback_, "ROLLBACK");
      connection->error_ = error;
    }
    connection->around_ = false;
    around_ = Around::kNothing;
    return false;
  }
  active_ = true;
  connection->active_ = this;
  return true;
}

Outcome Statement::Run(bool on_worker, size_t batch_bytes) {
  Connection* connection = connection_.get();
  assert(active_);
  if (on_worker && connection->cancelled_.load(std::memory_order_relaxed)) {
    sqlite3_reset(handle_);
    connection->SetError(SQLITE_INTERRUPT, "interrupted");
    return Outcome::kError;
  }
  // What may be undone without a trace: a read of which nothing has gone out, or a write that is a transaction of its
  // own. An interrupted write rolls back the whole transaction it is in, so others have no budget.
  const bool own_transaction = around_ == Around::kWrite || sqlite3_get_autocommit(connection->db_);
  connection->over_budget_ = false;
  connection->budget_started_ = false;
  const bool may_be_undone = !rows_left_ && (kind_ & kTransaction) == 0 && (read_only_ || own_transaction);
  connection->budget_armed_ = !on_worker && may_be_undone;
  const Outcome outcome = use_ == Use::kExecute ? RunExecute() : RunRows(batch_bytes);
  connection->budget_armed_ = false;
  return outcome;
}

Outcome Statement::Fail() {
  Connection* connection = connection_.get();
  connection->SetError(sqlite3_extended_errcode(connection->db_));
  sqlite3_reset(handle_);
  return connection->over_budget_ ? Outcome::kOverBudget : Outcome::kError;
}

Outcome Statement::RunExecute() {
  for (;;) {
    const int rc = sqlite3_step(handle_);
    if (rc == SQLITE_DONE) {
      sqlite3_reset(handle_);
      return Outcome::kDone;
    }
    if (rc != SQLITE_ROW) return Fail();
    if (sqlite3_column_count(handle_) == 0) continue;  // PRAGMA incremental_vacuum steps so
    sqlite3_reset(handle_);
    return Outcome::kRow;
  }
}

// client-protocol §9.8: a batch ends when header and body have reached the limit, before the next row is made; it has
// at least one row, unless the result is complete.
Outcome Statement::RunRows(size_t batch_bytes) {
  tuple::Buffer* out = &connection_->rows_;
  const size_t limit = rows_left_ ? batch_bytes : kFirstBatchBytes;
  bool begun = false;
  size_t prefix_bytes = 0;
  tuple::BeginRows(out);
  for (;;) {
    if (begun && out->size() > prefix_bytes && out->size() >= limit) {
      tuple::EndRows(out, tuple::kPartMarker);
      if (out->failed()) break;
      return Outcome::kPart;
    }
    const int rc = sqlite3_step(handle_);
    if (rc != SQLITE_ROW && rc != SQLITE_DONE) {
      out->Clear();
      return Fail();
    }
    if (!begun) {
      // The first step may have prepared the statement again, after a schema change.
      begun = true;
      const int version = sqlite3_stmt_status(handle_, SQLITE_STMTSTATUS_REPREPARE, 0);
      if (version != columns_version_) {
        columns_.Load(handle_);
        columns_version_ = version;
      }
      columns_.AppendPrefix(out);
      prefix_bytes = out->size();
    }
    if (rc == SQLITE_DONE) {
      sqlite3_reset(handle_);
      tuple::EndRows(out, tuple::kDoneMarker);
      if (out->failed()) break;
      return Outcome::kDone;
    }
    if (columns_.count() > 0 && !columns_.AppendRow(handle_, out)) break;
    if (out->failed()) break;
  }
  const bool too_big = out->failed();
  out->Clear();
  sqlite3_reset(handle_);
  if (too_big) {
    connection_->SetError(SQLITE_TOOBIG, "a row is too big");
  } else {
    connection_->SetError(SQLITE_NOMEM, "out of memory");
  }
  return Outcome::kError;
}

Outcome Statement::Finish(Outcome outcome) {
  Connection* connection = connection_.get();
  assert(active_ && connection->active_ == this);
  if (outcome == Outcome::kPart) {
    rows_left_ = true;
    return outcome;
  }
  active_ = false;
  connection->active_ = nullptr;
  const Around around = around_;
  around_ = Around::kNothing;
  switch (around) {
    case Around::kNothing:
      break;
    case Around::kWorkerCommits:
      connection->database()->EndWorkerCommits();
      break;
    case Around::kSnapshot:
    case Around::kWrite: {
      const Error error = connection->error_;
      // After an error SQLite has rolled back the transaction, or only the statement, or nothing (OR FAIL keeps what
      // came before the conflict): a constraint error commits, as it does in autocommit.
      const bool keep = around == Around::kSnapshot || outcome == Outcome::kDone ||
                        (outcome == Outcome::kError && (error.code & 0xff) == SQLITE_CONSTRAINT);
      const bool open = !sqlite3_get_autocommit(connection->db_);
      int rc = SQLITE_OK;
      if (open && keep) rc = connection->Control(&connection->commit_, "COMMIT");
      const Error commit_error = connection->error_;
      if (!sqlite3_get_autocommit(connection->db_)) connection->Control(&connection->rollback_, "ROLLBACK");
      connection->around_ = false;
      connection->error_ = error;
      if (rc != SQLITE_OK && outcome == Outcome::kDone) {
        connection->error_ = commit_error;  // a deferred foreign key, or too big
        outcome = Outcome::kError;
      }
      break;
    }
    case Around::kSavepoint: {
      const Error error = connection->error_;
      if (!sqlite3_get_autocommit(connection->db_)) {
        if (outcome == Outcome::kRow) connection->Control(&connection->rollback_to_, "ROLLBACK TO dqlite_statement");
        connection->Control(&connection->release_, "RELEASE dqlite_statement");
      }
      connection->error_ = error;
      break;
    }
  }
  if (outcome == Outcome::kError) connection->rows_.Clear();
  return outcome;
}

Outcome Statement::Reset() {
  if (!active_) return Outcome::kDone;
  assert(!connection_->busy_);
  // SQLite completes a half-way stepped write here, in autocommit with its commit.
  const int rc = sqlite3_reset(handle_);
  if (rc != SQLITE_OK) connection_->SetError(rc);
  return Finish(rc == SQLITE_OK ? Outcome::kDone : Outcome::kError);
}

}  // namespace engine
