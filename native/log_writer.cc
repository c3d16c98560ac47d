#include "log_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cassert>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>

#ifndef RWF_DSYNC
#define RWF_DSYNC 0x00000002
#endif

namespace {

uint64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

// Waits until the eventfd is readable and empties it. False: the time passed.
bool WaitForEvent(int event_fd, int timeout_ms) {
  pollfd poll_fd{event_fd, POLLIN, 0};
  for (;;) {
    const int n = poll(&poll_fd, 1, timeout_ms);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    uint64_t count;
    const ssize_t got = read(event_fd, &count, sizeof count);
    (void)got;  // EAGAIN: somebody emptied it before us; Reap tells
    return true;
  }
}

// ------------------------------------------------------------------------------------------------------- io_uring

// Raw system calls: liburing is not needed for a ring with one write in it. No SQPOLL and no IOPOLL, whose completions
// wait for a timer tick here.
class IoUringLogWriter final : public LogWriter {
 public:
  static std::unique_ptr<LogWriter> Open(int event_fd, int* error) {
    io_uring_params params{};
    const int ring = static_cast<int>(syscall(__NR_io_uring_setup, 4, &params));
    if (ring < 0) {
      *error = errno;  // ENOSYS: old kernel; EPERM: forbidden by sysctl or seccomp
      return nullptr;
    }
    fcntl(ring, F_SETFD, FD_CLOEXEC);
    std::unique_ptr<IoUringLogWriter> writer(new IoUringLogWriter(ring));
    *error = writer->Map(params, event_fd);
    if (*error != 0) return nullptr;
    return writer;
  }

  ~IoUringLogWriter() override {
    if (in_flight_) Wait();
    if (sq_ != MAP_FAILED) munmap(sq_, sq_bytes_);
    if (cq_ != MAP_FAILED && cq_ != sq_) munmap(cq_, cq_bytes_);
    if (sqes_ != MAP_FAILED) munmap(sqes_, sqes_bytes_);
    close(ring_);
  }

  int Submit(const LogWrite& write) override {
    assert(!in_flight_);
    const unsigned tail = *sq_tail_;
    const unsigned slot = tail & *sq_mask_;
    io_uring_sqe* sqe = &static_cast<io_uring_sqe*>(sqes_)[slot];
    memset(sqe, 0, sizeof *sqe);
    iovec_.iov_base = const_cast<void*>(write.data);
    iovec_.iov_len = write.bytes;
    sqe->opcode = IORING_OP_WRITEV;
    sqe->fd = write.fd;
    sqe->addr = reinterpret_cast<uint64_t>(&iovec_);
    sqe->len = 1;
    sqe->off = write.offset;
    sqe->rw_flags = RWF_DSYNC;
    sq_array_[slot] = slot;
    std::atomic_ref<unsigned>(*sq_tail_).store(tail + 1, std::memory_order_release);
    for (;;) {
      const long n = syscall(__NR_io_uring_enter, ring_, 1, 0, 0, nullptr, 0);
      if (n == 1) break;
      if (n < 0 && errno == EINTR) continue;
      const int error = n < 0 ? errno : EAGAIN;
      // Not consumed: take the entry back, so that the caller may write in another way.
      std::atomic_ref<unsigned>(*sq_tail_).store(tail, std::memory_order_release);
      return -error;
    }
    in_flight_ = true;
    return 0;
  }

  bool Reap(int64_t* result) override {
    if (!in_flight_) return false;
    const unsigned head = *cq_head_;
    if (head == std::atomic_ref<unsigned>(*cq_tail_).load(std::memory_order_acquire)) return false;
    *result = cqes_[head & *cq_mask_].res;
    std::atomic_ref<unsigned>(*cq_head_).store(head + 1, std::memory_order_release);
    in_flight_ = false;
    return true;
  }

  LogWriteMethod method() const override { return LogWriteMethod::kIoUring; }

 private:
  explicit IoUringLogWriter(int ring) : ring_(ring) {}

  int Map(const io_uring_params& p, int event_fd) {
    sq_bytes_ = p.sq_off.array + p.sq_entries * sizeof(unsigned);
    cq_bytes_ = p.cq_off.cqes + p.cq_entries * sizeof(io_uring_cqe);
    sqes_bytes_ = p.sq_entries * sizeof(io_uring_sqe);
    const bool single = (p.features & IORING_FEAT_SINGLE_MMAP) != 0;
    if (single) sq_bytes_ = cq_bytes_ = sq_bytes_ > cq_bytes_ ? sq_bytes_ : cq_bytes_;
    const int protection = PROT_READ | PROT_WRITE;
    const int flags = MAP_SHARED | MAP_POPULATE;
    sq_ = mmap(nullptr, sq_bytes_, protection, flags, ring_, IORING_OFF_SQ_RING);
    if (sq_ == MAP_FAILED) return errno;
    cq_ = single ? sq_ : mmap(nullptr, cq_bytes_, protection, flags, ring_, IORING_OFF_CQ_RING);
    if (cq_ == MAP_FAILED) return errno;
    sqes_ = mmap(nullptr, sqes_bytes_, protection, flags, ring_, IORING_OFF_SQES);
    if (sqes_ == MAP_FAILED) return errno;
    auto at = [](void* base, unsigned offset) {
      return reinterpret_cast<unsigned*>(static_cast<char*>(base) + offset);
    };
    sq_tail_ = at(sq_, p.sq_off.tail);
    sq_mask_ = at(sq_, p.sq_off.ring_mask);
    sq_array_ = at(sq_, p.sq_off.array);
    cq_head_ = at(cq_, p.cq_off.head);
    cq_tail_ = at(cq_, p.cq_off.tail);
    cq_mask_ = at(cq_, p.cq_off.ring_mask);
    cqes_ = reinterpret_cast<io_uring_cqe*>(static_cast<char*>(cq_) + p.cq_off.cqes);
    if (syscall(__NR_io_uring_register, ring_, IORING_REGISTER_EVENTFD, &event_fd, 1) != 0) return errno;
    return 0;
  }

  void Wait() {
    int64_t ignored;
    while (!Reap(&ignored)) {
      const long n = syscall(__NR_io_uring_enter, ring_, 0, 1, IORING_ENTER_GETEVENTS, nullptr, 0);
      if (n < 0 && errno != EINTR) return;  // the ring is unusable: its close cancels the write
    }
  }

  const int ring_;
  void* sq_ = MAP_FAILED;
  void* cq_ = MAP_FAILED;
  void* sqes_ = MAP_FAILED;
  size_t sq_bytes_ = 0, cq_bytes_ = 0, sqes_bytes_ = 0;
  unsigned *sq_tail_ = nullptr, *sq_mask_ = nullptr, *sq_array_ = nullptr;
  unsigned *cq_head_ = nullptr, *cq_tail_ = nullptr, *cq_mask_ = nullptr;
  io_uring_cqe* cqes_ = nullptr;
  iovec iovec_{};
  bool in_flight_ = false;
};

// ------------------------------------------------------------------------------------------------------- Linux AIO

class AioLogWriter final : public LogWriter {
 public:
  static std::unique_ptr<LogWriter> Open(int event_fd, int* error) {
    aio_context_t context = 0;
    if (syscall(__NR_io_setup, 1, &context) != 0) {
      *error = errno;  // EAGAIN: fs.aio-max-nr reached; ENOSYS, EPERM: not offered
      return nullptr;
    }
    return std::unique_ptr<LogWriter>(new AioLogWriter(context, event_fd));
  }

  ~AioLogWriter() override {
    if (in_flight_) {
      io_event event;
      while (syscall(__NR_io_getevents, context_, 1, 1, &event, nullptr) < 0 && errno == EINTR) continue;
    }
    syscall(__NR_io_destroy, context_);
  }

  int Submit(const LogWrite& write) override {
    assert(!in_flight_);
    iocb control{};
    control.aio_lio_opcode = IOCB_CMD_PWRITE;
    control.aio_fildes = static_cast<uint32_t>(write.fd);
    control.aio_buf = reinterpret_cast<uint64_t>(write.data);
    control.aio_nbytes = write.bytes;
    control.aio_offset = static_cast<int64_t>(write.offset);
    control.aio_flags = IOCB_FLAG_RESFD;
    control.aio_resfd = static_cast<uint32_t>(event_fd_);
    control.aio_rw_flags = RWF_DSYNC;
    iocb* list[] = {&control};
    for (;;) {
      const long n = syscall(__NR_io_submit, context_, 1, list);
      if (n == 1) break;
      if (n < 0 && errno == EINTR) continue;
      return n < 0 ? -errno : -EAGAIN;
    }
    in_flight_ = true;
    return 0;
  }

  bool Reap(int64_t* result) override {
    if (!in_flight_) return false;
    io_event event;
    timespec none{0, 0};
    const long n = syscall(__NR_io_getevents, context_, 0, 1, &event, &none);
    if (n != 1) return false;
    *result = event.res;
    in_flight_ = false;
    return true;
  }

  LogWriteMethod method() const override { return LogWriteMethod::kAio; }

 private:
  AioLogWriter(aio_context_t context, int event_fd) : context_(context), event_fd_(event_fd) {}

  const aio_context_t context_;
  const int event_fd_;
  bool in_flight_ = false;
};

// --------------------------------------------------------------------------------------------------------- thread

// One thread that blocks in pwritev2. The destructor joins it: a thread asleep on a condition variable would hang the
// exit of the process.
class ThreadLogWriter final : public LogWriter {
 public:
  static std::unique_ptr<LogWriter> Open(int event_fd, int* error) {
    std::unique_ptr<ThreadLogWriter> writer(new ThreadLogWriter(event_fd));
    // The thread takes no signals: they are the event loop's.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      writer->thread_ = std::thread([w = writer.get()] { w->Run(); });
    } catch (const std::system_error& failure) {
      *error = failure.code().value();
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (!writer->thread_.joinable()) return nullptr;
    return writer;
  }

  ~ThreadLogWriter() override {
    if (!thread_.joinable()) return;
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();  // after the write in flight
  }

  int Submit(const LogWrite& write) override {
    assert(!in_flight_);
    in_flight_ = true;
    {
      std::lock_guard lock(mutex_);
      write_ = write;
      has_write_ = true;
    }
    wake_.notify_one();
    return 0;
  }

  bool Reap(int64_t* result) override {
    if (!in_flight_) return false;
    std::lock_guard lock(mutex_);
    if (!has_result_) return false;
    *result = result_;
    has_result_ = false;
    in_flight_ = false;
    return true;
  }

  LogWriteMethod method() const override { return LogWriteMethod::kThread; }

 private:
  explicit ThreadLogWriter(int event_fd) : event_fd_(event_fd) {}

  void Run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return has_write_ || stop_; });
      if (!has_write_) return;
      const LogWrite write = write_;
      has_write_ = false;
      lock.unlock();
      const int64_t result = Write(write);
      lock.lock();
      result_ = result;
      has_result_ = true;
      const uint64_t one = 1;
      const ssize_t wrote = ::write(event_fd_, &one, sizeof one);
      (void)wrote;  // EAGAIN only at a count of 2^64 - 1, which is readable too
    }
  }

  int64_t Write(const LogWrite& write) {
    size_t done = 0;
    while (done < write.bytes) {
      iovec vector{const_cast<char*>(static_cast<const char*>(write.data)) + done, write.bytes - done};
      const off_t offset = static_cast<off_t>(write.offset + done);
      ssize_t n;
      if (has_dsync_) {
        n = pwritev2(write.fd, &vector, 1, offset, RWF_DSYNC);
        if (n < 0 && (errno == EOPNOTSUPP || errno == ENOSYS)) {  // kernels before 4.7
          has_dsync_ = false;
          continue;
        }
      } else {
        n = pwritev(write.fd, &vector, 1, offset);
      }
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return done > 0 ? static_cast<int64_t>(done) : -errno;
      if (n == 0) break;
      done += static_cast<size_t>(n);
    }
    if (!has_dsync_ && fdatasync(write.fd) != 0) return -errno;
    return static_cast<int64_t>(done);
  }

  const int event_fd_;
  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable wake_;
  LogWrite write_{};         // under mutex_, as the four below
  bool has_write_ = false;
  bool stop_ = false;
  bool has_result_ = false;
  int64_t result_ = 0;
  bool has_dsync_ = true;    // the thread's
  bool in_flight_ = false;   // the owner's
};

constexpr size_t kBlockBytes = 4096;
constexpr int kProbeTimeoutMs = 5000;

bool IsTransient(int64_t result) {
  // An asynchronous method gives up where it would have to block or its helper was interrupted.
  return result == -EAGAIN || result == -EINTR || result == -ECANCELED;
}

}  // namespace

const char* LogWriteMethodName(LogWriteMethod method) {
  switch (method) {
    case LogWriteMethod::kIoUring:
      return "io_uring";
    case LogWriteMethod::kAio:
      return "aio";
    case LogWriteMethod::kThread:
      return "thread";
  }
  return "";
}

std::unique_ptr<LogWriter> OpenLogWriter(LogWriteMethod method, int event_fd, int* error) {
  *error = 0;
  switch (method) {
    case LogWriteMethod::kIoUring:
      return IoUringLogWriter::Open(event_fd, error);
    case LogWriteMethod::kAio:
      return AioLogWriter::Open(event_fd, error);
    case LogWriteMethod::kThread:
      return ThreadLogWriter::Open(event_fd, error);
  }
  return nullptr;
}

int64_t WriteAndWait(LogWriter& writer, int event_fd, const LogWrite& write, int timeout_ms) {
  const int refused = writer.Submit(write);
  if (refused != 0) return refused;
  int64_t result;
  while (!writer.Reap(&result))
    if (!WaitForEvent(event_fd, timeout_ms)) return -ETIMEDOUT;
  WaitForEvent(event_fd, 0);  // what the write added, if Reap was faster
  return result;
}

// -------------------------------------------------------------------------------------------------------- chooser

void LogWriteChooser::Observe(double latency_us) {
  average_us_ = writes_ == 0 ? latency_us : average_us_ + (latency_us - average_us_) / 8;
  writes_++;
  switch (state_) {
    case State::kWatching:
      if (writes_ < kTrialWrites || average_us_ < kSlowUs) return;
      previous_us_ = average_us_;
      use_thread_ = !use_thread_;
      state_ = State::kTrying;
      break;
    case State::kTrying:
      if (writes_ < kTrialWrites) return;
      // A change must be worth it: a loop that is busy itself makes both methods look slow.
      if (average_us_ > previous_us_ / 2) use_thread_ = !use_thread_;
      state_ = State::kHolding;
      break;
    case State::kHolding:
      if (writes_ < kHoldWrites) return;
      // Whatever made the asynchronous method slow may be over: it gets another chance.
      use_thread_ = false;
      state_ = State::kWatching;
      break;
  }
  writes_ = 0;
}

// ------------------------------------------------------------------------------------------------------- adaptive

std::unique_ptr<AdaptiveLogWriter> AdaptiveLogWriter::Probe(int event_fd, int probe_fd, bool direct, const void* block,
                                                            const LogWriteMethod* forced, int* error) {
  for (const LogWriteMethod method : {LogWriteMethod::kIoUring, LogWriteMethod::kAio, LogWriteMethod::kThread}) {
    if (forced != nullptr ? *forced != method : method == LogWriteMethod::kAio && !direct) continue;
    int refused = 0;
    std::unique_ptr<LogWriter> writer = OpenLogWriter(method, event_fd, &refused);
    if (writer == nullptr) {
      *error = refused;
      continue;
    }
    const int64_t result = WriteAndWait(*writer, event_fd, {probe_fd, block, kBlockBytes, 0}, kProbeTimeoutMs);
    if (result == static_cast<int64_t>(kBlockBytes))
      return std::unique_ptr<AdaptiveLogWriter>(new AdaptiveLogWriter(event_fd, std::move(writer), forced != nullptr));
    *error = result < 0 ? static_cast<int>(-result) : EIO;
  }
  return nullptr;
}

AdaptiveLogWriter::AdaptiveLogWriter(int event_fd, std::unique_ptr<LogWriter> primary, bool forced)
    : event_fd_(event_fd), primary_(std::move(primary)), forced_(forced) {}

AdaptiveLogWriter::~AdaptiveLogWriter() = default;  // each of the two waits for its write

LogWriter* AdaptiveLogWriter::Thread() {
  if (primary_->method() == LogWriteMethod::kThread) return primary_.get();
  if (thread_ == nullptr) {
    int ignored;
    thread_ = OpenLogWriter(LogWriteMethod::kThread, event_fd_, &ignored);
  }
  return thread_.get();
}

int AdaptiveLogWriter::Submit(const LogWrite& write) {
  assert(busy_ == nullptr);
  const bool wants_thread = !forced_ && chooser_.use_thread() && Thread() != nullptr;
  LogWriter* writer = wants_thread ? Thread() : primary_.get();
  started_ns_ = NowNs();
  chosen_ = wants_thread == chooser_.use_thread();
  int refused = writer->Submit(write);
  if (refused != 0 && writer->method() != LogWriteMethod::kThread && Thread() != nullptr) {
    writer = Thread();
    chosen_ = false;
    refused = writer->Submit(write);
  }
  if (refused != 0) return refused;
  write_ = write;
  busy_ = writer;
  return 0;
}

bool AdaptiveLogWriter::Reap(int64_t* result) {
  if (busy_ == nullptr || !busy_->Reap(result)) return false;
  if (IsTransient(*result) && busy_->method() != LogWriteMethod::kThread && Thread() != nullptr) {
    chosen_ = false;
    if (Thread()->Submit(write_) == 0) {
      busy_ = Thread();
      return false;
    }
  }
  busy_ = nullptr;
  const bool watched = chosen_ && !forced_ && primary_->method() != LogWriteMethod::kThread;
  if (watched && write_.bytes <= LogWriteChooser::kWatchedBytesMax)
    chooser_.Observe(static_cast<double>(NowNs() - started_ns_) / 1000);
  return true;
}

void AdaptiveLogWriter::Drain() {
  int64_t ignored;
  while (busy_ != nullptr && !Reap(&ignored)) WaitForEvent(event_fd_, 1000);
}
