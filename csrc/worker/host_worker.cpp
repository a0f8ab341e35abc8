#include "worker/host_worker.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <stdexcept>
#include <utility>

#include "runtime/pause.h"
#include "runtime/thread_pool.h"

namespace hotset {
namespace {

using Clock = std::chrono::steady_clock;

// A flag is looked at without a break for longer than a layer usually takes, then in turn with other threads,
// then, when the device must be busy with something else, now and then.
constexpr auto kSpinTime = std::chrono::milliseconds(2);
constexpr auto kYieldTime = std::chrono::milliseconds(20);
constexpr auto kSleepTime = std::chrono::microseconds(100);
constexpr int kSpinsPerLook = 32;  // between looks at the clock

// Waits until `ready()` holds, in which case it returns true, or `over(time waited)` does.
template <class Ready, class Over>
bool wait_politely(const Ready& ready, const Over& over) {
  const auto start = Clock::now();
  for (;;) {
    for (int i = 0; i < kSpinsPerLook; ++i) {
      if (ready()) return true;
      pause();
    }
    const auto waited = Clock::now() - start;
    if (over(waited)) return ready();
    if (waited > kYieldTime) {
      std::this_thread::sleep_for(kSleepTime);
    } else if (waited > kSpinTime) {
      std::this_thread::yield();
    }
  }
}

}  // namespace

bool take_flag(uint32_t* flag, double seconds) {
  const std::chrono::duration<double> most(seconds);
  const bool raised =
      wait_politely([&] { return read_flag(flag) != 0; }, [&](auto waited) { return waited >= most; });
  if (raised) set_flag(flag, 0);
  return raised;
}

void HostWorker::add_task(uint32_t* ready, uint32_t* done) { tasks_.push_back({ready, done, {}}); }

void HostWorker::add_work(Work work) { tasks_.at(tasks_.size() - 1).work.push_back(std::move(work)); }

void HostWorker::use(ThreadPool* pool) {
  if (std::find(pools_.begin(), pools_.end(), pool) == pools_.end()) pools_.push_back(pool);
}

void HostWorker::begin(std::shared_ptr<const Batch> batch) {
  const std::lock_guard lock(mutex_);
  const uint64_t begun = begun_.load();
  if (ended_.load(std::memory_order_acquire) != begun) throw std::logic_error("a step is running");
  batch_ = std::move(batch);
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

void HostWorker::lower_flags() {
  for (const Task& task : tasks_) {
    set_flag(task.ready, 0);
    set_flag(task.done, 0);
  }
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
      if (!await_ready(tasks_[i].ready)) throw std::runtime_error("it was stopped in mid-step");
      for (const Work& work : tasks_[i].work) work(batch_.get());
      set_flag(tasks_[i].done, 1);
    }
  } catch (const std::exception& error) {
    error_ = error.what();
    for (; i < tasks_.size(); ++i) set_flag(tasks_[i].done, 1);
  }
}

bool HostWorker::await_ready(uint32_t* ready) const {
  const auto aborted = [&] { return abort_.load(std::memory_order_relaxed); };
  wait_politely([&] { return read_flag(ready) != 0 || aborted(); }, [](auto) { return false; });
  if (aborted()) return false;
  set_flag(ready, 0);
  return true;
}

}  // namespace hotset
