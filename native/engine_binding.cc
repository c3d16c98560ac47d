// The engine's border with JavaScript: converts arguments, keeps lifetimes, brings worker results back to the loop.
// lib/engine/ is the only caller and checks every argument's range; values of SQL never cross.
//
// Ownership: each JavaScript object holds one of the shared pointers below, so any order of garbage collection is fine.
//   Engine → EngineCore → Vfs      Connection → engine::Connection → Vfs, Slot      Statement → engine::Statement → …
// A running worker job keeps its EngineCore and its statement. The environment's cleanup hook interrupts what runs and
// joins the threads, so a worker never outlives the environment, and never touches it.
#include <napi.h>

#include <algorithm>
#include <cassert>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bindings.h"
#include "connection.h"
#include "tuple.h"
#include "vfs.h"
#include "worker_pool.h"

namespace {

using engine::Outcome;

// ------------------------------------------------------------------------------------------------- arguments

struct Bytes {
  uint8_t* data;
  size_t size;
};

class Call {
 public:
  Call(napi_env env, napi_callback_info info) : env(env) {
    size_t count = kArgumentsMax;
    napi_get_cb_info(env, info, &count, arguments_, &self, &data);
  }

  template <typename T>
  T* Self() const {
    return Unwrap<T>(self);
  }
  template <typename T>
  T* Unwrap(napi_value value) const {
    void* pointer = nullptr;
    const napi_status status = napi_unwrap(env, value, &pointer);
    assert(status == napi_ok);
    (void)status;
    return static_cast<T*>(pointer);
  }
  template <typename T>
  T* Object(int i) const {
    return Unwrap<T>(arguments_[i]);
  }
  double Number(int i) const {
    double value = 0;
    napi_get_value_double(env, arguments_[i], &value);
    return value;
  }
  size_t Size(int i) const { return static_cast<size_t>(Number(i)); }
  bool Bool(int i) const {
    bool value = false;
    napi_get_value_bool(env, arguments_[i], &value);
    return value;
  }
  std::string Text(int i) const {
    size_t bytes = 0;
    napi_get_value_string_utf8(env, arguments_[i], nullptr, 0, &bytes);
    std::string text(bytes, '\0');
    napi_get_value_string_utf8(env, arguments_[i], text.data(), bytes + 1, &bytes);
    return text;
  }
  Bytes GetBytes(int i) const {
    void* data = nullptr;
    size_t size = 0;
    napi_get_typedarray_info(env, arguments_[i], nullptr, &size, &data, nullptr, nullptr);
    return {static_cast<uint8_t*>(data), size};
  }
  // The name of a database: any bytes.
  std::string Key(int i) const {
    const Bytes bytes = GetBytes(i);
    return {reinterpret_cast<const char*>(bytes.data), bytes.size};
  }
  // Is there a NUL right behind the bytes, in the same buffer?
  bool IsTerminated(int i) const {
    void* data = nullptr;
    void* base = nullptr;
    size_t size = 0, offset = 0, all = 0;
    napi_value buffer = nullptr;
    napi_get_typedarray_info(env, arguments_[i], nullptr, &size, &data, &buffer, &offset);
    if (buffer == nullptr || napi_get_arraybuffer_info(env, buffer, &base, &all) != napi_ok) return false;
    return offset + size < all && static_cast<uint8_t*>(data)[size] == 0;
  }

  napi_value FromNumber(double value) const {
    napi_value result = nullptr;
    napi_create_double(env, value, &result);
    return result;
  }
  napi_value FromInt(int value) const {
    napi_value result = nullptr;
    napi_create_int32(env, value, &result);
    return result;
  }
  napi_value FromBool(bool value) const {
    napi_value result = nullptr;
    napi_get_boolean(env, value, &result);
    return result;
  }
  napi_value FromText(const std::string& text) const {
    napi_value result = nullptr;
    napi_create_string_utf8(env, text.data(), text.size(), &result);
    return result;
  }
  napi_value Undefined() const {
    napi_value result = nullptr;
    napi_get_undefined(env, &result);
    return result;
  }
  // undefined: fine, else the text of what is wrong.
  napi_value FromProblem(const char* problem) const { return problem == nullptr ? Undefined() : FromText(problem); }

  napi_env env;
  napi_value self = nullptr;
  void* data = nullptr;

 private:
  static constexpr size_t kArgumentsMax = 5;
  napi_value arguments_[kArgumentsMax] = {};
};

// A JavaScript function of a C++ one. Memory that cannot be had becomes an exception.
template <napi_value (*function)(const Call&)>
napi_value Export(napi_env env, napi_callback_info info) {
  try {
    return function(Call(env, info));
  } catch (const std::bad_alloc&) {
    napi_throw_error(env, nullptr, "out of memory");
    return nullptr;
  }
}

// ------------------------------------------------------------------------------------------------- objects

class EngineCore;

// The classes that only C++ instantiates, of one environment.
struct Environment {
  explicit Environment(napi_env env) : env(env) {}
  ~Environment() {
    for (napi_ref reference : {database, connection, statement, image, restore}) napi_delete_reference(env, reference);
  }
  const napi_env env;
  napi_ref database = nullptr, connection = nullptr, statement = nullptr, image = nullptr, restore = nullptr;
};

struct EngineObject {
  std::shared_ptr<EngineCore> core;
};
struct DatabaseObject {
  std::shared_ptr<EngineCore> core;
  std::shared_ptr<vfs::Slot> slot;
  vfs::Database* operator->() const { return slot->database.get(); }
};
struct ConnectionObject {
  std::shared_ptr<EngineCore> core;
  std::shared_ptr<engine::Connection> connection;
  size_t tail = 0;
};
struct StatementObject {
  std::shared_ptr<EngineCore> core;
  std::shared_ptr<engine::Statement> statement;
};
struct ImageObject {
  vfs::Image image;
};
struct RestoreObject {
  vfs::Restore restore;
};

struct Job {
  std::shared_ptr<engine::Statement> statement;
  size_t batch_bytes;
  Outcome outcome;
  napi_deferred deferred;
};

class EngineCore : public std::enable_shared_from_this<EngineCore> {
 public:
  EngineCore(napi_env env, Environment* environment, const vfs::Options& options, size_t threads_max, int budget_ms)
      : env(env),
        environment(environment),
        vfs(std::make_shared<vfs::Vfs>(options)),
        budget_ms(budget_ms),
        pool_(threads_max) {}
  ~EngineCore() {
    Stop();
    if (tell_loop_ == nullptr || environment_ended_) return;
    napi_remove_env_cleanup_hook(env, OnEnvironmentEnds, this);
    napi_release_threadsafe_function(tell_loop_, napi_tsfn_abort);
  }

  // Loop thread. Starts `statement`, which has begun, on a worker; the promise gets the outcome's number.
  napi_value RunOnWorker(std::shared_ptr<engine::Statement> statement, size_t batch_bytes) {
    napi_value promise = nullptr;
    auto job = std::make_unique<Job>(Job{std::move(statement), batch_bytes, Outcome::kError, nullptr});
    napi_create_promise(env, &job->deferred, &promise);
    ConnectWithLoop();
    Job* raw = job.get();
    raw->statement->connection()->set_busy(true);
    if (running_.empty()) {
      self_ = shared_from_this();
      napi_ref_threadsafe_function(env, tell_loop_);  // the process waits for the answer
    }
    running_.push_back(std::move(job));
    const bool submitted = pool_.Submit([this, raw] {
      raw->outcome = raw->statement->Run(true, raw->batch_bytes);
      bool tell;
      {
        const std::lock_guard guard(mutex_);
        tell = completed_.empty();
        completed_.push_back(raw);
      }
      if (tell) napi_call_threadsafe_function(tell_loop_, nullptr, napi_tsfn_nonblocking);
    });
    if (!submitted) {
      const std::lock_guard guard(mutex_);
      raw->statement->connection()->Interrupt();  // Run, here, then only says so
      raw->outcome = raw->statement->Run(true, raw->batch_bytes);
      completed_.push_back(raw);
      napi_call_threadsafe_function(tell_loop_, nullptr, napi_tsfn_nonblocking);
    }
    return promise;
  }

  void InterruptAll() {
    for (const std::unique_ptr<Job>& job : running_) job->statement->connection()->Interrupt();
  }

  // Joins the workers. What they ran is not finished: only for an end at which nobody waits for it.
  void Stop() {
    if (stopped_) return;
    stopped_ = true;
    InterruptAll();
    pool_.Stop();
    for (const std::unique_ptr<Job>& job : running_) job->statement->connection()->set_busy(false);
  }

  const napi_env env;
  Environment* const environment;
  const std::shared_ptr<vfs::Vfs> vfs;
  const int budget_ms;

 private:
  void ConnectWithLoop() {
    if (tell_loop_ != nullptr) return;
    napi_value name = nullptr;
    napi_create_string_utf8(env, "dqlite worker", NAPI_AUTO_LENGTH, &name);
    auto* context = new std::weak_ptr<EngineCore>(shared_from_this());
    napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, context, DeleteContext, context, OnTold,
                                    &tell_loop_);
    napi_unref_threadsafe_function(env, tell_loop_);
    // Hooks run last in, first out: ours comes before the thread-safe function's, when it can still be called.
    napi_add_env_cleanup_hook(env, OnEnvironmentEnds, this);
  }

  static void DeleteContext(napi_env, void* data, void*) { delete static_cast<std::weak_ptr<EngineCore>*>(data); }

  static void OnEnvironmentEnds(void* data) {
    EngineCore* core = static_cast<EngineCore*>(data);
    core->environment_ended_ = true;
    core->Stop();
    core->running_.clear();
    const std::shared_ptr<EngineCore> last = std::move(core->self_);
  }

  static void OnTold(napi_env env, napi_value, void* context, void*) {
    if (env == nullptr) return;  // the environment ends: the context is gone already
    const std::shared_ptr<EngineCore> core = static_cast<std::weak_ptr<EngineCore>*>(context)->lock();
    if (core != nullptr && !core->stopped_) core->FinishCompleted();
  }

  void FinishCompleted() {
    std::vector<Job*> completed;
    {
      const std::lock_guard guard(mutex_);
      completed.swap(completed_);
    }
    for (Job* raw : completed) {
      const auto place =
          std::find_if(running_.begin(), running_.end(), [raw](const auto& job) { return job.get() == raw; });
      assert(place != running_.end());
      const std::unique_ptr<Job> job = std::move(*place);
      running_.erase(place);
      job->statement->connection()->set_busy(false);
      const Outcome outcome = job->statement->Finish(job->outcome);
      napi_value number = nullptr;
      napi_create_int32(env, static_cast<int>(outcome), &number);
      napi_resolve_deferred(env, job->deferred, number);
    }
    if (running_.empty() && self_ != nullptr) {
      napi_unref_threadsafe_function(env, tell_loop_);
      self_ = nullptr;  // the caller holds another
    }
  }

  WorkerPool pool_;
  napi_threadsafe_function tell_loop_ = nullptr;
  std::list<std::unique_ptr<Job>> running_;
  std::shared_ptr<EngineCore> self_;  // while something runs
  bool stopped_ = false;
  bool environment_ended_ = false;
  std::mutex mutex_;
  std::vector<Job*> completed_;  // run, not finished yet
};

template <typename T>
void Delete(napi_env, void* object, void*) {
  delete static_cast<T*>(object);
}

// A new JavaScript object of the class, which owns `object`.
template <typename T>
napi_value NewObject(napi_env env, napi_ref constructor, std::unique_ptr<T> object) {
  napi_value function = nullptr, external = nullptr, result = nullptr;
  napi_get_reference_value(env, constructor, &function);
  napi_create_external(env, object.get(), nullptr, nullptr, &external);
  if (napi_new_instance(env, function, 1, &external, &result) != napi_ok) return nullptr;
  object.release();
  return result;
}

// The constructors of classes that only C++ instantiates: the argument is the object.
template <typename T>
napi_value Adopt(napi_env env, napi_callback_info info) {
  napi_value argument = nullptr, self = nullptr;
  size_t count = 1;
  void* object = nullptr;
  napi_get_cb_info(env, info, &count, &argument, &self, nullptr);
  if (napi_get_value_external(env, argument, &object) != napi_ok) {
    napi_throw_type_error(env, nullptr, "not a public constructor");
    return nullptr;
  }
  napi_wrap(env, self, object, Delete<T>, nullptr, nullptr);
  return self;
}

// ------------------------------------------------------------------------------------------------- Engine

// new Engine(workerThreadsMax, statementBudgetMs, transactionBytesMax)
napi_value NewEngine(const Call& call) {
  vfs::Options options;
  options.command_bytes_max = static_cast<uint64_t>(call.Number(2));
  auto object = std::make_unique<EngineObject>();
  object->core = std::make_shared<EngineCore>(call.env, static_cast<Environment*>(call.data), options, call.Size(0),
                                              static_cast<int>(call.Number(1)));
  napi_wrap(call.env, call.self, object.release(), Delete<EngineObject>, nullptr, nullptr);
  return call.self;
}

// database(name, isReplicated) → Database, or undefined for a name that no database can have. One that others have
// replicated may have any name; only connections care, and are not made.
napi_value EngineDatabase(const Call& call) {
  const std::shared_ptr<EngineCore>& core = call.Self<EngineObject>()->core;
  const std::string name = call.Key(0);
  if (!call.Bool(1) && !vfs::Vfs::IsName(name)) return call.Undefined();
  auto object = std::make_unique<DatabaseObject>(DatabaseObject{core, core->vfs->Open(name)});
  return NewObject(call.env, core->environment->database, std::move(object));
}

// drop(name) → false: connections are open
napi_value EngineDrop(const Call& call) {
  return call.FromBool(call.Self<EngineObject>()->core->vfs->Drop(call.Key(0)));
}

napi_value EngineInterrupt(const Call& call) {
  call.Self<EngineObject>()->core->InterruptAll();
  return call.Undefined();
}

// stop(): joins the workers; nothing may be running any more
napi_value EngineStop(const Call& call) {
  call.Self<EngineObject>()->core->Stop();
  return call.Undefined();
}

// ------------------------------------------------------------------------------------------------- Database

DatabaseObject& DatabaseOf(const Call& call) { return *call.Self<DatabaseObject>(); }

// connect() → Connection, or [code, message]
napi_value DatabaseConnect(const Call& call) {
  const DatabaseObject& database = DatabaseOf(call);
  engine::Error error;
  auto connection = engine::Connection::Open(database.core->vfs, database.slot, database.core->budget_ms, &error);
  if (connection == nullptr) {
    napi_value pair = nullptr;
    napi_create_array_with_length(call.env, 2, &pair);
    napi_set_element(call.env, pair, 0, call.FromInt(error.code));
    napi_set_element(call.env, pair, 1, call.FromText(error.message));
    return pair;
  }
  auto object = std::make_unique<ConnectionObject>(ConnectionObject{database.core, std::move(connection)});
  return NewObject(call.env, database.core->environment->connection, std::move(object));
}

napi_value DatabaseConnections(const Call& call) { return call.FromNumber(DatabaseOf(call).slot->connections); }
napi_value DatabaseSpeculative(const Call& call) {
  return call.FromNumber(static_cast<double>(DatabaseOf(call)->speculative()));
}
napi_value DatabaseFrames(const Call& call) { return call.FromNumber(DatabaseOf(call)->frames()); }
napi_value DatabaseIsDeleted(const Call& call) { return call.FromBool(DatabaseOf(call)->is_deleted()); }
napi_value DatabaseCheckpoint(const Call& call) { return call.FromBool(DatabaseOf(call)->Checkpoint()); }
napi_value DatabasePublish(const Call& call) { return call.FromBool(DatabaseOf(call)->Publish()); }
napi_value DatabaseDrop(const Call& call) { return call.FromBool(DatabaseOf(call)->DropSpeculative()); }

// takeCaptured(target, offset) → bytes written; 0: nothing captured; negative: it needs so many bytes, call again
napi_value DatabaseTakeCaptured(const Call& call) {
  DatabaseObject& database = DatabaseOf(call);
  const size_t needed = database->CapturedBytes();
  if (needed == 0) return call.FromInt(0);
  const Bytes target = call.GetBytes(0);
  const size_t offset = call.Size(1);
  if (offset > target.size || needed > target.size - offset) return call.FromNumber(-static_cast<double>(needed));
  database->TakeCaptured(target.data + offset);
  return call.FromNumber(static_cast<double>(needed));
}

// apply(command) → undefined, or what is wrong
napi_value DatabaseApply(const Call& call) {
  const Bytes command = call.GetBytes(0);
  return call.FromProblem(DatabaseOf(call)->Apply(command.data, command.size));
}

napi_value DatabaseImage(const Call& call) {
  const DatabaseObject& database = DatabaseOf(call);
  std::unique_ptr<ImageObject> object(new ImageObject{vfs::Image(database.slot->database)});
  return NewObject(call.env, database.core->environment->image, std::move(object));
}

// restore(byteLength) → Restore
napi_value DatabaseRestore(const Call& call) {
  const DatabaseObject& database = DatabaseOf(call);
  std::unique_ptr<RestoreObject> object(new RestoreObject{
      vfs::Restore(database.slot->name, static_cast<uint64_t>(call.Number(0)), database.core->vfs->options())});
  return NewObject(call.env, database.core->environment->restore, std::move(object));
}

// finishRestore(restore) → undefined, or what is wrong
napi_value DatabaseFinishRestore(const Call& call) {
  const DatabaseObject& database = DatabaseOf(call);
  if (database.slot->connections != 0) return call.FromText("connections are open");
  const char* problem = nullptr;
  std::shared_ptr<vfs::Database> restored = call.Object<RestoreObject>(0)->restore.Finish(&problem);
  if (restored != nullptr) database.slot->database = std::move(restored);
  return call.FromProblem(problem);
}

napi_value RestoreWrite(const Call& call) {
  const Bytes chunk = call.GetBytes(0);
  return call.FromProblem(call.Self<RestoreObject>()->restore.Write(chunk.data, chunk.size));
}

napi_value ImageBytes(const Call& call) {
  return call.FromNumber(static_cast<double>(call.Self<ImageObject>()->image.bytes()));
}
napi_value ImageRead(const Call& call) {
  const Bytes target = call.GetBytes(0);
  return call.FromNumber(static_cast<double>(call.Self<ImageObject>()->image.Read(target.data, target.size)));
}
napi_value ImageClose(const Call& call) {
  call.Self<ImageObject>()->image.Close();
  return call.Undefined();
}

// ------------------------------------------------------------------------------------------------- Connection

engine::Connection* ConnectionOf(const Call& call) { return call.Self<ConnectionObject>()->connection.get(); }

// prepare(sql, offset) → Statement; null: no statement in the text; undefined: failed, see errorCode(). Then tail().
napi_value ConnectionPrepare(const Call& call) {
  ConnectionObject* object = call.Self<ConnectionObject>();
  const Bytes sql = call.GetBytes(0);
  const size_t offset = std::min(call.Size(1), sql.size);
  const char* text = sql.data == nullptr ? "" : reinterpret_cast<const char*>(sql.data) + offset;
  size_t tail = 0;
  auto statement = object->connection->Prepare(text, sql.size - offset, call.IsTerminated(0), &tail);
  object->tail = offset + tail;
  if (statement == nullptr) {
    if (object->connection->error().code != 0) return call.Undefined();
    napi_value null = nullptr;
    napi_get_null(call.env, &null);
    return null;
  }
  auto result = std::make_unique<StatementObject>(StatementObject{object->core, std::move(statement)});
  return NewObject(call.env, object->core->environment->statement, std::move(result));
}

napi_value ConnectionTail(const Call& call) {
  return call.FromNumber(static_cast<double>(call.Self<ConnectionObject>()->tail));
}
napi_value ConnectionInTransaction(const Call& call) { return call.FromBool(ConnectionOf(call)->in_transaction()); }
napi_value ConnectionIsWriting(const Call& call) { return call.FromBool(ConnectionOf(call)->is_writing()); }
napi_value ConnectionIsBusy(const Call& call) { return call.FromBool(ConnectionOf(call)->is_busy()); }
napi_value ConnectionErrorCode(const Call& call) { return call.FromInt(ConnectionOf(call)->error().code); }
napi_value ConnectionErrorMessage(const Call& call) { return call.FromText(ConnectionOf(call)->error().message); }

// writeResult(target, offset): 16 bytes
napi_value ConnectionWriteResult(const Call& call) {
  const Bytes target = call.GetBytes(0);
  const size_t offset = call.Size(1);
  assert(offset <= target.size && target.size - offset >= 16);
  ConnectionOf(call)->WriteResult(target.data + offset);
  return call.Undefined();
}

napi_value ConnectionInterrupt(const Call& call) {
  ConnectionOf(call)->Interrupt();
  return call.Undefined();
}
napi_value ConnectionClose(const Call& call) {
  ConnectionOf(call)->Close();
  return call.Undefined();
}

// rowsBytes(): size of the message that the last batch is
napi_value ConnectionRowsBytes(const Call& call) {
  return call.FromNumber(static_cast<double>(ConnectionOf(call)->rows().size()));
}

// Memory that a batch may keep for the next one.
constexpr size_t kRowsKeptBytes = 1 << 20;

// takeRows(target, offset): copies the message, which must fit
napi_value ConnectionTakeRows(const Call& call) {
  tuple::Buffer& rows = ConnectionOf(call)->rows();
  const Bytes target = call.GetBytes(0);
  const size_t offset = call.Size(1);
  assert(offset <= target.size && rows.size() <= target.size - offset);
  std::memcpy(target.data + offset, rows.data(), rows.size());
  rows.Clear();
  rows.Shrink(kRowsKeptBytes);
  return call.Undefined();
}

// ------------------------------------------------------------------------------------------------- Statement

engine::Statement* StatementOf(const Call& call) { return call.Self<StatementObject>()->statement.get(); }

// info(): bit 0 read-only · 1 VACUUM · 2 may be cached · 3 runs inline only · from bit 4: parameters
napi_value StatementInfo(const Call& call) {
  const engine::Statement* statement = StatementOf(call);
  return call.FromInt(statement->is_read_only() | statement->is_vacuum() << 1 | statement->is_cacheable() << 2 |
                      statement->RunsInline() << 3 | statement->parameter_count() << 4);
}
napi_value StatementColumnCount(const Call& call) { return call.FromInt(StatementOf(call)->column_count()); }
napi_value StatementPrefersWorker(const Call& call) { return call.FromBool(StatementOf(call)->PrefersWorker()); }

// bind(body, offset, schema, skip) → values in the tuple; -1: it does not decode; -2: SQLite refuses, see errorCode()
napi_value StatementBind(const Call& call) {
  const Bytes body = call.GetBytes(0);
  uint32_t values = 0;
  const int rc = StatementOf(call)->Bind(body.data, body.size, call.Size(1), static_cast<int>(call.Number(2)),
                                         static_cast<uint32_t>(call.Number(3)), &values);
  if (rc == tuple::kMalformed) return call.FromInt(-1);
  return rc == SQLITE_OK ? call.FromNumber(values) : call.FromInt(-2);
}

napi_value StatementExecute(const Call& call) { return call.FromInt(static_cast<int>(StatementOf(call)->Execute())); }

// rows(target, offset, batchBytes) → outcome + 8 × bytes of the message. It is in target if it fits there, else still in
// the connection (takeRows).
napi_value StatementRows(const Call& call) {
  engine::Statement* statement = StatementOf(call);
  const Outcome outcome = statement->Rows(call.Size(2));
  tuple::Buffer& rows = statement->connection()->rows();
  const size_t bytes = outcome == Outcome::kDone || outcome == Outcome::kPart ? rows.size() : 0;
  const Bytes target = call.GetBytes(0);
  const size_t offset = call.Size(1);
  if (bytes > 0 && offset <= target.size && bytes <= target.size - offset)
    std::memcpy(target.data + offset, rows.data(), bytes);
  return call.FromNumber(static_cast<double>(bytes) * 8 + static_cast<int>(outcome));
}

napi_value OnWorker(const Call& call, engine::Use use, size_t batch_bytes) {
  const StatementObject* object = call.Self<StatementObject>();
  if (!object->statement->Begin(use, true)) return call.FromInt(static_cast<int>(Outcome::kError));
  return object->core->RunOnWorker(object->statement, batch_bytes);
}

// executeOnWorker(), rowsOnWorker(batchBytes) → a promise of the outcome, or at once the outcome "error"
napi_value StatementExecuteOnWorker(const Call& call) { return OnWorker(call, engine::Use::kExecute, 0); }
napi_value StatementRowsOnWorker(const Call& call) { return OnWorker(call, engine::Use::kRows, call.Size(0)); }

napi_value StatementReset(const Call& call) { return call.FromInt(static_cast<int>(StatementOf(call)->Reset())); }
napi_value StatementFinalize(const Call& call) {
  StatementOf(call)->Finalize();
  return call.Undefined();
}

// ------------------------------------------------------------------------------------------------- classes

napi_property_descriptor Method(const char* name, napi_callback function) {
  return {name, nullptr, function, nullptr, nullptr, nullptr, napi_default, nullptr};
}

napi_value DefineClass(napi_env env, const char* name, napi_callback constructor, void* data,
                       const std::vector<napi_property_descriptor>& methods) {
  napi_value result = nullptr;
  napi_define_class(env, name, NAPI_AUTO_LENGTH, constructor, data, methods.size(), methods.data(), &result);
  return result;
}

napi_ref Keep(napi_env env, napi_value value) {
  napi_ref reference = nullptr;
  napi_create_reference(env, value, 1, &reference);
  return reference;
}

void DeleteEnvironment(void* data) { delete static_cast<Environment*>(data); }

}  // namespace

void InitEngine(Napi::Env napi, Napi::Object exports) {
  const napi_env env = napi;
  auto* environment = new Environment(env);
  // Only used by calls from JavaScript, of which there are none any more when hooks run.
  napi_add_env_cleanup_hook(env, DeleteEnvironment, environment);
  environment->database = Keep(env, DefineClass(env, "Database", Adopt<DatabaseObject>, nullptr,
      {
          Method("connect", Export<DatabaseConnect>),
          Method("connections", Export<DatabaseConnections>),
          Method("speculative", Export<DatabaseSpeculative>),
          Method("takeCaptured", Export<DatabaseTakeCaptured>),
          Method("publish", Export<DatabasePublish>),
          Method("dropSpeculative", Export<DatabaseDrop>),
          Method("apply", Export<DatabaseApply>),
          Method("walFrames", Export<DatabaseFrames>),
          Method("isDeleted", Export<DatabaseIsDeleted>),
          Method("checkpoint", Export<DatabaseCheckpoint>),
          Method("openImage", Export<DatabaseImage>),
          Method("restore", Export<DatabaseRestore>),
          Method("finishRestore", Export<DatabaseFinishRestore>),
      }));
  environment->connection = Keep(env, DefineClass(env, "Connection", Adopt<ConnectionObject>, nullptr,
      {
          Method("prepare", Export<ConnectionPrepare>),
          Method("tail", Export<ConnectionTail>),
          Method("inTransaction", Export<ConnectionInTransaction>),
          Method("isWriting", Export<ConnectionIsWriting>),
          Method("isBusy", Export<ConnectionIsBusy>),
          Method("errorCode", Export<ConnectionErrorCode>),
          Method("errorMessage", Export<ConnectionErrorMessage>),
          Method("writeResult", Export<ConnectionWriteResult>),
          Method("rowsBytes", Export<ConnectionRowsBytes>),
          Method("takeRows", Export<ConnectionTakeRows>),
          Method("interrupt", Export<ConnectionInterrupt>),
          Method("close", Export<ConnectionClose>),
      }));
  environment->statement = Keep(env, DefineClass(env, "Statement", Adopt<StatementObject>, nullptr,
      {
          Method("info", Export<StatementInfo>),
          Method("columnCount", Export<StatementColumnCount>),
          Method("prefersWorker", Export<StatementPrefersWorker>),
          Method("bind", Export<StatementBind>),
          Method("execute", Export<StatementExecute>),
          Method("executeOnWorker", Export<StatementExecuteOnWorker>),
          Method("rows", Export<StatementRows>),
          Method("rowsOnWorker", Export<StatementRowsOnWorker>),
          Method("reset", Export<StatementReset>),
          Method("finalize", Export<StatementFinalize>),
      }));
  environment->image = Keep(env, DefineClass(env, "Image", Adopt<ImageObject>, nullptr,
      {
          Method("byteLength", Export<ImageBytes>),
          Method("read", Export<ImageRead>),
          Method("close", Export<ImageClose>),
      }));
  environment->restore = Keep(env, DefineClass(env, "Restore", Adopt<RestoreObject>, nullptr,
      {
          Method("write", Export<RestoreWrite>),
      }));
  exports.Set("Engine", Napi::Value(env, DefineClass(env, "Engine", Export<NewEngine>, environment,
      {
          Method("database", Export<EngineDatabase>),
          Method("drop", Export<EngineDrop>),
          Method("interrupt", Export<EngineInterrupt>),
          Method("stop", Export<EngineStop>),
      })));
}
