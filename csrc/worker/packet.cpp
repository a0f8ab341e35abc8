#include "worker/packet.h"

namespace hotset {
namespace {

void store_word(Word* word, uint32_t data, uint32_t number) {
  std::atomic_ref<Word>(*word).store(Word{number} << 32 | data, std::memory_order_relaxed);
}

}  // namespace

void write_words(const float* x, Word* words, int64_t count, uint32_t number) {
  for (int64_t i = 0; i < count; ++i) store_word(words + i, std::bit_cast<uint32_t>(x[i]), number);
}

void release_words(Word* words, int64_t count, uint32_t number) {
  for (int64_t i = 0; i < count; ++i) store_word(words + i, 0, number);
}

void await_words(const Word* words, int64_t count, uint32_t number) {
  for (int64_t i = 0; i < count; ++i) {
    wait_politely([&] { return number_of(load_word(words + i)) == number; }, [](auto) { return false; });
  }
}

}  // namespace hotset
