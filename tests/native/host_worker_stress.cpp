// The hand-shake of a device, here a thread, with the host worker: every step's sums must be right although
// both sides fall behind now and then, the device's words arrive in any order, tasks fail, and steps are
// given up in the middle.
//
// host_worker_stress steps N | failures N | interruptions N; prints what went wrong: 0 for nothing.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "worker/host_worker.h"

using namespace hotset;

namespace {

constexpr int kTasks = 6;
constexpr int kNumbers = 100;

struct Slot {
  alignas(64) Word asked[kNumbers] = {}, answered[kNumbers] = {};
  float input[kNumbers] = {}, output[kNumbers] = {};  // the host's own
};

void dawdle(std::minstd_rand& random) {
  const auto draw = random() % 100;
  if (draw < 3) std::this_thread::sleep_for(std::chrono::microseconds(draw * 100));
  if (draw > 90) std::this_thread::yield();
}

struct Model {
  Slot slots[kTasks];
  std::minstd_rand random{7};
  int fail_at = -1;
  uint32_t number = 0;
  std::vector<int> order = std::vector<int>(kNumbers);
  HostWorker worker;

  Model() {
    std::iota(order.begin(), order.end(), 0);
    for (int task = 0; task < kTasks; ++task) {
      Slot& slot = slots[task];
      worker.add_task();
      worker.add_take(slot.asked, slot.input, kNumbers);
      worker.add_work([this, task](const Batch*) {
        dawdle(random);
        if (task == fail_at) throw std::runtime_error("as told");
      });
      worker.add_work([this, task](const Batch*) {
        Slot& slot = slots[task];
        for (int i = 0; i < kNumbers; ++i) slot.output[i] = slot.input[i] + static_cast<float>(task);
      });
      worker.add_answer(slot.output, slot.answered, kNumbers);
    }
  }

  void begin() { worker.begin({}, 1, ++number); }

  // Words in any order.
  void send(Slot& slot, std::minstd_rand& device) {
    std::shuffle(order.begin(), order.end(), device);
    for (const int i : order) {
      const auto x = static_cast<float>(number % 1000 + static_cast<uint32_t>(i));
      write_words(&x, slot.asked + i, 1, number);
      if (device() % 500 == 0) dawdle(device);
    }
  }

  // The device's side, up to `most` tasks; returns how many numbers were wrong.
  int stream(int most, std::minstd_rand& device) {
    int wrong = 0;
    for (int task = 0; task < most; ++task) {
      send(slots[task], device);
      dawdle(device);
      float answer[kNumbers];
      const auto late = [](auto waited) { return waited > std::chrono::seconds(20); };
      if (!take_words(slots[task].answered, kNumbers, number, answer, late)) return -1;
      for (int i = 0; i < kNumbers; ++i) {
        wrong += answer[i] != static_cast<float>(number % 1000 + static_cast<uint32_t>(i + task));
      }
    }
    return wrong;
  }
};

int steps(int count) {
  Model model;
  std::minstd_rand device{3};
  int wrong = 0;
  for (int step = 0; step < count; ++step) {
    model.begin();
    wrong += model.stream(kTasks, device) != 0;
    wrong += !model.worker.finish().empty();
  }
  return wrong;
}

// Every other step fails somewhere: the device gets through, the error is told, and the next step is right.
int failures(int count) {
  Model model;
  std::minstd_rand device{3};
  int wrong = 0;
  for (int step = 0; step < count; ++step) {
    model.fail_at = step % 2 == 0 ? step / 2 % kTasks : -1;
    model.begin();
    const int numbers = model.stream(kTasks, device);
    const std::string error = model.worker.finish();
    if (model.fail_at >= 0) {
      wrong += numbers < 0 || error != "as told";
    } else {
      wrong += numbers != 0 || !error.empty();
    }
  }
  return wrong;
}

// Steps that the device leaves in the middle, worker threads that end in them, and whole steps in between.
int interruptions(int count) {
  Model model;
  std::minstd_rand device{3};
  int wrong = 0;
  for (int step = 0; step < count; ++step) {
    model.begin();
    wrong += model.stream(step % (kTasks + 1), device) != 0;
    if (step % 3 == 0) {
      model.send(model.slots[step % kTasks], device);  // and nobody comes for the answer
    }
    if (step % 4 == 0) {
      model.worker.stop();
    } else {
      model.worker.abort();
    }
    model.begin();
    wrong += model.stream(kTasks, device) != 0;
    wrong += !model.worker.finish().empty();
  }
  return wrong;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const int count = std::atoi(argv[2]);
  int (*const test)(int) = !std::strcmp(argv[1], "steps")      ? steps
                           : !std::strcmp(argv[1], "failures") ? failures
                                                               : interruptions;
  std::printf("%d\n", test(count));
}
