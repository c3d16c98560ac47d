// Threads for statements that would hold the loop. Elastic: a thread starts when a job waits and none is idle, up to a
// limit; beyond it jobs queue, first come first served. Knows nothing of what a job does. An idle thread ends after a
// while. Not libuv's pool: a long query there would stop file and DNS work of the whole process.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <list>
#include <mutex>
#include <thread>

class WorkerPool {
 public:
  explicit WorkerPool(size_t threads_max) : threads_max_(threads_max) {}
  ~WorkerPool() { Stop(); }
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Loop thread. The queue holds at most one job per connection, and connections are limited.
  // False: no thread can be had, the job is forgotten.
  bool Submit(std::function<void()> job);
  // Waits for running jobs, forgets queued ones, joins every thread. The owner interrupts what runs before. Final.
  void Stop();

 private:
  void Work(std::list<std::thread>::iterator self);
  void JoinEnded(std::unique_lock<std::mutex>* lock);

  const size_t threads_max_;
  std::mutex mutex_;
  std::condition_variable wakes_;
  std::deque<std::function<void()>> jobs_;
  std::list<std::thread> threads_;
  std::list<std::thread> ended_;  // have left Work, not joined yet
  size_t idle_ = 0;
  bool stopping_ = false;
};
