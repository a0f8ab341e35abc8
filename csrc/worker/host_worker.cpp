#include "worker/host_worker.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <exception>
#include <stdexcept>
#include <utility>

#include "runtime/thread_pool.h"

namespace hotset {

void HostWorker::add_work(Work work) { tasks_.at(tasks_.size() - 1).work.push_back(std::move(work)); }

void HostWorker::add_answer(const float* from, Word* words, int64_t width) {
  tasks_.at(tasks_.size() - 1).answers.push_back({from, words, width});
}

void HostWorker::use(ThreadPool* pool) {
  if (std::find(pools_.begin(), pools_.end(), pool) == pools_.end()) pools_.push_back(pool);
}

void HostWorker::begin(std::shared_ptr<const Batch> batch, int64_t rows, uint32_t number) {
  const std::lock_guard lock(mutex_);
  const uint64_t begun = begun_.load();
  if (ended_.load(std::memory_order_acquire) != begun) throw std::logic_error("a step is running");
  for (const Work& work : preparations_) work(batch.get());
  batch_ = std::move(batch);
  rows_ = rows;
  number_ = number;
  error_.clear();
  abort_.store(false);
  if (!thread_.joinable()) thread_ = std::thread([this, begun] { run(begun); });
  begun_.store(begun + 1, std::memory_order_release);
  begun_.notify_all();
}

const std::string& HostWorker::finish() {
  for (;;) {
    const uint64_t ended = ended_.load(std::memory_order_acquire);
    if (ended == begun_.load()) return error_;
    ended_.wait(ended);
  }
}

void HostWorker::abort() {
  abort_.store(true);
  finish();
}

void HostWorker::stop() {
  const std::lock_guard lock(mutex_);
  if (!thread_.joinable()) return;
  abort();
  stop_.store(true);
  begun_.fetch_add(1);
  begun_.notify_all();
  thread_.join();
  stop_.store(false);
}

void HostWorker::run(uint64_t seen) {
  for (;;) {
    begun_.wait(seen);
    ++seen;
    const bool stopped = stop_.load();
    for (ThreadPool* pool : pools_) pool->stay_awake(true);
    if (!stopped) walk();
    for (ThreadPool* pool : pools_) pool->stay_awake(false);
    ended_.store(seen, std::memory_order_release);
    ended_.notify_all();
    if (stopped) return;
  }
}

void HostWorker::walk() {
  size_t i = 0;
  try {
    for (; i < tasks_.size(); ++i) {
      take(tasks_[i]);
      for (const Work& work : tasks_[i].work) work(batch_.get());
      for (const Answer& a : tasks_[i].answers) write_words(a.from, a.words, rows_ * a.width, number_);
    }
  } catch (const std::exception& error) {
    error_ = error.what();
    for (; i < tasks_.size(); ++i) {
      for (const Answer& a : tasks_[i].answers) release_words(a.words, rows_ * a.width, number_);
    }
  }
}

void HostWorker::take(const Task& task) const {
  for (const Take& t : task.takes) take(t);
  if (abort_.load(std::memory_order_relaxed)) throw std::runtime_error("it was stopped in mid-step");
}

bool HostWorker::take(const Take& t, int64_t first, int64_t count) const {
  const auto aborted = [this](auto) { return abort_.load(std::memory_order_relaxed); };
  return take_words(t.words + first, count, number_, t.to + first, aborted);
}

void HostWorker::take(const Take& t) const {
  if (!t.cutoffs) take(t, 0, rows_ * t.width);
  for (int64_t row = 0; t.cutoffs && row < rows_; ++row) {
    const int64_t first = row * t.width;
    if (std::isnan(t.cutoffs[row * t.stride])) {
      if (t.scores) take(t, first + t.head, t.width - t.head);
    } else if (take(t, first, t.head) && t.values) {
      take_values(t, row);
    }
  }
}

void HostWorker::take_values(const Take& t, int64_t row) const {
  for (int64_t word = 0; word < t.head; ++word) {
    const int64_t first = row * t.width + t.head + 32 * word;
    auto bits = std::bit_cast<uint32_t>(t.to[row * t.width + word]);
    const int count = std::popcount(bits);
    if (!take(t, first, count)) return;
    // The last ones first, as their places are behind.
    for (int i = count; i-- > 0;) {
      const int place = 31 - std::countl_zero(bits);
      t.to[first + place] = t.to[first + i];
      bits ^= 1u << place;
    }
  }
}

}  // namespace hotset
