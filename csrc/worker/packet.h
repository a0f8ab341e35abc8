// Packets: numbers on their way between the host and a device, in memory that both reach.
//
// Each word of 8 bytes, which is written at once, holds 32 bits of data and, above them, the number of the
// step that they belong to. A reader looks at a word until it has the number that it waits for. So nothing
// depends on the order in which stores arrive, there are no flags, and nothing is ever lowered. A packet has
// one writer, and is written again only in the next step, when its reader has provably gone on. Numbers are
// not 0.
#pragma once

#include <atomic>
#include <bit>
#include <chrono>
#include <cstdint>
#include <thread>

#include "runtime/pause.h"

namespace hotset {

using Word = uint64_t;

// What a word holds now. In order with nothing else, as all that belongs together is in it.
inline Word load_word(const Word* word) {
  return std::atomic_ref<Word>(*const_cast<Word*>(word)).load(std::memory_order_relaxed);
}
inline uint32_t number_of(Word word) { return static_cast<uint32_t>(word >> 32); }

// Tells the reader of so many words their data.
void write_words(const float* x, Word* words, int64_t count, uint32_t number);

// The same without data: whoever waits for them need wait no longer.
void release_words(Word* words, int64_t count, uint32_t number);

// A memory place is looked at without a break for longer than a layer usually takes, then in turn with other
// threads, then, when the other side must be busy with something else, now and then. Returns whether
// `ready()` came to hold before `over(time waited)` did.
template <class Ready, class Over>
bool wait_politely(const Ready& ready, const Over& over) {
  using namespace std::chrono_literals;
  constexpr int kSpinsPerLook = 32;  // between looks at the clock
  const auto start = std::chrono::steady_clock::now();
  for (;;) {
    for (int i = 0; i < kSpinsPerLook; ++i) {
      if (ready()) return true;
      pause();
    }
    const auto waited = std::chrono::steady_clock::now() - start;
    if (over(waited)) return ready();
    if (waited > 20ms) {
      std::this_thread::sleep_for(100us);
    } else if (waited > 2ms) {
      std::this_thread::yield();
    }
  }
}

// Copies the data of so many words to x, each when it has the number. Returns whether all came before
// `over(time waited for one of them)` held.
template <class Over>
bool take_words(const Word* words, int64_t count, uint32_t number, float* x, const Over& over) {
  for (int64_t i = 0; i < count; ++i) {
    Word word = 0;
    const auto ready = [&] {
      word = load_word(words + i);
      return number_of(word) == number;
    };
    if (!ready() && !wait_politely(ready, over)) return false;
    x[i] = std::bit_cast<float>(static_cast<uint32_t>(word));
  }
  return true;
}

// Waits for as long as it takes.
void await_words(const Word* words, int64_t count, uint32_t number);

}  // namespace hotset
