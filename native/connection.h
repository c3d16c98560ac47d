// A connection and its statements: which view a statement sees, what may interrupt it, and which part of it may run
// on a worker. Knows SQLite, the VFS and wire bytes; does not know N-API, Raft or clients.
//
// A statement's life, inline or with Run on a worker:
//
//   Begin (loop) → Run (any thread) → Finish (loop)
//
// Begin chooses the view and, where needed, opens a transaction around the statement; Finish ends it. So transactions
// begin and end on the loop thread, except that of a statement which cannot be put into one (VACUUM).
//
//   statement, in autocommit              seen    around it
//   reads only                            PUB     BEGIN, snapshot of PUB … COMMIT   if PUB ≠ SPEC, or on a worker
//   writes, no rows, inline               SPEC    nothing
//   writes, on a worker or with rows      SPEC    BEGIN IMMEDIATE … COMMIT
//   BEGIN, COMMIT, PRAGMA x=, ATTACH, …   SPEC    nothing
//   statement, in an explicit transaction
//   writes with rows, as EXEC             SPEC    SAVEPOINT … RELEASE
//   anything else                         SPEC    nothing
//
// A connection has at most one statement between Begin and Finish; beginning another resets it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "sqlite3.h"
#include "tuple.h"
#include "vfs.h"

namespace engine {

class Connection;

enum class Outcome : int {
  kDone = 0,
  kRow = 1,         // EXEC: it yielded a row and was undone
  kPart = 2,        // rows: there are more
  kOverBudget = 3,  // it held the thread for too long and was undone; may be started again on a worker
  kError = 4,       // see Connection::error()
};

enum class Use { kExecute, kRows };

struct Error {
  int code = 0;  // SQLite's extended code
  std::string message;
};

// Loop thread, except Run.
class Statement {
 public:
  Statement(std::shared_ptr<Connection> connection, sqlite3_stmt* handle, uint32_t kind);
  ~Statement();
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  bool is_read_only() const { return read_only_; }
  bool is_vacuum() const;
  bool is_cacheable() const;  // running it again does the same: no PRAGMA, some of which act when they are prepared
  int parameter_count() const { return parameter_count_; }
  int column_count() const { return sqlite3_column_count(handle_); }
  // Likely to run long: scans, sorts, builds an index. For writes that may not be interrupted.
  bool PrefersWorker();

  // SQLITE_OK, tuple::kMalformed or SQLite's code. Resets the statement first.
  int Bind(const uint8_t* body, size_t bytes, size_t offset, int schema, uint32_t skip, uint32_t* values);

  // Inline: Begin, Run and Finish in one.
  Outcome Execute();
  // The next batch, a whole ROWS message, is in connection->rows(). `batch_bytes` counts from the second batch on.
  Outcome Rows(size_t batch_bytes);

  bool Begin(Use use, bool on_worker);  // false: failed, see Connection::error()
  Outcome Run(bool on_worker, size_t batch_bytes);
  Outcome Finish(Outcome outcome);
  bool is_active() const { return active_; }
  bool RunsInline() const;  // BEGIN, COMMIT and the like never go to a worker

  // Ends it early: a read stops; a write that has begun to yield rows is complete and commits.
  Outcome Reset();
  void Finalize();
  Connection* connection() const { return connection_.get(); }

 private:
  friend class Connection;
  enum class Around { kNothing, kSnapshot, kWrite, kSavepoint, kWorkerCommits };

  Outcome RunExecute();
  Outcome RunRows(size_t batch_bytes);
  Outcome Fail();  // takes SQLite's error and resets
  bool ReadsCommitted() const;

  std::shared_ptr<Connection> connection_;
  sqlite3_stmt* handle_;
  const uint32_t kind_;
  bool read_only_ = false;
  int parameter_count_ = 0;
  int prefers_worker_ = -1;
  // Of the run in progress.
  bool active_ = false;
  bool rows_left_ = false;  // a batch has gone out: it cannot be undone any more
  Use use_ = Use::kExecute;
  Around around_ = Around::kNothing;
  tuple::Columns columns_;
  int columns_version_ = -1;  // how often SQLite had prepared it again when columns_ was loaded
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  // nullptr: failed, see `error`.
  static std::shared_ptr<Connection> Open(std::shared_ptr<vfs::Vfs> vfs, std::shared_ptr<vfs::Slot> slot, int budget_ms,
                                          Error* error);
  ~Connection();

  // The first statement of the text; *tail: where the rest begins. nullptr with error().code 0: there is none.
  // `terminated`: a NUL follows the text, which saves a copy.
  std::unique_ptr<Statement> Prepare(const char* sql, size_t bytes, bool terminated, size_t* tail);

  bool in_transaction() const;  // an explicit one
  bool is_writing() const;      // holds the write lock
  void WriteResult(uint8_t* out) const;  // last_insert_rowid, int64 · changes, uint64 (RESULT, client-protocol §6)
  const Error& error() const { return error_; }
  tuple::Buffer& rows() { return rows_; }
  vfs::Database* database() const { return slot_->database.get(); }
  bool is_closed() const { return db_ == nullptr; }

  // A worker has the connection: nothing may be called but Interrupt, until Finish.
  bool is_busy() const { return busy_; }
  void set_busy(bool busy);
  void Interrupt();  // what runs ends with SQLITE_INTERRUPT
  void Close();      // rolls back. Not while busy

 private:
  friend class Statement;
  Connection() = default;
  int Step(sqlite3_stmt* handle);  // of BEGIN and the like: to the end
  int Control(sqlite3_stmt** cached, const char* sql);
  void SetError(int code);
  void SetError(int code, std::string message) { error_ = {code, std::move(message)}; }
  static int Authorize(void* self, int action, const char* a, const char* b, const char* c, const char* d);
  static int OnProgress(void* self);

  std::shared_ptr<vfs::Vfs> vfs_;
  std::shared_ptr<vfs::Slot> slot_;
  sqlite3* db_ = nullptr;
  sqlite3_stmt *begin_ = nullptr, *begin_write_ = nullptr, *commit_ = nullptr, *rollback_ = nullptr, *touch_ = nullptr;
  sqlite3_stmt *savepoint_ = nullptr, *release_ = nullptr, *rollback_to_ = nullptr;
  std::unordered_set<Statement*> statements_;
  Statement* active_ = nullptr;
  std::vector<sqlite3_stmt*> to_finalize_;  // given up while a worker had the connection
  bool around_ = false;                     // the open transaction is ours, not the client's
  bool busy_ = false;
  Error error_;
  tuple::Buffer rows_;
  uint32_t prepared_kind_ = 0;  // what the authorizer has seen of the statement being prepared
  // The budget of an inline run.
  std::chrono::milliseconds budget_{0};
  bool budget_armed_ = false;
  bool budget_started_ = false;
  bool over_budget_ = false;
  std::chrono::steady_clock::time_point deadline_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace engine
