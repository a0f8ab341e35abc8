// The host's part of a decoding step, on a thread of its own, in step with a device.
//
// A step is a list of tasks, always the same, whatever the batch. A task belongs to two flags in memory that
// the device can reach: the device raises `ready` when the task's input has arrived, the worker lowers it,
// does the work and raises `done`, which the device waits for and lowers. All are constants, so that a device
// can replay its side. When a task fails, or the step is given up, the worker raises every `done` that is
// left: nobody waits for ever.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace hotset {

class Batch;
class ThreadPool;

// Flags are 0 (low) or 1 (raised). What was written before one is raised is seen by whoever sees it raised.
inline void set_flag(uint32_t* flag, uint32_t value) { __atomic_store_n(flag, value, __ATOMIC_RELEASE); }
inline uint32_t read_flag(const uint32_t* flag) { return __atomic_load_n(flag, __ATOMIC_ACQUIRE); }

// Waits until the flag is raised and lowers it, or returns false after so many seconds.
bool take_flag(uint32_t* flag, double seconds);

class HostWorker {
 public:
  // Work on a step's input; `batch` is what begin() was given. It may throw std::exception.
  using Work = std::function<void(const Batch* batch)>;

  HostWorker() = default;
  ~HostWorker() { stop(); }
  HostWorker(const HostWorker&) = delete;
  HostWorker& operator=(const HostWorker&) = delete;

  // Tasks in the order of a step. Flags and whatever work reads belong to the caller. Not during a step.
  void add_task(uint32_t* ready, uint32_t* done);
  void add_work(Work work);  // to the last task

  // Keeps a pool that work runs on awake during steps. Work keeps it alive.
  void use(ThreadPool* pool);

  // Starts a step of a batch, whose sequences must live until its end: all flags are low. Throws
  // std::logic_error while one runs, std::system_error where the system refuses the thread, which runs from
  // the first step on and sleeps between steps.
  void begin(std::shared_ptr<const Batch> batch);

  // Waits for the end of the step, if one runs. Returns why it failed; empty if it did not.
  const std::string& finish();

  // Gives up the step, if one runs: after the work in hand, nothing more is done.
  void abort();

  // Lowers all flags. For when neither side uses them any more.
  void lower_flags();

  // Ends the thread, giving up the step; the next step starts another.
  void stop();

 private:
  struct Task {
    uint32_t *ready, *done;
    std::vector<Work> work;
  };

  void run(uint64_t seen);
  void walk();
  bool await_ready(uint32_t* ready) const;

  std::vector<Task> tasks_;
  std::vector<ThreadPool*> pools_;
  std::shared_ptr<const Batch> batch_;  // of the step that runs
  std::string error_;                   // written by the thread during a step only

  std::mutex mutex_;  // of begin() and stop()
  std::thread thread_;
  std::atomic<uint64_t> begun_{0}, ended_{0};
  std::atomic<bool> abort_{false}, stop_{false};
};

}  // namespace hotset
