// The host's part of a decoding step, on a thread of its own, in step with a device.
//
// A step is a list of tasks, always the same, whatever the batch. A task takes packets (worker/packet.h) that
// the device writes, does its work, and answers with another, which the device waits for. The step's number,
// that all of its packets carry, is all that changes from one step to the next, so that a device can replay
// its side. When a task fails, or the step is given up, the worker answers whatever is left without data:
// nobody waits forever.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "worker/packet.h"

namespace hotset {

class Batch;
class ThreadPool;

class HostWorker {
 public:
  // Work on a step's input; `batch` is what begin() was given. It may throw std::exception.
  using Work = std::function<void(const Batch* batch)>;

  // Words of a step's rows, `width` of each. With `cutoffs`, of rows `stride` apart, only the first `head` of
  // a row whose cut-off is a number are taken, and only the others of one whose cut-off is NaN.
  struct Take {
    const Word* words;
    float* to;
    int64_t width;
    int64_t head = 0;
    const float* cutoffs = nullptr;
    int64_t stride = 0;
    // The head's words are bits, and of the others behind each so many of its 32 are taken, too, as it has
    // bits; they are put where the bits are.
    bool values = false;
    bool scores = true;  // false: of a row whose cut-off is NaN nothing is taken
  };

  HostWorker() = default;
  ~HostWorker() { stop(); }
  HostWorker(const HostWorker&) = delete;
  HostWorker& operator=(const HostWorker&) = delete;

  // Tasks in the order of a step. All memory belongs to the caller. Not during a step.
  void add_task() { tasks_.emplace_back(); }
  // To the last task: what it takes, rows of `width` words; then its work; then its answer.
  void add_take(const Word* words, float* to, int64_t width) { add_take({words, to, width}); }
  void add_take(const Take& take) { tasks_.at(tasks_.size() - 1).takes.push_back(take); }
  void add_work(Work work);
  void add_answer(const float* from, Word* words, int64_t width);

  // What begin() does itself, before the device can know of the step.
  void add_preparation(Work work) { preparations_.push_back(std::move(work)); }

  // Whether a packet of the present step begins to arrive there; for work.
  bool comes(const Word* words) const { return number_of(load_word(words)) == number_; }

  // Keeps a pool that work runs on awake during steps. Work keeps it alive.
  void use(ThreadPool* pool);

  // Starts a step of a batch of so many rows, whose sequences must live until its end. Its number is that of
  // no step before. Throws std::logic_error while one runs, std::system_error where the system refuses the
  // thread, which runs from the first step on and sleeps between steps.
  void begin(std::shared_ptr<const Batch> batch, int64_t rows, uint32_t number);

  // Waits for the end of the step, if one runs. Returns why it failed; empty if it did not.
  const std::string& finish();

  // Gives up the step, if one runs: after the work in hand, nothing more is done.
  void abort();

  // Ends the thread, giving up the step; the next step starts another.
  void stop();

 private:
  struct Answer {
    const float* from;
    Word* words;
    int64_t width;
  };
  struct Task {
    std::vector<Take> takes;
    std::vector<Work> work;
    std::vector<Answer> answers;
  };

  void run(uint64_t seen);
  void walk();
  void take(const Task& task) const;
  void take(const Take& take) const;
  void take_values(const Take& take, int64_t row) const;
  bool take(const Take& take, int64_t first, int64_t count) const;

  std::vector<Task> tasks_;
  std::vector<Work> preparations_;
  std::vector<ThreadPool*> pools_;
  // Of the step that runs.
  std::shared_ptr<const Batch> batch_;
  int64_t rows_ = 0;
  uint32_t number_ = 0;
  std::string error_;  // written by the thread during a step only

  std::mutex mutex_;  // of begin() and stop()
  std::thread thread_;
  std::atomic<uint64_t> begun_{0}, ended_{0};
  std::atomic<bool> abort_{false}, stop_{false};
};

}  // namespace hotset
