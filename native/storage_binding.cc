// What storage/ sees of the native side: crc32, aligned memory, flock, fallocate, LogWriter and the snapshot frames.
// Options are checked in TypeScript; here they are asserted. Errors cross as negative errno values or as text.
#include <errno.h>
#include <fcntl.h>
#include <napi.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <cassert>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#if defined(DQLITE_HAVE_UV)
#include <uv.h>
#endif

#include "bindings.h"
#include "crc32.h"
#include "log_writer.h"
#include "snapshot_frame.h"

namespace {

struct View {
  uint8_t* data;
  size_t bytes;
};

// The memory of a Uint8Array; valid while JavaScript does not run.
View ViewOf(Napi::Env env, napi_value value) {
  void* data = nullptr;
  size_t bytes = 0;
  const napi_status status = napi_get_buffer_info(env, value, &data, &bytes);
  assert(status == napi_ok);
  (void)status;
  return {static_cast<uint8_t*>(data), bytes};
}

double NumberOf(Napi::Env env, napi_value value) {
  double number = 0;
  const napi_status status = napi_get_value_double(env, value, &number);
  assert(status == napi_ok);
  (void)status;
  return number;
}

// crc32(bytes, start, end, seed): number
Napi::Value Crc32Binding(const Napi::CallbackInfo& info) {
  const View view = ViewOf(info.Env(), info[0]);
  const size_t start = static_cast<size_t>(NumberOf(info.Env(), info[1]));
  const size_t end = static_cast<size_t>(NumberOf(info.Env(), info[2]));
  const uint32_t seed = static_cast<uint32_t>(NumberOf(info.Env(), info[3]));
  assert(start <= end && end <= view.bytes);
  return Napi::Number::New(info.Env(), Crc32(seed, view.data + start, end - start));
}

constexpr size_t kBlockBytes = 4096;

// Memory that a log write may use. A block is freed when neither a JavaScript Buffer nor a write needs it any more: when
// an environment ends, its Buffers are finalized before the cleanup hook of the log writer could wait for the write in
// flight, and the disk would be given whatever the allocator puts there next. Any thread.
class AlignedBlocks {
 public:
  uint8_t* Allocate(size_t bytes) {
    uint8_t* data = static_cast<uint8_t*>(std::aligned_alloc(kBlockBytes, bytes));
    if (data == nullptr) return nullptr;
    memset(data, 0, bytes);
    std::lock_guard lock(mutex_);
    blocks_[data] = {bytes, 1};
    return data;
  }
  // The block that holds `data`, with one more holder; nullptr if it is none of these.
  uint8_t* Hold(uint8_t* data) {
    std::lock_guard lock(mutex_);
    auto next = blocks_.upper_bound(data);
    if (next == blocks_.begin()) return nullptr;
    auto& [start, block] = *--next;
    if (data >= start + block.bytes) return nullptr;
    block.holders++;
    return start;
  }
  void Release(uint8_t* block) {
    std::lock_guard lock(mutex_);
    auto found = blocks_.find(block);
    assert(found != blocks_.end());
    if (--found->second.holders > 0) return;
    blocks_.erase(found);
    std::free(block);
  }
  // For every environment of the process, and never destroyed: environments may end after static objects.
  static AlignedBlocks& Instance() {
    static AlignedBlocks* blocks = new AlignedBlocks;
    return *blocks;
  }

 private:
  struct Block {
    size_t bytes;
    int holders;
  };
  std::mutex mutex_;
  std::map<uint8_t*, Block> blocks_;
};

// alignedBuffer(bytes): Buffer of zeros that begins on a block. JavaScript owns it, and a write while it is in flight.
Napi::Value AlignedBuffer(const Napi::CallbackInfo& info) {
  const size_t bytes = static_cast<size_t>(NumberOf(info.Env(), info[0]));
  assert(bytes > 0 && bytes % kBlockBytes == 0);
  uint8_t* data = AlignedBlocks::Instance().Allocate(bytes);
  if (data == nullptr) throw Napi::Error::New(info.Env(), "out of memory");
  return Napi::Buffer<uint8_t>::New(info.Env(), data, bytes,
                                    [](Napi::Env, uint8_t* block) { AlignedBlocks::Instance().Release(block); });
}

// flock(fd): 0, or the errno. Exclusive, does not wait; closing the descriptor gives it up.
Napi::Value Flock(const Napi::CallbackInfo& info) {
  const int fd = static_cast<int>(NumberOf(info.Env(), info[0]));
  int error = 0;
  while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    error = errno;
    if (error != EINTR) break;
    error = 0;
  }
  return Napi::Number::New(info.Env(), error);
}

// One fallocate on libuv's thread pool, as it may take as long as the file system likes. Created and freed on the loop;
// in between the pool's thread has it alone.
struct FallocateJob {
  napi_async_work work;
  napi_deferred deferred;
  int fd;
  off_t bytes;
  int error;
};

// fallocate(fd, bytes): Promise of 0 or the errno; the caller keeps the descriptor open until then.
Napi::Value Fallocate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  auto* job = new FallocateJob{};
  job->fd = static_cast<int>(NumberOf(env, info[0]));
  job->bytes = static_cast<off_t>(NumberOf(env, info[1]));
  napi_value promise;
  napi_create_promise(env, &job->deferred, &promise);
  napi_create_async_work(
      env, nullptr, Napi::String::New(env, "dqlite:fallocate"),
      [](napi_env, void* data) {
        auto* running = static_cast<FallocateJob*>(data);
        do {
          running->error = fallocate(running->fd, 0, 0, running->bytes) == 0 ? 0 : errno;
        } while (running->error == EINTR);
      },
      [](napi_env done_env, napi_status, void* data) {
        auto* done = static_cast<FallocateJob*>(data);
        // Fails while a worker thread is being ended, as in DeliverResult.
        napi_value error;
        if (napi_create_int32(done_env, done->error, &error) == napi_ok)
          napi_resolve_deferred(done_env, done->deferred, error);
        napi_delete_async_work(done_env, done->work);
        delete done;
      },
      job, &job->work);
  napi_queue_async_work(env, job->work);
  return Napi::Value(env, promise);
}

// ----------------------------------------------------------------------------------------------------- LogWriter

// The native half of a LogWriter object. Loop thread only, except what the poller below says. Lives from the
// constructor until both the JavaScript side has closed it (or the environment ended) and libuv has let go of its
// handle.
struct LogWriterState {
  Napi::Env env;
  std::unique_ptr<AdaptiveLogWriter> writer;
  int event_fd = -1;
  napi_ref on_done = nullptr;
  // Holds the memory of the write in flight.
  uint8_t* block = nullptr;
  napi_async_context context = nullptr;
  napi_async_cleanup_hook_handle hook = nullptr;
  bool is_closing = false;
#if defined(DQLITE_HAVE_UV)
  uv_poll_t poll;
#else
  // Without libuv's header: a thread waits on the eventfd and calls the loop. It touches the two descriptors, the
  // function and `stop` only.
  Napi::ThreadSafeFunction call_loop;
  std::thread poller;
  int stop_fd = -1;
  std::atomic<bool> stop{false};
#endif

  explicit LogWriterState(Napi::Env e) : env(e) {}
};

void ReleaseBlock(LogWriterState* state) {
  if (state->block != nullptr) AlignedBlocks::Instance().Release(state->block);
  state->block = nullptr;
}

// The plain C functions here: a worker thread that is being ended runs its loop once more while JavaScript may not run,
// and then every one of them fails and nobody is left to be told.
void DeliverResult(LogWriterState* state) {
  if (state->is_closing) return;
  int64_t result;
  if (!state->writer->Reap(&result)) return;
  ReleaseBlock(state);
  Napi::HandleScope scope(state->env);
#if defined(DQLITE_HAVE_UV)
  uv_unref(reinterpret_cast<uv_handle_t*>(&state->poll));
#else
  state->call_loop.Unref(state->env);
#endif
  napi_env env = state->env;
  napi_value global, on_done, argument;
  if (napi_get_global(env, &global) != napi_ok) return;
  if (napi_get_reference_value(env, state->on_done, &on_done) != napi_ok) return;
  if (napi_create_double(env, static_cast<double>(result), &argument) != napi_ok) return;
  const napi_status status = napi_make_callback(env, state->context, global, on_done, 1, &argument, nullptr);
  if (status != napi_pending_exception) return;
  // A callback that throws is a programming error: it must reach 'uncaughtException'.
  napi_value error;
  if (napi_get_and_clear_last_exception(env, &error) == napi_ok) napi_fatal_exception(env, error);
}

void FreeState(LogWriterState* state) {
  if (state->hook != nullptr) napi_remove_async_cleanup_hook(state->hook);
  delete state;
}

// Waits for the write in flight, ends every thread, gives everything back. Once.
void CloseState(LogWriterState* state) {
  if (state->is_closing) return;
  state->is_closing = true;
  state->writer->Drain();
  state->writer.reset();
  ReleaseBlock(state);
  napi_delete_reference(state->env, state->on_done);
  napi_async_destroy(state->env, state->context);
#if defined(DQLITE_HAVE_UV)
  uv_poll_stop(&state->poll);
  state->poll.data = state;
  uv_close(reinterpret_cast<uv_handle_t*>(&state->poll), [](uv_handle_t* handle) {
    LogWriterState* closed = static_cast<LogWriterState*>(handle->data);
    close(closed->event_fd);
    FreeState(closed);
  });
#else
  state->stop = true;
  const uint64_t one = 1;
  const ssize_t wrote = write(state->stop_fd, &one, sizeof one);
  (void)wrote;
  state->poller.join();
  state->call_loop.Release();  // its finalizer frees the state
#endif
}

// new LogWriter(probeFd, direct, forced: '' | 'io_uring' | 'aio' | 'thread', block: aligned Buffer, onDone(result))
//   .method: string
//   .write(fd, bytes: Buffer, length, position): 0 or -errno; onDone comes once for each 0
//   .close(): waits for the write in flight, whose onDone does not come any more
// `bytes` is (part of) an alignedBuffer; native holds its memory until onDone, and the caller does not change it.
class LogWriterBinding final : public Napi::ObjectWrap<LogWriterBinding> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "LogWriter",
                       {InstanceMethod<&LogWriterBinding::Write>("write"),
                        InstanceMethod<&LogWriterBinding::Close>("close"),
                        InstanceAccessor<&LogWriterBinding::Method>("method")});
  }

  explicit LogWriterBinding(const Napi::CallbackInfo& info) : ObjectWrap(info) {
    const Napi::Env env = info.Env();
    const int probe_fd = static_cast<int>(NumberOf(env, info[0]));
    const bool direct = info[1].As<Napi::Boolean>();
    const std::string forced_name = info[2].As<Napi::String>();
    const View block = ViewOf(env, info[3]);
    assert(block.bytes >= kBlockBytes);
    LogWriteMethod forced = LogWriteMethod::kThread;
    if (forced_name == "io_uring") forced = LogWriteMethod::kIoUring;
    if (forced_name == "aio") forced = LogWriteMethod::kAio;
    const int event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    int error = event_fd < 0 ? errno : 0;
    std::unique_ptr<AdaptiveLogWriter> writer;
    if (event_fd >= 0)
      writer = AdaptiveLogWriter::Probe(event_fd, probe_fd, direct, block.data,
                                        forced_name.empty() ? nullptr : &forced, &error);
    if (writer == nullptr) {
      if (event_fd >= 0) close(event_fd);
      Napi::Error failure = Napi::Error::New(env, std::string("no way to write the log: ") + strerror(error));
      failure.Set("errno", Napi::Number::New(env, -error));
      throw failure;
    }
    method_ = LogWriteMethodName(writer->method());
    state_ = new LogWriterState(env);
    state_->writer = std::move(writer);
    state_->event_fd = event_fd;
    napi_create_reference(env, info[4], 1, &state_->on_done);
    napi_async_init(env, nullptr, Napi::String::New(env, "dqlite:log"), &state_->context);
    Listen(env);
    // The environment waits for the hook's handle to be removed, so nothing of ours outlives it.
    napi_add_async_cleanup_hook(
        env, [](napi_async_cleanup_hook_handle, void* data) { CloseState(static_cast<LogWriterState*>(data)); }, state_,
        &state_->hook);
    Ref();  // an open writer is not collected; close lets it go
  }

 private:
  void Listen(Napi::Env env) {
    LogWriterState* state = state_;
#if defined(DQLITE_HAVE_UV)
    uv_loop_t* loop = nullptr;
    napi_get_uv_event_loop(env, &loop);
    uv_poll_init(loop, &state->poll, state->event_fd);
    state->poll.data = state;
    uv_poll_start(&state->poll, UV_READABLE, [](uv_poll_t* poll, int, int) {
      LogWriterState* ready = static_cast<LogWriterState*>(poll->data);
      uint64_t count;
      const ssize_t got = read(ready->event_fd, &count, sizeof count);
      (void)got;
      DeliverResult(ready);
    });
    uv_unref(reinterpret_cast<uv_handle_t*>(&state->poll));
#else
    state->stop_fd = eventfd(0, EFD_CLOEXEC);
    state->call_loop = Napi::ThreadSafeFunction::New(env, Napi::Function(), "dqlite:log", 0, 1, [state](Napi::Env) {
      close(state->event_fd);
      close(state->stop_fd);
      FreeState(state);
    });
    state->call_loop.Unref(env);
    state->poller = std::thread([state] {
      pollfd fds[] = {{state->event_fd, POLLIN, 0}, {state->stop_fd, POLLIN, 0}};
      while (!state->stop) {
        if (poll(fds, 2, -1) <= 0 || (fds[0].revents & POLLIN) == 0) continue;
        uint64_t count;
        const ssize_t got = read(state->event_fd, &count, sizeof count);
        if (got > 0) state->call_loop.NonBlockingCall([state](Napi::Env, Napi::Function) { DeliverResult(state); });
      }
    });
#endif
  }

  Napi::Value Write(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    assert(state_ != nullptr && !state_->is_closing);
    const View view = ViewOf(env, info[1]);
    LogWrite write;
    write.fd = static_cast<int>(NumberOf(env, info[0]));
    write.data = view.data;
    write.bytes = static_cast<size_t>(NumberOf(env, info[2]));
    write.offset = static_cast<uint64_t>(NumberOf(env, info[3]));
    assert(write.bytes <= view.bytes);
    const int refused = state_->writer->Submit(write);
    if (refused == 0) {
      state_->block = AlignedBlocks::Instance().Hold(view.data);
      assert(state_->block != nullptr);
#if defined(DQLITE_HAVE_UV)
      uv_ref(reinterpret_cast<uv_handle_t*>(&state_->poll));
#else
      state_->call_loop.Ref(env);
#endif
    }
    return Napi::Number::New(env, refused);
  }

  Napi::Value Close(const Napi::CallbackInfo& info) {
    if (state_ != nullptr) {
      CloseState(state_);
      state_ = nullptr;
      Unref();
    }
    return info.Env().Undefined();
  }

  Napi::Value Method(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), method_); }

  LogWriterState* state_ = nullptr;  // not owned: frees itself after closing
  std::string method_;
};

// ----------------------------------------------------------------------------------------------- snapshot frames

// new SnapshotFrameWriter(contentBytes); begin(target), update(piece, target), end(target): bytes written to target.
class FrameWriterBinding final : public Napi::ObjectWrap<FrameWriterBinding> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "SnapshotFrameWriter",
                       {InstanceMethod<&FrameWriterBinding::Begin>("begin"),
                        InstanceMethod<&FrameWriterBinding::Update>("update"),
                        InstanceMethod<&FrameWriterBinding::End>("end"),
                        StaticMethod<&FrameWriterBinding::Bound>("bound")});
  }
  explicit FrameWriterBinding(const Napi::CallbackInfo& info)
      : ObjectWrap(info), writer_(static_cast<uint64_t>(NumberOf(info.Env(), info[0]))) {}

 private:
  static Napi::Value Bound(const Napi::CallbackInfo& info) {
    const size_t bytes = static_cast<size_t>(NumberOf(info.Env(), info[0]));
    return Napi::Number::New(info.Env(), static_cast<double>(SnapshotFrameWriter::Bound(bytes)));
  }
  Napi::Value Begin(const Napi::CallbackInfo& info) {
    const View target = ViewOf(info.Env(), info[0]);
    return Result(info.Env(), writer_.Begin(target.data, target.bytes));
  }
  Napi::Value Update(const Napi::CallbackInfo& info) {
    const View piece = ViewOf(info.Env(), info[0]);
    const View target = ViewOf(info.Env(), info[1]);
    return Result(info.Env(), writer_.Update(piece.data, piece.bytes, target.data, target.bytes));
  }
  Napi::Value End(const Napi::CallbackInfo& info) {
    const View target = ViewOf(info.Env(), info[0]);
    return Result(info.Env(), writer_.End(target.data, target.bytes));
  }
  Napi::Value Result(Napi::Env env, int64_t bytes) {
    if (bytes < 0) throw Napi::Error::New(env, writer_.error());
    return Napi::Number::New(env, static_cast<double>(bytes));
  }

  SnapshotFrameWriter writer_;
};

// new SnapshotFrameReader(head); isFrame, contentBytes, isComplete;
// update(source, target, step: Uint32Array [consumed, produced]). Throws on damage.
class FrameReaderBinding final : public Napi::ObjectWrap<FrameReaderBinding> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(env, "SnapshotFrameReader",
                       {InstanceMethod<&FrameReaderBinding::Update>("update"),
                        InstanceAccessor<&FrameReaderBinding::IsFrame>("isFrame"),
                        InstanceAccessor<&FrameReaderBinding::ContentBytes>("contentBytes"),
                        InstanceAccessor<&FrameReaderBinding::IsComplete>("isComplete")});
  }
  explicit FrameReaderBinding(const Napi::CallbackInfo& info) : ObjectWrap(info) {
    const View head = ViewOf(info.Env(), info[0]);
    if (!reader_.Sniff(head.data, head.bytes)) throw Napi::Error::New(info.Env(), reader_.error());
  }

 private:
  Napi::Value Update(const Napi::CallbackInfo& info) {
    const View source = ViewOf(info.Env(), info[0]);
    const View target = ViewOf(info.Env(), info[1]);
    Napi::Uint32Array out = info[2].As<Napi::Uint32Array>();
    assert(out.ElementLength() >= 2);
    SnapshotFrameReader::Step step;
    if (!reader_.Update(source.data, source.bytes, target.data, target.bytes, &step))
      throw Napi::Error::New(info.Env(), reader_.error());
    out[0] = static_cast<uint32_t>(step.consumed);
    out[1] = static_cast<uint32_t>(step.produced);
    return info.Env().Undefined();
  }
  Napi::Value IsFrame(const Napi::CallbackInfo& info) { return Napi::Boolean::New(info.Env(), reader_.is_frame()); }
  Napi::Value ContentBytes(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(reader_.content_bytes()));
  }
  Napi::Value IsComplete(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), reader_.is_complete());
  }

  SnapshotFrameReader reader_;
};

}  // namespace

void InitStorage(Napi::Env env, Napi::Object exports) {
  exports.Set("crc32", Napi::Function::New<Crc32Binding>(env, "crc32"));
  exports.Set("alignedBuffer", Napi::Function::New<AlignedBuffer>(env, "alignedBuffer"));
  exports.Set("flock", Napi::Function::New<Flock>(env, "flock"));
  exports.Set("fallocate", Napi::Function::New<Fallocate>(env, "fallocate"));
  exports.Set("LogWriter", LogWriterBinding::Define(env));
  exports.Set("SnapshotFrameWriter", FrameWriterBinding::Define(env));
  exports.Set("SnapshotFrameReader", FrameReaderBinding::Define(env));
}
