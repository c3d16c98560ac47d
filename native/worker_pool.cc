// See worker_pool.h.
#include "worker_pool.h"

#include <chrono>
#include <iterator>
#include <system_error>

static constexpr std::chrono::seconds kIdleMax{10};

bool WorkerPool::Submit(std::function<void()> job) {
  std::unique_lock lock(mutex_);
  if (stopping_) return false;
  JoinEnded(&lock);
  jobs_.push_back(std::move(job));
  if (idle_ >= jobs_.size()) {
    wakes_.notify_one();
    return true;
  }
  if (threads_.size() >= threads_max_) return true;
  threads_.emplace_back();
  const auto self = std::prev(threads_.end());
  try {
    // Under the lock: the thread waits for it before it looks at its own place in the list.
    *self = std::thread([this, self] { Work(self); });
  } catch (const std::system_error&) {
    threads_.erase(self);
    if (!threads_.empty()) return true;  // it waits for one of those
    jobs_.pop_back();
    return false;
  }
  return true;
}

void WorkerPool::Work(std::list<std::thread>::iterator self) {
  std::unique_lock lock(mutex_);
  for (;;) {
    while (jobs_.empty() && !stopping_) {
      idle_++;
      const auto woken = wakes_.wait_for(lock, kIdleMax);
      idle_--;
      if (woken == std::cv_status::timeout && jobs_.empty() && !stopping_) {
        ended_.splice(ended_.end(), threads_, self);
        return;
      }
    }
    if (stopping_) return;
    std::function<void()> job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    job();
    job = nullptr;
    lock.lock();
  }
}

void WorkerPool::JoinEnded(std::unique_lock<std::mutex>* lock) {
  std::list<std::thread> ended;
  ended.swap(ended_);
  if (ended.empty()) return;
  lock->unlock();
  for (std::thread& thread : ended) thread.join();
  lock->lock();
}

void WorkerPool::Stop() {
  std::unique_lock lock(mutex_);
  stopping_ = true;
  jobs_.clear();
  wakes_.notify_all();
  std::list<std::thread> threads;
  threads.swap(threads_);
  threads.splice(threads.end(), ended_);
  lock.unlock();
  for (std::thread& thread : threads) thread.join();
}
