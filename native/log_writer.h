// Durable writes of the log that do not block the caller: io_uring, else Linux AIO, else a thread that blocks.
// Knows descriptors, offsets and bytes; does not know segments, Node-API or libuv.
//
// A write is durable when its result is there: every method writes with RWF_DSYNC (disk-format §10: an append is
// acknowledged after an O_DSYNC block write). One write is in flight per writer, because two or four gain nothing on a
// disk and would allow a later write to survive a crash that an earlier one did not.
//
// Threads: all functions are called from one thread, the owner's (the event loop). The kernel, or the writer's own
// thread, tells the end of a write by adding to the eventfd; the owner polls it and calls Reap.
// Memory: the bytes of a write belong to the caller and stay untouched until Reap returned true.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

enum class LogWriteMethod { kIoUring, kAio, kThread };

const char* LogWriteMethodName(LogWriteMethod method);

struct LogWrite {
  int fd;
  const void* data;
  size_t bytes;
  uint64_t offset;
};

class LogWriter {
 public:
  // Waits for the write in flight (its result is lost), then frees everything but the eventfd, which is the owner's.
  virtual ~LogWriter() = default;
  // Starts a write; none may be in flight. 0, or -errno when the write was not started.
  virtual int Submit(const LogWrite& write) = 0;
  // True: the write in flight has ended with *result bytes written, or -errno. False: not yet.
  virtual bool Reap(int64_t* result) = 0;
  virtual LogWriteMethod method() const = 0;
};

// nullptr with *error = errno when this machine or container does not offer the method. `event_fd`: non-blocking.
std::unique_ptr<LogWriter> OpenLogWriter(LogWriteMethod method, int event_fd, int* error);

// Blocks until the write has ended or `timeout_ms` passed (-ETIMEDOUT; the write is still in flight then).
// For the probe and for tests.
int64_t WriteAndWait(LogWriter& writer, int event_fd, const LogWrite& write, int timeout_ms);

// Decides between an asynchronous method and the thread by the latencies it is told. io_uring and AIO complete a
// synchronous direct write through a kernel worker that does not get its turn while user code saturates the processors:
// 80 µs become 4 ms, and a blocking thread does not suffer. Pure; counts writes, not time, except to hold a decision.
class LogWriteChooser {
 public:
  // True: the next write goes to the thread.
  bool use_thread() const { return use_thread_; }
  // A write of at most kWatchedBytesMax ended after `latency_us` on the method that use_thread() named.
  void Observe(double latency_us);

  static constexpr size_t kWatchedBytesMax = 64 * 1024;
  static constexpr double kSlowUs = 1000;
  static constexpr int kTrialWrites = 16;
  static constexpr int kHoldWrites = 4096;

 private:
  enum class State { kWatching, kTrying, kHolding };
  State state_ = State::kWatching;
  bool use_thread_ = false;
  int writes_ = 0;           // since the state was entered
  double average_us_ = 0;    // of the state's writes, moving
  double previous_us_ = 0;   // the other method's average when the trial began
};

// What the addon uses: the best method that a trial write to `probe_fd` proved, with the thread beside it as the way out
// when a submission is refused or the latency calls for it. `direct`: the descriptors are O_DIRECT; without it AIO would
// block in the submission and is left out. `forced`: only this method, and no switching.
class AdaptiveLogWriter final : public LogWriter {
 public:
  // nullptr with *error when no method works (or the forced one does not). `block` are 4096 aligned bytes to write.
  static std::unique_ptr<AdaptiveLogWriter> Probe(int event_fd, int probe_fd, bool direct, const void* block,
                                                  const LogWriteMethod* forced, int* error);
  ~AdaptiveLogWriter() override;
  int Submit(const LogWrite& write) override;
  bool Reap(int64_t* result) override;
  LogWriteMethod method() const override { return primary_->method(); }
  // Blocks until no write is in flight.
  void Drain();

 private:
  AdaptiveLogWriter(int event_fd, std::unique_ptr<LogWriter> primary, bool forced);
  LogWriter* Thread();  // opened when first needed; nullptr when there is none to be had

  const int event_fd_;
  const std::unique_ptr<LogWriter> primary_;
  std::unique_ptr<LogWriter> thread_;
  const bool forced_;
  LogWriteChooser chooser_;
  LogWriter* busy_ = nullptr;  // who has the write in flight
  LogWrite write_{};
  uint64_t started_ns_ = 0;
  bool chosen_ = false;  // the write in flight went where the chooser wanted it
};
